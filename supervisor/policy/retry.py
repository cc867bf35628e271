"""When is a failed task tried again?

After an exception: `retry_delay` x 4^n later, 15 minutes at most; rounded up to a step of `queues.LADDER`.
"""

from __future__ import annotations

from typing import Final

from supervisor.queues import LADDER, step

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


def steps(retries: int, first: float) -> list[int]:
    """The ladder's steps, milliseconds, that failed tasks wait on by our own choice: `--retries`, `--retry-delay`."""
    return sorted({step(backoff(attempt, first)) for attempt in range(1, retries + 1)})
