"""When to retry an import that failed for a transient reason (`--boot-retry`). One worker retries; the others wait."""

from __future__ import annotations

from typing import Final

from supervisor.policy.restart import Backoff, OneTries

_BACKOFF: Final = Backoff(free=0, first=0.5, most=10.0)
"""Slower than for a broker: an import costs more than a connection attempt."""


class Imports(OneTries):
    def __init__(self) -> None:
        super().__init__(_BACKOFF)

    def fail(self, because: str, began_at: float, now: float, roll: float) -> tuple[float, bool] | None:
        """An import that began at `began_at` failed. Returns the seconds until the next try, and whether the reason is
        new; None for one that began before the latest failure."""
        if self.because is not None and began_at <= self._failed_at:
            return None
        is_news = because != self.because
        return self._fail(because, now, roll), is_news

    def succeed(self) -> None:
        self.because = None
        self._streak = 0
