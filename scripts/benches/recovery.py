"""What deaths cost: the time until somebody works again, and the work of a pool whose workers keep being killed. And
what needs the same notes: how near to the ideal short tasks come, and whether tasks are shared out fairly.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from .contenders import BarePika, CClient, Celery, Contender, Dramatiq, Pool, Supervisord, Workq, chosen, rounds_of
from .measure import median, rank
from .notes import Note, Notes, Run, runs
from .progress import say
from .row import BenchError, Options, Row

now: Final = time.monotonic


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f} ms" if seconds < 1 else f"{seconds:.2f} s"


# ----------------------------------------------------------------------------- from a SIGKILL to the next finished task

IMPORT: Final = 0.5
"""Seconds that the import of the handler takes."""
TASK: Final = 0.002
"""Seconds of a task."""
KILLED_AFTER: Final = (0.02, 0.12)
"""Seconds between which the instant of a kill is drawn, once the pool is whole."""
QUIET: Final = 0.15
"""Seconds after a kill in which nothing is looked at: that would take the processor from the recovery."""
LOOK_EVERY: Final = 0.05
PATIENCE: Final = 30.0
"""Seconds for what takes milliseconds, or a few seconds elsewhere."""
BACKLOG: Final = 4000
"""Tasks in the queue at the least when a worker is killed. Nothing is published while its replacement is awaited."""
STALLS: Final = 3
"""After so many kills that a peer has not made good it is left at that."""
TURNS: Final = 4
"""Pools that share a contender's kills; the contenders take turns."""
MEDIAN: Final = 0.030
WORST: Final = 0.150
AMBITION: Final = 0.015

SEEN: Final = "the supervisor has seen the death"
FORKED: Final = "the replacement is forked"
READY: Final = "it is consuming"
BEGUN: Final = "it has a task in hand"
FINISHED: Final = "it has finished a task"
NEXT: Final = "any worker has finished a task"
AGAIN: Final = "the killed task is finished, by anybody"
_EVENTS: Final = {"worker.exited": SEEN, "worker.started": FORKED, "worker.ready": READY}


@dataclass(slots=True)
class Worker:
    """One process, by its notes."""

    pid: int
    first_begun: float
    first_ended: float = math.inf
    finished: int = 0
    hand: int | None = None
    """The number of the task that it has in hand."""


