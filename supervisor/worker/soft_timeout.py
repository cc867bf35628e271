"""`--soft-timeout`: SoftTimeout is raised in the handler, in the main thread, once a task.

A thread waits, and a signal interrupts: whatever the handler sleeps or waits in, as Ctrl-C would. Nothing is done per
task but to note its start. Where nobody is at work the thread sleeps for the whole limit: what begins meanwhile is not
due before that.

An `async def` is not interrupted but cancelled, by its event loop (`event_loop`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from supervisor import originals
from supervisor.clock import now
from supervisor.worker.task import SoftTimeout, Task

_AGAIN: Final = 0.01
"""Seconds until the next attempt, where the main thread was not in the handler's own code."""
_OURS: Final = f"{Path(__file__).parents[1]}/"


class SoftTimeouts:
    """Bounds the tasks of one worker. Made in its main thread."""

    def __init__(self, limit: float, call: Callable[..., Any], others: Iterable[Callable[..., Any]]) -> None:
        """`limit` in seconds; `call` is the Python function that calls the handler, and `others` are what it calls
        beside that: they are not interrupted."""
        self.limit = limit
        self._call = call.__code__
        self._others = frozenset(each.__code__ for each in others)
        self._began: float | None = None
        """When the task did that is not interrupted yet; None while there is none."""
        self._main = threading.main_thread().ident or 0
        self._signal = _unused_signal()
        signal.signal(self._signal, self._interrupt)
        originals.start_new_thread(self._watch, ())

    def bound(self, run: Callable[[Task], Any]) -> Callable[[Task], Any]:
        """The same, bounded."""

        def bounded(task: Task) -> Any:
            self._began = task.received_at
            try:
                return run(task)
            finally:
                self._began = None

        return bounded

    def left(self) -> float | None:
        """Seconds that the task at work has; None when there is none, or it is somebody else's to bound by now."""
        return None if self._began is None else self._began + self.limit - now()

    def take(self) -> None:
        """It is bounded otherwise from here."""
        self._began = None

    def exception(self) -> SoftTimeout:
        return SoftTimeout(f"the task has run for {self.limit:g} s (--soft-timeout)")

    def _watch(self) -> None:
        while True:
            left = self.left()
            if left is not None and left <= 0:
                signal.pthread_kill(self._main, self._signal)
                left = _AGAIN
            originals.sleep(self.limit if left is None else left)

    def _interrupt(self, _number: int, frame: FrameType | None) -> None:
        """In the main thread, wherever it is: the signal may come late, when the handler has returned."""
        left = self.left()
        if left is not None and left <= 0 and self._is_in_handler(frame):
            self._began = None
            raise self.exception()

    def _is_in_handler(self, frame: FrameType | None) -> bool:
        """Whether it is in the handler, and not in code of ours that the handler has called (half a log line would be
        written) or that looks at how it ended."""
        while frame is not None and (caller := frame.f_back) is not None:
            if caller.f_code is self._call:
                return frame.f_code not in self._others
            if frame.f_code.co_filename.startswith(_OURS):
                return False
            frame = caller
        return False


def _unused_signal() -> int:
    """A real-time signal that the handler's import has not taken (signal(7))."""
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN, -1):
        if signal.getsignal(number) is signal.SIG_DFL:
            return number
    raise OSError("--soft-timeout needs a real-time signal, and the handler's import has taken them all")
