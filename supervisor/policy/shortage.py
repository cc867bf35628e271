"""The machine refuses a worker: one slot retries, with backoff; then the others follow one at a time."""

from __future__ import annotations

import math
from typing import Final

from supervisor.policy.restart import Backoff, OneTries

NURSERY: Final = -1
"""In place of a slot: the nursery."""
_BACKOFF: Final = Backoff(free=0, first=0.25, most=30.0)


class Shortage(OneTries):
    def __init__(self) -> None:
        super().__init__(_BACKOFF)
        self._slots: set[int] = set()

    def refuse(self, slot: int, because: str, asked_at: float, now: float, roll: float) -> float | None:
        """Returns the seconds until the next try; None for a slot asked for before the latest refusal."""
        self._slots.add(slot)
        if self.because is not None and asked_at <= self._failed_at and now < self._again_at:
            return None
        return self._fail(because, now, roll)

    def fill(self, slot: int) -> None:
        """The slot has a worker, or needs none."""
        if self.because is None:
            return
        self._slots.discard(slot)
        self._streak = 0
        self._again_at = -math.inf
        if not self._slots:
            self.because = None
