"""The pictures of the live page for the README: a real pool at work, and what happens to it, in a real browser.

Takes two minutes. Writes docs/images/page.png and page-dark.png. The letters are those of the machine's own sans-serif
font, or Inter's where that is installed (Debian's fonts-inter), as it was for those in the repository.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from supervisor.commands.node import PrivateNode  # noqa: E402
from tests import amqp  # noqa: E402
from tests.browser import Tab, chromium, installed  # noqa: E402
from tests.supervision import Supervision, eventually, supervised  # noqa: E402

IMAGES = ROOT / "docs" / "images"
QUEUE = "thumbnails"
SECONDS = 75
"""Of work, so that the charts have something to tell."""
HANDLER = """
import ctypes, faulthandler, time

def resize(task):
    order = task.json()
    time.sleep(order["seconds"])
    if order.get("is_broken"):
        raise ValueError("cannot identify image file: not a PNG, JPEG or WebP")
    if order.get("is_deadly"):
        print("TIFFFillStrip: Read error on strip 0; got 0 bytes, expected 8388608", flush=True)
        faulthandler.disable()  # its stack would show where this machine keeps its files
        ctypes.string_at(0)  # as a C library with a bug does
"""


def publish(url: str, number: int, orders: list[tuple[str, dict[str, object]]]) -> None:
    bodies = [json.dumps({"seconds": random.uniform(0.1, 0.6), **order}) for _, order in orders]
    amqp.publish(url, QUEUE, bodies, ids=[name.format(number + n) for n, (name, _) in enumerate(orders)])


def work(pool: Supervision, url: str, tab: Tab) -> None:
    """Waves of tasks, one that fails for good, one that kills its workers; at the end a worker is killed."""
    begun, number, wave = time.monotonic(), 10_418, 0
    while (elapsed := time.monotonic() - begun) < SECONDS:
        wave += 1
        orders: list[tuple[str, dict[str, object]]] = [("photo-{}.jpg", {})] * random.randint(6, 24)
        if wave == 8:
            orders.append(("scan-{}.png", {"is_broken": True, "seconds": 0.1}))
        if wave == 20:
            orders.insert(0, ("panorama-{}.tiff", {"is_deadly": True, "seconds": 0.3}))
        if wave == 50:
            orders.insert(0, ("album-{}.zip", {"seconds": 120}))
        publish(url, number, orders)
        number += len(orders)
        time.sleep(1.0 if elapsed < SECONDS - 15 else 0.4)
    victim = next(each for each in pool.workers() if (each["message_id"] or "").startswith("photo"))
    os.kill(victim["pid"], signal.SIGKILL)
    tab.sees(lambda tab: any(text.startswith("SIGKILL") for text in tab.texts(".tile[data-hurt] .fate")))
    time.sleep(3)


def main() -> None:
    random.seed(4)
    program = installed()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="workq-screenshots-") as name:
        place = Path(name)
        (place / "images.py").write_text(HANDLER)
        node = PrivateNode(place / "node")
        options = ("--workers", "8", "--retries", "1", "--retry-delay", "1s")
        try:
            node.start()
            with (
                supervised("images:resize", *options, url=node.url, queue=QUEUE, env={"PYTHONPATH": name}) as pool,
                chromium(program, place / "chromium") as browser,
            ):
                tab = Tab(browser, width=1240, height=1240)
                tab.open(pool.ready().health + "/")
                work(pool, node.url, tab)
                tab.run("document.querySelectorAll('.letter details')[0].open = true")
                for scheme, picture in (("light", "page.png"), ("dark", "page-dark.png")):
                    tab.prefer(color_scheme=scheme, reduced_motion="reduce")
                    eventually(lambda scheme=scheme: tab.run(f"matchMedia('(prefers-color-scheme: {scheme})').matches"))
                    (IMAGES / picture).write_bytes(tab.screenshot())
                    print(f"{IMAGES / picture}: {(IMAGES / picture).stat().st_size // 1024} KiB")
                assert not tab.complaints, tab.complaints
        finally:
            node.kill()


if __name__ == "__main__":
    main()
