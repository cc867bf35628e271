"""The machine refuses a worker: one slot retries, with backoff; then the others follow one at a time."""

from __future__ import annotations

import math
from typing import Final

from supervisor.policy.restart import Backoff

NURSERY: Final = -1
"""In place of a slot: the nursery."""
_BACKOFF: Final = Backoff(free=0, first=0.25, most=30.0)


class Shortage:
    """`because`: why a process was refused; None while none is."""

    def __init__(self) -> None:
        self.because: str | None = None
        self._slots: set[int] = set()
        self._streak = 0
        self._refused_at = -math.inf
        self._again_at = -math.inf

    def refuse(self, slot: int, because: str, asked_at: float, now: float, roll: float) -> float | None:
        """Returns the seconds until the next try; None for a slot asked for before the latest refusal."""
        self._slots.add(slot)
        if self.because is not None and asked_at <= self._refused_at and now < self._again_at:
            return None
        self.because = because
        self._streak += 1
        self._refused_at = now
        delay = _BACKOFF.delay(self._streak, roll)
        self._again_at = now + delay
        return delay

    def fill(self, slot: int) -> None:
        """The slot has a worker, or needs none."""
        if self.because is None:
            return
        self._slots.discard(slot)
        self._streak = 0
        self._again_at = -math.inf
        if not self._slots:
            self.because = None

    def turn(self, is_forking: bool) -> float:
        """When the next slot may try; infinite while one is being forked."""
        if self.because is None:
            return -math.inf
        return math.inf if is_forking else self._again_at
