"""Every call that the supervisor makes of the kernel is refused, one run after another: `scripts/test inject`.

A run is a real supervisor with two workers that does what a supervisor does: tasks, one that kills its worker, a
reload, a worker more, metrics, stacks. In it one kind of call fails, at the n-th time (`tests.chaos.refusing`). It must
either not start, with one line and exit code 1 or 78, or do all of it, leave no descriptor behind, and exit with 0. For
the whole list of kinds and all n: half an hour on two cores. Calls after the start are refused several in a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from supervisor.commands.running import Running, VerbError
from supervisor.linux import descendants
from tests import amqp
from tests.chaos.refusing import KINDS
from tests.node import PrivateNode
from tests.supervision import eventually

HERE = Path(__file__).resolve().parents[1]
STANDS_STILL: Final = 1.0
"""Seconds that the loop may at most be away from its wait."""
PATIENCE: Final = 60.0
AT_ONCE: Final = 10
"""Calls that one run refuses, when they are made after the start."""


@dataclass
class Case:
    kind: str
    numbers: tuple[int, ...]
    errors: str

    def __str__(self) -> str:
        return f"{self.kind} {','.join(map(str, self.numbers))} {self.errors}"


@dataclass
class Told:
    """What a run says of itself."""

    refused: list[dict[str, Any]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    still: float = 0.0
    descriptors: int = 0
    log: str = ""
    wrong: str = ""
    """Empty when all that must hold has held."""


def run(node: PrivateNode, directory: Path, case: Case, descriptors: int | None = None) -> Told:
    """One run. `descriptors`: those that the supervisor must have at the end, if that is known."""
    name = uuid4().hex[:12]
    queue, report, control = f"inject-{name}", directory / f"{name}.report", directory / f"{name}.sock"
    runs, log = directory / f"{name}.runs", directory / f"{name}.log"
    for file in (report, runs):
        file.touch()
    numbers = ",".join(map(str, case.numbers)) or "0"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("WORKQ_", "PYTHON"))}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.chaos.refusing"),
                *(str(report), case.kind, numbers, case.errors, "--", "--queue", queue, "--workers", "2"),
                *("--health", "127.0.0.1:0", "--control", str(control), "--app-dir", str(HERE), "--max-crashes", "1"),
                *("--log-format", "json", "handlers:act"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=HERE.parent,
            env={**environ, "WORKQ_URL": node.url, "TEST_RUNS": str(runs)},
            start_new_session=True,
        )
        told = Told()
        try:
            _live(process, node, queue, control, runs, told, descriptors)
        except AssertionError as error:
            told.wrong = str(error) or "an assertion"
        finally:
            process.kill()
            process.wait()
            amqp.delete(node, queue)
    for line in report.read_text().splitlines():
        entry = json.loads(line)
        if "refused" in entry:
            told.refused.append(entry)
        else:
            told.calls, told.before, told.still = entry["calls"], entry["before"], entry["still"]
    told.log = log.read_text(errors="replace")
    # A task that failed has the handler's own.
    lines = [line for line in told.log.splitlines() if '"task.failed"' not in line]
    if not told.wrong and any(word in line for line in lines for word in ("Traceback", "Exception ignored")):
        told.wrong = "a traceback"
    return told


class _CannotStart(Exception):
    pass


def _live(
    process: subprocess.Popen[bytes],
    node: PrivateNode,
    queue: str,
    control: Path,
    runs: Path,
    told: Told,
    descriptors: int | None,
) -> None:
    running = Running(str(control))

    def status() -> dict[str, Any]:
        if process.poll() is not None:
            raise _CannotStart
        time.sleep(0.1)  # each look is a dozen calls of the supervisor's, and all are refused in turn
        try:
            return running.status()
        except (VerbError, OSError, ValueError):
            return {}  # this very answer may have been refused

    def wish(path: str, body: dict[str, Any] | None = None) -> bool:
        if process.poll() is not None:
            raise _CannotStart
        try:
            return bool(running.wish(path, body)["ok"])
        except (VerbError, OSError, ValueError):
            return False

    def consume(workers: int) -> Callable[[], bool]:
        return lambda: (
            [w["state"] for w in status().get("workers", []) if w["state"] != "empty"].count("idle") == workers
        )

    try:
        eventually(consume(2), PATIENCE)
    except _CannotStart:
        assert process.returncode in (1, 78), f"exit {process.returncode} at the start"
        return
    try:
        ids = [f"t{n}" for n in range(6)]
        bodies = ['{"print": "a line"}', '{"raise": "ValueError"}', *['{"sleep": 0.05}'] * 4]
        amqp.publish(node.url, queue, [*bodies, '{"kill": "SIGKILL"}'], ids=[*ids, "killer"])
        eventually(lambda: set(_lines(runs, "done")) >= set(ids) - {"t1"}, PATIENCE)
        eventually(lambda: status().get("totals", {}).get("quarantined") == 1, PATIENCE)
        eventually(consume(2), PATIENCE)
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGUSR2)
        eventually(lambda: wish("/scale", {"workers": 3}) or status().get("scale", {}).get("wanted") == 3, PATIENCE)
        eventually(consume(3), PATIENCE)
        _kill_zygote(process.pid)  # the next nursery is executed
        # A reload that was refused is asked for again, as an operator would.
        eventually(lambda: _has_reloaded(status(), wish), PATIENCE)
        eventually(consume(3), PATIENCE)
        eventually(lambda: wish("/scale", {"workers": 2}) or status().get("scale", {}).get("wanted") == 2, PATIENCE)
        eventually(lambda: consume(2)() and _at_rest(process.pid, status()), PATIENCE)
        if descriptors is None:
            # The last answer's connection may take its time to go.
            told.descriptors = min(_descriptors(process.pid) for _ in range(15))
        else:

            def is_flat() -> bool:
                told.descriptors = _descriptors(process.pid)
                return told.descriptors <= descriptors

            try:
                eventually(is_flat, 20.0)
            except AssertionError:
                held = [os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
                raise AssertionError(f"{told.descriptors} descriptors, not {descriptors}: {sorted(held)}") from None
        amqp.publish(node.url, queue, ['{"sleep": 0}'], ids=["last"])
        eventually(lambda: "last" in _lines(runs, "done"), PATIENCE)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        assert code == 0, f"exit {code}"
    except _CannotStart:
        raise AssertionError(f"it has left, exit {process.returncode}") from None
    except subprocess.TimeoutExpired:
        raise AssertionError("it does not leave") from None


def _has_reloaded(status: dict[str, Any], wish: Callable[[str], bool]) -> bool:
    reload = status.get("reload")
    if reload is None or reload["state"] == "failed":
        wish("/reload")
        return False
    return bool(reload["state"] == "finished")


def _at_rest(pid: int, status: dict[str, Any]) -> bool:
    """The supervisor's children are its two workers, the nursery, and the worker that is forked ahead."""
    names = sorted(_names(pid).values())
    return names == ["workq-nursery", "workq-spare", "workq-worker-0", "workq-worker-1"]


