"""When to retry a failed task: after `retry_delay` x 4^n, 15 minutes at most, rounded up to a `queues.LADDER` step."""

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
    """A handler's delay in seconds, a day at most; None stays None. Raises ValueError for anything else."""
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
    """The ladder's steps, in milliseconds, that `--retries` and `--retry-delay` use."""
    return sorted({step(backoff(attempt, first)) for attempt in range(1, retries + 1)})
