"""Measures, each by its name:

    recovery    from the SIGKILL of a worker to the next finished task

Every one boots a private RabbitMQ and needs nothing else. To add one: a function that takes the parsed arguments and
returns an Outcome, and its line in BENCHES.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import mmap
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import bench_tasks
from demo import Supervised, await_ready, quieten

from supervisor import Publisher
from supervisor.clock import now
from supervisor.commands.node import NodeError, PrivateNode

QUEUE: Final = "bench"
TARGET: Final = 0.050
"""Seconds that the median recovery may take."""
PATIENCE: Final = 20.0
"""Seconds to wait for what takes milliseconds."""
BACKLOG: Final = 2000
"""Messages in the queue, at least, when a worker is killed; nothing is published while its replacement is awaited."""


class BenchError(Exception):
    """It cannot be measured; the message says why."""


@dataclass(slots=True)
class Outcome:
    """What a bench found: for people, for programs, and whether it is good enough."""

    text: str
    data: dict[str, Any]
    passed: bool


# ----------------------------------------------------------------------------------------------------- recovery


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill. Seconds since it, by what had been reached."""

    in_hand: bool
    """The supervisor saw a message in the dead worker's hand."""
    reached: dict[str, float]


SEEN: Final = "the supervisor has seen the death"
FORKED: Final = "the replacement is forked"
READY: Final = "it is consuming"
BEGUN: Final = "it has a task in hand"
FINISHED: Final = "it has finished a task"
AGAIN: Final = "the killed task is finished, by anybody"


