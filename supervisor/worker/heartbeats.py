"""The heartbeat thread: it pumps the consuming connection while a handler occupies the main thread.

Only the thread that has the *baton* pumps: the main thread while it waits for a message, and the heartbeat thread after
a handler has run for a second, so that heartbeats are sent and the broker is read however long a handler runs.
(Compared with a thread that always owns the connection: docs/decisions/0002.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from supervisor import originals, streams
from supervisor.clock import now
from supervisor.vocabulary import EXIT_SOFTWARE

TAKES_OVER_AFTER: Final = 1.0
"""Seconds a handler runs before the heartbeat thread takes the baton: far below any heartbeat, above short tasks."""


class Baton:
    """Its holder pumps: the main thread, except while it is `with` this."""

    __slots__ = ("_bell", "_lock", "_rests", "_since", "_wake", "free_since", "spent")

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` ends a wait in the heartbeat thread's pump."""
        self._lock = originals.allocate_lock()
        self._lock.acquire()
        self.free_since: float | None = None
        """Since when the main thread is busy; None while it has the baton, or wants it back."""
        self.spent = 0.0
        """Seconds it was busy the last time."""
        self._since = 0.0
        self._wake = wake
        self._bell = originals.allocate_lock()
        self._rests = False

    def __enter__(self) -> None:
        self.free_since = self._since = now()
        self._lock.release()
        if self._rests:
            self._rests = False
            self._bell.release()

    def __exit__(self, *_: object) -> None:
        self.free_since = None
        self.spent = now() - self._since
        if not self._lock.acquire(blocking=False):
            self._wake()  # the heartbeat thread waits for the broker
            self._lock.acquire()

    def start(self, pump: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Start the heartbeat thread, which calls `pump` in a loop while it has the baton, and ends when `is_over`.
        Raises RuntimeError when pthread_create(3) fails."""
        originals.start_new_thread(self._run, (pump, is_over))

    def _run(self, pump: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Without this thread a worker would lose its connection mid-task, for no visible reason."""
        try:
            self._take_over(pump, is_over)
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed
            streams.complain_of(error)
            os._exit(EXIT_SOFTWARE)

    def _take_over(self, pump: Callable[[], None], is_over: Callable[[], bool]) -> None:
        while not is_over():
            originals.sleep(TAKES_OVER_AFTER)
            away = self.free_since
            if away is None:
                self._rest()
            elif now() - away >= TAKES_OVER_AFTER:
                with self._lock:
                    while self.free_since is not None and not is_over():
                        pump()

    def _rest(self) -> None:
        """Until the main thread gives the baton away: a worker without tasks is not woken up once a second."""
        self._bell.acquire(blocking=False)  # rung, perhaps, when nobody waited for it
        self._rests = True
        if self.free_since is None:
            self._bell.acquire()
        self._rests = False
