"""When to retry an import that failed for a transient reason (`--boot-retry`). One worker retries; the others wait."""

from __future__ import annotations

import math
from typing import Final

from supervisor.policy.restart import Backoff

_BACKOFF: Final = Backoff(free=0, first=0.5, most=10.0)
"""Slower than for a broker: an import costs more than a connection attempt."""


class Imports:
    """`because`: the latest failure since an import succeeded; None: none."""

    def __init__(self) -> None:
        self.because: str | None = None
        self._streak = 0
        self._failed_at = -math.inf
        self._again_at = -math.inf

    def fail(self, because: str, began_at: float, now: float, roll: float) -> tuple[float, bool] | None:
        """An import that began at `began_at` failed. Returns the seconds until the next try, and whether the reason is
        new; None for one that began before the latest failure."""
        if self.because is not None and began_at <= self._failed_at:
            return None
        is_news, self.because = because != self.because, because
        self._streak += 1
        self._failed_at = now
        delay = _BACKOFF.delay(self._streak, roll)
        self._again_at = now + delay
        return delay, is_news

    def succeed(self) -> None:
        self.because = None
        self._streak = 0

    def turn(self, is_importing: bool) -> float:
        """When the next worker may import; infinite while one does."""
        if self.because is None:
            return -math.inf
        return math.inf if is_importing else self._again_at
