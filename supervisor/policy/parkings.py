"""Which messages lie in another queue already, though the broker may give them to a worker again?

A message to be retried or dead-lettered is published elsewhere, confirmed, and then acknowledged. When the connection
or the worker is gone in between, the broker delivers it once more, beside its copy. So it is remembered here, and when
it comes back, redelivered and with the number of the same try, it is acknowledged unrun.

The acknowledgement may have arrived all the same. So a memory holds for `HOLDS` seconds, for one delivery, and not
beyond one that is not marked redelivered: that one is new. Only messages with an id are remembered.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from supervisor.vocabulary import InHand, Moved

HOLDS: Final = 300.0
"""Seconds. A broker gives a lost worker's messages to others after up to three heartbeats, and those may be busy."""
ROOM: Final = 2_000


class Parkings:
    """Bounded: what was parked longest ago is forgotten first, and its message is run again."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._until: OrderedDict[tuple[str, int], deque[float]] = OrderedDict()
        """By key and attempt: for each parking the end of its time, monotonic seconds."""

    def __len__(self) -> int:
        return len(self._until)

    def died(self, moved: Iterable[Moved], last: InHand | None) -> None:
        """A worker has ended, which had parked this. The `last` message that it had may come back from now on."""
        latest = {(each.key, each.attempt) for each in moved if each.later == 0}
        if last is not None and not last.redelivered and (last.key, last.attempt) not in latest:
            self._until.pop((last.key, last.attempt), None)

    def ended(self, moved: Iterable[Moved], prefetch: int, now: float) -> None:
        """A worker's connection has ended; it had parked this."""
        for each in moved:
            # With so many given to it since, the broker must have heard of an acknowledgement.
            if each.later < prefetch:
                self._until.setdefault((each.key, each.attempt), deque()).append(now + HOLDS)
                self._until.move_to_end((each.key, each.attempt))
        while len(self._until) > self._room:
            self._until.popitem(last=False)

    def claim(self, key: str, attempt: int, now: float) -> bool:
        """A redelivered message: whether it is one of them, which is then over."""
        until = self._until.get((key, attempt), deque())
        while until and until[0] < now:
            until.popleft()
        is_parked = bool(until)
        if until:
            until.popleft()
        if not until:
            self._until.pop((key, attempt), None)
        return is_parked
