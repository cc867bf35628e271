"""A long run: `scripts/test fuzz --minutes 10 [--seed N]`.

A third of the time goes to the edges by themselves, the rest to whole supervisors, each for some rounds. The seed is
printed and decides what is thrown; what meets what on its way is the machine's.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

from supervisor.commands.node import NodeError
from tests.fuzz.edges import EDGES, throw
from tests.fuzz.pool import fuzzed
from tests.node import PrivateNode

ROUNDS: Final = 5
"""Against one supervisor, before there is another."""
TASKS: Final = 12
"""Hostile ones a round, and as many innocent ones."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats what another run threw")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    print(f"seed {seed}, {arguments.minutes:g} minutes", flush=True)
    until = time.monotonic() + 60 * arguments.minutes
    try:
        with tempfile.TemporaryDirectory(prefix="workq-fuzz-") as directory:
            node = PrivateNode(Path(directory) / "node")
            try:
                node.start()
                _run(seed, until, 60 * arguments.minutes, node, Path(directory))
            finally:
                node.kill()
    except NodeError as error:
        print(error)
        return 2
    except AssertionError:
        traceback.print_exc()
        print(f"\na finding; to repeat it: scripts/test fuzz --seed {seed}")
        return 1
    print("no finding")
    return 0


def _run(seed: int, until: float, seconds: float, node: PrivateNode, directory: Path) -> None:
    for number in itertools.count():
        if time.monotonic() >= until:
            return
        dice = random.Random(f"{seed}/{number}")
        edges_until = min(until, time.monotonic() + min(20.0, seconds / 6))
        thrown = dict.fromkeys(EDGES, 0)
        while time.monotonic() < edges_until:
            for name in EDGES:
                try:
                    throw(name, each := dice.randrange(2**32))
                except Exception as error:
                    raise AssertionError(f"edge {name}, throw {each}") from error
                thrown[name] += 1
        print("edges:", ", ".join(f"{count} at {name}" for name, count in thrown.items()), flush=True)
        with fuzzed(node.url, f"fuzz-{number}", directory, dice.randrange(2**32), is_timed=True) as fuzz:
            for _ in range(ROUNDS):
                if time.monotonic() >= until:
                    break
                fuzz.round(TASKS)
        print(f"pool {number}: {fuzz}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
