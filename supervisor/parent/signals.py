"""Signals become bytes (signal.set_wakeup_fd) become wishes. The handlers themselves do nothing."""

from __future__ import annotations

import signal
import socket
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
    """Installed on the main thread; readable when a signal has come."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*WISHES, *CHORES):
            signal.signal(number, lambda *_: None)
        # Held since the process began (`supervisor.__main__`): what came meanwhile comes now. One by one, or the kernel
        # delivers the highest number first; the request to stop last, or nothing else would be obeyed.
        for number in (*CHORES, *reversed(WISHES)):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))

    def ignore(self) -> None:
        """The exit code is settled: a signal that comes after Python has taken our handlers away must not change it."""
        for number in (*WISHES, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals that came, in order. Two SIGTERM are two; a chore is done once, however often it came."""
        try:
            numbers = [signal.Signals(number) for number in self._reader.recv(4096)]
        except BlockingIOError:
            return []
        chores = [number for number in CHORES if number in numbers]
        return [number for number in numbers if number in WISHES] + chores


def asked(number: signal.Signals) -> Asked | None:
    """The wish that a signal stands for."""
    wish = WISHES.get(number)
    return Asked(wish, number.name) if wish is not None else None
