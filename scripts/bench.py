"""Measures workq-supervise on this machine, beside bare pika, Dramatiq, Celery, supervisord and a client in C.

    scripts/bench                       everything, in forty minutes; writes docs/benchmarks.md and its pictures
    scripts/bench NAME...               only these
    scripts/bench guard                 the ratios that continuous integration holds, in about a minute
    scripts/bench --report-from FILE... the document anew, from what --json wrote; a bench in several: the last

Every bench has a private RabbitMQ of its own, booted for it. To add one: a function that takes Options and returns its
rows (benches/row.py), and its line in BENCHES.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

from scripts.benches import report
from scripts.benches.contenders import contenders
from scripts.benches.measure import surroundings
from scripts.benches.row import BenchError, Options, Row
from supervisor.clock import now
from supervisor.commands.node import LocalNode, NodeError

ROOT: Final = Path(__file__).resolve().parents[1]
INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Bench:
    """One line of the list."""

    where: str
    """`module:function` in the package benches; imported when it is wanted, for some need what others do not."""
    rounds: int
    quick: int
    """Rounds with --quick; 0: not at all, unless it is named."""
    what: str
    peers: int = 0
    """Rounds of the peers, where they are fewer: what they do takes long and hardly varies, or no target asks for it.
    Bare pika and the C client, to which ours is compared, are none of them (`contenders.rounds_of`)."""

    def function(self) -> Callable[[Options], list[Row]]:
        module, _, name = self.where.partition(":")
        function: Callable[[Options], list[Row]] = getattr(importlib.import_module(f"scripts.benches.{module}"), name)
        return function


BENCHES: Final[dict[str, Bench]] = {
    "rates": Bench("rates:rates", 4, 1, "CPU and time of a task that does nothing, or has 1 MB", peers=2),
    "curve": Bench("rates:curve", 2, 1, "tasks a second with 1, 2, 4 and 8 workers", peers=1),
    "recovery": Bench("recovery:recovery", 100, 10, "from the SIGKILL of a worker to the next finished task", peers=20),
    "network": Bench("network:network", 20, 4, "over TLS, and with a broker that is 10 ms away"),
    "modern": Bench("modern:modern", 4, 1, "a task that does nothing on a quorum queue, newest RabbitMQ"),
    "kills": Bench("kills:kills", 3, 1, "800 tasks of 50 ms while a worker is killed every 100 ms", peers=1),
    "short": Bench("short:short", 3, 1, "tasks of 10 ms, against what is possible", peers=1),
    "deadly": Bench("deadly:deadly", 1, 0, "how many workers one message kills, and whether the others are done"),
    "fair": Bench("fair:fair", 3, 1, "long and short tasks in turns: is every worker busy?", peers=1),
    "memory": Bench("footprint:memory", 2, 1, "memory of a pool, and of each further worker", peers=1),
    "idle": Bench("footprint:idle", 1, 1, "CPU and wake-ups of a pool that has nothing to do"),
    "many": Bench("crowd:many", 1, 1, "256 workers on one host"),
    "start": Bench("footprint:start", 10, 3, "from the start of the program to the first finished task", peers=3),
    "pythons": Bench("pythons:pythons", 1, 0, "every figure of ours on newer Pythons, beside this one"),
    "soak": Bench("soak:soak", 1, 0, "a million tasks with a kill every second: memory and losses"),
}
GUARD: Final = Bench("guard:guard", 2, 1, "ratios within one run with generous bounds, for continuous integration")


@dataclass(slots=True)
class Finding:
    """What became of one bench."""

    rows: list[Row]
    rounds: int
    seconds: float
    load: float
    """The machine's load average when it began: above 0.5 somebody else was at work."""
    error: str = ""
    peer_rounds: int = 0
    """Where the peers had fewer."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# ------------------------------------------------------------------------------------------------------ running


def run(name: str, arguments: argparse.Namespace) -> Finding:
    """One bench, on a broker of its own. What goes wrong in it is its finding: the others are measured all the same."""
    bench = GUARD if name == "guard" else BENCHES[name]
    rounds = arguments.rounds or (bench.quick if arguments.quick else bench.rounds) or 1
    peers = bench.peers if bench.peers < rounds else 0
    finding = Finding([], rounds, 0.0, round(os.getloadavg()[0], 2), peer_rounds=peers)
    began = now()
    with tempfile.TemporaryDirectory(prefix="workq-bench-", ignore_cleanup_errors=True) as temporary:
        place = Path(temporary) / name
        place.mkdir()
        try:
            with contextlib.ExitStack() as stack:
                broker = LocalNode(Path(temporary) / "node")
                stack.callback(broker.kill)  # quicker than to stop it: it is needed no more
                broker.start()
                options = Options(broker.url, place, rounds, arguments.quick, tuple(arguments.contenders), peers)
                finding.rows = bench.function()(options)
        except (BenchError, NodeError) as error:
            finding.error = str(error)
        except Exception as error:
            finding.error = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            finding.seconds = round(now() - began, 1)
    return finding


def measure(names: list[str], arguments: argparse.Namespace) -> int:
    saved: dict[str, Any] = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        **surroundings(),
        "benches": {},
    }
    findings = {}
    for name in names:
        findings[name] = run(name, arguments)
        saved["benches"][name] = findings[name].to_json()
        if arguments.json is not None:  # after each one: a run that is interrupted after an hour has its figures
            arguments.json.write_text(json.dumps(saved, indent=1) + "\n")
        print(report.table(name, findings[name].rows, findings[name].error), flush=True)
    if arguments.write:
        for path in report.write(saved, ROOT):
            print(f"written: {path.relative_to(ROOT)}")
    if any(finding.error for finding in findings.values()):
        return 1
    missed = [row.what for finding in findings.values() for row in finding.rows if not row.met]
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return 1 if missed and arguments.must_pass else 0


def guard(once: Callable[[], Finding]) -> int:
    """1 when a bound is broken twice: once may be somebody else's doing."""
    for last in (False, True):
        finding = once()
        print(report.table("guard", finding.rows, finding.error), flush=True)
        if not finding.error and all(row.met for row in finding.rows):
            return 0
        if not last:
            print("guard: broken; once more, to see whether that was the machine", flush=True)
    print("guard: broken twice: something has become slow", file=sys.stderr)
    return 1


