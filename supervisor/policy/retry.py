"""When is a failed task tried again?

After an exception: `retry_delay` x 4^n later, 15 minutes at most. Every delay is rounded up to a step of a ladder, and
there is one delay queue for each step: RabbitMQ expires messages at a queue's head only, so mixed delays in one queue
would block each other (https://www.rabbitmq.com/docs/ttl#per-message-ttl-caveats).
"""

from __future__ import annotations

import bisect
from typing import Final

LADDER: Final = (
    100, 200, 500,
    1_000, 2_000, 5_000, 10_000, 20_000, 30_000,
    60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000,
    3_600_000, 7_200_000, 21_600_000, 43_200_000, 86_400_000,
)  # fmt: skip
"""Milliseconds: from 100 ms to a day."""

LONGEST_BACKOFF: Final = 900.0
"""Seconds."""


def backoff(attempt: int, first: float) -> float:
    """Seconds to wait after the `attempt`-th try (from 1) has failed."""
    # 4^20 x 1 ms is beyond any limit; the bound keeps a forged attempt of 2^31 from being an exponent.
    return float(min(LONGEST_BACKOFF, first * 4.0 ** min(attempt - 1, 20)))


def checked(delay: object) -> float | None:
    """The delay that a handler asked for, seconds, a day at most. None stays. Raises ValueError when it is none."""
    if delay is None:
        return None
    try:
        if isinstance(delay, str | bytes | bool):
            raise TypeError
        seconds = min(float(delay), LADDER[-1] / 1000.0)  # type: ignore[arg-type]
    except OverflowError:
        seconds = LADDER[-1] / 1000.0 if delay > 0 else -1.0  # type: ignore[operator]
    except (TypeError, ValueError):
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(f"a delay is a number of seconds from 0: got {delay!r}")
    return seconds


def step(seconds: float) -> int:
    """The ladder's step for this delay, milliseconds: the next one up; a day at most."""
    at = bisect.bisect_left(LADDER, seconds * 1000.0)
    return LADDER[min(at, len(LADDER) - 1)]


def steps(retries: int, first: float) -> list[int]:
    """The ladder's steps, milliseconds, that failed tasks wait on by our own choice: `--retries`, `--retry-delay`."""
    return sorted({step(backoff(attempt, first)) for attempt in range(1, retries + 1)})
