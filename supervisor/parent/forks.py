"""What one nursery was asked for: workers for slots, and a spare that is forked ahead of the next death."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final

from supervisor.link import Link
from supervisor.linux import descendants
from supervisor.messages import Begin, Fork
from supervisor.parent.child import channel
from supervisor.parent.descriptors import Descriptors, close

_FORKS_AT_ONCE: Final = 16
"""Requests at a time: the link buffers about 200, and 253 descriptors may be in flight (unix(7))."""


@dataclass(slots=True, eq=False)
class Newborn:
    """A worker that waits for its page number."""

    pid: int
    pidfd: int
    link: Link
    output: int
    """Reading end of its output pipe."""

    def begin(self, order: Begin) -> bool:
        """Send its page number. False when it is gone; raises OSError."""
        descendants.mark(self.pid)
        return self.link.send(order, wait=False)

    def let_go(self) -> None:
        """Close our ends: it sees its link closed, and exits."""
        self.link.close()
        close(self.output)
        close(self.pidfd)


@dataclass(slots=True)
class _Birth:
    """A request in progress: the nursery has the other ends."""

    page: int | None
    """None for the spare."""
    link: Link
    output: int

    def give_up(self) -> None:
        """Close our ends: the worker, if there is one, exits."""
        self.link.close()
        close(self.output)


class Births:
    """The forks of one nursery. `refused` is called for each slot that the machine refuses a worker."""

    _tickets = itertools.count(1)  # across nurseries, so that a late answer cannot match another's request

    def __init__(self, link: Link, descriptors: Descriptors, refused: Callable[[int, Exception], None]) -> None:
        self._link = link
        self._descriptors = descriptors
        self._refused = refused
        self._waiting: deque[int | None] = deque()
        """Pages without a request yet; None for the spare."""
        self._asked: dict[int, _Birth] = {}
        self.spare: Newborn | None = None
        self._owes_a_spare = False

    @property
    def are_due(self) -> bool:
        """Whether a request is unanswered."""
        return bool(self._asked)

    def __len__(self) -> int:
        """How many forks are in progress, the spare included."""
        return len(self._waiting) + len(self._asked) + (self.spare is not None)

    def ask(self, page: int) -> None:
        """Request a worker for this page; `born`, `failed`, `refused` or the nursery's exit follows."""
        self._waiting.append(page)
        self._pass_on()

    def ask_ahead(self) -> None:
        """Request a spare, unless there is one or the nursery is busy."""
        if self.spare is None and not self._asked and not self._waiting:
            self._owes_a_spare = False
            self._waiting.append(None)
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and len(self._asked) < _FORKS_AT_ONCE:
            page = self._waiting.popleft()
            try:
                self._request(page)
            except OSError as error:
                self._refuse(page, error)

    def _request(self, page: int | None) -> None:
        self._descriptors.claim(len(self._asked))
        ticket = next(self._tickets)
        with channel() as (link, reader, worker_end, writer):
            # If the nursery does not take it, it is dead or stuck: its exit or the slot's deadline will show that.
            self._link.send(Fork(ticket), (worker_end.fileno(), writer), wait=False)
        self._asked[ticket] = _Birth(page, link, reader)

    def _refuse(self, page: int | None, error: Exception) -> None:
        if page is None:
            self._owes_a_spare = True
        else:
            self._refused(page, error)

    def sampled(self) -> None:
        """Once a second: a spare that was refused may be requested again."""
        if self._owes_a_spare:
            self.ask_ahead()

    def born(self, ticket: int, pid: int, known: Set[int]) -> tuple[int | None, Newborn] | None:
        """The page and the new worker. None for one that was forgotten, cannot be watched or is gone: it sees its
        link closed, exits, and is reaped like a reparented process. `known`: the existing children."""
        birth = self._told_of(ticket)
        if birth is None:
            return None
        pidfd = None
        try:
            pidfd = os.pidfd_open(pid)
            if pid in known or not _is_our_child(pidfd):
                # The import can write to the nursery's link too: never wait for, or kill, what is not our child.
                raise ChildProcessError("the nursery's new worker is not a new child of the supervisor")
            return birth.page, Newborn(pid, pidfd, birth.link, birth.output)
        except OSError as error:
            if pidfd is not None:
                close(pidfd)
            birth.give_up()
            self._refuse(birth.page, error)
            return None

    def failed(self, ticket: int) -> int | None:
        """The page whose worker could not be forked; None for the spare."""
        birth = self._told_of(ticket)
        if birth is None:
            return None
        birth.give_up()
        self._owes_a_spare = self._owes_a_spare or birth.page is None
        return birth.page

    def _told_of(self, ticket: int) -> _Birth | None:
        birth = self._asked.pop(ticket, None)
        if birth is not None:
            self._pass_on()
        return birth

    def forget(self) -> None:
        """The nursery is gone: workers it has already forked see their link closed, and exit."""
        for birth in self._asked.values():
            birth.give_up()
        self._asked.clear()
        self._waiting.clear()


def _is_our_child(pidfd: int) -> bool:
    """Whether it is our child, dead or alive. Raises OSError."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
