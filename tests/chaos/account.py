"""The account of a run: what happened goes in, a verdict comes out. Pure: no clock, no process, no broker.

It is kept per message. A *run* is one start of a handler, as the handler noted it. The first run of each try of a task
needs no reason; each further run of the same try needs one of its own: an earlier run of that try whose message had to
come back, because its worker died, lost its connection or went down with its supervisor. With prefetch 1 a message can
only come back from the *last* run of a worker's life: the broker gives a worker nothing more before it has the
acknowledgement. Two things a broker does by itself are counted apart: a classic queue whose node is killed forgets
acknowledgements, and a cluster that loses a node takes back what was delivered through it.

What a check finds is a list of sentences; a check that finds nothing holds.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from supervisor import vocabulary

Line = Mapping[str, Any]
"""One event of a log."""

MAX_CRASHES: Final = 3
PARKED: Final = ("task.dead_lettered", "task.quarantined")
OUTCOMES: Final = {name: f"task.{name}" for name in vocabulary.OUTCOMES if name != "redelivered"}
"""The counter of workq_tasks_total, and the event that goes with it."""
OVERLAP: Final = 0.05
"""Seconds that two runs may seem to overlap: notes and log lines are written one after the other."""
AT_ONCE: Final = 1.0
"""Seconds between the end of a handler and a death that may have come before the line about it."""
DESCRIPTORS_MOST: Final = 6
"""By which a supervisor's open descriptors may have grown at the end: a health request may be under way."""
MEMORY_MOST: Final = 24 * 2**20
FLAT_AFTER: Final = 20.0
"""Seconds of a supervisor's life before it is measured: by then all that is loaded late has been loaded."""
NEVER: Final = ("config", "handler cannot be loaded", "boot_timeout", "exit 70")
"""Why no worker may end here: the settings and the handler are good, and never change."""
AFTERMATH: Final = 20.0
"""Seconds after a fault of the network or of a node within which it may be noticed: three heartbeats, an election."""


class Kind(StrEnum):
    """What a fault strikes, as far as the account needs to know."""

    WORKERS = "workers"
    SUPERVISOR = "supervisor"
    NETWORK = "network"
    BROKER = "broker"
    BROKER_KILLED = "broker killed"
    CLUSTER = "cluster"


