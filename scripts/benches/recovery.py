"""What deaths cost: the time until somebody works again.

Everything is measured from outside and in the same way for every contender: by what the tasks themselves note (see
`notes`) and when the SIGKILL was sent. Nothing looks at the notes in the instants that matter: they are read later.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median_low
from typing import Final

from supervisor.clock import now

from .contenders import GENTLY, PATIENCE, Celery, Contender, Pool, Supervisord, Workq, chosen, rounds_of
from .measure import ms
from .notes import Note, Notes
from .progress import say
from .row import BenchError, Options, Row

IMPORT: Final = 0.5
"""Seconds that the import of the handler takes."""
TASK: Final = 0.002
"""Seconds of a task."""
KILLED_AFTER: Final = (0.02, 0.12)
"""Seconds between which the instant of a kill is drawn, once the pool is whole."""
QUIET: Final = 0.15
"""Seconds after a kill in which nothing is looked at: that would take the processor from the recovery."""
BACKLOG: Final = 4000
"""Tasks in the queue at the least when a worker is killed. Nothing is published while its replacement is awaited."""
STALLS: Final = 3
"""After so many kills that a peer has not made good it is left at that."""
TURNS: Final = 4
"""Pools that share a contender's kills; the contenders take turns."""
MEDIAN: Final = {1: 0.013, 4: 0.030}
"""By workers: of four, three go on, and take CPU from the replacement."""
AMBITION: Final = {1: 0.008, 4: 0.015}
WORST: Final = 0.150

SEEN: Final = "the supervisor has seen the death"
FORKED: Final = "the replacement is forked"
READY: Final = "it is consuming"
BEGUN: Final = "it has a task in flight"
FINISHED: Final = "it has finished a task"
NEXT: Final = "any worker has finished a task"
AGAIN: Final = "the killed task is finished, by anybody"
_WAY: Final = (SEEN, FORKED, READY, BEGUN, FINISHED, NEXT, AGAIN)
_EVENTS: Final = {"worker.exited": SEEN, "worker.started": FORKED, "worker.ready": READY}


@dataclass(slots=True)
class Worker:
    """One process, by its notes."""

    pid: int
    first_begun: float
    first_ended: float = math.inf
    finished: int = 0
    hand: int | None = None
    """The number of the task that it has in flight."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill, and what followed."""

    victim: int
    """Its pid."""
    heir: int
    """The pid of the process in its place."""
    killed: float
    """When, in monotonic seconds."""
    in_hand: bool
    """The dead worker had a task in flight."""
    reached: dict[str, float]
    """Seconds since the kill, by what had been reached."""


