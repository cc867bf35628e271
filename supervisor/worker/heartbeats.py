"""The heartbeat thread: it pumps the consuming connection while a handler keeps the main thread.

One thread at a time pumps, the one that has the *baton*: the main thread while it waits for a message; and while a
handler has kept that for over a second, the heartbeat thread, so that heartbeats go out and the broker is heard for as
long as a handler runs. (Measured against a thread that owns the connection all the time: docs/decisions/0002.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from supervisor import originals, streams
from supervisor.clock import now
from supervisor.vocabulary import EXIT_SOFTWARE

TAKES_OVER_AFTER: Final = 1.0
"""Seconds a handler runs before the heartbeat thread takes the baton: well below the shortest heartbeat, and never for
a short task."""


class Baton:
    """Who holds it pumps: the main thread, but not while it is `with` this."""

    __slots__ = ("_lock", "_since", "_wake", "free_since", "spent")

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` ends a wait in the heartbeat thread's pump."""
        self._lock = originals.allocate_lock()
        self._lock.acquire()
        self.free_since: float | None = None
        """Since when the main thread is busy with something else; None while it has the baton, or wants it back."""
        self.spent = 0.0
        """Seconds that it was busy with something else, the last time."""
        self._since = 0.0
        self._wake = wake

    def __enter__(self) -> None:
        self.free_since = self._since = now()
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.free_since = None
        self.spent = now() - self._since
        if not self._lock.acquire(blocking=False):
            self._wake()  # the heartbeat thread waits for the broker
            self._lock.acquire()

    def start(self, pump: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Start the heartbeat thread, which calls `pump` again and again while it has the baton, and ends when
        `is_over`. Raises RuntimeError: so does CPython put a pthread_create(3) that fails."""
        originals.start_new_thread(self._run, (pump, is_over))

    def _run(self, pump: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Without this thread a worker would lose its connection in the middle of a task, and nobody would know why."""
        try:
            self._take_over(pump, is_over)
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed
            streams.complain_of(error)
            os._exit(EXIT_SOFTWARE)

    def _take_over(self, pump: Callable[[], None], is_over: Callable[[], bool]) -> None:
        while not is_over():
            originals.sleep(TAKES_OVER_AFTER)
            away = self.free_since
            if away is None or now() - away < TAKES_OVER_AFTER:
                continue
            with self._lock:
                while self.free_since is not None and not is_over():
                    pump()
