"""What a chaos run did: from the supervisor's own decisions and totals, and what was noted of marked tasks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from supervisor.values import dataclass
from supervisor.vocabulary import OUTCOMES


@dataclass(frozen=True, slots=True)
class Marked:
    """What is known of the tasks that were published for the run."""

    confirmed: int
    began: int
    """Runs."""
    begun: frozenset[str]
    """Tasks, by message id; likewise."""
    ended: int
    done: frozenset[str]
    parked: frozenset[str] = frozenset()
    """In the dead-letter queue, as far as /status shows its latest."""

    @property
    def is_noted(self) -> bool:
        """The handler notes what it does with them."""
        return bool(self.begun)

    @property
    def missing(self) -> int:
        """Neither done nor dead-lettered."""
        return self.confirmed - len(self.done | self.parked)


@dataclass(slots=True)
class Account:
    """`first`: the supervisor's status before the first kill."""

    first: Mapping[str, Any]
    killed: dict[int, int] = field(default_factory=dict)
    """Slots by pid."""
    with_task: int = 0
    refused: int = 0
    """Kills that the supervisor has refused: the worker was on its way out already."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds, as the supervisor has measured them."""
    has_gaps: bool = False
    """More happened between two looks than /status remembers."""
    latest: Mapping[str, Any] = field(default_factory=dict)
    _dead: set[int] = field(default_factory=set)
    _vacant: set[int] = field(default_factory=set)
    """Slots whose worker was killed, and that no other has filled yet."""
    _seen: frozenset[tuple[object, ...]] = frozenset()

    def __post_init__(self) -> None:
        self.look(self.first)

    def kill(self, worker: Mapping[str, Any]) -> None:
        """The supervisor has killed it; `worker` as in its answer."""
        self.killed[worker["pid"]] = worker["slot"]
        self.with_task += worker["message_id"] is not None

    def look(self, document: Mapping[str, Any]) -> None:
        """Note what is new in a status."""
        entries = [(_key(entry), entry) for entry in document["recent"]]
        if self._seen and entries and self._seen.isdisjoint(key for key, _ in entries):
            self.has_gaps = True
        for key, entry in entries:
            if key not in self._seen:
                self._take(entry)
        self._seen = frozenset(key for key, _ in entries)
        self.latest = document

    def _take(self, entry: Mapping[str, Any]) -> None:
        slot, pid = entry.get("slot"), entry.get("pid")
        if entry["event"] == "worker.exited" and pid in self.killed:
            self._dead.add(pid)
            self._vacant.add(self.killed[pid])
        elif entry["event"] == "worker.ready" and slot in self._vacant and "seconds" in entry:
            self._vacant.discard(slot)
            self.recoveries.append(entry["seconds"])

    @property
    def is_settled(self) -> bool:
        """Every worker that was killed is dead, and its slot consumes again. With gaps: all that are wanted do."""
        if self.has_gaps:
            states = [worker["state"] for worker in self.latest["workers"]]
            ready = sum(state in ("idle", "waiting", "busy") for state in states)
            return ready >= int(self.latest["scale"]["wanted"])
        return self._dead == self.killed.keys() and not self._vacant

    @property
    def is_idle(self) -> bool:
        """As of the last look, nothing waits and nobody works."""
        at_work = any(worker["state"] in ("busy", "waiting", "backoff") for worker in self.latest["workers"])
        return self.latest["queue"]["ready"] == 0 and not at_work

    def document(self, seconds: float, every: float, marked: Marked | None) -> dict[str, Any]:
        """The result, as --json prints it. Durations are seconds."""
        tasks = {name: self.latest["totals"][name] - self.first["totals"][name] for name in OUTCOMES}
        exits = self.latest["totals"]["worker_exits"] - self.first["totals"]["worker_exits"]
        vacant = 0 if self.has_gaps else len(self._vacant)
        found: dict[str, Any] = {
            "queue": self.latest["queue"]["name"],
            "seconds": round(seconds, 3),
            "kill_every": every,
            "killed": len(self.killed),
            "killed_with_task": self.with_task,
            "refused": self.refused,
            "other_exits": max(0, exits - len(self.killed)),
            "recovery_seconds": _distribution(self.recoveries),
            "not_recovered": vacant,
            "has_gaps": self.has_gaps,
            "tasks": tasks,
            "ready_before": self.first["queue"]["ready"],
            "ready_after": self.latest["queue"]["ready"],
            "published": None if marked is None else self._published(marked, tasks),
        }
        # None: nobody knows what became of them.
        is_known = marked is None or (found["published"]["lost"], found["published"]["unfinished"]) == (0, 0)
        found["ok"] = self.is_settled and is_known
        return found

    def _published(self, marked: Marked, tasks: Mapping[str, int]) -> dict[str, Any]:
        """Of the marked tasks. None: cannot be told."""
        found: dict[str, Any] = {
            "confirmed": marked.confirmed,
            "is_exact": marked.is_noted,
            "done": len(marked.done) if marked.is_noted else None,
            "dead_lettered": len(marked.parked),
            "lost": None,
            "unfinished": None,
            "extra_runs": marked.began - len(marked.begun) if marked.is_noted else None,
            "done_twice": marked.ended - len(marked.done) if marked.is_noted else None,
        }
        if marked.is_noted or not marked.confirmed:
            # What waits in the queue has not had its turn; what has failed is in a delay queue, or a dead letter.
            failed = sum(tasks[name] for name in ("retried", "deferred", "dead_lettered", "quarantined"))
            found["lost"] = max(0, marked.missing - failed + len(marked.parked)) if self.is_idle else 0
            found["unfinished"] = marked.missing - found["lost"]
        return found


