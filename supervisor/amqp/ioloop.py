"""The loop under pika's connection, turned by hand: pika's own interfaces for it, with less to do for each message.

pika has two loops' worth of work for a short task: it asks epoll to say when the socket can be written, waits for
that, writes, and asks it to say so no more. Here a write is tried at once, as the socket nearly always takes it. And
where pika's loop suits every system and every poller, this one is epoll and a heap of timers.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll
from typing import Any, Final

from pika.adapters.utils.selector_ioloop_adapter import AbstractSelectorIOLoop, SelectorIOServicesAdapter

from supervisor import originals
from supervisor.clock import now

_NUMERIC: Final = int(socket.AI_NUMERICHOST)


class Timer:
    """A callback that is due."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], Any]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], Any] | None = callback
        """None once it is cancelled."""

    def __lt__(self, other: Timer) -> bool:
        return self.deadline < other.deadline


class IOLoop(AbstractSelectorIOLoop):
    """Waits for descriptors and timers, one `turn` at a time, and one thread at a time; only `add_callback` may be
    called by any."""

    READ = EPOLLIN
    WRITE = EPOLLOUT
    ERROR = EPOLLERR

    def __init__(self) -> None:
        self._epoll = epoll()
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        self._timers: list[Timer] = []
        self._callbacks: deque[Callable[[], Any]] = deque()
        self._before: tuple[set[int], list[Timer]] = set(), []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # A worker's loop lives as long as its process; who has several in one process closes none of them.
        self._end = weakref.finalize(self, os.close, self._bell)
        self.add_handler(self._bell, _rung, self.READ)

    def turn(self, patience: float) -> None:
        """Wait until something happens, `patience` seconds at most, and call whom it concerns. Raises what they
        raise."""
        wait = patience
        if self._timers:
            wait = min(wait, max(0.0, self._timers[0].deadline - now()))
        for fd, events in self._epoll.poll(wait):
            handler = self._handlers.get(fd)  # None: one called before it in this turn has removed it
            if handler is not None:
                # Whoever waits for something to read finds the end of the file; pika asks for no EPOLLHUP.
                handler(fd, events | EPOLLIN if events & EPOLLHUP else events)
        for _ in range(len(self._callbacks)):  # not those that they add: the descriptors have their turn first
            self._callbacks.popleft()()
        if self._timers:
            self._call_due()

    def has_news(self) -> bool:
        """Whether a turn would have something to do at once, timers aside."""
        return bool(self._epoll.poll(0, 1))

    def begin(self) -> None:
        """Something begins that may fail: `shed` takes back what it has left behind."""
        self._before = set(self._handlers), list(self._timers)

    def shed(self) -> None:
        """Forget every descriptor, timer and callback that has come since `begin`. A connection that has failed must
        not be heard of while the next is tried: pika's timers, for one, would end that in its stead."""
        handlers, timers = self._before
        for fd in set(self._handlers) - handlers:
            del self._handlers[fd]
            with contextlib.suppress(OSError):  # closed already, and so gone from epoll by itself
                self._epoll.unregister(fd)
        self._timers = [timer for timer in self._timers if timer in timers]
        heapq.heapify(self._timers)
        self._callbacks.clear()

    def _call_due(self) -> None:
        due = now()
        timers = []
        while self._timers and self._timers[0].deadline <= due:
            timers.append(heapq.heappop(self._timers))
        for timer in timers:
            if timer.callback is not None:
                timer.callback()

    # ------------------------------------------------------------------------------------------ as pika calls it

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

    def remove_timeout(self, timeout_handle: Timer) -> None:
        timeout_handle.callback = None

    def add_callback(self, callback: Callable[[], Any]) -> None:
        self._callbacks.append(callback)
        os.eventfd_write(self._bell, 1)

    def start(self) -> None:
        raise NotImplementedError("it is turned by hand")

    def stop(self) -> None:
        raise NotImplementedError("it is turned by hand")

    def close(self) -> None:
        self._epoll.close()
        self._end()


def _rung(bell: int, _: int) -> None:
    os.eventfd_read(bell)


class _LookUp:
    """A host's name that is being looked up. `on_done` is told what was found, or the error, by the loop."""

    def __init__(self, loop: Any, on_done: Callable[[Any], None], query: tuple[Any, ...]) -> None:
        self._on_done: Callable[[Any], None] | None = on_done
        originals.start_new_thread(self._look_up, (loop, query))

    def cancel(self) -> bool:
        """Tell nobody. False when it has been told."""
        is_due, self._on_done = self._on_done is not None, None
        return is_due

    def _look_up(self, loop: Any, query: tuple[Any, ...]) -> None:
        found: Any
        try:
            found = originals.getaddrinfo(*query)
        except Exception as error:  # noqa: BLE001 - pika wants to be told of any
            found = error
        loop.add_callback(lambda: self._tell(found))

    def _tell(self, found: Any) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(found)


class Services(SelectorIOServicesAdapter):
    """What a pika connection asks of a loop, and one thing more: what it writes is written at once, if it can be."""

    def __init__(self, loop: IOLoop) -> None:
        super().__init__(loop)
        self.is_eager = False
        """Whether to try. Not with TLS: during its handshake, to be called means that the socket is ready."""
        self._connected: set[int] = set()
        """Sockets that are read. To call on_writable for one that is being connected would mean that it is."""
        self._is_flushed = True
        self._is_trying = False
        self.has_written = False
        """Whether the kernel has all that was written. False when the connection has failed, of which pika tells in a
        later turn."""

    def _update(self) -> None:
        self.has_written = self._is_flushed and bool(self._connected)

    def getaddrinfo(
        self,
        host: str,
        port: int,
        on_done: Callable[[Any], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Without a thread where there is nothing to look up, and else with a true one: see `originals`."""
        try:
            found = originals.getaddrinfo(host, port, family, socktype, proto, flags | _NUMERIC)
        except (OSError, UnicodeError):  # a name, and not an address; or neither, as pika will be told
            return _LookUp(self._loop, on_done, (host, port, family, socktype, proto, flags))
        return self.call_later(0, lambda: on_done(found))

    def set_reader(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._connected.add(fd)
        self._update()
        super().set_reader(fd, on_readable)

    def read_directly(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Of a socket that is read already: call this when there is something to read and nothing else, past pika's
        event map, which is for all the rest."""
        mapped = self._on_reader_writer_fd_events

        def happened(fd: int, events: int) -> None:
            if events == EPOLLIN:
                on_readable()
            else:
                mapped(fd, events)

        loop: Any = self._loop
        loop.replace_handler(fd, happened)

    def remove_reader(self, fd: int) -> bool:
        self._connected.discard(fd)
        self._update()
        return super().remove_reader(fd)

    def set_writer(self, fd: int, on_writable: Callable[[], None]) -> None:
        self._is_flushed = False
        self._update()
        if self.is_eager and fd in self._connected:
            self._is_trying = True
            on_writable()  # calls remove_writer() when there is nothing left, or no hope
            self._is_trying = False
            if self._is_flushed:
                return
        super().set_writer(fd, on_writable)

    def remove_writer(self, fd: int) -> bool:
        self._is_flushed = True
        self._update()
        return not self._is_trying and super().remove_writer(fd)
