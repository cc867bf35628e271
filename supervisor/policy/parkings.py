"""Which messages are parked in another queue already, though the broker may redeliver them?

A message to be retried or dead-lettered is published elsewhere, confirmed, and then acknowledged. When the connection
or the worker is lost in between, the broker redelivers it although its copy exists. So it is remembered here, and when
it comes back, redelivered and at the same step, it is acknowledged without running.

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

    def __len__(self) -> int:
        return len(self._until)

    def died(self, moved: Iterable[Moved], last: InHand | None) -> None:
        """A worker that had parked `moved` exited; `last`: its last message, which may come back."""
        latest = {(each.key, each.step) for each in moved if each.later == 0}
        if last is not None and not last.redelivered and (last.key, last.step) not in latest:
            self._until.pop((last.key, last.step), None)

    def ended(self, moved: Iterable[Moved], prefetch: int, now: float) -> None:
        """The connection of a worker that had parked `moved` ended."""
        for each in moved:
            # After `prefetch` later deliveries the broker must have received the acknowledgement.
            if each.later < prefetch:
                self._until.setdefault((each.key, each.step), deque()).append(now + HOLDS)
                self._until.move_to_end((each.key, each.step))
        while len(self._until) > self._room:
            self._until.popitem(last=False)

    def claim(self, key: str, step: int, now: float) -> bool:
        """Whether this redelivered message is parked already; uses the entry up."""
        until = self._until.get((key, step), deque())
        while until and until[0] < now:
            until.popleft()
        is_parked = bool(until)
        if until:
            until.popleft()
        if not until:
            self._until.pop((key, step), None)
        return is_parked