def _names(pid: int) -> dict[int, str]:
    """Of its children, without one that is gone meanwhile."""
    names = {}
    for child in descendants.children(pid):
        with suppress(OSError):
            names[child] = Path(f"/proc/{child}/comm").read_text().strip()
    return names


def _kill_zygote(pid: int) -> None:
    for child, name in _names(pid).items():
        if name == "workq-zygote":
            os.kill(child, signal.SIGKILL)


def _descriptors(pid: int) -> int:
    time.sleep(0.1)
    return len(os.listdir(f"/proc/{pid}/fd"))


def _lines(runs: Path, word: str) -> list[str]:
    return [line.split(" ", 1)[1] for line in runs.read_text().splitlines() if line.startswith(word + " ")]


def cases(told: Told, kinds: list[str]) -> Iterator[Case]:
    """All calls of a run in which none was refused: those before the loop one by one, the others several in a run."""
    for kind in kinds:
        errors = KINDS[kind].split(",")
        count, before = told.calls.get(kind, 0), told.before.get(kind, 0)
        turn = iter(range(10**9))

        def rotated(errors: list[str] = errors, turn: Iterator[int] = turn) -> str:
            by = next(turn) % len(errors)
            return ",".join(errors[by:] + errors[:by])

        for number in range(1, before + 1):
            yield Case(kind, (number,), rotated())
        # Two more than there were: another run may have more.
        late = range(before + 1, count + 3)
        # To serve again, or to start a worker, is tried at ever longer intervals: five times in a row take 31 s.
        in_a_row = kind == "socket.listen" or len(late) <= AT_ONCE
        step = max(1, -(-len(late) // (5 if in_a_row else AT_ONCE)))
        for first in range(step):
            yield Case(kind, tuple(late[first::step]), rotated())


def sweep(
    node: PrivateNode,
    directory: Path,
    kinds: list[str],
    say: Callable[[str], None],
    sample: int = 0,
    seed: int = 0,
    jobs: int = 2,
) -> list[tuple[Case, Told]]:
    """Runs all cases, or `sample` of them, and returns those that were wrong."""
    calm = run(node, directory, Case("none", (), "EIO"))
    assert not calm.wrong, f"without any refusal: {calm.wrong}\n{calm.log}"
    all_cases = list(cases(calm, kinds))
    if sample:
        all_cases = random.Random(seed).sample(all_cases, min(sample, len(all_cases)))
    say(f"{len(all_cases)} runs; calls: {dict(sorted(calm.calls.items()))}")
    wrong: list[tuple[Case, Told]] = []
    with ThreadPoolExecutor(jobs) as pool:
        for case, told in zip(
            all_cases, pool.map(lambda case: run(node, directory, case, calm.descriptors), all_cases), strict=True
        ):
            if not told.wrong and told.still > STANDS_STILL:
                told.wrong = f"the loop stood still for {told.still} s"
            if told.wrong:
                wrong.append((case, told))
            where = "; ".join(f"{entry['errno']} at {entry['at']}" for entry in told.refused)
            say(f"{'WRONG ' + told.wrong if told.wrong else 'holds'}: {case}: {where or 'not reached'}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test inject", description=__doc__.split("\n\n")[1])
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only this one (repeatable)")
    parser.add_argument("--sample", type=int, default=0, help="so many runs, chosen at random (default: all)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--case", help="one run: 'KIND NUMBERS ERRNOS', as a run is named here")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(f"inject: {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="workq-inject-") as directory:
        node = PrivateNode(Path(directory) / "node")
        try:
            node.start()
            if arguments.case:
                kind, numbers, errors = arguments.case.split()
                calm = run(node, Path(directory), Case("none", (), "EIO"))
                case = Case(kind, tuple(map(int, numbers.split(","))), errors)
                wrong = [(case, run(node, Path(directory), case, calm.descriptors))]
                print(wrong[0][1].refused, wrong[0][1].log, wrong[0][1].wrong)
                return 1 if wrong[0][1].wrong else 0
            say(f"seed {arguments.seed}")
            kinds = arguments.kind or list(KINDS)
            wrong = sweep(node, Path(directory), kinds, say, arguments.sample, arguments.seed, arguments.jobs)
        finally:
            node.kill()
    for case, told in wrong:
        print(f"\n{case}\n{told.wrong}\n{told.refused}\n{told.log[-6000:]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
