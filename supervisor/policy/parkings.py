"""Which messages are parked in another queue already, though the broker may redeliver them?

A message to be retried or dead-lettered is published elsewhere, confirmed, and then acknowledged. When the connection
or the worker is lost in between, the broker redelivers it although its copy exists. So it is remembered here, and when
it comes back, redelivered and at the same step, the worker that gets it is told, and acknowledges it without running.
A worker that is lost before it does leaves that to the next one.

The acknowledgement may have arrived after all. So an entry holds for `HOLDS` seconds and one delivery, and is dropped
by a delivery that is not marked redelivered: that is a new message. Only messages with an id are remembered.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from supervisor.vocabulary import InHand, Moved

HOLDS: Final = 300.0
"""Seconds. A broker redelivers a lost worker's messages after up to three heartbeats, and the others may be busy."""
ROOM: Final = 2_000


class Parkings:
    """Bounded: the oldest entry is forgotten first, and its message runs again."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._until: OrderedDict[tuple[str, int], deque[float]] = OrderedDict()
        """By key and step: when each entry expires, monotonic seconds."""
        self._told: dict[int, tuple[tuple[str, int], float]] = {}
        """By page: a worker that was told of an entry, which is used up, and when it would have expired."""

    def __len__(self) -> int:
        return len(self._until)

    def died(self, page: int, moved: Iterable[Moved], last: InHand | None) -> None:
        """The worker of this page, which had parked `moved`, exited; `last`: its last message, which may come back."""
        told = self._told.pop(page, None)
        message = (last.key, last.step) if last is not None else None
        if message is None or message in {(each.key, each.step) for each in moved if each.later == 0}:
            return
        if told is not None and told[0] == message:
            self._remember(*told)
        elif last is not None and not last.redelivered:
            self._until.pop(message, None)

    def ended(self, moved: Iterable[Moved], prefetch: int, now: float) -> None:
        """The connection of a worker that had parked `moved` ended."""
        for each in moved:
            # After `prefetch` later deliveries the broker must have received the acknowledgement.
            if each.later < prefetch:
                self._remember((each.key, each.step), now + HOLDS)

    def claim(self, page: int, key: str, step: int, now: float) -> bool:
        """Whether this redelivered message is parked already, which the worker of this page is told; uses the entry
        up."""
        self._told.pop(page, None)
        until = self._until.get((key, step), deque())
        while until and until[0] < now:
            until.popleft()
        is_parked = bool(until)
        if until:
            self._told[page] = (key, step), until.popleft()
        if not until:
            self._until.pop((key, step), None)
        return is_parked

    def _remember(self, message: tuple[str, int], until: float) -> None:
        self._until.setdefault(message, deque()).append(until)
        self._until.move_to_end(message)
        while len(self._until) > self._room:
            self._until.popitem(last=False)
