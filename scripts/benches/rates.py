"""What a task costs that does nothing, and how many of them are done in a second.

Each round, for each contender in turn: a queue of its own is filled, its pool is started, and when every worker
consumes, the queue's depth and the CPU clocks of all its processes are read twice, some seconds apart. The difference
of the depths is the number of tasks done in between; starting and stopping is not in it. A ratio is that of two
contenders in the same round, and of all rounds the median: what disturbs the machine for minutes disturbs both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import uuid4

from supervisor.clock import now

from .contenders import BarePika, Contender, Pool, Workq, chosen, contenders, rounds_of
from .measure import Reading
from .progress import say
from .queues import channel, depth
from .row import BenchError, Options, Row

WORKERS: Final = 4
NO_OP: Final = b"no-op"
LARGE: Final = b"x" * 1_000_000
PACE: Final = {
    "bare pika": 8000, "bare pika, forked": 12000, "workq": 12000, "workq info": 8000, "Dramatiq": 5000, "Celery": 2500,
    "supervisord": 8000,
}  # fmt: skip
"""Tasks a second, roughly, with four workers: only to publish neither too few of them nor far too many."""
FAST: Final = 30000
"""The same of all others."""
LARGE_PACE: Final = 600
"""Tasks of 1 MB a second, likewise: all of them are on the broker's disk before the first is taken."""
LARGE_SECONDS: Final = 0.7
"""How long those are measured."""
SECONDS: Final = 2.5
"""The same of tasks that do nothing."""
WARM: Final = 0.5
"""Seconds at work before the first reading."""
REST: Final = 4.0
"""Seconds for which a parent is watched while there is nothing to do."""
BEFORE: Final = 1.5
"""Seconds at work, at most, before the first reading, `WARM` included: its first workers begin before its last."""
LEFT: Final = 20
"""One message in so many must be left at the last reading: workers that wait for the last ones teach nothing."""

BARE: Final = "bare pika"
FORKED: Final = "bare pika, forked"
OURS: Final = "workq"
INFO: Final = "workq info"


@dataclass(frozen=True, slots=True)
class Rate:
    """One contender in one round."""

    tasks: int
    seconds: float
    cpu: float
    """Seconds on a CPU of all its processes in that time."""
    parent_cpu: float
    """Of those of them that run no tasks."""
    rest: float | None = None
    """CPU seconds a second of those, while there is nothing to do."""

    @property
    def a_second(self) -> float:
        return self.tasks / self.seconds

    @property
    def a_task(self) -> float:
        """CPU seconds."""
        return self.cpu / self.tasks

    @property
    def parent_a_task(self) -> float:
        """CPU seconds of the parent for one task: what it uses beyond what it uses at rest."""
        return (self.parent_cpu - (self.rest or 0.0) * self.seconds) / self.tasks


@dataclass(slots=True)
class Rates:
    """All rounds of a bench; a round has a Rate of each contender; later ones perhaps not of peers."""

    rounds: list[dict[str, Rate]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.rounds[0]) if self.rounds else []

    def of(self, name: str, what: Callable[[Rate], float]) -> list[float]:
        return [what(each[name]) for each in self.rounds if name in each]

    def median(self, name: str, what: Callable[[Rate], float]) -> float:
        return median(self.of(name, what))

    def ratio(self, name: str, other: str, what: Callable[[Rate], float]) -> float:
        """`name` to `other` within a round; of all rounds the median."""
        return median(what(each[name]) / what(each[other]) for each in self.rounds if name in each and other in each)


def a_task(rate: Rate) -> float:
    return rate.a_task


def a_second(rate: Rate) -> float:
    return rate.a_second


# ------------------------------------------------------------------------------------------------------ measuring


def measure(
    contender: Contender, url: str, place: Path, *, workers: int, body: bytes, count: int, seconds: float, rest: float
) -> Rate:
    """One round of one contender: `count` messages with this body, watched for `seconds` or until they are nearly all
    done; then the parent for `rest` seconds without work. Raises BenchError when there is too little to tell."""
    queue = f"{contender.slug}-{uuid4().hex[:8]}"
    say(f"{contender.name}: publishing {count} messages")
    contender.publish(url, queue, [body] * count)
    say(f"{contender.name}: {workers} workers")
    try:
        with channel(url) as link, contender.running(url, queue, workers, place) as pool:
            pool.await_ready()
            time.sleep(min(WARM, seconds / 4))
            family, parents = pool.family(), pool.parents()
            first = Reading.take(family, depth(link, queue))
            left = count // LEFT
            last = _last(link, queue, pool, family, first.at + seconds, left)
            tasks, took = first.ready - last.ready, last.at - first.at
            if took < seconds / 4 or last.ready <= 0:
                raise BenchError(
                    f"{contender.name}: of {count} messages {first.ready} were left when all its workers consumed, "
                    f"{last.ready} after {took:.1f} s: too few to tell its pace"
                )
            resting = None
            if rest:
                link.queue_purge(queue)
                time.sleep(1.0)
                before = Reading.take(parents)
                time.sleep(rest)
                resting = Reading.take(parents).share(before, parents)
            return Rate(tasks, took, last.spent(first), last.spent(first, parents), resting)
    finally:
        with channel(url) as link:
            link.queue_delete(queue)


