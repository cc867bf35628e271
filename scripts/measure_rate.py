"""Measures `--rate`: the figures of docs/scaling.md. Boots a private node; needs nothing else.

    .venv/bin/python scripts/measure_rate.py                5/s, 500/s and some more, half a minute each
    .venv/bin/python scripts/measure_rate.py 5/s --for 120

Counts the tasks that begin from the first to the last in that time, while more messages wait than can be run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from supervisor.settings.parsers import Rate, rate  # noqa: E402
from tests import amqp, handler_modules  # noqa: E402
from tests.node import PrivateNode  # noqa: E402
from tests.supervision import Runs, supervised  # noqa: E402

USUAL: Final = ("5/s", "50/s", "500/s", "2000/s")
WARM_UP: Final = 1.0
"""Seconds that are not counted: the burst is in them."""
HANDLER: Final = """
import os, time
from handlers import note

def work(task):
    note("began", f"{time.monotonic()!r} {os.getpid()}")
"""


def measure(node: PrivateNode, wanted: Rate, workers: int, seconds: float, where: Path) -> None:
    queue, runs = f"rate-{wanted.count}{wanted.unit}", Runs(where / f"{wanted.count}{wanted.unit}")
    tasks = round(1.2 * (seconds + WARM_UP) / wanted.interval) + 10
    options = ("--workers", str(workers), "--rate", str(wanted))
    env = runs.env | {"PYTHONPATH": str(where)}
    with supervised("timed:work", *options, url=node.url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(node.url, queue, ["{}"] * tasks)
        runs.hear("began")
        time.sleep(seconds + 2 * WARM_UP)
        lines = [line.split() for line in runs.lines("began")]
        pool.stop()
    began = sorted((float(instant), pid) for instant, pid in lines)
    begin = began[0][0] + WARM_UP
    counted = [(instant, pid) for instant, pid in began if begin <= instant <= begin + seconds]
    found = (len(counted) - 1) / (counted[-1][0] - counted[0][0])
    shares = Counter(pid for _, pid in counted).values()
    off = 100 * (found * wanted.interval - 1)
    print(f"{wanted!s:>8}  {found:9.2f}/s  {off:+.2f} %   {min(shares)} to {max(shares)} tasks a worker", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rates", nargs="*", type=rate, default=[rate(each) for each in USUAL], metavar="N/UNIT")
    parser.add_argument("--for", dest="seconds", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=4, metavar="N")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="workq-rate-") as directory, PrivateNode(Path(directory) / "node") as node:
        handler_modules.write(Path(directory), "timed", HANDLER)
        for each in given.rates:
            measure(node, each, given.workers, given.seconds, Path(directory))


if __name__ == "__main__":
    main()
