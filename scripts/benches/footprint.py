"""What a pool takes of a machine: memory; CPU and wake-ups while nothing is to be done; the time until it is there.

Everything is read from outside, of all processes of a contender, in the same way for each (see `measure`).
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from supervisor.clock import now

from .contenders import (
    SCRIPTS,
    BarePika,
    Celery,
    Contender,
    Dramatiq,
    Pool,
    Supervisord,
    Workq,
    chosen,
    comm,
    peers_venv,
    rounds_of,
)
from .measure import Reading, ms, private, pss, wakeups
from .notes import Note, Notes
from .progress import progress
from .queues import channel, wait_depth
from .row import Options, Row, at_most

MIB: Final = 1 << 20
WHOLE, WHOLE_REACH = 55 * MIB, 50 * MIB
OWN, OWN_REACH = 4.5 * MIB, 4 * MIB
AFTER_RELOAD: Final = MIB
"""Bytes that a pool may have gained by a reload."""
OURS: Final = "workq"
PATIENCE: Final = 60.0
"""Seconds for what takes a few."""
WARM: Final = 100
"""Tasks for each worker before anything is read, so that everybody has all in memory that a task needs."""
REST: Final = 3.0
"""Seconds after that, for timers of the start to run out."""


@contextmanager
def warm(
    contender: Contender, options: Options, name: str, workers: int, env: Mapping[str, str] = {}
) -> Iterator[Pool]:
    """A pool that has worked, and has nothing more to do."""
    place = options.place / name
    contender.publish(options.node_url, name, [b""] * (WARM * workers))
    with contender.running(options.node_url, name, workers, place, env) as pool, channel(options.node_url) as link:
        pool.await_ready()
        wait_depth(link, name, 0, PATIENCE)
        time.sleep(REST)
        pool.demand_alive()
        yield pool


def mib(size: float) -> str:
    return f"{size / MIB:.0f} MiB" if size >= 100 * MIB else f"{size / MIB:.1f} MiB"


# ------------------------------------------------------------------------------------------------------------ memory


def memory(options: Options) -> list[Row]:
    """The proportional set size (PSS) of a pool of four with a handler that imports nothing; and what each further
    worker takes when the handler imports numpy: a pool of eight less a pool of four, by four."""
    everybody = chosen(options, Workq(), BarePika(), Dramatiq(), Celery(), Supervisord())
    whole: dict[str, list[int]] = {each.name: [] for each in everybody}
    further: dict[str, list[float]] = {each.name: [] for each in everybody}
    for turn in progress(options.rounds, "memory"):
        for each in (each for each in everybody if turn < rounds_of(each, options)):
            whole[each.name].append(pool_pss(each, options, f"pss-{each.slug}-{turn}", 4))
            env = with_numpy(each, options.place)
            four, eight = (pool_pss(each, options, f"numpy-{each.slug}-{size}-{turn}", size, env) for size in (4, 8))
            further[each.name].append((eight - four) / 4)
    reloads = [reloaded(Workq(), options, f"reloaded-{turn}") for turn in range(options.rounds)]
    return [whole_row(whole), own_row(reloads), reload_row(reloads), further_row(further)]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Our pool of four before and after a reload, in bytes."""

    own: float
    """Of a worker, the mean: what it shares with nobody."""
    before: int
    after: int


def reloaded(contender: Workq, options: Options, name: str) -> Reloaded:
    with warm(contender, options, name, 4) as pool, channel(options.node_url) as link:
        own = sum(private(pid) for pid in pool.workers()) / 4
        before, old = sum(pss(pid) for pid in pool.family()), set(pool.workers())
        os.kill(pool.root, signal.SIGHUP)
        pool.await_consumers(link, old)
        contender.publish(options.node_url, name, [b""] * (4 * WARM))
        wait_depth(link, name, 0, PATIENCE)
        time.sleep(REST)
        return Reloaded(own, before, sum(pss(pid) for pid in pool.family()))


def own_row(found: Sequence[Reloaded]) -> Row:
    typical = median(each.own for each in found)
    return Row(
        what="private memory of a worker, 4 workers",
        ours=f"{typical / MIB:.2f} MiB",
        **at_most(typical, OWN, OWN_REACH, lambda size: f"{size / MIB:.2f} MiB"),
        data={"bytes": [each.own for each in found]},
        note="`Private_*` of smaps_rollup, the mean of four workers that have done 100 tasks each.",
    )