def noted(lines: Iterable[str], confirmed: int, parked: frozenset[str]) -> Marked:
    """From what the handler has appended to the record: `ID began` and `ID done`."""
    began, done = [], []
    for line in lines:
        name, _, word = line.strip().rpartition(" ")
        if word == "began":
            began.append(name)
        elif word == "done":
            done.append(name)
    return Marked(confirmed, len(began), frozenset(began), len(done), frozenset(done), parked)


def in_words(found: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    times, tasks, published = found["recovery_seconds"], found["tasks"], found["published"]
    lines = [
        f"chaos: {found['seconds']:.1f} s on queue {found['queue']}, a kill every {found['kill_every']:g} s",
        f"  killed     {found['killed']} workers, {found['killed_with_task']} of them with a task in flight",
    ]
    if times["count"]:
        figures = ", ".join(f"{name} {_short(times[name])}" for name in ("p50", "p95", "max"))
        lines.append(f"  recovered  {times['count']} times, from a death until its successor consumes: {figures}")
    if found["not_recovered"]:
        lines.append(f"  missing    {found['not_recovered']} slots do not consume again yet")
    if found["has_gaps"]:
        lines.append("  (more happened between two looks than the supervisor remembers: some times are not known)")
    if found["other_exits"]:
        lines.append(f"  other      {found['other_exits']} workers exited that were not killed here: see the log")
    finished = tasks["succeeded"] + tasks["failed"] + tasks["deferred"]
    parked = tasks["dead_lettered"] + tasks["quarantined"]
    lines.append(f"  tasks      {finished} finished, {parked} dead-lettered, {tasks['redelivered']} redelivered")
    lines.append(
        f"  queue      {_depth(found['ready_before'])} before, {_depth(found['ready_after'])} after, as last measured"
    )
    if published is None:
        lines.append("  lost       not counted: that takes tasks that can be told from others (--publish N)")
    elif not published["is_exact"]:
        lines.append(f"  published  {published['confirmed']} confirmed; the handler has noted nothing of them")
        lines.append("  lost       not counted: the handler has to note them, see docs/chaos.md")
    else:
        lines.append(
            f"  published  {published['confirmed']} confirmed, {published['done']} done, "
            f"{published['dead_lettered']} dead-lettered, {published['unfinished']} unfinished"
        )
        extra = f"{published['extra_runs']} extra runs, {published['done_twice']} of them to the end"
        lines.append(f"  lost       {published['lost']}; {extra}")
    return lines


def _depth(ready: int | None) -> str:
    return "not measured" if ready is None else f"{ready} ready"


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _distribution(values: list[float]) -> dict[str, Any]:
    ordered = sorted(values)

    def rank(share: float) -> float | None:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None

    return {"count": len(ordered), "p50": rank(0.5), "p95": rank(0.95), "max": rank(1.0)}


def _key(entry: Mapping[str, Any]) -> tuple[object, ...]:
    return entry["at"], entry["event"], entry.get("slot"), entry.get("pid"), entry.get("because")
