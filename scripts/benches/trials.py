"""A queue full of tasks, and what became of them: what the benches `kills`, `short` and `fair` have in common."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from supervisor.clock import now

from .contenders import Contender, Pool, Workq, rounds_of
from .notes import Note, Notes, Run, runs
from .progress import say
from .row import BenchError, Options, Row

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
    """Until every worker has its first task in flight. Returns when the first of them got it."""
    seen: list[Note] = []

    def is_decided() -> bool:
        seen.extend(notes.read())
        return len({note.pid for note in seen}) >= workers or any(note.has_ended for note in seen)

    pool.wait(is_decided, f"not all of {workers} workers have begun")
    if any(note.has_ended for note in seen):
        raise BenchError(f"{pool.tail()}\nnot all of {workers} workers began within {GATE:g} s of each other")
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


def share_row(
    what: str,
    ours: str,
    shares: Mapping[str, float],
    others: Mapping[str, str],
    *,
    data: Mapping[str, Any],
    behind: tuple[str, float, float] | None = None,
    note: str = "",
) -> Row:
    """`shares` of their time by contender, the more the better; `others` have none, and why. `behind`: whom ours may be
    behind, by how much, and the ambition: of what the broker and the machine leave to anybody, that one has most."""
    words = {**others, **{name: f"{share:.1%}" for name, share in shares.items()}}
    share = shares.get(ours, 0.0)
    target, reach, must, ambition = "95 %", "", 0.95, 0.95
    if behind and behind[0] in shares:
        whom, most, wished = behind
        must, ambition = shares[whom] - most, shares[whom] - wished
        target, reach = f"{most * 100:g} points behind the {whom}", f"{wished * 100:g}"
    return Row(
        what=what,
        ours=words.pop(ours),
        target=target,
        reach=reach,
        met=share >= must,
        reached=share >= ambition,
        peers=words,
        better=tuple(name for name, each in shares.items() if each > share),
        data=data,
        note=note,
    )