def reload_row(found: Sequence[Reloaded]) -> Row:
    more = median(each.after - each.before for each in found)
    return Row(
        what="memory (PSS) of the same pool after a reload",
        ours=f"{more / MIB:+.1f} MiB",
        target=f"at most {AFTER_RELOAD / MIB:+.1f} MiB",
        reach="+0.0 MiB",
        met=more <= AFTER_RELOAD,
        reached=more <= 0.05 * MIB,
        data={"before": [each.before for each in found], "after": [each.after for each in found]},
        note="By SIGHUP; afterwards each worker has done 100 tasks again.",
    )


def pool_pss(contender: Contender, options: Options, name: str, workers: int, env: Mapping[str, str] = {}) -> int:
    with warm(contender, options, name, workers, env) as pool:
        return sum(pss(pid) for pid in pool.family())


def with_numpy(contender: Contender, place: Path) -> dict[str, str]:
    """Has the handler import numpy. Who runs in our environment, which has none, is lent that of the peers: the same
    files, and nothing else of theirs."""
    lent = place / "lent"
    if not lent.exists():
        (found,) = peers_venv().glob("lib/python3*/site-packages")
        lent.mkdir()
        for path in found.glob("numpy*"):
            if path.suffix != ".dist-info":
                (lent / path.name).symlink_to(path)
    env = {"BENCH_IMPORT_MODULE": "numpy"}
    if isinstance(contender, Workq | BarePika):
        env["PYTHONPATH"] = f"{SCRIPTS}:{lent}"
    return env


def whole_row(found: Mapping[str, Sequence[float]]) -> Row:
    """`found`: bytes in each round, by contender."""
    size = {name: median(values) for name, values in found.items()}
    return Row(
        what="memory (PSS), the supervisor and 4 workers",
        ours=mib(size[OURS]),
        **at_most(size[OURS], WHOLE, WHOLE_REACH, mib),
        peers=_others(size, mib),
        better=_less(size),
        data={"bytes": found},
        note="PSS of all processes of a pool after 400 tasks, a handler that imports nothing. Bare pika: its four "
        "processes and the small program that started them.",
    )


def further_row(found: Mapping[str, Sequence[float]]) -> Row:
    """`found`: bytes in each round, by contender."""
    size = {name: median(values) for name, values in found.items()}
    peers = [size[name] for name in ("Dramatiq", "Celery") if name in size]
    return Row(
        what="memory (PSS) of each further worker, the handler imports numpy",
        ours=mib(size[OURS]),
        target="half of the better of Dramatiq and Celery" if peers else "",
        met=size[OURS] <= min(peers, default=math.inf) / 2,
        peers=_others(size, mib),
        better=_less(size),
        data={"bytes": found},
        note="A pool of 8 less a pool of 4, divided by 4.",
    )


def _others(figures: Mapping[str, float], words: Callable[[float], str]) -> dict[str, str]:
    return {name: words(value) for name, value in figures.items() if name != OURS}


def _less(figures: Mapping[str, float]) -> tuple[str, ...]:
    """Who needs less than we."""
    return tuple(name for name, value in figures.items() if value < figures[OURS])


# -------------------------------------------------------------------------------------------------------------- idle

IDLE: Final = 60.0
IDLE_CPU, IDLE_REACH = 0.001, 0.0005
"""Of one CPU, in all."""
IDLE_WAKEUPS: Final = 3.0
"""A second, of any process."""


@dataclass(frozen=True, slots=True)
class Idling:
    """A pool over a while in which nothing was to be done."""

    cpu: float
    """Share of one CPU, all processes."""
    wakeups: dict[str, float]
    """A second, by process: its name and pid."""

    @property
    def busiest(self) -> float:
        return max(self.wakeups.values())

    def __str__(self) -> str:
        return f"{self.cpu:.2%} of a CPU, {self.busiest:.1f} wake-ups/s of the busiest process"


