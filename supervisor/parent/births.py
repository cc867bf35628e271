"""What one nursery was asked for: workers for seats, and one that is forked ahead of the next death.

A fork takes milliseconds, most of them in the nursery and in the kernel. The spare has them behind it: it waits, like
every newborn, for the `Begin` that names its seat.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass
from typing import Final

import psutil

from supervisor.link import Link
from supervisor.parent import leftovers
from supervisor.vocabulary import Begin, Fork

_FORKS_AT_ONCE: Final = 16
"""Requests on the nursery's link at a time: its buffer holds about two hundred, and 253 descriptors may be in flight
(unix(7))."""


@dataclass(slots=True, eq=False)
class Newborn:
    """A worker that waits to be told its seat."""

    pid: int
    pidfd: int
    link: Link
    output: int
    """Where its output is read."""
    process: psutil.Process

    def begin(self, slot: int) -> bool:
        """Have it work. False when it is gone."""
        leftovers.mark(self.pid)
        return self.link.send(Begin(slot), wait=False)

    def let_go(self) -> None:
        """Close what we have of it: it finds its link closed, and leaves."""
        self.link.close()
        for fd in (self.output, self.pidfd):
            os.close(fd)


@dataclass(slots=True)
class _Birth:
    ticket: int
    slot: int | None
    """None for the spare."""
    link: Link
    worker_end: Link
    output: tuple[int, int]

    def give_up(self) -> None:
        """Close our ends: if there is somebody at the others, it leaves."""
        self.link.close()
        os.close(self.output[0])

    def hand_over(self) -> None:
        """Close the worker's ends: the nursery has them, or never will."""
        self.worker_end.close()
        os.close(self.output[1])


class Births:
    """The births of one nursery."""

    _tickets = itertools.count(1)  # over all nurseries, so that no late answer fits another's question

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[_Birth] = deque()
        self._asked: dict[int, _Birth] = {}
        self.spare: Newborn | None = None

    @property
    def are_due(self) -> bool:
        """Whether the nursery has been asked for any that it has not told us of."""
        return bool(self._asked)

    def ask(self, slot: int) -> None:
        """A worker for this seat; `born` or `failed` follows, or the nursery's end."""
        self._want(slot)

    def ask_ahead(self) -> None:
        """A spare, unless there is one, or the nursery has more urgent things to do."""
        if self.spare is None and not self._asked and not self._waiting:
            try:
                self._want(None)
            except OSError:
                pass  # no descriptor is left for one: the next worker takes some milliseconds longer

    def _want(self, slot: int | None) -> None:
        link, worker_end = Link.pair()
        self._waiting.append(_Birth(next(self._tickets), slot, link, worker_end, os.pipe2(os.O_CLOEXEC)))
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and len(self._asked) < _FORKS_AT_ONCE:
            birth = self._waiting.popleft()
            # If this fails the nursery is dead or stuck, and its exit or the seat's deadline says so.
            self._link.send(Fork(birth.ticket), (birth.worker_end.fileno(), birth.output[1]), wait=False)
            birth.hand_over()
            self._asked[birth.ticket] = birth

    def born(self, ticket: int, pid: int) -> tuple[int | None, Newborn | None] | None:
        """Whose seat it is for, and the newborn, or None when it was gone before it was seen. None for one that was
        forgotten meanwhile: it finds its link closed, leaves, and is reaped like any orphan."""
        birth = self._told_of(ticket)
        if birth is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            pass
        else:
            try:
                return birth.slot, Newborn(pid, pidfd, birth.link, birth.output[0], psutil.Process(pid))
            except psutil.Error:
                os.close(pidfd)
        birth.give_up()
        return birth.slot, None

    def failed(self, ticket: int) -> int | None:
        """The seat whose worker could not be forked; None when it was for none."""
        birth = self._told_of(ticket)
        if birth is None:
            return None
        birth.give_up()
        return birth.slot

    def _told_of(self, ticket: int) -> _Birth | None:
        birth = self._asked.pop(ticket, None)
        if birth is not None:
            self._pass_on()
        return birth

    def forget(self) -> None:
        """The nursery is gone: whom it forked already finds its link closed, and leaves."""
        for birth in (*self._asked.values(), *self._waiting):
            birth.give_up()
        for birth in self._waiting:
            birth.hand_over()
        self._asked.clear()
        self._waiting.clear()
