"""`--rate`: may another task begin? A token bucket, kept as one number.

`full_at` is when the bucket is full, monotonic seconds, and each task that begins moves it by one interval. A token is
there when that is less than `BURST` seconds ahead: so in any `t` seconds at most `1 + (t + BURST) / interval` tasks
begin. Beginning late costs nothing as long as it is by less than `BURST`: under load the rate is exact.
(The generic cell rate algorithm, ITU-T I.371.)

Workers that wait have tickets with the instant at which they came, and the token belongs to the oldest. `ahead` is the
number of older ones: each is expected to take a token first. If one does not, because it is dead, the next one waits an
interval too long, once; nobody waits for anybody in particular.
"""

from __future__ import annotations

from typing import Final

BURST: Final = 0.1
"""Seconds. After a pause one task begins, and as many more as this is worth: 500/s has 51 tokens, 5/s has one."""


def sane(full_at: float, interval: float, now: float) -> float:
    """What can be. It is later only after a reload to a higher rate, or if a handler has written there."""
    latest = now + BURST + interval
    return full_at if full_at <= latest else latest  # a NaN is not


def due(full_at: float, interval: float, ahead: int) -> float:
    """When a worker with so many before it may take a token, monotonic seconds."""
    return full_at - BURST + ahead * interval


def after(full_at: float, interval: float, now: float) -> float:
    """The bucket when a token has been taken."""
    return max(full_at, now) + interval
