"""Ours on the newer Pythons that this machine has, beside ours on this one: every figure, in the same turns."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

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
KILLS: Final = 6
SHORT: Final = (0.010,) * 1000
IDLE: Final = 60.0

Figures = dict[str, list[float]]
"""Each turn's, by what it is; the less, the better."""


class Brokers(NamedTuple):
    """Where everybody measures."""

    near: Options
    ways: Broker
    """To the same node."""
    quorum: Options


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
    found: dict[str, Figures] = {each.name: {} for each in everybody}
    with broker(options.place / "network") as there, newest(options.place) as modern:
        at = Brokers(replace(options, node_url=there.url), there, replace(options, node_url=modern.url))
        for step in progress(len(STEPS), "pythons"):
            turns, measured = STEPS[step]
            for turn in range(turns * options.rounds):
                # One right after the other: within minutes the machine itself changes by more than is asked here.
                first = turn % len(everybody)
                for each in [*everybody[first:], *everybody[:first]]:
                    for what, figure in measured(each, at, f"{each.slug}-{step}-{turn}").items():
                        found[each.name].setdefault(what, []).append(figure)
        for name, share in _idle(everybody, at.near).items():
            found[name]["idle"] = [share]
    return [row(name, found) for name in found if name != ours.name]


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


def _by(each: Workq, reach: str) -> Workq:
    contender = copy.copy(each)
    contender.reach = reach
    return contender


def rates(each: Workq, at: Brokers, name: str) -> dict[str, float]:
    here, tls = (_rate(_by(each, reach), at.near) for reach in (at.ways.url, at.ways.tls))
    quorum = _rate(each, at.quorum)
    return {
        "CPU a task": here.a_task,
        "a task": 1 / here.a_second,
        "CPU a task over TLS": tls.a_task,
        "a task on a quorum queue": 1 / quorum.a_second,
    }


def recoveries(each: Workq, at: Brokers, name: str) -> dict[str, float]:
    found, near, ways = {}, at.near, at.ways
    for what, reach in {"recovery": ways.url, "at 10 ms": ways.far, "over TLS at 10 ms": ways.far_tls}.items():
        place = near.place / f"{what.replace(' ', '-')}-{name}"
        shooting = Shooting(_by(each, reach), 1, near.node_url, place.name, place)
        found[what] = median(each.reached[FINISHED] for each in shooting.run(KILLS))
    return found


def herd(each: Workq, at: Brokers, name: str) -> dict[str, float]:
    took = killed_at_once(_by(each, at.ways.far), at.near.node_url, at.near.place, name, HERD)
    return {f"{HERD} workers at 10 ms": took}


def short(each: Workq, at: Brokers, name: str) -> dict[str, float]:
    return {f"{len(SHORT)} tasks of 10 ms": attempt(each, at.near, name, SHORT, WORKERS).seconds}


def start(each: Workq, at: Brokers, name: str) -> dict[str, float]:
    return {"start": started(each, at.near, name)}


def memory(each: Workq, at: Brokers, name: str) -> dict[str, float]:
    pool = reloaded(each, at.near, name)
    return {"memory": pool.before, "private memory of a worker": pool.own, "memory after a reload": pool.after}


STEPS: Final = ((3, rates), (3, recoveries), (3, herd), (2, short), (9, start), (1, memory))
"""How often each, and what."""


def _rate(contender: Workq, options: Options) -> Rate:
    return measure(
        contender, options.node_url, options.place, workers=WORKERS, body=NO_OP,
        count=round(PACE["workq"] * (SECONDS + 2)), seconds=SECONDS, rest=0.0,
    )  # fmt: skip


def _idle(everybody: Sequence[Workq], options: Options) -> dict[str, float]:
    """Share of a CPU, by contender: all at the same time."""
    with ExitStack() as stack:
        pools = {
            each.name: stack.enter_context(warm(each, options, f"idle-{each.slug}", WORKERS)) for each in everybody
        }
        return {name: found.cpu for name, found in idling_of(pools, IDLE / 6 if options.quick else IDLE).items()}


def row(name: str, found: Mapping[str, Figures]) -> Row:
    """`found` by contender."""
    mine, its = found[Workq().name], found[name]
    ratios = {what: median(x / y for x, y in zip(its[what], mine[what], strict=True)) for what in mine}
    return Row(
        what=f"on {name}, beside {sys.version.split()[0]}: the more, the worse",
        ours=", ".join(f"{what} {ratio:.2f}x" for what, ratio in ratios.items()),
        target=f"at most {WORSE:g}x each",
        met=max(ratios.values()) <= WORSE,
        data={"ratios": ratios, "found": found},
        note="In the same turns; 4 workers, recoveries with 1. Where the machine has no 3.14 it is Debian testing's, "
        "whose libraries nobody else here maps: they count in full in its memory.",
    )