class Shooting:
    """One pool on a queue that never empties; one worker is killed at a time."""

    def __init__(self, contender: Contender, workers: int, url: str, name: str, place: Path) -> None:
        self._contender = contender
        self._workers = workers
        self._url = url
        self._name = name
        self._place = place
        self._published = 0
        self._notes = Notes(place / "notes")
        self._living: dict[int, Worker] = {}
        """By pid: those that have worked and were not killed, as far as it was looked."""
        self._ended = 0
        """Tasks that have come to their end."""
        self.recoveries: list[Recovery] = []
        self.has_killed = False
        """The pool was whole once, and a kill was made: what is wrong since then is the recovery."""
        # supervisord takes the end of a process that is younger than `startsecs` (1 s) for a failed start: it waits,
        # and after `startretries` (3) gives up (http://supervisord.org/configuration.html). So its victims are older.
        self._age = 1.2 if isinstance(contender, Supervisord) else 0.0

    def run(self, kills: int) -> list[Recovery]:
        env = {"BENCH_NOTES": str(self._place / "notes"), "BENCH_IMPORT": str(IMPORT)}
        wall = time.time() - now()  # lines of the log carry the time of day
        self._fill()
        running = self._contender.running(self._url, self._name, self._workers, self._place, env)
        with closing(self._notes), running as pool:
            for number in range(kills):
                say(f"{self._contender.name}, {self._workers} at work: kill {number + 1} of {kills}")
                self.recoveries.append(self._kill_one(pool))
        say("")
        if isinstance(self._contender, Workq):
            add_parts(self.recoveries, pool.log, wall)
        return self.recoveries

    def _kill_one(self, pool: Pool) -> Recovery:
        """Kill one worker at a random instant of a task, and see what followed."""
        living = self._living
        pool.wait(self._is_whole, "not all workers are at work", every=GENTLY)
        self._fill()
        pool.wait(self._candidates, "no worker is old enough", every=GENTLY)
        victim = random.choice(self._candidates())
        time.sleep(random.uniform(*KILLED_AFTER))
        killed = self._shoot(pool, victim)
        self.has_killed = True
        time.sleep(QUIET)
        after = self._look()
        hand = living.pop(victim.pid).hand

        def heir() -> Worker | None:
            return next((each for each in living.values() if each.finished and each.first_begun > killed), None)

        def ends() -> list[Note]:
            return [note for note in after if note.has_ended and note.at > killed]

        def is_over() -> bool:
            after.extend(self._look())
            return heir() is not None and (hand is None or any(note.number == hand for note in ends()))

        pool.wait(is_over, "nobody has taken the dead worker's place and its task", every=GENTLY)
        new = heir()
        assert new is not None
        reached = {BEGUN: new.first_begun - killed, FINISHED: new.first_ended - killed, NEXT: ends()[0].at - killed}
        if hand is not None:
            reached[AGAIN] = next(note.at for note in ends() if note.number == hand) - killed
        return Recovery(victim.pid, new.pid, killed, hand is not None, reached)

    def _look(self) -> list[Note]:
        """What is new."""
        fresh = self._notes.read()
        for note in fresh:
            worker = self._living.get(note.pid)
            if worker is None:
                worker = self._living[note.pid] = Worker(note.pid, note.at)
            worker.hand = None if note.has_ended else note.number
            if note.has_ended:
                worker.finished += 1
                worker.first_ended = min(worker.first_ended, note.at)
                self._ended += 1
        return fresh

    def _is_whole(self) -> bool:
        """Every worker has finished tasks of its own. (Ours restarts a slot later when one death follows another
        before anything is done; that is another story.)"""
        self._look()
        living = self._living
        return len(living) == self._workers and all(each.finished >= 3 for each in living.values())

    def _candidates(self) -> list[Worker]:
        return [each for each in self._living.values() if now() - each.first_begun >= self._age]

    def _shoot(self, pool: Pool, victim: Worker) -> float:
        """SIGKILL in the middle of a task. Returns when."""
        self._look()  # it may have much to read; the next ones are quick

        def is_at_work() -> bool:
            self._look()
            return victim.hand is not None

        pool.wait(is_at_work, f"process {victim.pid} has not begun another task", every=0)
        at = now()
        os.kill(victim.pid, signal.SIGKILL)
        return at

    def _fill(self) -> None:
        if self._published - self._ended < BACKLOG:
            numbers = range(self._published, self._published + 2 * BACKLOG)
            self._contender.publish(self._url, self._name, [b"%g %d" % (TASK, number) for number in numbers])
            self._published += len(numbers)


def add_parts(recoveries: list[Recovery], log: Path, wall: float) -> None:
    """What our own log tells of the way there, afterwards. `wall`: time of day less monotonic time."""
    told: dict[tuple[str, int], float] = {}
    for line in log.read_bytes().splitlines():
        if b'"worker.' in line:
            event = json.loads(line)
            if event["event"] in _EVENTS:
                told[event["event"], event["pid"]] = datetime.fromisoformat(event["timestamp"]).timestamp() - wall
    for recovery in recoveries:
        for name, part in _EVENTS.items():
            at = told.get((name, recovery.victim if part is SEEN else recovery.heir))
            if at is not None:
                recovery.reached[part] = at - recovery.killed


@dataclass(slots=True)
class Series:
    """The kills of one contender."""

    recoveries: list[Recovery] = field(default_factory=list)
    stalls: int = 0
    """Kills that were not made good within `PATIENCE`. A new pool has gone on from there."""

    @property
    def seconds(self) -> list[float]:
        return [each.reached[FINISHED] for each in self.recoveries]

    @property
    def words(self) -> str:
        stalled = f"{self.stalls} of them not made good within {PATIENCE:g} s" if self.stalls else ""
        if not self.recoveries:
            return stalled.replace("of them", "kills")
        typical, worst = median_low(self.seconds), max(self.seconds)
        counted = len(self.recoveries) + self.stalls
        return f"{ms(typical)}, worst of {counted}: {stalled or ms(worst)}"


