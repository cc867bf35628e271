"""The rate of `--rate`: a worker waits for its turn with the message still to be begun."""

from __future__ import annotations

from typing import Final

from supervisor.bucket import Bucket
from supervisor.clock import now
from supervisor.policy import rate

LOOK_EVERY: Final = 1.0
"""Seconds after which a worker looks again at the latest: one before it may have died."""
_RETRY: Final = 0.001
_RETRY_MOST: Final = 0.05
"""Seconds until it tries again to lock the bucket: its holder may be stopped."""


class Pace:
    def __init__(self, bucket: Bucket, interval: float) -> None:
        """`interval`: seconds between two tasks of the whole pool."""
        self._bucket = bucket
        self._interval = interval
        self._retry = _RETRY

    def take(self) -> float:
        """Take a token: 0; or the seconds after which to ask again. Raises OSError if the bucket cannot be locked."""
        bucket = self._bucket
        with bucket.locked() as is_ours:
            if not is_ours:
                self._retry = min(2 * self._retry, _RETRY_MOST)
                return self._retry
            self._retry = _RETRY
            present = now()
            full_at = rate.sane(bucket.full_at, self._interval, present)
            if full_at != bucket.full_at:
                bucket.full_at = full_at  # or it would move on with the time
            due = rate.due(full_at, self._interval, bucket.ahead())
            if present < due:
                bucket.queue(present)
                return min(due - present, LOOK_EVERY)
            bucket.full_at = rate.after(full_at, self._interval, present)
            bucket.leave()
            return 0.0

    def leave(self) -> None:
        """It has nothing to begin."""
        self._bucket.leave()
