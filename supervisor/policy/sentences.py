"""Which messages are to be dead-lettered when they come back, because an operator asked for it?

`workq kill --dead-letter` kills the worker that runs the message. Only a worker can dead-letter it: the next one that
gets it, redelivered, asks whether it may run, and is told. A sentence holds for `HOLDS` seconds and one message: the
one at the same step whose worker was killed. Another supervisor of the queue may get that message instead, does not
know, and runs it. So does whoever gets it after this supervisor has stopped, which says so: nothing of it is on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from supervisor.policy.events import Exited
from supervisor.policy.slot import Killing
from supervisor.values import dataclass

HOLDS: Final = 3600.0
"""Seconds. RabbitMQ redelivers at once, but to a worker that is free and not held up by a broker that is down."""
ROOM: Final = 2_000


@dataclass(frozen=True, slots=True)
class Sentence:
    name: str
    """Of the message, for people."""
    by: str
    evidence: str
    """The killed worker's output, with its stacks."""
    until: float
    """Monotonic seconds."""


class Sentences:
    """Bounded: the oldest is forgotten first, and its message runs again."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._passed: OrderedDict[tuple[str, int], Sentence] = OrderedDict()
        """By key and step."""
        self._told: dict[int, tuple[tuple[str, int], Sentence]] = {}
        """By page: workers that are about to dead-letter one."""

    def __len__(self) -> int:
        return len(self._passed)

    def carry(self, killing: Killing, died: Exited, now: float) -> str:
        """A worker exited that was killed at an operator's request. What becomes of its message, for the log."""
        wanted, found = killing.hand, died.hand
        if found is None:
            return ""
        if wanted is None:
            return "; the message is redelivered, and not blamed"
        if (wanted.key, wanted.delivery_tag) != (found.key, found.delivery_tag):
            # Its handler has survived SIGABRT.
            return f"; {wanted.name} was finished first and is not dead-lettered; {found.name} is redelivered"
        self._pass((found.key, found.step), Sentence(found.name, killing.by, died.output, now + HOLDS))
        return "; the message is dead-lettered by the next worker that gets it"

    def claim(self, page: int, key: str, step: int, now: float) -> Sentence | None:
        """The sentence of this redelivered message, if there is one: the worker of this page is told to carry it
        out."""
        self._told.pop(page, None)
        sentence = self._passed.pop((key, step), None)
        if sentence is None or sentence.until < now:
            return None
        self._told[page] = (key, step), sentence
        return sentence

    def carried_out(self, page: int) -> None:
        """The worker of this page has dead-lettered its message, confirmed."""
        self._told.pop(page, None)

    def died(self, page: int) -> None:
        """The worker of this page exited: what it has not carried out is left to the next one."""
        if (told := self._told.pop(page, None)) is not None:
            self._pass(*told)

    def pending(self, now: float) -> list[Sentence]:
        """What is not carried out, as far as this supervisor knows."""
        told = (sentence for _, sentence in self._told.values())
        return [sentence for sentence in (*self._passed.values(), *told) if sentence.until >= now]

    def _pass(self, message: tuple[str, int], sentence: Sentence) -> None:
        self._passed[message] = sentence
        while len(self._passed) > self._room:
            self._passed.popitem(last=False)