def _last(link: Any, queue: str, pool: Pool, family: Sequence[int], until: float, left: int) -> Reading:
    """The reading at the end of the time, or when so few messages are left."""
    while True:
        reading = Reading.take(family, depth(link, queue))
        if reading.at >= until or reading.ready <= left:
            return reading
        pool.demand_alive()
        # Looking costs the broker something; near the end it must be often enough not to miss it.
        time.sleep(max(0.002, min(0.02, until - now())))


def measure_rounds(
    options: Options,
    everybody: Sequence[Contender],
    *,
    workers: int = WORKERS,
    body: bytes = NO_OP,
    seconds: float = 4.0,
    rest: float = 0.0,
) -> Rates:
    """So many rounds of all of them, each round beginning with another one. `rest` is for ours."""
    rates = Rates()
    pace: dict[str, float] = {}
    for number in range(options.rounds):
        found: dict[str, Rate] = {}
        present = [each for each in everybody if number < rounds_of(each, options)]
        first = number % len(present)
        for each in [*present[first:], *present[:first]]:
            count = _count(each.name, pace.get(each.name), workers, body, seconds)
            resting = rest if each.name == OURS else 0.0
            found[each.name] = measure(
                each, options.node_url, options.place, workers=workers, body=body, count=count, seconds=seconds,
                rest=resting,
            )  # fmt: skip
            pace[each.name] = found[each.name].a_second
        rates.rounds.append({each.name: found[each.name] for each in present})
    say("")
    return rates


def _count(name: str, pace: float | None, workers: int, body: bytes, seconds: float) -> int:
    """How many messages last for the time that is measured, and for what comes before it."""
    if len(body) > 1000:
        return round(LARGE_PACE * (seconds + 1.0))
    expected = pace or PACE.get(name, FAST) * min(1.0, workers / 3)
    return round(expected * (seconds * 1.3 + BEFORE))


# ----------------------------------------------------------------------------------------------------------- rows


def rates(options: Options) -> list[Row]:
    """CPU and time of a task that does nothing, and of one with a body of 1 MB."""
    seconds = 1.5 if options.quick else SECONDS
    measured = measure_rounds(
        options, chosen(options, *contenders()), seconds=seconds, rest=2.0 if options.quick else REST
    )
    large = measure_rounds(options, chosen(options, BarePika(), Workq()), body=LARGE, seconds=LARGE_SECONDS)
    return [*no_op_rows(measured), *large_rows(large)]


def no_op_rows(measured: Rates) -> list[Row]:
    """The lines of the table about tasks that do nothing, as far as those are there whom they compare."""
    names = set(measured.names)
    rows = []
    if {OURS, BARE} <= names:
        rows += [_cost(measured), *_cost_beside(measured), _pace(measured)]
    if OURS in names:
        rows.append(_parent(measured))
    if {INFO, BARE} <= names:
        rows.append(_log(measured))
    return rows


Limit = tuple[str, float]
"""Of a ratio: as the table has it, and as it is judged."""


def ratio_row(
    measured: Rates,
    what: str,
    of: Callable[[Rate], float],
    must: Limit,
    ambition: Limit | None = None,
    *,
    ours: str = OURS,
    other: str = BARE,
    its: str = BARE,
    words: Callable[[float], str] | None = None,
    peers: Sequence[str] = (BARE,),
    each: bool = False,
    data: Mapping[str, Any] = {},
    note: str = "",
) -> Row:
    """Our figure and its ratio to another's, called `its`. Of tasks a second (`a_second`) more is better, of CPU less.
    `each`: everybody stands beside it with a ratio, and who does better than we is named; else `peers`, by figure."""
    sign, usual = (-1, "{:,.0f}/s".format) if of is a_second else (1, _us)
    told, reach = words or usual, ambition or ("", must[1])
    ratio, mine = measured.ratio(ours, other, of), measured.median(ours, of)
    names = [name for name in measured.names if name not in (OURS, INFO)] if each else peers
    return Row(
        what=what,
        ours=f"{told(mine)}, {ratio:.2f}x {its}",
        target=must[0],
        reach=reach[0],
        met=sign * ratio <= sign * must[1],
        reached=sign * ratio <= sign * reach[1],
        peers={
            name: told(measured.median(name, of)) + (f", {measured.ratio(name, other, of):.2f}x" if each else "")
            for name in names
        },
        better=tuple(name for name in names if each and sign * measured.median(name, of) < sign * mine),
        data={"ratio": ratio, **data},
        note=note,
    )


def _cost(measured: Rates) -> Row:
    how = "Log level warning for all. CPU clocks of all processes over some seconds of work, per task done in them."
    return ratio_row(
        measured, "CPU per no-op task, 4 workers, all processes", a_task, ("1.25x bare pika", 1.25), ("1.10x", 1.10),
        each=True, data={"rounds": measured.rounds}, note=how + _forked(measured),
    )  # fmt: skip


