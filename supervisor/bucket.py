"""The token bucket of `--rate`, in shared memory: one number that all workers change, and a ticket for each that waits.

The lock is a record lock (fcntl(2)), which the kernel releases when its holder dies, and nobody sleeps on it: a holder
may be stopped. Each number is stored by one aligned move, and one store takes a token, so a worker that is killed has
taken it, or not. A dead worker's ticket is removed by the supervisor. (What is decided with it: `policy.rate`.)
"""

from __future__ import annotations

import fcntl
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from supervisor.vocabulary import SLOTS

_PAGES: Final = 2 * SLOTS
_WORD: Final = 8
_FULL_AT: Final = 0
_IN_USE: Final = 1
"""Tickets that have ever been used, so that no others are looked at."""
_TICKETS: Final = 2

SIZE: Final = (_TICKETS + _PAGES) * _WORD


def ticket(start: int, page: int) -> slice:
    """Where in the file the ticket of this page is, for a bucket that begins at `start`."""
    at = start + (_TICKETS + page) * _WORD
    return slice(at, at + _WORD)


class Bucket:
    """As the worker of one page sees it. Lock it for everything else."""

    def __init__(self, fd: int, start: int, page: int) -> None:
        """`start`: where in the file it begins, a multiple of 8."""
        before = start % mmap.ALLOCATIONGRANULARITY
        memory = memoryview(mmap.mmap(fd, before + SIZE, offset=start - before))[before:]
        self._fd, self._start, self._page = fd, start, page
        self._floats, self._integers = memory.cast("d"), memory.cast("Q")

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether it is, for the block. Raises OSError for anything but another holder."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._start)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES (fcntl(2))
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._start)

    @property
    def full_at(self) -> float:
        return self._floats[_FULL_AT]

    @full_at.setter
    def full_at(self, instant: float) -> None:
        self._floats[_FULL_AT] = instant

    def queue(self, now: float) -> None:
        """Take a ticket, unless it has one."""
        own = _TICKETS + self._page
        if not self._floats[own]:
            self._floats[own] = now
            self._integers[_IN_USE] = max(self._in_use, self._page + 1)

    def leave(self) -> None:
        """Give the ticket back, if it has one."""
        self._floats[_TICKETS + self._page] = 0.0

    def ahead(self) -> int:
        """How many have waited for longer."""
        tickets = self._floats[_TICKETS : _TICKETS + self._in_use].tolist()
        own = self._floats[_TICKETS + self._page]
        return sum(1 for each in tickets if 0 < each < own) if own else sum(1 for each in tickets if each > 0)

    @property
    def _in_use(self) -> int:
        return min(self._integers[_IN_USE], _PAGES)
