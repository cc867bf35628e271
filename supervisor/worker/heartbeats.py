"""Who pumps the consuming connection: the baton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from supervisor import originals
from supervisor.clock import now

KEEPER_AFTER: Final = 1.0
"""Seconds a handler runs before the keeper takes the baton: well below the shortest heartbeat, and never for a short
task."""


class Baton:
    """Who holds it pumps: the main thread, but not while it is `with` this."""

    __slots__ = ("_since", "_wake", "free_since", "lock", "spent")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.lock = originals.allocate_lock()
        self.lock.acquire()
        self.free_since: float | None = None
        """Since when the main thread is busy with something else; None while it has the baton, or wants it back."""
        self.spent = 0.0
        """Seconds that it was busy with something else, the last time."""
        self._since = 0.0
        self._wake = wake

    def __enter__(self) -> None:
        self.free_since = self._since = now()
        self.lock.release()

    def __exit__(self, *_: object) -> None:
        self.free_since = None
        self.spent = now() - self._since
        if not self.lock.acquire(blocking=False):
            self._wake()  # the keeper waits for the broker
            self.lock.acquire()
