"""The pictures for the documents: real pools at work and what happens to them, in a real browser and a real terminal.

Takes three minutes. Writes docs/images/page.png, page-dark.png, top.svg, ui.png (`screenshots ui`: only that).
The pages' letters are those of the machine's own sans-serif font, or Inter's where that is installed (Debian's
fonts-inter), as it was for page.png in the repository.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from supervisor.commands.node import LocalNode  # noqa: E402
from tests import amqp  # noqa: E402
from tests.browser import Tab, chromium, installed  # noqa: E402
from tests.supervision import Supervision, eventually, supervised  # noqa: E402
from tests.terminal import Terminal, terminal  # noqa: E402
from tests.ui import ui  # noqa: E402

IMAGES = ROOT / "docs" / "images"
QUEUE = "thumbnails"
NAMES = (
    {"brown": "yellow", "brightbrown": "bright_yellow"}
    | {f"bright{name}": f"bright_{name}" for name in ("black", "red", "green", "blue", "magenta", "cyan", "white")}
    | {name: name for name in ("black", "red", "green", "blue", "magenta", "cyan", "white")}
)
"""pyte's names of the sixteen colours, as rich calls them."""
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


def drawn(shown: Terminal) -> str:
    """The terminal's screen as an SVG."""
    console = Console(width=80, record=True, file=io.StringIO(), legacy_windows=False)
    for row in shown.cells():
        line = Text()
        for cell in row:
            colours = [None if each == "default" else NAMES.get(each, f"#{each}") for each in (cell.fg, cell.bg)]
            line.append(cell.data, Style(color=colours[0], bgcolor=colours[1], bold=cell.bold, reverse=cell.reverse))
        console.print(line, overflow="crop", no_wrap=True)
    svg = console.export_svg(title=f"workq top --queue {QUEUE}", theme=DIMMED_MONOKAI)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of another host; the reader has one


def take_ui(program: str, place: Path, node: LocalNode) -> None:
    """The page of `workq ui`, with two supervisors, and what it has found in the dead-letter queue."""
    sockets = [str(place / f"{name}.sock") for name in (QUEUE, "invoices")]
    environ = {"PYTHONPATH": str(place)}
    options = ("--retries", "0", "--control")
    with (
        supervised(
            "images:resize", "--workers", "2..6", *options, sockets[0], url=node.url, queue=QUEUE, env=environ
        ) as pool,
        supervised(
            "images:resize", "--workers", "2", *options, sockets[1], url=node.url, queue="invoices", env=environ
        ),
        ui("--control", sockets[0], "--control", sockets[1], WORKQ_URL=node.url) as page,
        chromium(program, place / "chromium-ui") as browser,
    ):
        tab = Tab(browser, width=1240, height=1000)
        tab.prefer(color_scheme="light", reduced_motion="reduce")
        tab.go(page.url)
        tab.sees(lambda tab: "running" in tab.text("#word"))
        broken: list[tuple[str, dict[str, object]]] = [("scan-{}.png", {"is_broken": True, "seconds": 0.1})] * 2
        publish(node.url, 10_418, [*broken, ("panorama-{}.tiff", {"is_deadly": True, "seconds": 0.3})])
        for wave in range(45):
            publish(node.url, 10_430 + 9 * wave, [("photo-{}.jpg", {})] * random.randint(4, 9))
            time.sleep(1.0)
        pool.hear("task.quarantined")
        tab.run("$('look').click()")
        tab.sees(lambda tab: len(tab.texts("#found .id")) == 3)
        tab.run("document.querySelector('#found input').click()")
        tab.run("scrollTo(0, 0)")
        (IMAGES / "ui.png").write_bytes(tab.screenshot(whole=True))
        print(f"{IMAGES / 'ui.png'}: {(IMAGES / 'ui.png').stat().st_size // 1024} KiB")
        assert not tab.complaints, tab.complaints


def main() -> None:
    random.seed(4)
    program = installed()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="workq-screenshots-") as name:
        place = Path(name)
        (place / "images.py").write_text(HANDLER)
        node = LocalNode(place / "node")
        options = ("--workers", "8", "--retries", "1", "--retry-delay", "1s", "--control", str(place / "workq.sock"))
        try:
            node.start()
            take_ui(program, place, node)
            if "ui" in sys.argv[1:]:
                return
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
                publish(node.url, 20_000, [("photo-{}.jpg", {})] * 300)
                with terminal("top", "--control", str(place / "workq.sock")) as shown:
                    shown.see(r"pace +[1-9]\S* tasks/s")
                    time.sleep(8)  # for its chart of the backlog
                    (IMAGES / "top.svg").write_text(drawn(shown))
        finally:
            node.kill()


if __name__ == "__main__":
    main()
