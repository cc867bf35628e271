"""A worker as the supervisor sees it: its page of the scoreboard, and what /proc says of it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from typing import Final

import psutil

from supervisor.clock import now
from supervisor.messages import Leaving, LoadFailed
from supervisor.parent.child import Child
from supervisor.scoreboard import Scoreboard
from supervisor.vocabulary import Phase, Reading

_HOLDS: Final = 5.0
"""Seconds for which an idle worker is not looked at if it writes nothing on its page and has not grown since the last
look: to look at four, once a second, is a third of what an idle supervisor does. A thread of the handler's may make it
grow meanwhile."""


@dataclass(slots=True, eq=False)
class Worker(Child):
    page: int
    generation: int
    stands_still_after: float
    """Seconds without a turn of its loop."""
    finished_before: int
    said: Leaving | LoadFailed | None = None
    _process: psutil.Process = field(init=False)
    _written: bytes = field(init=False, default=b"")
    _reading: Reading | None = field(init=False, default=None)
    _holds_until: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """Raises OSError when there is no such process."""
        try:
            self._process = psutil.Process(self.pid)
        except psutil.Error as error:
            raise ProcessLookupError(errno.ESRCH, str(error)) from None

    def read(self, board: Scoreboard) -> Reading:
        """What it does: now, or, while it idles and writes nothing, some seconds ago."""
        written, at = board.written(self.page), now()
        if self._reading is None or at >= self._holds_until or written != self._written:
            before, self._written, self._reading = self._reading, written, self._read(board, at)
            is_steady = before is not None and self._reading.rss <= before.rss and self._reading.phase is Phase.IDLE
            stands_still_at = self._reading.beat + self.stands_still_after
            self._holds_until = min(at + _HOLDS, stands_still_at) if is_steady else at
        return self._reading

    def _read(self, board: Scoreboard, at: float) -> Reading:
        page = board.read(self.page)
        try:
            rss = self._process.memory_info().rss
            stands_still = at - page.beat > self.stands_still_after
            is_stopped = stands_still and self._process.status() == psutil.STATUS_STOPPED
        except (psutil.Error, OSError):
            rss, is_stopped = 0, False
        # Not the page's own pid: a handler could forge it, to escape every check.
        return replace(page, pid=self.pid, rss=rss, is_stopped=is_stopped)