class Why(StrEnum):
    """Why a task was run once more."""

    KILLED = "its worker was killed"
    OWN = "it killed its worker itself"
    CONNECTION = "its worker's connection was lost"
    SUPERVISOR = "its supervisor was killed"
    LOCAL = "its machine had nothing left for its worker"
    LEFT = "its worker left while the network or the broker was at fault"
    UNLOGGED = "its worker's end is among the log lines that were dropped"
    FORGOTTEN = "a classic queue whose node was killed forgot the acknowledgement"
    CLUSTER = "the cluster lost a node and took it back"


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    kind: str
    reason: str | None = None
    """Of the dead letter that it has to become; None: it has to be done."""
    publishes: int = 1
    """How often it was published, confirmed or in doubt: the queue may have had so many copies."""
    is_confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a handler. Times are seconds since the epoch, here and everywhere."""

    task: str
    attempt: int
    pid: int
    boot: str
    """Tells two processes of the same pid apart."""
    supervisor: int
    """Its pid."""
    began: float
    ended: float | None = None
    how: str = ""
    """`returned`, `raised ...`; empty while it has not ended."""

    @property
    def life(self) -> tuple[int, str]:
        return self.pid, self.boot


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    kind: Kind
    began: float
    ended: float
    pid: int = 0
    """Of the supervisor that was killed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a supervisor held while all was well."""

    at: float
    descriptors: int
    rss: int
    workers: int


@dataclass(frozen=True, slots=True)
class Supervisor:
    pid: int
    log: Sequence[Line]
    invalid: Sequence[str] = ()
    """Lines that are no JSON object."""
    was_killed: bool = False
    dropped: float = 0.0
    """Log lines that it lost, by its own count."""
    metrics: Mapping[tuple[str, str], float] | None = None
    """Of one that lived to the end: by name and label's value."""
    samples: Sequence[Sample] = ()


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter that was there at the end."""

    task: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    queue_type: str
    tasks: Mapping[str, Task]
    runs: Sequence[Run]
    supervisors: Sequence[Supervisor]
    faults: Sequence[Fault]
    killed: Mapping[int, float]
    """Workers that the nemeses sent a deadly signal, and when."""
    letters: Sequence[Letter]
    leftovers: Mapping[str, int] = field(default_factory=dict)
    """Messages still there at the end, by queue; not the dead letters."""
    survivors: Sequence[str] = ()
    """Processes that should have been gone."""
    unwell: Sequence[str] = ()
    """What was not well when everything had been done."""


@dataclass(frozen=True, slots=True)
class Death:
    supervisor: int
    pid: int
    at: float
    cause: str
    task: str | None
    settling: bool

    @property
    def is_blamed(self) -> bool:
        """Whether the supervisor holds it against the message."""
        return self.task is not None and re.match(r"SIG|exit |OOM|timeout|hung|memory", self.cause) is not None

    @property
    def is_violent(self) -> bool:
        """Whether the worker had no time for a last word."""
        return re.match(r"SIG|OOM|timeout|hung|memory|grace", self.cause) is not None

    @property
    def is_connection(self) -> bool:
        return self.cause in ("broker", "not consuming") or "lost" in self.cause


@dataclass(frozen=True, slots=True)
class Account:
    confirmed: int
    done: int
    dead: int
    runs: int
    extra: Counter[Why]
    """Runs beyond the first of a try, by their cause."""
    doubled: int
    """Tasks of which two copies went through a further try, though published once."""
    twice_dead: int
    at_once: int
    """Pairs of runs of one task at the same time under different supervisors."""
    deaths: Counter[str]
    kinds: Counter[str]
    checks: dict[str, list[str]]
    """By what must hold: what was found against it."""

    @property
    def balances(self) -> bool:
        return not any(self.checks.values())


def judge(evidence: Evidence) -> Account:
    book = _Book(evidence)
    extra, unexplained, doubled = book.extra_runs()
    twice, unexcused = book.twice_dead()
    here, elsewhere = book.at_once()
    confirmed = {name for name, task in evidence.tasks.items() if task.is_confirmed}
    checks = {
        "lost = 0": book.lost(),
        "nothing is acknowledged that has not run": book.never_ran(),
        "each extra run has a cause of its own": unexplained,
        "no task is dead twice": unexcused,
        "who is dead has a reason": book.wrongly_dead(),
        f"a message kills at most {MAX_CRASHES} workers of a supervisor": book.killers(),
        "no task runs twice at once under one supervisor": here,
        "no worker ends for a reason that is not there": book.groundless(),
        "nothing is left in a queue": [f"{queue}: {count}" for queue, count in evidence.leftovers.items() if count],
        "the metrics say what the log says": book.miscounted(),
        "each line of the log is one JSON object": book.no_json(),
        "the supervisors' descriptors and memory stay flat": book.grown(),
        "no process is left behind": list(evidence.survivors),
        "all is well at the end": list(evidence.unwell),
    }
    return Account(
        confirmed=len(confirmed),
        done=len(confirmed & book.done),
        dead=len(confirmed & book.dead.keys()),
        runs=len(evidence.runs),
        extra=extra,
        doubled=doubled,
        twice_dead=twice,
        at_once=elsewhere,
        deaths=Counter(death.cause for death in book.deaths),
        kinds=Counter(task.kind for task in evidence.tasks.values() if task.is_confirmed),
        checks=checks,
    )


class _Book:
    """The evidence, sorted for looking things up."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._tries: dict[tuple[str, int], list[Run]] = defaultdict(list)
        lives: dict[tuple[int, str], list[Run]] = defaultdict(list)
        for run in sorted(evidence.runs, key=lambda run: run.began):
            self._tries[run.task, run.attempt].append(run)
            lives[run.life].append(run)
        self._lives = dict(lives)
        self._last = {id(life[-1]) for life in lives.values()}
        self.deaths = [death for supervisor in evidence.supervisors for death in _deaths(supervisor)]
        self._death_of = self._match_deaths()
        self._dropped = {each.pid: each.dropped for each in evidence.supervisors}
        self._killed_supervisors = {each.pid for each in evidence.supervisors if each.was_killed}
        self.done = {run.task for run in evidence.runs if run.how == "returned"}
        self.dead = Counter(letter.task for letter in evidence.letters)
        self._why: dict[str, list[tuple[Why, Run, Run]]] = defaultdict(list)
        """By task: each extra run that has a cause, with the run that explains it."""

    def _match_deaths(self) -> dict[tuple[int, str], Death]:
        """By life. A pid may come twice: the life that began last before the death is meant."""
        by_pid: dict[tuple[int, int], list[tuple[float, tuple[int, str]]]] = defaultdict(list)
        for life, runs in self._lives.items():
            by_pid[runs[0].supervisor, runs[0].pid].append((runs[0].began, life))
        found = {}
        for death in self.deaths:
            begun = [each for each in by_pid[death.supervisor, death.pid] if each[0] <= death.at]
            if begun:
                found[max(begun)[1]] = death
        return found

    # ------------------------------------------------------------------------------------------------ each task

    def lost(self) -> list[str]:
        """Neither done nor dead; unless so many are left in a queue, which is a finding of its own."""
        missing = [
            f"{task.name} ({task.kind}): begun {len(self._of(task.name))} times, neither done nor dead"
            for task in self._evidence.tasks.values()
            if task.is_confirmed and task.name not in self.done and task.name not in self.dead
        ]
        return missing if len(missing) > sum(self._evidence.leftovers.values()) else []

    def never_ran(self) -> list[str]:
        """Lines `task.succeeded` that no run goes with."""
        ran = Counter((run.task, run.pid, run.attempt) for run in self._evidence.runs if run.how == "returned")
        told = Counter(
            (line["message_id"], line["pid"], line["attempt"])
            for supervisor in self._evidence.supervisors
            for line in supervisor.log
            if line["event"] == "task.succeeded"
        )
        return [f"{name}, try {attempt}, by worker {pid}" for name, pid, attempt in (told - ran).elements()]

    def extra_runs(self) -> tuple[Counter[Why], list[str], int]:
        """Their causes, those without one, and how many tasks had two copies in a later try."""
        causes: Counter[Why] = Counter()
        unexplained = []
        doubled = set()
        for (name, attempt), runs in sorted(self._tries.items()):
            copies = self._copies(name, attempt)
            if attempt > 1 and min(copies, len(runs)) > 1 and self._publishes(name) == 1:
                # Copies that the two runs of the try before have made; or one, and the second came back of it.
                doubled.add(name)
            unused = list(runs)
            for run in runs[copies:]:
                for earlier in unused:
                    if earlier.began < run.began and (why := self._came_back(earlier)) is not None:
                        unused.remove(earlier)
                        causes[why] += 1
                        self._why[name].append((why, earlier, run))
                        break
                else:
                    told = "; ".join(self._tell(each) for each in runs)
                    unexplained.append(f"{name}, try {attempt}: {len(runs)} runs of {copies} copies: {told}")
        return causes, unexplained, len(doubled)

    def _copies(self, name: str, attempt: int) -> int:
        """How many messages of this try there may have been."""
        task = self._evidence.tasks.get(name)
        if task is None:
            return 0
        if attempt == 1:
            return task.publishes
        return sum(run.how.startswith("raised") for run in self._tries.get((name, attempt - 1), ()))

    def _came_back(self, run: Run) -> Why | None:
        """Why the message of this run had to be delivered once more."""
        if id(run) in self._last and (why := self._end_of_life(run)) is not None:
            return why
        if self._evidence.queue_type == "classic":
            # However long ago: with nobody publishing, a queue's index is flushed late.
            kills = [fault for fault in self._evidence.faults if fault.kind is Kind.BROKER_KILLED]
            if run.ended is not None and any(fault.ended > run.ended for fault in kills):
                return Why.FORGOTTEN
        if any(self._touches(run, fault) for fault in self._evidence.faults if fault.kind is Kind.CLUSTER):
            return Why.CLUSTER
        return None

    def _end_of_life(self, run: Run) -> Why | None:
        death = self._death_of.get(run.life)
        if death is None:
            if run.supervisor in self._killed_supervisors:
                return Why.SUPERVISOR
            return Why.UNLOGGED if self._dropped.get(run.supervisor) else None
        if death.is_connection:
            return Why.CONNECTION
        if death.cause == "local":
            return Why.LOCAL
        if run.pid in self._evidence.killed and death.cause in ("SIGKILL", "SIGSTOP", "hung", "SIGABRT"):
            return Why.KILLED
        if re.match(r"SIG|exit |OOM|timeout|hung|grace", death.cause) or (death.cause == "memory" and death.task):
            return Why.OWN
        at_fault = (Kind.NETWORK, Kind.BROKER, Kind.BROKER_KILLED)
        if any(self._touches(run, fault) for fault in self._evidence.faults if fault.kind in at_fault):
            return Why.LEFT
        return None

    def _touches(self, run: Run, fault: Fault) -> bool:
        return run.began <= fault.ended + AFTERMATH and self._until(run) >= fault.began

    def _until(self, run: Run) -> float:
        if run.ended is not None:
            return run.ended
        death = self._death_of.get(run.life)
        return death.at if death else float("inf")

    def at_once(self) -> tuple[list[str], int]:
        """Runs of one try of one task that overlap: under one supervisor, and how often under two."""
        here, elsewhere = [], 0
        for (name, attempt), runs in self._tries.items():
            if self._copies(name, attempt) != 1:
                continue
            for earlier, later in _pairs(runs):
                until = self._until(earlier)
                if until == float("inf") or later.began > until - OVERLAP:
                    continue
                if earlier.supervisor == later.supervisor:
                    both = f"{self._tell(earlier)}; {self._tell(later)}"
                    here.append(f"{name}, try {attempt}, {until - later.began:.2f} s: {both}")
                else:
                    elsewhere += 1
        return here, elsewhere

    # ---------------------------------------------------------------------------------------------- dead letters

    def twice_dead(self) -> tuple[int, list[str]]:
        """How many tasks have more than one dead letter, and those of them that nothing excuses.

        A supervisor remembers what it has parked and cannot acknowledge. What it cannot know: that of another
        supervisor, what a broker has forgotten, and what was parked though the confirm was lost.
        """
        twice = [name for name, count in self.dead.items() if count > 1]
        return len(twice), [f"{name}: {self._letters(name)}" for name in twice if not self._is_excused(name)]

    def _is_excused(self, name: str) -> bool:
        task = self._evidence.tasks.get(name)
        if task is None or self.dead[name] <= task.publishes + self._unheard(name):
            return True
        if {why for why, _, _ in self._why[name]} & {Why.SUPERVISOR, Why.FORGOTTEN, Why.CLUSTER}:
            return True
        if any(earlier.supervisor != run.supervisor for _, earlier, run in self._why[name]):
            return True
        parked = [
            (_at(line), supervisor.pid)
            for supervisor in self._evidence.supervisors
            for line in supervisor.log
            if line["event"] in PARKED and line["message_id"] == name
        ]
        if len({pid for _, pid in parked}) > 1 or not parked:
            return True
        # Condemned, it is put away without a run: no run tells what had it put away again.
        last = max(parked)[0]
        since = max((run.began for run in self._of(name) if run.began <= last), default=last)
        outside = (Kind.SUPERVISOR, Kind.CLUSTER, *((Kind.BROKER_KILLED,) * (self._evidence.queue_type == "classic")))
        return any(
            fault.kind in outside and fault.began <= last and fault.ended >= since for fault in self._evidence.faults
        ) or any(death.task == name and death.settling for death in self.deaths)

    def _unheard(self, name: str) -> int:
        """How often it may have been parked without a confirm that its worker got."""
        returned = {(run.pid, run.attempt) for run in self._of(name) if run.how == "returned"}
        told = sum(
            line["event"] == "task.unsettled" and (line["pid"], line["attempt"]) not in returned
            for line in self._about(name)
        )
        untold = sum(
            why is Why.CONNECTION and earlier.how.startswith("raised") and self._dropped.get(earlier.supervisor, 0) > 0
            for why, earlier, _ in self._why[name]
        )
        return told + untold

    def wrongly_dead(self) -> list[str]:
        found = []
        for letter in self._evidence.letters:
            task = self._evidence.tasks.get(letter.task)
            if task is None:
                found.append(f"{letter.task}, which nobody published")
            elif letter.reason == "crash" and self._blamed(task.name) < self._deaths_needed(letter):
                blamed = f"{self._blamed(task.name)} workers died of it"
                found.append(f"{task.name} ({task.kind}) is quarantined, {letter.cause}: {blamed}")
            elif letter.reason not in ("crash", task.reason):
                found.append(f"{task.name} ({task.kind}) is dead of {letter.reason!r}: {self._letters(task.name)}")
        found += [
            f"{task.name} ({task.kind}) is done"
            for task in self._evidence.tasks.values()
            if task.reason is not None and task.name in self.done
        ]
        return found

    def _deaths_needed(self, letter: Letter) -> int:
        """A quorum queue's own count is the second fence: one death here, and others elsewhere."""
        return 1 if letter.cause.startswith("returned ") else MAX_CRASHES

    def killers(self) -> list[str]:
        """Those that killed more workers of one supervisor than they may. Two copies may kill at the same time."""
        blamed = Counter((death.task, death.supervisor) for death in self.deaths if death.is_blamed)
        return [
            f"{name}: {count} workers of supervisor {pid}"
            for (name, pid), count in blamed.items()
            if count > MAX_CRASHES and name is not None and self._publishes(name) == 1
        ]

    def _publishes(self, name: str) -> int:
        task = self._evidence.tasks.get(name)
        return task.publishes if task else 0

    def _blamed(self, name: str) -> int:
        """Workers that one supervisor may have thought killed by it, at most. One that was killed takes the lines with
        it that nobody had read yet."""
        told = Counter(death.supervisor for death in self.deaths if death.is_blamed and death.task == name)
        silent = Counter(
            run.supervisor
            for run in self._of(name)
            if id(run) in self._last and run.life not in self._death_of
            if self._dropped.get(run.supervisor) or run.supervisor in self._killed_supervisors
        )
        return max((told + silent).values(), default=0)

    def _letters(self, name: str) -> str:
        letters = [f"{each.reason} {each.cause}".strip() for each in self._evidence.letters if each.task == name]
        runs = "; ".join(self._tell(run) for run in self._of(name))
        lines = "; ".join(f"{_clock(_at(line))} {line['event']} by {line['pid']}" for line in self._about(name))
        return f"{', '.join(letters)}; runs: {runs}; log: {lines}"

    # -------------------------------------------------------------------------------------------- each supervisor

    def miscounted(self) -> list[str]:
        found = []
        for supervisor in self._evidence.supervisors:
            if supervisor.metrics is None:
                continue
            dropped = self._dropped[supervisor.pid]
            untold = self._untold(supervisor)
            log = list(_until_its_stop(supervisor.log))
            events = Counter(line["event"] for line in log)
            for outcome, event in OUTCOMES.items():
                counted = supervisor.metrics.get(("workq_tasks_total", outcome), 0.0)
                # Counted, then logged: a worker killed between the two has logged one less. A failure is logged first,
                # and counted when it has been settled.
                more = untold + dropped
                less = events["task.unsettled"] + untold if outcome == "failed" else 0
                if not -less <= counted - events[event] <= more:
                    found.append(f"{outcome}: {counted:g} counted, {events[event]} {event} logged (-{less} +{more:g})")
            exits = Counter(line["cause"] for line in log if line["event"] == "worker.exited")
            named = {value for name, value in supervisor.metrics if name == "workq_worker_exits_total"}
            for cause in sorted(named | exits.keys()):
                counted = supervisor.metrics.get(("workq_worker_exits_total", cause), 0.0)
                if not 0 <= counted - exits[cause] <= dropped:
                    found.append(f"exits by {cause}: {counted:g} counted, {exits[cause]} worker.exited logged")
        return found

    def _untold(self, supervisor: Supervisor) -> int:
        """Workers of this supervisor that were killed as a task of theirs had ended: each may have counted one thing
        that it did not log any more."""
        found = 0
        for life, runs in self._lives.items():
            death = self._death_of.get(life)
            if death is not None and death.supervisor == supervisor.pid and death.is_violent:
                ended = runs[-1].ended
                found += ended is not None and 0 <= death.at - ended < AT_ONCE
        return found

    def groundless(self) -> list[str]:
        return [
            f"{death.cause}: worker {death.pid} of supervisor {death.supervisor} at {_clock(death.at)}"
            for death in self.deaths
            if death.cause in NEVER
        ]

    def no_json(self) -> list[str]:
        """The last line of one that was killed may be cut short: nobody was there to finish it."""
        return [
            f"supervisor {supervisor.pid}: {line[:200]!r}"
            for supervisor in self._evidence.supervisors
            for line in supervisor.invalid
            if line.endswith("\n") or not supervisor.was_killed
        ]

    def grown(self) -> list[str]:
        found = []
        for supervisor in self._evidence.supervisors:
            samples = supervisor.samples
            usual = [each for each in samples if each.at >= samples[0].at + FLAT_AFTER]
            if len(usual) < 2:
                continue
            # The least of the first few: a request or a restart may have been under way.
            first, last = usual[:5], usual[-1]
            descriptors = last.descriptors - min(each.descriptors for each in first)
            rss = last.rss - min(each.rss for each in first)
            if descriptors > DESCRIPTORS_MOST:
                found.append(f"supervisor {supervisor.pid}: {descriptors} descriptors more than at first")
            if rss > MEMORY_MOST:
                found.append(f"supervisor {supervisor.pid}: {rss / 2**20:.0f} MiB more than at first")
        return found

    # --------------------------------------------------------------------------------------------------- in words

    def _about(self, name: str) -> list[Line]:
        lines = [line for supervisor in self._evidence.supervisors for line in supervisor.log]
        return [line for line in lines if line.get("message_id") == name]

    def _of(self, name: str) -> list[Run]:
        runs = [run for (task, _), runs in self._tries.items() if task == name for run in runs]
        return sorted(runs, key=lambda run: run.began)

    def _tell(self, run: Run) -> str:
        death = self._death_of.get(run.life)
        end = f"{run.how} after {run.ended - run.began:.2f} s" if run.ended is not None else "no end"
        last = "the last" if id(run) in self._last else "not the last"
        died = f"which left by {death.cause} at {_clock(death.at)}" if death else "whose end is not logged"
        return f"{_clock(run.began)} {end}, {last} of worker {run.pid} of {run.supervisor}, {died}"


def _deaths(supervisor: Supervisor) -> Iterator[Death]:
    for line in supervisor.log:
        if line["event"] == "worker.exited":
            yield Death(
                supervisor.pid, line["pid"], _at(line), str(line["cause"]), line.get("message_id"),
                bool(line.get("settling")),
            )  # fmt: skip


def _until_its_stop(log: Sequence[Line]) -> Iterator[Line]:
    """What had happened when its counters were read: nothing did any more, until it was told to stop."""
    for line in log:
        if line["event"] == "supervisor.stopping":
            return
        yield line


def _pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    for at, earlier in enumerate(runs):
        for later in runs[at + 1 :]:
            yield earlier, later


def _at(line: Line) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]