def shoot(contenders: Sequence[Contender], workers: int, options: Options) -> dict[str, Series]:
    """As many kills of each contender as it has rounds, in turns, each turn a new pool on a new queue."""
    found = {each.name: Series() for each in contenders}
    turns = TURNS if options.rounds >= 10 * TURNS else 1
    for turn in range(turns):
        for contender in contenders:
            total = rounds_of(contender, options)
            kills = total // turns + (turn < total % turns)
            name = f"kill-{contender.slug}-{workers}-{turn}"
            _take_turn(contender, workers, options, name, kills, found[contender.name])
    return found


def _take_turn(contender: Contender, workers: int, options: Options, name: str, kills: int, series: Series) -> None:
    """Raises BenchError when our own pool does not recover. A peer's stall is what there is to know about it."""
    while kills > 0 and series.stalls < STALLS:
        place = options.place / f"{name}-{series.stalls}"
        shooting = Shooting(contender, workers, options.node_url, place.name, place)
        try:
            series.recoveries += shooting.run(kills)
            return
        except BenchError:
            if isinstance(contender, Workq) or not shooting.has_killed:
                raise
            series.recoveries += shooting.recoveries
            series.stalls += 1
            kills -= len(shooting.recoveries) + 1


def recovery(options: Options) -> list[Row]:
    """A SIGKILL of one worker in the middle of a task of 2 ms, with a backlog, a handler that takes 0.5 s to import and
    the settings that everybody has by default; until the process in its place has finished a task.

    With one worker that is the next finished task at all. With four the others go on meanwhile.
    """
    ours = Workq("info")  # the default, and its log tells of the way there
    name = Workq().name
    rows = []
    for workers, peers in ((1, [Supervisord()]), (4, [Celery(), Supervisord()])):
        found = shoot(chosen(options, ours, *peers), workers, options)
        rows.append(recovery_row(workers, name, {name: found.pop(ours.name), **found}))
    return rows


def recovery_row(workers: int, ours: str, found: Mapping[str, Series]) -> Row:
    """`found` by contender; `ours` is the name of our own."""
    parts = {name: parts_of(series.recoveries) for name, series in found.items()}
    typical, worst = median_low(found[ours].seconds), max(found[ours].seconds)
    way = ", ".join(f"{part} {ms(seconds)}" for part, seconds in parts[ours].items())
    what = "to the next finished task" if workers == 1 else "to the first task finished by the replacement"
    return Row(
        what=f"SIGKILL {what}, {workers} worker{'s' * (workers > 1)}, import of 0.5 s",
        ours=found[ours].words,
        target=f"median {ms(MEDIAN[workers])}, worst under {ms(WORST)}",
        reach=ms(AMBITION[workers]),
        met=typical <= MEDIAN[workers] and worst < WORST,
        reached=typical <= AMBITION[workers],
        peers={name: series.words for name, series in found.items() if name != ours},
        better=tuple(name for name, series in found.items() if series.seconds and median_low(series.seconds) < typical),
        data={
            "plot": "recovery",
            "series": {name: series.seconds for name, series in found.items() if series.seconds},
            "stalls": {name: series.stalls for name, series in found.items()},
            "parts": parts,
            "in_mid_task": {name: sum(each.in_hand for each in series.recoveries) for name, series in found.items()},
        },
        note=f"ours at log level info, the default; medians of the way there: {way}{fewer_of(ours, found)}",
    )


def fewer_of(ours: str, found: Mapping[str, Series]) -> str:
    """Of the peers that were killed less often than ours: how often, in words."""
    kills = {name: len(series.recoveries) + series.stalls for name, series in found.items()}
    fewer = [f"{name} {count}" for name, count in kills.items() if count < kills[ours]]
    return f"; kills: ours {kills[ours]}, {', '.join(fewer)}, for a peer needs seconds for each" if fewer else ""


def parts_of(recoveries: Sequence[Recovery]) -> dict[str, float]:
    """Seconds from the kill to each thing that was reached, medians."""
    times = {part: [each.reached[part] for each in recoveries if part in each.reached] for part in _WAY}
    return {part: median_low(values) for part, values in times.items() if values}
