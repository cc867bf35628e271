"""The loop under a connection, turned by hand: epoll, a heap of timers, and callbacks from other threads."""

from __future__ import annotations

import heapq
import os
import select
import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from supervisor import originals
from supervisor.clock import now

EPOLLIN: Final = 1
EPOLLOUT: Final = 4
EPOLLHUP: Final = 16
"""Linux's numbers (epoll_ctl(2)), for a publisher on macOS, too."""

Found = list[tuple[Any, ...]]
"""What getaddrinfo(3) answers."""


class Timer:
    """A callback that is due."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], Any]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], Any] | None = callback
        """None once it is cancelled."""

    def __lt__(self, other: Timer) -> bool:
        return self.deadline < other.deadline


class _Select:
    """epoll's interface to select(2), which gevent and eventlet leave in place, as their own: others run meanwhile."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}
        self.register = self.modify = self._events.__setitem__
        self.unregister = self._events.pop
        self.close = self._events.clear

    def poll(self, patience: float, most: int = -1) -> list[tuple[int, int]]:
        to_read, to_write = ([fd for fd, events in self._events.items() if events & bit] for bit in (EPOLLIN, EPOLLOUT))
        readable, writable, _ = select.select(to_read, to_write, [], patience)
        return [(fd, EPOLLIN) for fd in readable] + [(fd, EPOLLOUT) for fd in writable]


class IOLoop:
    """Waits for descriptors and timers, one `turn` at a time, and one thread at a time; only `add_callback` may be
    called by any."""

    READ = EPOLLIN
    WRITE = EPOLLOUT

    def __init__(self, *, shared: bool = False) -> None:
        """`shared` in the thread of a program, which other greenlets may share; a worker's loop has the true epoll."""
        has_none = not hasattr(select, "epoll")
        self._epoll: Any = _Select() if has_none and (shared or originals.epoll is None) else originals.epoll()
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        self._timers: list[Timer] = []
        self._callbacks: deque[Callable[[], Any]] = deque()
        self.bell, self.cord = _bell()
        # A worker's loop lives as long as its process; who has several in one process closes none of them.
        self._end = weakref.finalize(self, _close, {self.bell, self.cord})
        self.add_handler(self.bell, _rung, self.READ)

    def turn(self, patience: float) -> None:
        """Wait until something happens, `patience` seconds at most, and call whom it concerns. Raises what they
        raise."""
        timers = self._timers
        # As `patience`, and below as `_call_due` would: here a call is one of the hundred that each task costs.
        if timers and (left := timers[0].deadline - now()) < patience:
            patience = left if left > 0.0 else 0.0
        for fd, events in self._epoll.poll(patience):
            handler = self._handlers.get(fd)  # None: one called before it in this turn has removed it
            if handler is not None:
                # Whoever waits for something to read finds the end of the file.
                handler(fd, events | EPOLLIN if events & EPOLLHUP else events)
        for _ in range(len(self._callbacks)):  # not those that they add: the descriptors have their turn first
            self._callbacks.popleft()()
        if timers and timers[0].deadline <= now():
            self._call_due()

    def patience(self, most: float) -> float:
        """Seconds until a timer is due, `most` at the most."""
        return min(most, max(0.0, self._timers[0].deadline - now())) if self._timers else most

    def fileno(self) -> int:
        """A descriptor that can be read when a turn would have something to do, timers aside."""
        return int(self._epoll.fileno())

    def has_news(self) -> bool:
        """Whether a turn would have something to do at once, timers aside."""
        return bool(self._epoll.poll(0, 1))

    def _call_due(self) -> None:
        due = now()
        timers = []
        while self._timers and self._timers[0].deadline <= due:
            timers.append(heapq.heappop(self._timers))
        for timer in timers:
            if timer.callback is not None:
                timer.callback()

    def add_handler(self, fd: int, handler: Callable[[int, int], None], events: int) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def update_handler(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def replace_handler(self, fd: int, handler: Callable[[int, int], None]) -> None:
        self._handlers[fd] = handler

    def remove_handler(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Timer:
        timer = Timer(now() + delay, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def add_callback(self, callback: Callable[[], Any], cord: int = -1) -> None:
        """`cord`: a duplicate of the loop's, from a thread that may outlive the loop."""
        self._callbacks.append(callback)
        _ring(self.cord if cord < 0 else cord)

    def close(self) -> None:
        self._epoll.close()
        self._end()


def _bell() -> tuple[int, int]:
    """The end to wait for and the end to ring: an eventfd(2) is both, and macOS has none."""
    if hasattr(os, "eventfd"):
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return bell, bell
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


def _ring(cord: int) -> None:
    if hasattr(os, "eventfd"):
        os.eventfd_write(cord, 1)
    else:
        os.write(cord, b"\0")


def _rung(bell: int, _: int) -> None:
    if hasattr(os, "eventfd"):
        os.eventfd_read(bell)
    else:
        os.read(bell, 4096)


def _close(fds: set[int]) -> None:
    for fd in fds:
        os.close(fd)


def look_up(loop: IOLoop, host: str, port: int, on_done: Callable[[Found | Exception], None]) -> None:
    """Look up a host's addresses. The loop calls `on_done` with them, or with the error.

    An address needs no thread; a name gets a real one: see `originals`.
    """
    query = (host, port, 0, int(socket.SOCK_STREAM), int(socket.IPPROTO_TCP))
    try:
        found = originals.getaddrinfo(*query, int(socket.AI_NUMERICHOST))
    except (OSError, UnicodeError):  # a name; or neither, as the look-up will say
        cord = os.dup(loop.cord)
        try:
            originals.start_new_thread(_look_up, (loop, cord, query, on_done))
        except BaseException:
            os.close(cord)
            raise
    else:
        loop.call_later(0, lambda: on_done(found))


def _look_up(loop: IOLoop, cord: int, query: tuple[Any, ...], on_done: Callable[[Found | Exception], None]) -> None:
    found: Found | Exception
    try:
        found = originals.getaddrinfo(*query)
    except Exception as error:  # noqa: BLE001 - it must not get lost in this thread
        found = error
    loop.add_callback(lambda: on_done(found), cord)
    os.close(cord)
