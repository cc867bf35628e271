"""What is published, what must become of it, and what the handlers note of it."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from supervisor.publisher import Blocked, NotSent, Publisher, PublishError, Refused
from tests.chaos import tasks
from tests.chaos.account import Run, Task

MIB: Final = 2**20
MAX_MEMORY: Final = 160 * MIB


@dataclass(frozen=True, slots=True)
class Pace:
    """How long what takes long takes. The task timeout lies behind the longest task that is to be done."""

    very_long: float
    task_timeout: float
    rarely: float = 1.0
    """A factor: how far apart the rare kinds are."""
    ahead: int = 300
    """Tasks that the feeder keeps in the queue."""


FULL: Final = Pace(very_long=40.0, task_timeout=50.0)
BRIEF: Final = Pace(very_long=6.0, task_timeout=9.0, rarely=0.3)
"""For a run of a minute or two, where 40 seconds would be most of it: still three heartbeats."""
SHORT: Final = Pace(very_long=6.0, task_timeout=9.0, rarely=0.3, ahead=50)
"""For a few seconds."""


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    what: str
    weight: float = 0.0
    """How often, of the usual ones."""
    every: float = 0.0
    """Seconds between two of a rare one. Each comes once soon after the start."""
    seconds: tuple[float, float] = (0.0, 0.0)
    reason: str | None = None
    """Of its dead letter, when it cannot be done."""
    more: Mapping[str, int] | None = None


KINDS: Final = (
    Kind("quick", "sleeps for up to 30 ms", weight=85, seconds=(0.0, 0.03)),
    Kind("short", "sleeps for up to 0.2 s", weight=11, seconds=(0.05, 0.2)),
    Kind("long", "sleeps for up to 1.5 s", weight=2, seconds=(0.3, 1.5)),
    Kind("async", "three coroutines at once, up to 0.1 s", weight=1, seconds=(0.0, 0.1)),
    Kind("fails_once", "raises at the first try", weight=1, seconds=(0.0, 0.03)),
    Kind("asks_for_another_try", "raises Retry(delay=0.3) at the first try", every=2.0),
    Kind("fails", "raises at every try: a dead letter", every=5.0, reason="exception"),
    Kind("rejected", "raises Reject: a dead letter", every=5.0, reason="rejected"),
    Kind("forks", "leaves a child that lives on with the worker's connection", every=10.0),
    Kind("prints", "prints some hundred lines, one of 20,000 characters", every=5.0, more={"lines": 300}),
    Kind("crashes", "SIGSEGV: quarantined", every=20.0, reason="crash"),
    Kind("grows", "above --max-memory: recycled after the task", every=25.0, more={"bytes": 180 * MIB}),
    Kind("bloats", "above twice --max-memory: killed, quarantined", every=45.0, reason="crash",
         more={"bytes": 400 * MIB}),
    Kind("very_long", "sleeps for 40 s (in short runs 6 s)", every=60.0),
    Kind("hangs", "never returns: --task-timeout, quarantined", every=180.0, reason="crash"),
)  # fmt: skip


class Feeder(threading.Thread):
    """Publishes tasks, each until its publish is confirmed, and never many more than are done."""

    def __init__(
        self, urls: list[str], queue: str, notes: Notes, dice: random.Random, pace: Pace, without: tuple[str, ...] = ()
    ) -> None:
        super().__init__(daemon=True, name="feeder")
        self.tasks: dict[str, Task] = {}
        """Each that was published, or may have been."""
        self.at: dict[str, float] = {}
        """When each was confirmed."""
        self._kinds = [kind for kind in KINDS if kind.name not in without]
        self._usual = [kind for kind in self._kinds if kind.weight]
        self._urls = urls
        self._queue = queue
        self._notes = notes
        self._dice = dice
        self._pace = pace
        self._enough = threading.Event()
        # The rarer, the earlier: what takes long to come to its end has the whole run for it.
        self._due = {kind.name: -kind.every for kind in self._kinds if kind.every}

    @property
    def confirmed(self) -> int:
        return len(self.at)

    def run(self) -> None:
        # The queue is the test's own, declared early; a broker that has just come back is not to declare another one.
        with Publisher(self._urls, self._queue, connect_timeout=5.0, declare=False) as publisher:
            number = 0
            while not self._enough.is_set():
                if number % 25 == 0 and self._unfinished() > self._pace.ahead:
                    self._enough.wait(0.1)
                    continue
                self._publish(publisher, f"task-{number}", self._choose())
                number += 1

    def _unfinished(self) -> int:
        """Tasks that are still to be done; what is to become a dead letter is not waited for."""
        self._notes.read()
        return sum(name not in self._notes.done and self.tasks[name].reason is None for name in self.at)

    def _choose(self) -> Kind:
        rare = min(self._due, key=self._due.__getitem__, default=None)
        if rare is not None and self._due[rare] <= time.monotonic():
            [kind] = [kind for kind in self._kinds if kind.name == rare]
            self._due[rare] = time.monotonic() + self._dice.uniform(0.7, 1.3) * kind.every * self._pace.rarely
            return kind
        return self._dice.choices(self._usual, [kind.weight for kind in self._usual])[0]

    def _body(self, kind: Kind) -> str:
        seconds = self._pace.very_long if kind.name == "very_long" else self._dice.uniform(*kind.seconds)
        return json.dumps({"kind": kind.name, "seconds": round(seconds, 4), **(kind.more or {})})

    def _publish(self, publisher: Publisher, name: str, kind: Kind) -> None:
        body = self._body(kind)
        task = Task(name, kind.name, kind.reason, publishes=0, is_confirmed=False)
        while not self._enough.is_set():
            task = replace(task, publishes=task.publishes + 1)
            self.tasks[name] = task  # before it is sent: a worker may be quicker than the confirm
            try:
                publisher.publish(body, message_id=name, timeout=5.0)
            except (NotSent, Refused):
                task = replace(task, publishes=task.publishes - 1)  # nothing was sent, or it was not taken
                self._enough.wait(0.2)
            except (Blocked, PublishError):
                self._enough.wait(0.2)
            else:
                self.tasks[name] = replace(task, is_confirmed=True)
                self.at[name] = time.time()
                return
        self.tasks[name] = task

    def stop(self) -> None:
        self._enough.set()
        self.join(60.0)
        assert not self.is_alive(), "the last task is never confirmed"


class Notes:
    """What the handlers have noted, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.done: set[str] = set()
        """Tasks whose handler returned."""
        self._lines: list[dict[str, Any]] = []
        self._tasks: dict[str, str] = {}
        self._at = 0
        self._lock = threading.Lock()

    def read(self) -> None:
        """What has come since. From any thread."""
        with self._lock, self.path.open("rb") as file:
            file.seek(self._at)
            fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in map(json.loads, whole.splitlines()):
                self._lines.append(line)
                if "began" in line:
                    self._tasks[line["began"]] = line["task"]
                elif "ended" in line and line["how"] == "returned":
                    self.done.add(self._tasks[line["ended"]])

    def children(self, supervisor: int) -> list[int]:
        """Those that handlers under this supervisor have forked, and that are still there."""
        self.read()
        theirs = [line for line in self._lines if line.get("parent") == supervisor and "child" in line]
        return [line["child"] for line in theirs if tasks.boot(line["child"]) == line["boot"]]

    def runs(self) -> Iterator[Run]:
        self.read()
        ends = {line["ended"]: line for line in self._lines if "ended" in line}
        for line in self._lines:
            if "began" in line:
                end = ends.get(line["began"], {})
                yield Run(
                    line["task"], line["attempt"], line["pid"], line["boot"], line["parent"], line["at"],
                    end.get("at"), end.get("how", ""),
                )  # fmt: skip