class Crew:
    """The processes that have worked, as far as they have been looked at."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.living: dict[int, Worker] = {}
        self.ended = 0
        """Tasks that have come to their end."""

    def look(self) -> list[Note]:
        """What is new."""
        fresh = self._notes.read()
        for note in fresh:
            worker = self.living.get(note.pid)
            if worker is None:
                worker = self.living[note.pid] = Worker(note.pid, note.at)
            worker.hand = None if note.has_ended else note.number
            if note.has_ended:
                worker.finished += 1
                worker.first_ended = min(worker.first_ended, note.at)
                self.ended += 1
        return fresh


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
    """The dead worker had a task in hand."""
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
        self._crew = Crew(self._notes)
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
        living = self._crew.living
        self._await(pool, self._is_whole, "not all workers are at work")
        self._fill()
        self._await(pool, self._candidates, "no worker is old enough")
        victim = random.choice(self._candidates())
        time.sleep(random.uniform(*KILLED_AFTER))
        killed = self._shoot(pool, victim)
        self.has_killed = True
        time.sleep(QUIET)
        after = self._crew.look()
        hand = living.pop(victim.pid).hand

        def heir() -> Worker | None:
            return next((each for each in living.values() if each.finished and each.first_begun > killed), None)

        def ends() -> list[Note]:
            return [note for note in after if note.has_ended and note.at > killed]

        def is_over() -> bool:
            after.extend(self._crew.look())
            return heir() is not None and (hand is None or any(note.number == hand for note in ends()))

        self._await(pool, is_over, "nobody has taken the dead worker's place and its task")
        new = heir()
        assert new is not None
        reached = {BEGUN: new.first_begun - killed, FINISHED: new.first_ended - killed, NEXT: ends()[0].at - killed}
        if hand is not None:
            reached[AGAIN] = next(note.at for note in ends() if note.number == hand) - killed
        return Recovery(victim.pid, new.pid, killed, hand is not None, reached)

    def _is_whole(self) -> bool:
        """Every worker has finished tasks of its own. (Ours restarts a seat later when one death follows another
        before anything is done; that is another story.)"""
        self._crew.look()
        living = self._crew.living
        return len(living) == self._workers and all(each.finished >= 3 for each in living.values())

    def _candidates(self) -> list[Worker]:
        return [each for each in self._crew.living.values() if now() - each.first_begun >= self._age]

    def _shoot(self, pool: Pool, victim: Worker) -> float:
        """SIGKILL in the middle of a task. Returns when."""
        look = self._crew.look
        look()  # it may have much to read; the next ones are quick
        until = now() + PATIENCE
        while True:
            look()
            if victim.hand is not None:
                break
            if now() > until:
                raise self._failed(pool, f"process {victim.pid} does not begin another task")
        at = now()
        os.kill(victim.pid, signal.SIGKILL)
        return at

    def _fill(self) -> None:
        if self._published - self._crew.ended < BACKLOG:
            numbers = range(self._published, self._published + 2 * BACKLOG)
            self._contender.publish(self._url, self._name, [b"%g %d" % (TASK, number) for number in numbers])
            self._published += len(numbers)

    def _await(self, pool: Pool, happens: Callable[[], Any], otherwise: str) -> None:
        until = now() + PATIENCE
        while not happens():
            if now() > until or not pool.alive:
                raise self._failed(pool, otherwise)
            time.sleep(LOOK_EVERY)

    def _failed(self, pool: Pool, why: str) -> BenchError:
        if not pool.alive:
            return BenchError(f"{self._contender.name} has left ({why}); its output ends:\n{pool.tail()}")
        return BenchError(f"{self._contender.name}: {why} after {PATIENCE:g} s; its output ends:\n{pool.tail()}")


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
        typical, worst = rank(self.seconds, 0.5), max(self.seconds)
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
        place.mkdir()
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
    typical, worst = rank(found[ours].seconds, 0.5), max(found[ours].seconds)
    way = ", ".join(f"{part} {ms(seconds['median'])}" for part, seconds in parts[ours].items())
    what = "to the next finished task" if workers == 1 else "to the first task finished by the replacement"
    return Row(
        what=f"SIGKILL {what}, {workers} worker{'s' * (workers > 1)}, import of 0.5 s",
        ours=found[ours].words,
        target=f"median {ms(MEDIAN)}, worst under {ms(WORST)}",
        reach=ms(AMBITION),
        met=typical <= MEDIAN and worst < WORST,
        reached=typical <= AMBITION,
        peers={name: series.words for name, series in found.items() if name != ours},
        better=tuple(name for name, series in found.items() if series.seconds and rank(series.seconds, 0.5) < typical),
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


_WAY: Final = (SEEN, FORKED, READY, BEGUN, FINISHED, NEXT, AGAIN)


def parts_of(recoveries: Sequence[Recovery]) -> dict[str, dict[str, float]]:
    """Seconds from the kill to each thing that was reached."""
    found: dict[str, dict[str, float]] = {}
    for part in _WAY:
        values = [each.reached[part] for each in recoveries if part in each.reached]
        if values:
            found[part] = {"median": rank(values, 0.5), "p95": rank(values, 0.95), "worst": max(values)}
    return found


# ----------------------------------------------------------------------------------------------------- trials

GATE: Final = 4.0
"""Seconds that every worker is kept by a first task of its own, while the tasks that count are published: then all
begin at the same time, with the whole queue before them, and how long a pool takes to start does not matter."""
STALLED: Final = 20.0
"""Seconds without a finished task after which a pool is given up."""
LIMIT: Final = 12.0
"""Times the ideal, after which it is given up, too."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a queue full of tasks."""

    runs: list[Run]
    """Of the tasks, in the order of their ends; one that was done twice is there twice."""
    begun: list[Note]
    """The begins of tasks, also of those that a SIGKILL has cut short."""
    undone: int
    kills: int
    left: bool
    """The top process had left when there were tasks still to do."""
    waited: float
    """Seconds after which it was all done, or given up."""

    @property
    def seconds(self) -> float:
        """From the begin of the first task to the end of the last."""
        return max(each.ended for each in self.runs) - self.begun[0].at if self.runs else math.inf

    @property
    def again(self) -> int:
        """Runs that were a task's second, or third."""
        return len(self.begun) - len({each.number for each in self.begun})

    @property
    def outcome(self) -> str:
        """Why it has no figure."""
        end = "it left" if self.left else "given up"
        deaths = f" and {self.kills} kills" if self.kills else ""
        return f"{end} after {self.waited:.0f} s{deaths}, {self.undone} tasks undone"