def idle(options: Options) -> list[Row]:
    """Pools of four that have worked and wait for more, all contenders at the same time; for a minute each process's
    CPU clock and context switches."""
    everybody = chosen(options, Workq(), BarePika(), Dramatiq(), Celery(), Supervisord())
    seconds = IDLE / 6 if options.quick else IDLE
    found: dict[str, list[Idling]] = {each.name: [] for each in everybody}
    for turn in progress(options.rounds, "idle"):
        with ExitStack() as stack:
            pools = {
                each.name: stack.enter_context(warm(each, options, f"idle-{each.slug}-{turn}", 4)) for each in everybody
            }
            for name, idling in idling_of(pools, seconds).items():
                found[name].append(idling)
    return [idle_row(found, seconds)]


def idle_row(found: Mapping[str, Sequence[Idling]], seconds: float) -> Row:
    """Ours must hold in every round."""
    typical = {name: sorted(values, key=lambda each: each.cpu)[len(values) // 2] for name, values in found.items()}
    ours = typical[OURS]
    calm = all(each.busiest <= IDLE_WAKEUPS for each in found[OURS])
    most = max(each.cpu for each in found[OURS])
    return Row(
        what=f"idle for {seconds:g} s, 4 workers, all processes",
        ours=str(ours),
        target=f"{IDLE_CPU:.1%} of a CPU, {IDLE_WAKEUPS:g} wake-ups/s",
        reach=f"{IDLE_REACH:.2%}",
        met=calm and most <= IDLE_CPU,
        reached=calm and most <= IDLE_REACH,
        peers={name: str(each) for name, each in typical.items() if name != OURS},
        better=tuple(name for name, each in typical.items() if each.cpu < ours.cpu),
        data=found,
        note="After 400 tasks; wake-ups are context switches of all threads of a process.",
    )


def idling_of(pools: Mapping[str, Pool], seconds: float) -> dict[str, Idling]:
    """How these idle, over the same time. Raises BenchError when a process comes or goes meanwhile."""
    families = {name: pool.family() for name, pool in pools.items()}
    everyone = [pid for family in families.values() for pid in family]
    before, woken = Reading.take(everyone), {pid: wakeups(pid) for pid in everyone}
    time.sleep(seconds)
    after, woken_then = Reading.take(everyone), {pid: wakeups(pid) for pid in everyone}
    elapsed = after.at - before.at
    return {
        name: Idling(
            after.share(before, family),
            {f"{comm(pid)} {pid}": (woken_then[pid] - woken[pid]) / elapsed for pid in family},
        )
        for name, family in families.items()
    }


# ------------------------------------------------------------------------------------------------------------- start

START: Final = 0.180
START_AMBITION: Final = 0.140


def start(options: Options) -> list[Row]:
    """A message is in the queue; from the moment before the program is executed, with four workers, to the moment that
    the task notes its end."""
    everybody = chosen(options, Workq(), BarePika(), Dramatiq(), Celery(), Supervisord())
    found: dict[str, list[float]] = {each.name: [] for each in everybody}
    for turn in progress(options.rounds, "start"):
        for each in (each for each in everybody if turn < rounds_of(each, options)):
            found[each.name].append(started(each, options, f"start-{each.slug}-{turn}"))
    return [start_row(found)]


def start_row(found: Mapping[str, Sequence[float]]) -> Row:
    """`found`: seconds in each round, by contender."""
    typical = {name: median(values) for name, values in found.items()}
    return Row(
        what="from the start of the program to the first task done, 4 workers, a handler without imports",
        ours=f"{ms(typical[OURS])} (worst of {len(found[OURS])}: {ms(max(found[OURS]))})",
        **at_most(typical[OURS], START, START_AMBITION, ms),
        peers=_others(typical, ms),
        better=_less(typical),
        data={"seconds": found},
        note="Medians; the program's files are in the page cache.",
    )


def started(contender: Contender, options: Options, name: str) -> float:
    """Seconds from the start of its program to the first task done."""
    place = options.place / name
    contender.publish(options.node_url, name, [b"x 1"])
    ended: list[Note] = []
    with closing(Notes(place / "notes")) as notes:

        def is_done() -> bool:
            ended.extend(note for note in notes.read() if note.has_ended)
            return bool(ended)

        began = now()
        with contender.running(options.node_url, name, 4, place, {"BENCH_NOTES": str(notes.path)}) as pool:
            pool.wait(is_done, "it has done nothing", PATIENCE)
            return ended[0].at - began