class Bench:
    """A supervisor with so many workers on a queue that never empties; kills one at a time."""

    def __init__(self, node: PrivateNode, workers: int, place: Path, stack: contextlib.ExitStack) -> None:
        self._queue = f"{QUEUE}-{workers}"
        self._workers = workers
        self._published = 0
        self._publisher = stack.enter_context(Publisher(node.url, self._queue))
        self._again = place / "again"
        self._again.touch()
        notes = place / "notes"
        self._notes: mmap.mmap = bench_tasks.open_notes(notes)
        self._fill()
        env = {"BENCH_NOTES": str(notes), "BENCH_AGAIN": str(self._again)}
        options = ("--workers", str(workers))
        self._supervised = Supervised(
            "bench_tasks:short", *options, url=node.url, queue=self._queue, place=place, env=env
        )
        stack.callback(self._supervised.end)
        stack.push(lambda kind, error, trace: quieten() if kind is not None else None)
        await_ready(self._supervised)

    def run(self, rounds: int) -> list[Recovery]:
        return [self._round() for _ in progress(rounds, f"{self._workers} worker{'s' * (self._workers > 1)}")]

    def _round(self) -> Recovery:
        """Kill one worker in mid-task at a random instant, and tell what followed."""
        self._fill()
        self._await(self._all_work)
        victim = random.choice(self._status()["workers"])
        self._supervised.lines(b'"worker.')
        again_at = self._again.stat().st_size
        time.sleep(random.uniform(0.02, 0.12))
        killed = self._kill(victim["pid"])
        time.sleep(2 * TARGET)  # to look while it recovers would take the processor from it
        pid: int = self._await(lambda: self._successor(victim))
        lines = self._events(victim["slot"])
        _, _, _, began, ended = self._note(pid)
        reached = {
            SEEN: lines["worker.exited"]["at"],
            FORKED: lines["worker.started"]["at"],
            READY: lines["worker.ready"]["at"],
            BEGUN: began,
            FINISHED: ended,
        }
        in_hand = lines["worker.exited"]["message_id"] is not None
        if in_hand:
            reached[AGAIN] = self._await(lambda: self._finished_again(again_at, lines["worker.exited"]["message_id"]))
        return Recovery(in_hand, {name: round(at - killed, 6) for name, at in reached.items()})

    def _kill(self, pid: int) -> float:
        """SIGKILL, as soon as it is in mid-task. Death between two tasks blames nobody, and soon meets a backoff."""
        until = now() + PATIENCE
        while self._note(pid)[1] != 1:
            if now() > until:
                raise BenchError(f"worker {pid} never has a task in hand; the log ends:\n{self._supervised.tail()}")
        at = now()
        os.kill(pid, signal.SIGKILL)
        return at

    def _events(self, slot: int) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}

        def complete() -> bool:
            found.update({line["event"]: line for line in self._supervised.lines(b'"worker.') if line["slot"] == slot})
            return {"worker.exited", "worker.started", "worker.ready"} <= found.keys()

        self._await(complete)
        return found

    def _successor(self, victim: dict[str, Any]) -> int | None:
        """The pid of the worker in the dead one's seat, once it has finished a task."""
        pid = self._status()["workers"][victim["slot"]]["pid"]
        if pid in (None, victim["pid"]):
            return None
        note = self._note(pid)
        return pid if note[0] == pid and note[2] > 0 else None

    def _finished_again(self, offset: int, message_id: str) -> float | None:
        with self._again.open() as file:
            file.seek(offset)
            lines = [line.split() for line in file]
        return next((float(at) for name, at in lines if name == message_id), None)

    def _all_work(self) -> bool:
        """Every worker has finished tasks of its own, so that no seat has a streak of deaths."""
        notes = [self._note(worker["pid"] or 0) for worker in self._status()["workers"]]
        return all(note[2] >= 3 for note in notes)

    def _note(self, pid: int) -> tuple[int, int, int, float, float]:
        """What the handler has noted in that process; zeros when it has not (yet)."""
        note = bench_tasks.CELL.unpack_from(self._notes, bench_tasks.cell(pid))
        return note if note[0] == pid and pid else (0, 0, 0, 0.0, 0.0)

    def _status(self) -> dict[str, Any]:
        status = self._supervised.status()
        if not status:
            raise BenchError(f"the supervisor does not answer; its log ends:\n{self._supervised.tail()}")
        return status

    def _fill(self) -> None:
        done = self._status()["totals"]["succeeded"] if self._published else 0
        if self._published - done < BACKLOG:
            serial = itertools.count(self._published)
            self._publisher.publish_many(("", {"message_id": f"m{next(serial)}"}) for _ in range(2 * BACKLOG))
            self._published += 2 * BACKLOG

    def _await(self, happens: Callable[[], Any]) -> Any:
        until = now() + PATIENCE
        while not (answer := happens()):
            if now() > until:
                raise BenchError(f"not within {PATIENCE:g} s; the supervisor's log ends:\n{self._supervised.tail()}")
            time.sleep(0.03)
        return answer


@dataclass(slots=True)
class Series:
    """The recoveries of one pool."""

    workers: int
    recoveries: list[Recovery]
    parts: dict[str, dict[str, float]] = field(init=False)
    """Seconds since the kill: median, p95, worst."""

    def __post_init__(self) -> None:
        samples: dict[str, list[float]] = {}
        for recovery in self.recoveries:
            for name, seconds in recovery.reached.items():
                samples.setdefault(name, []).append(seconds)
        self.parts = {
            name: {"median": rank(values, 0.5), "p95": rank(values, 0.95), "worst": max(values)}
            for name, values in samples.items()
        }

    @property
    def passed(self) -> bool:
        return self.parts[FINISHED]["median"] < TARGET

    def table(self) -> str:
        in_hand = sum(recovery.in_hand for recovery in self.recoveries)
        title = f"{self.workers} worker{'s' * (self.workers > 1)}, {len(self.recoveries)} kills, {in_hand} in mid-task"
        rows = [f"{title:<44}{'median':>9}{'p95':>9}{'worst':>9}"]
        for name, part in self.parts.items():
            numbers = "".join(f"{part[key] * 1000:9.1f}" for key in ("median", "p95", "worst"))
            rows.append(f"  {name:<42}{numbers} ms")
        median = f"{self.parts[FINISHED]['median'] * 1000:.1f} ms"
        verdict = "met" if self.passed else "MISSED"
        rows.append(
            f"  target: a task finished by the replacement, median under {TARGET * 1000:.0f} ms: {median}, {verdict}"
        )
        return "\n".join(rows)

    def data(self) -> dict[str, Any]:
        return {
            "workers": self.workers,
            "kills": len(self.recoveries),
            "in_mid_task": sum(recovery.in_hand for recovery in self.recoveries),
            "seconds_since_kill": self.parts,
            "samples": [recovery.reached[FINISHED] for recovery in self.recoveries],
            "passed": self.passed,
        }


