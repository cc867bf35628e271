"""Signals become bytes (signal.set_wakeup_fd), then requests to the pool. The handlers themselves do nothing."""

from __future__ import annotations

import signal
import socket
import weakref
from contextlib import suppress
from typing import Final

from supervisor.policy.events import Asked, Wish

WISHES: Final = {
    signal.SIGTERM: Wish.STOP,
    signal.SIGINT: Wish.STOP,
    signal.SIGHUP: Wish.RELOAD,
    signal.SIGTTIN: Wish.GROW,
    signal.SIGTTOU: Wish.SHRINK,
}
CHORES: Final = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


class Wakeups:
    """Created on the main thread; readable after a signal."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        weakref.finalize(self, _end, self._reader, self._writer)
        for number in (*WISHES, *CHORES):
            signal.signal(number, lambda *_: None)
        # Blocked since the process began (`supervisor.__main__`); pending ones arrive now. One by one, or the kernel
        # delivers the highest number first; the request to stop last, or the others would be ignored.
        for number in (*CHORES, *reversed(WISHES)):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))

    def ignore(self) -> None:
        """The exit code is settled: a signal after Python has removed our handlers must not change it."""
        for number in (*WISHES, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals received, in order: each SIGTERM counts, repeated chores count once."""
        try:
            numbers = [signal.Signals(number) for number in self._reader.recv(4096)]
        except BlockingIOError:
            return []
        chores = [number for number in CHORES if number in numbers]
        return [number for number in numbers if number in WISHES] + chores


def _end(*sockets: socket.socket) -> None:
    """A child that dies later is told to nobody: where the kernel refuses the rest of a start, for instance."""
    with suppress(OSError):
        signal.set_wakeup_fd(-1)
    for each in sockets:
        each.close()


def asked(number: signal.Signals) -> Asked | None:
    """The request that a signal makes."""
    wish = WISHES.get(number)
    return Asked(wish, number.name) if wish is not None else None
