"""How fast dead letters are requeued. Pure."""

from __future__ import annotations

import math
from typing import Final

from supervisor.settings.parsers import rate

_MOST: Final = 60.0
"""Seconds between two. A dead letter waits for its turn unacked, and the broker allows 30 minutes by default
(consumer_timeout)."""
_STEP: Final = 0.2
"""Seconds: what is due in them goes together."""
_WINDOW: Final = 60.0
"""Seconds for which to take dead letters in advance."""


def parse(said: str) -> float:
    """`10/s`, `30/m` or `600/h` -> a second. Raises ValueError."""
    try:
        interval = rate(said).interval
    except ValueError:
        interval = math.inf
    if interval > _MOST:
        raise ValueError("expected N/s, N/m or N/h, such as 20/s, and at least 1/m (60/h)")
    return 1 / interval


class Spread:
    """Evenly, at most so many a second: a delay is not made up for."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.due = 0.0
        """When the next may go; by the clock that `went` is told."""

    def share(self, most: int) -> int:
        """How many go together."""
        return max(1, min(most, int(self._rate * _STEP)))

    def window(self, most: int) -> int:
        """How many to take at a time."""
        return max(1, min(most, int(self._rate * _WINDOW)))

    def went(self, count: int, now: float) -> None:
        self.due = max(self.due, now) + count / self._rate