def attempt(
    contender: Contender,
    options: Options,
    name: str,
    tasks: Sequence[float],
    workers: int,
    kill_every: float = math.inf,
) -> Trial:
    """Have so many workers do tasks of so many seconds.

    `kill_every`: SIGKILL to a worker chosen at random from those alive, every so many seconds from the first task on.
    """
    name = f"{name}-{contender.slug}"
    place = options.place / name
    place.mkdir()
    notes = Notes(place / "notes")
    url, numbers = options.node_url, range(1, len(tasks) + 1)
    contender.publish(url, name, [b"%g %d" % (GATE, len(tasks) + gate) for gate in range(1, workers + 1)])
    say(f"{contender.name}: {len(tasks)} tasks, {workers} workers")
    running = contender.running(url, name, workers, place, {"BENCH_NOTES": str(notes.path)})
    with closing(notes), running as pool:
        opens = await_gates(pool, notes, workers) + GATE
        contender.publish(url, name, [b"%g %d" % task for task in zip(tasks, numbers, strict=True)])
        if now() >= opens:
            raise BenchError(f"{contender.name}: publishing took longer than {GATE:g} s; is this machine busy?")
        time.sleep(opens - now())
        seen: list[Note] = []
        undone, kills, moved, kill_at = set(numbers), 0, now(), math.inf
        until = opens + LIMIT * sum(tasks) / workers
        while undone and pool.alive and now() < min(until, moved + STALLED):
            fresh = [note for note in notes.read() if note.number in numbers]
            if fresh and not seen:
                kill_at = fresh[0].at + kill_every
            seen += fresh
            if ended := {note.number for note in fresh if note.has_ended}:
                undone -= ended
                moved = now()
            if undone and now() >= kill_at:
                kills += kill_one_of(pool)
                kill_at += kill_every
            time.sleep(min(0.02, max(0.0, kill_at - now())))
        left, waited = not pool.alive, now() - opens
    say("")
    return Trial(runs(seen), [note for note in seen if not note.has_ended], len(undone), kills, left, waited)


def await_gates(pool: Pool, notes: Notes, workers: int) -> float:
    """Until every worker has its first task in hand. Returns when the first of them got it."""
    until = now() + PATIENCE
    seen: list[Note] = []
    while len({note.pid for note in seen}) < workers:
        pool.demand_alive()
        seen += notes.read()
        if now() > until or any(note.has_ended for note in seen):
            raise BenchError(f"{pool.tail()}\nnot all of {workers} workers began within {GATE:g} s of each other")
        time.sleep(0.02)
    return min(note.at for note in seen)


