"""Requests from other threads (control socket, file watcher), which the loop takes like any event."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Final

from supervisor.policy.actions import Action, Say
from supervisor.policy.events import Asked, Event
from supervisor.policy.reload import Reload
from supervisor.values import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """The pool's answer to a request."""

    said: tuple[Say, ...]
    reload: Reload | None
    """The latest at that time."""


_TOO_LATE: Final = Answer((), None)


class Wishes:
    """Readable when a request waits."""

    def __init__(self) -> None:
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._made: deque[tuple[Asked, Future[Answer]]] = deque()
        self._taken: list[tuple[Asked, Future[Answer]]] = []
        self._has_ended = False

    def fileno(self) -> int:
        return self._wakeup

    def make(self, asked: Asked) -> Future[Answer]:
        """Callable from any thread. Raises OSError."""
        answer: Future[Answer] = Future()
        if self._has_ended:
            answer.set_result(_TOO_LATE)
            return answer
        entry = (asked, answer)
        self._made.append(entry)
        try:
            os.eventfd_write(self._wakeup, 1)
        except OSError:
            self._made.remove(entry)
            raise
        return answer

    def take(self) -> Iterator[Event]:
        """For the loop."""
        os.eventfd_read(self._wakeup)
        while self._made:
            self._taken.append(self._made.popleft())
            yield self._taken[-1][0]

    def end(self) -> None:
        """The loop has ended: answer the requests that still wait."""
        self._has_ended = True
        while self._made:  # one at a time: another thread may still add to it
            self._taken.append(self._made.popleft())
        for _, answer in self._taken:
            if answer.set_running_or_notify_cancel():
                answer.set_result(_TOO_LATE)

    def answer(self, asked: Event, actions: Iterable[Action], reload: Reload | None) -> None:
        """Report what followed from an event, if that was a request."""
        for entry in self._taken:
            if entry[0] is asked:
                self._taken.remove(entry)
                said = tuple(action for action in actions if isinstance(action, Say))
                if entry[1].set_running_or_notify_cancel():
                    entry[1].set_result(Answer(said, reload))
                return
