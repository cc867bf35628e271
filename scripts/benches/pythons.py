"""Ours on the newer Pythons that this machine has, beside ours on this one: every figure, in the same turns."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

from supervisor.commands.node import beneath

from .contenders import SCRIPTS, Workq, output
from .crowd import killed_at_once
from .footprint import idling_of, reloaded, started, warm
from .modern import newest
from .network import HERD, Broker, broker
from .progress import progress
from .rates import NO_OP, PACE, WORKERS, Rate, measure
from .recovery import FINISHED, Shooting
from .row import BenchError, Options, Row
from .trials import attempt

VERSIONS: Final = ("3.13", "3.14")
WORSE: Final = 1.05
SECONDS: Final = 2.0
KILLS: Final = 16
STARTS: Final = 9
SHORT: Final = (0.010,) * 1000
IDLE: Final = 60.0

Figures = dict[str, float]
"""By what they are; of each less is better."""


class On(Workq):
    """Ours, on this Python; `place` is an empty directory for its environment."""

    def __init__(self, version: str, place: Path) -> None:
        """Raises BenchError when this machine does not have it."""
        super().__init__()
        usr = output(str(SCRIPTS / "pythons"), "--environment", version, str(place)).strip()
        self._usr = Path(usr) if usr else None
        self._bin = place / "bin"
        self.name = output(*beneath(self._usr, str(self._bin / "python"), "--version")).strip()

    def prepare(self) -> None:
        """Its modules are compiled already."""

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        return beneath(self._usr, str(self._bin / "workq-supervise"), *super().command(url, name, workers, place)[1:])


def pythons(options: Options) -> list[Row]:
    """On each of them: CPU and time of a task, recoveries, start, memory, and what an idle pool takes."""
    ours = Workq()
    everybody = [ours, *_others(options)]
    found: dict[str, list[Figures]] = {each.name: [] for each in everybody}
    with broker(options.place / "network") as there, newest(options.place) as modern:
        for turn in progress(options.rounds, "pythons"):
            first = turn % len(everybody)
            for each in [*everybody[first:], *everybody[:first]]:
                name = f"{each.slug}-{turn}"
                quorum = {"a task on a quorum queue": 1 / _rate(each, modern.url, options.place).a_second}
                found[each.name].append(figures(each, options, there, name) | quorum)
        idle = _idle(everybody, replace(options, node_url=there.url))
    return [row(name, found, idle) for name in found if name != ours.name]


def _others(options: Options) -> list[On]:
    """Those that can be had; of the others it is said why not."""
    found = []
    for version in VERSIONS:
        if not sys.version.startswith(f"{version}."):
            try:
                found.append(On(version, options.place / version))
            except BenchError as error:
                print(f"bench: without Python {version}: {error}", file=sys.stderr)
    return found


def figures(each: Workq, options: Options, there: Broker, name: str) -> Figures:
    near = replace(options, node_url=there.url)

    def by(reach: str) -> Workq:
        contender = copy.copy(each)
        contender.reach = reach
        return contender

    def recovered(reach: str, way: str) -> float:
        shooting = Shooting(by(reach), 1, there.url, f"{way}-{name}", options.place / f"{way}-{name}")
        return median(each.reached[FINISHED] for each in shooting.run(KILLS))

    plain, tls = (_rate(by(reach), there.url, options.place) for reach in (there.url, there.tls))
    pool = reloaded(each, near, f"reloaded-{name}")
    return {
        "CPU a task": plain.a_task,
        "a task": 1 / plain.a_second,
        "CPU a task over TLS": tls.a_task,
        "recovery": recovered(there.url, "near"),
        "at 10 ms": recovered(there.far, "far"),
        "over TLS at 10 ms": recovered(there.far_tls, "far-tls"),
        f"{HERD} workers at 10 ms": killed_at_once(by(there.far), there.url, options.place, f"herd-{name}", HERD),
        f"{len(SHORT)} tasks of 10 ms": attempt(each, near, f"short-{name}", SHORT, WORKERS).seconds,
        "start": median(started(each, near, f"start-{name}-{number}") for number in range(STARTS)),
        "memory": pool.before,
        "private memory of a worker": pool.own,
        "memory after a reload": pool.after,
    }


def _rate(contender: Workq, url: str, place: Path) -> Rate:
    count = round(PACE["workq"] * (SECONDS + 2))
    return measure(contender, url, place, workers=WORKERS, body=NO_OP, count=count, seconds=SECONDS, rest=0.0)


def _idle(everybody: Sequence[Workq], options: Options) -> Figures:
    """Share of a CPU, by contender: all at the same time."""
    with ExitStack() as stack:
        pools = {
            each.name: stack.enter_context(warm(each, options, f"idle-{each.slug}", WORKERS)) for each in everybody
        }
        return {name: found.cpu for name, found in idling_of(pools, IDLE / 6 if options.quick else IDLE).items()}


def row(name: str, found: Mapping[str, Sequence[Figures]], idle: Figures) -> Row:
    """`found` by contender, a turn each."""
    ours = Workq().name
    ratios = {
        what: median(its[what] / mine[what] for its, mine in zip(found[name], found[ours], strict=True))
        for what in found[name][0]
    }
    ratios["idle"] = idle[name] / idle[ours]
    return Row(
        what=f"on {name}, beside {sys.version.split()[0]}: the more, the worse",
        ours=", ".join(f"{what} {ratio:.2f}x" for what, ratio in ratios.items()),
        target=f"at most {WORSE:g}x each",
        met=max(ratios.values()) <= WORSE,
        data={"ratios": ratios, "found": found, "idle": idle},
        note="In the same turns; 4 workers, recoveries with 1. Where the machine has no 3.14 it is Debian testing's, "
        "whose libraries nobody else here maps: they count in full in its memory.",
    )