def _forked(measured: Rates) -> str:
    """What a ratio to bare pika does not tell."""
    if FORKED not in measured.names:
        return ""
    return (
        f" Bare pika: {WORKERS} processes started one by one, {_us(measured.median(BARE, a_task))}; forked from one "
        "process, which shares caches as our workers do, the same program costs "
        f"{_us(measured.median(FORKED, a_task))}."
    )


def _cost_beside(measured: Rates) -> list[Row]:
    rows = []
    limits = (
        ("Dramatiq", 1 / 3, "a third of Dramatiq's (0.33x)", 0.0),
        ("Celery", 1 / 4, "a quarter of Celery's (0.25x)", 0.0),
        ("C client", 4.0, "4x", 3.0),
    )
    for name, limit, words, ambition in limits:
        if name in measured.names:
            ratio = measured.ratio(OURS, name, a_task)
            rows.append(
                Row(
                    what=f"CPU per no-op task beside {name}",
                    ours=f"{ratio:.2f}x {name}",
                    target=words,
                    reach=f"{ambition:g}x" if ambition else "",
                    met=ratio <= limit,
                    reached=ratio <= (ambition or limit),
                    peers={name: _us(measured.median(name, a_task))},
                    data={"ratio": ratio},
                )
            )
    return rows


def _pace(measured: Rates) -> Row:
    return ratio_row(
        measured, "no-op tasks a second, 4 workers", a_second, ("0.85x bare pika", 0.85), ("0.95x", 0.95), each=True
    )


PARENT_MUST: Final = 1e-6
PARENT_REACH: Final = 0.3e-6
"""CPU seconds a task of our parent, beyond those at rest: a hundredth of what a task costs, and a third of that, which
is below what a second measurement of the same changes."""


def _parent(measured: Rates) -> Row:
    beyond = measured.median(OURS, lambda rate: rate.parent_a_task)
    busy = measured.median(OURS, lambda rate: rate.parent_cpu / rate.seconds)
    rest = measured.median(OURS, lambda rate: rate.rest or 0.0)
    return Row(
        what="the parent's CPU per task",
        ours=f"{_percent(busy)} of a CPU at full rate, {_percent(rest)} at rest: {beyond * 1e6:.2f} us a task",
        target="not to be measured: below 1 us",
        reach="0.3 us",
        met=beyond <= PARENT_MUST,
        reached=beyond <= PARENT_REACH,
        peers={
            name: f"{measured.median(name, lambda rate: rate.parent_cpu / rate.tasks) * 1e6:.2f} us"
            for name in measured.names
            if name not in (OURS, INFO, BARE, FORKED, "C client")
        },
        data={"a_task": beyond, "busy": busy, "rest": rest},
        note="Supervisor and nursery: their CPU a second at full rate less that of an empty queue, per task. Of the "
        "peers, all processes that run no tasks.",
    )


def _log(measured: Rates) -> Row:
    return ratio_row(
        measured, "CPU per no-op task with a log line for each", a_task, ("1.6x bare pika", 1.6), ("1.4x", 1.4),
        ours=INFO, its="bare pika, which logs nothing", peers=(), data={"a_second": measured.median(INFO, a_second)},
        note="Level info, JSON, into a file; the others log at warning, that is: nothing.",
    )  # fmt: skip


def large_rows(measured: Rates) -> list[Row]:
    """The lines about bodies of 1 MB."""
    if not {OURS, BARE} <= set(measured.names):
        return []
    return [
        ratio_row(
            measured, "tasks a second with bodies of 1 MB", a_second, ("0.9x bare pika", 0.9),
            data={"rounds": measured.rounds},
        ),
        ratio_row(
            measured, "CPU per task with a body of 1 MB", a_task, ("1.1x bare pika", 1 / 0.9),
            words=lambda seconds: f"{seconds * 1e3:.2f} ms",
        ),
    ]  # fmt: skip


def curve(options: Options) -> list[Row]:
    """No-op tasks a second with 1, 2, 4 and 8 workers."""
    sizes = (1, 4) if options.quick else (1, 2, 4, 8)
    everybody = chosen(options, *(each for each in contenders() if each.name not in (FORKED, INFO)))
    series: dict[str, dict[str, list[float]]] = {each.name: {} for each in everybody}
    for workers in sizes:
        found = measure_rounds(options, everybody, workers=workers, seconds=1.5)
        for name in found.names:
            series[name][str(workers)] = found.of(name, a_second)
    return [
        Row(
            what=f"no-op tasks a second with {', '.join(map(str, sizes))} workers",
            ours=_steps(series.get(OURS, {})),
            target="",
            peers={name: _steps(values) for name, values in series.items() if name != OURS},
            data={"plot": "throughput", "series": series},
        )
    ]


def _steps(values: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{median(each):,.0f}" for each in values.values())


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