def recovery(arguments: argparse.Namespace) -> Outcome:
    """From the SIGKILL of a worker to the next finished task, with a handler whose import takes half a second."""
    series = []
    with node() as broker:
        for workers in arguments.workers:
            # One worker: the next finished task must be the replacement's. Four: everybody is busy meanwhile.
            with contextlib.ExitStack() as stack:
                prefix = "workq-bench-"
                place = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
                )
                series.append(Series(workers, Bench(broker, workers, place, stack).run(arguments.rounds)))
        version = broker.version
    head = (
        f"recovery: time since a SIGKILL in mid-task; tasks of {bench_tasks.TASK * 1000:g} ms, "
        f"a handler that takes {bench_tasks.IMPORT:g} s to import\n"
        f"RabbitMQ {version}, Python {platform.python_version()}, {os.cpu_count()} CPUs\n"
    )
    text = "\n".join([head, "\n\n".join(each.table() for each in series)])
    data = {
        "bench": "recovery",
        "rabbitmq": version,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "target_seconds": TARGET,
        "task_seconds": bench_tasks.TASK,
        "import_seconds": bench_tasks.IMPORT,
        "series": [each.data() for each in series],
    }
    return Outcome(text, data, all(each.passed for each in series))


def rank(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


# ------------------------------------------------------------------------------------------------------ running


@contextlib.contextmanager
def node() -> Iterator[PrivateNode]:
    """A private broker with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="workq-bench-", ignore_cleanup_errors=True) as place:
        broker = PrivateNode(Path(place))
        try:
            broker.start()
            yield broker
        finally:
            quieten()
            broker.kill()


def progress(rounds: int, what: str) -> Iterator[int]:
    """Count, and show it on a terminal."""
    show = sys.stderr.isatty()
    for number in range(rounds):
        if show:
            sys.stderr.write(f"\r{what}: {number + 1} of {rounds}\x1b[K")
            sys.stderr.flush()
        yield number
    if show:
        sys.stderr.write("\r\x1b[K")


BENCHES: Final[dict[str, Callable[[argparse.Namespace], Outcome]]] = {"recovery": recovery}


def count(text: str) -> int:
    """For argparse, which turns a ValueError into a sentence."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure workq-supervise on this machine.")
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    parsers = {
        name: benches.add_parser(name, help=bench.__doc__, description=bench.__doc__) for name, bench in BENCHES.items()
    }
    for each in parsers.values():
        each.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
        each.add_argument(
            "--assert", dest="must_pass", action="store_true", help="exit with 1 when the target is missed"
        )
    parsers["recovery"].add_argument("--rounds", type=count, default=100, metavar="N", help="kills of each pool [100]")
    parsers["recovery"].add_argument(
        "--workers", type=count, nargs="+", default=[1, 4], metavar="N", help="sizes of the pools [1 4]"
    )
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        outcome = BENCHES[arguments.bench](arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (BenchError, NodeError) as error:
        print(f"{arguments.bench}: {error}", file=sys.stderr)
        return 1
    print(outcome.text)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(outcome.data, indent=2) + "\n")
    return 1 if arguments.must_pass and not outcome.passed else 0


if __name__ == "__main__":
    sys.exit(main())
