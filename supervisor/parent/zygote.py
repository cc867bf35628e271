"""The zygote: a copy of this process from when it had one thread and no clients. It forks the nurseries, which so share
most of their memory with the supervisor, after a reload too. Where there is none, a nursery is executed. Both inherit
only the descriptors they are given: docs/decisions/0023."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from importlib import import_module
from itertools import count
from types import ModuleType
from typing import Final, NoReturn

from supervisor import frames, logs
from supervisor.link import Link
from supervisor.linux import proctitle
from supervisor.messages import Fork, Forked, ForkFailed
from supervisor.parent.descriptors import close
from supervisor.vocabulary import EXIT_SOFTWARE

NURSERY: Final = "supervisor.worker.nursery"
"""By name: the parent may not import `supervisor.worker`, and runs nothing of it but `rehearse`."""
SECRETS: Final = frozenset({"WORKQ_URL"})
"""Variables that no child gets: secrets leak through /proc/PID/environ."""
_NOT_ITS_OWN: Final = ("click", "psutil", "supervisor.cli", "supervisor.linux.descendants", "supervisor.parent")
"""Modules, with their submodules, that a nursery must not inherit: a handler that wants one imports it itself."""
_ANSWERS: Final = frozenset({Forked, ForkFailed})
_ANSWERS_WITHIN: Final = 3.0
"""Seconds; it takes two milliseconds, and more where the machine stands still. The loop waits for it."""


class NoZygote(Exception):
    """It does not fork nurseries any more; the text says why."""


class Zygote:
    """Made by `fork`. `pid` and `pidfd` are for the caller to watch and to reap."""

    def __init__(self, pid: int, pidfd: int, link: Link) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._link = link
        self._tickets = count()

    @classmethod
    def fork(cls, board_fd: int, log_fd: int) -> Zygote | None:
        """None if this process has threads, beside which it cannot be forked safely. Raises OSError, and ImportError
        for what a worker needs."""
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - threads of C libraries count, too
            return None
        ours, its = Link.pair()
        with closing(its):
            try:
                pid = _fork((its.fileno(), board_fd, log_fd))
            except BaseException:
                ours.close()
                raise
        try:
            return cls(pid, os.pidfd_open(pid), ours)
        except OSError:
            ours.close()  # so it exits
            raise

    def nursery(self, link_fd: int, output: int) -> int:
        """Have it fork a nursery with this link and output, and our working directory. Returns the pid of our new
        child. Raises NoZygote, and OSError for a fork or a directory that fails."""
        ticket = next(self._tickets)
        directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            sent = self._link.send(Fork(ticket), (link_fd, output, directory), wait=False)
        finally:
            close(directory)
        match self._answer() if sent else None:
            case Forked(number, pid) if number == ticket:
                return pid
            case ForkFailed(number, errno=code) if number == ticket:
                raise OSError(code, os.strerror(code))
        raise NoZygote("it has exited, or does not answer")

    def _answer(self) -> object:
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        try:
            if poll.poll(_ANSWERS_WITHIN * 1000) and (answer := self._link.hear()):
                return frames.read(answer, _ANSWERS)
        except (OSError, frames.BadFrame):
            pass
        return None

    def kill(self) -> None:
        """A nursery that it has forked too late exits, too: its link is closed."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._link.close()
        close(self.pidfd)


def _fork(fds: tuple[int, int, int]) -> int:
    nursery = import_module(NURSERY)
    nursery.rehearse()
    below = tuple(f"{name}." for name in _NOT_ITS_OWN)
    ours = [name for name in sys.modules if name in _NOT_ITS_OWN or name.startswith(below)]
    # These objects stay alive: their pages stay shared as long as the collector does not write to them.
    gc.collect()
    gc.freeze()
    # A signal that meets the child with our handlers would be reported to our loop.
    mask, parent = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()), os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become(nursery, ours, fds, parent, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _become(
    nursery: ModuleType, ours: Sequence[str], fds: tuple[int, int, int], parent: int, mask: set[int | signal.Signals]
) -> NoReturn:
    """The child: drop everything of the parent's, and become what `python -P -m` would have started."""
    code = EXIT_SOFTWARE
    try:
        _let_go_of_signals(mask)
        os.setsid()
        _keep_only(fds)
        _forget(nursery, ours)
        code = nursery.breed(*fds, parent)
    finally:
        os._exit(code)


def _let_go_of_signals(mask: set[int | signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _keep_only(fds: Sequence[int]) -> None:
    """Close every other descriptor. Their owners are in frames that never resume, so none is closed twice."""
    logs.close()
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(nowhere, number)
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > 2 and fd not in fds:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own
    # On 0 to 2, whatever is there; if we were started without one (`>&-`), Python has no stream for it.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _forget(nursery: ModuleType, ours: Sequence[str]) -> None:
    """Drop the command line, and what was imported to read it."""
    for name in SECRETS:
        os.environ.pop(name, None)
    proctitle.hide_removed_variables()
    sys.argv[:] = [str(nursery.__file__)]
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's directory, or the working directory
    sys.modules["__main__"] = nursery
    for name in ours:
        del sys.modules[name]
