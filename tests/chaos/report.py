"""The account of a run as people read it, and its place in docs/chaos.md."""

from __future__ import annotations

import datetime
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pika

from tests.chaos.account import Account, Why

SHOWN = 20
"""Findings of one check that are told."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, and how it ended."""

    name: str
    """`classic`, `quorum`, `cluster`, `newest`: which of the published reports it is."""
    seed: int
    seconds: float
    rabbitmq: str
    queue_type: str
    nodes: int
    workers: int
    happened: Counter[str]
    never_drawn: list[str]
    left_out: list[str]
    """Kinds of handlers that were not asked for."""
    account: Account

    def __str__(self) -> str:
        account = self.account
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        versions = f"RabbitMQ {self.rabbitmq}, pika {pika.__version__}, Python {platform.python_version()}"
        where = f"{self.queue_type} queue" + (f" on {self.nodes} nodes" if self.nodes > 1 else "")
        run = f"{where}, two supervisors of {self.workers} workers, seed {self.seed}, {self.seconds / 60:.1f} minutes"
        figures = (
            account.confirmed, account.done, account.dead, account.runs, account.extra.total(), account.doubled,
            account.twice_dead,
        )  # fmt: skip
        extra = _counted((str(why), account.extra[why]) for why in Why)
        return f"""{today}, {versions}, {run}

| tasks confirmed | done | dead letters | runs | extra runs | tries doubled | twice dead |
|---|---|---|---|---|---|---|
| {" | ".join(map(str, figures))} |

{chr(10).join(_checked(what, found) for what, found in account.checks.items())}

- Extra runs by cause: {extra}.
- Worker exits by cause: {_counted(account.deaths.items())}.
- Faults: {_counted(self.happened.items())}.
- Handlers: {_counted(account.kinds.items())}.
- Not in this run: {", ".join([*self.never_drawn, *self.left_out]) or "none"}.
"""


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts) if count) or "none"


def _checked(what: str, found: list[str]) -> str:
    return f"- holds: {what}" if not found else f"- **BROKEN**: {what} ({len(found)} findings)"


def findings(account: Account) -> str:
    """All that does not hold, in full."""
    return "\n".join(
        f"{what}:\n" + "\n".join(f"    {each}" for each in found[:SHOWN])
        for what, found in account.checks.items()
        if found
    )


def write(file: Path, run: Run) -> None:
    """Replace what stands between the marks of this run. Raises ValueError when the file has no such marks."""
    begin, end = (f"<!-- {word} of the {run.name} run -->" for word in ("begin", "end"))
    before, found, rest = file.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"{file} has no {begin} ... {end}")
    file.write_text(f"{before}{begin}\n{run}{end}{after}")