def kill_one_of(pool: Pool) -> bool:
    """SIGKILL to a worker chosen at random. False when there is none."""
    living = [pid for pid in pool.workers() if not is_zombie(pid)]
    if not living:
        return False
    try:
        os.kill(random.choice(living), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_zombie(pid: int) -> bool:
    """Whether it is dead, and its parent has not noticed yet (proc(5), /proc/PID/stat)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def trials(
    contenders: Sequence[Contender], options: Options, one: Callable[[Contender, int], Trial]
) -> dict[str, list[Trial]]:
    """All rounds of every contender, in turns; who does not finish once is not tried again."""
    found: dict[str, list[Trial]] = {each.name: [] for each in contenders}
    for number in range(options.rounds):
        for contender in contenders:
            so_far = found[contender.name]
            if number >= rounds_of(contender, options):
                continue
            if isinstance(contender, Workq) or all(not trial.undone for trial in so_far):
                so_far.append(one(contender, number))
    return found


def figures(
    found: Mapping[str, list[Trial]], figure: Callable[[Trial], float]
) -> tuple[dict[str, float], dict[str, str]]:
    """The medians of those who have done everything, and what became of the others, in words."""
    values, others = {}, {}
    for name, each in found.items():
        failed = next((trial for trial in each if trial.undone), None)
        if failed is None:
            values[name] = median(figure(trial) for trial in each)
        else:
            others[name] = failed.outcome
    return values, others


# ------------------------------------------------------------------------------------- work among random deaths

KILL_EVERY: Final = 0.1
KILLS_TASKS: Final = 800
KILLS_TASK: Final = 0.05


def kills(options: Options) -> list[Row]:
    """800 tasks of 50 ms, 4 workers, and every 100 ms a SIGKILL to a worker chosen at random until all are done.

    Done is what has noted its end, by distinct number. Ideal is the same work shared by 4 without any death or cost.
    Everybody has his usual settings: our `--max-crashes 3` stays, for what was killed is run again within 100 ms, so
    that hardly a message meets a second kill, and none a third; supervisord has startsecs 1 and startretries 3.
    """
    total = KILLS_TASKS // 4 if options.quick else KILLS_TASKS
    tasks = [KILLS_TASK] * total

    def one(contender: Contender, number: int) -> Trial:
        return attempt(contender, options, f"kills-{number}", tasks, 4, KILL_EVERY)

    ours = Workq()
    found = trials(chosen(options, ours, Celery(), Dramatiq(), Supervisord()), options, one)
    return [kills_row(ours.name, found, total)]


def kills_row(ours: str, found: Mapping[str, list[Trial]], total: int) -> Row:
    """`found` by contender."""
    ideal = total * KILLS_TASK / 4
    ratios, words = figures(found, lambda trial: trial.seconds / ideal)
    for name, each in found.items():
        if name in ratios:
            deaths = median(trial.kills for trial in each)
            words[name] = f"{ratios[name]:.2f}x ideal ({ratios[name] * ideal:.1f} s, {deaths:.0f} kills)"
    ratio = ratios.get(ours, math.inf)
    return Row(
        what=f"{total} tasks of 50 ms, 4 workers, a SIGKILL of a random one every 100 ms",
        ours=words.pop(ours),
        target="1.25x ideal",
        reach="1.12x",
        met=ratio <= 1.25,
        reached=ratio <= 1.12,
        peers=words,
        better=tuple(name for name, each in ratios.items() if name != ours and each < ratio),
        data={
            name: [
                {
                    "seconds": None if trial.undone else trial.seconds,
                    "kills": trial.kills,
                    "undone": trial.undone,
                    "again": trial.again,
                }
                for trial in each
            ]
            for name, each in found.items()
        },
        note=f"ideal is {ideal:g} s; a killed task is done again from its beginning; everybody has his default "
        "settings (ours: --max-crashes 3; supervisord's: startsecs 1, startretries 3)",
    )


# --------------------------------------------------------------------------------------------------- short tasks


def short(options: Options) -> list[Row]:
    """Tasks of 10 ms, 4 workers: which part of the time goes into the tasks?"""
    total, workers, task = (500 if options.quick else 2000), 4, 0.010
    tasks = [task] * total
    ours = Workq()
    everybody = chosen(options, ours, BarePika(), Dramatiq(), Celery(), Supervisord(), CClient())
    found = trials(everybody, options, lambda c, n: attempt(c, options, f"short-{n}", tasks, workers))
    ideal = total * task / workers
    # Against what the tasks themselves take: a sleep of 10 ms takes longer, and whoever calls it cannot help that.
    shares, words = figures(found, lambda trial: time_in_tasks(trial) / (workers * trial.seconds))
    nominal, _ = figures(found, lambda trial: ideal / trial.seconds)
    pauses, _ = figures(found, between)
    words |= {name: f"{share:.1%}" for name, share in shares.items()}
    share = shares.get(ours.name, 0.0)
    return [
        Row(
            what="tasks of 10 ms, 4 workers: time in tasks, of all their time",
            ours=words.pop(ours.name),
            target="95 %",
            reach="98 %",
            met=share >= 0.95,
            reached=share >= 0.98,
            peers=words,
            better=tuple(name for name, each in shares.items() if each > share),
            data={name: [trial.seconds for trial in each] for name, each in found.items()}
            | {"ideal": ideal, "between": pauses},
            note=f"{total} tasks, each a sleep of 10 ms, which takes {ms(sleeps(task))} here; ours against the "
            f"{ideal:g} s that exact sleeps would take: {nominal.get(ours.name, 0.0):.1%}; from the end of a task to "
            "the worker's next, the broker's round trip included: "
            + ", ".join(f"{name} {ms(pause)}" for name, pause in pauses.items()),
        )
    ]


def time_in_tasks(trial: Trial) -> float:
    """Seconds of all workers together."""
    return sum(run.ended - run.began for run in trial.runs)


def between(trial: Trial) -> float:
    """Seconds from the end of a task to the begin of the same worker's next, on average."""
    latest: dict[int, float] = {}
    found = []
    for run in sorted(trial.runs, key=lambda run: run.began):
        if run.pid in latest:
            found.append(run.began - latest[run.pid])
        latest[run.pid] = run.ended
    return sum(found) / len(found)


def sleeps(seconds: float) -> float:
    """How long it takes, really: timers have a slack (prctl(2), PR_SET_TIMERSLACK), and so has the interpreter."""
    began = now()
    for _ in range(20):
        time.sleep(seconds)
    return (now() - began) / 20


# ------------------------------------------------------------------------------------------------- fair dispatch


def fair(options: Options) -> list[Row]:
    """Two workers; odd tasks take 100 ms, even ones 1 ms. Which part of the time is each of them in a task?

    All are published before the first begins. Counted from then until the last one begins: after that there is nothing
    left to share out. Dispatched in turns, as RabbitMQ does without a limit of prefetch, one worker would get all the
    long ones and the other would be idle nearly always.
    """
    tasks = [0.1 if number % 2 else 0.001 for number in range(1, 1 + (60 if options.quick else 200))]
    ours = Workq()
    everybody = chosen(options, ours, BarePika(), Dramatiq(), Celery(), Supervisord())
    found = trials(everybody, options, lambda c, n: attempt(c, options, f"fair-{n}", tasks, 2))
    shares, words = figures(found, lambda trial: least_busy(trial, 2))
    words |= {name: f"{share:.1%}" for name, share in shares.items()}
    share = shares.get(ours.name, 0.0)
    return [
        Row(
            what="odd tasks 100 ms, even ones 1 ms, 2 workers: time in a task, of the less busy one",
            ours=words.pop(ours.name),
            target="95 %",
            met=share > 0.95,
            peers=words,
            better=tuple(name for name, each in shares.items() if each > share),
            data={name: [least_busy(trial, 2) for trial in each] for name, each in found.items()},
        )
    ]


def least_busy(trial: Trial, workers: int) -> float:
    """Of the worker that was less in a task than the others: the part of the time from the first begin to the last."""
    since, until = trial.begun[0].at, trial.begun[-1].at
    busy: dict[int, float] = {}
    for run in trial.runs:
        busy[run.pid] = busy.get(run.pid, 0.0) + max(0.0, min(run.ended, until) - max(run.began, since))
    return min(busy.values()) / (until - since) if len(busy) == workers else 0.0