# ------------------------------------------------------------------------------------------------- command line


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<10}{bench.what}" for name, bench in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=(__doc__ or "").partition("\n\nEvery")[0],
        epilog=f"{listed}\n  {'guard':<10}{GUARD.what}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure [everything]")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often [what is right for each bench]")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    parser.add_argument(
        "--contender",
        dest="contenders",
        action="append",
        default=[],
        choices=[each.name for each in contenders()],
        metavar="NAME",
        help="beside ourselves only this one; may be given several times [all]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.add_argument("--assert", dest="must_pass", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument(
        "--report-from", type=Path, nargs="+", metavar="FILE", help="only write the document, from these"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in BENCHES and name != "guard"]
    if unknown:
        parser.error(f"no bench is called {unknown[0]}; there are: {', '.join(BENCHES)}, guard")
    if "guard" in arguments.names and len(arguments.names) > 1:
        parser.error("guard runs alone")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("argument --rounds: at least 1")
    # The document tells of everything, measured in one way: a part of it, or a quick look, is for the terminal.
    arguments.write = not (arguments.names or arguments.quick or arguments.rounds or arguments.contenders)
    return arguments


def interrupt(number: int, frame: FrameType | None) -> None:
    """End everything in order; a second Ctrl-C meanwhile would leave half of it behind."""
    for each in INTERRUPTS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    arguments = parse()
    for number in INTERRUPTS:
        signal.signal(number, interrupt)
    try:
        if arguments.report_from:
            for path in report.write(report.joined(arguments.report_from), ROOT):
                print(f"written: {path.relative_to(ROOT)}")
            return 0
        if arguments.names == ["guard"]:
            return guard(lambda: run("guard", arguments))
        names = arguments.names or [name for name, bench in BENCHES.items() if bench.quick or not arguments.quick]
        return measure(names, arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BenchError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
