"""The zygote: a copy of this process from its first moments, with one thread and nothing of a supervisor's. It imports
what a worker needs while the supervisor imports its own, then forks the nurseries. Where there is none, a nursery is
executed. Both inherit only the descriptors they are given: docs/decisions/0023."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from importlib import import_module
from itertools import count
from typing import Final, NoReturn

# For the pages that both sides share; `scoreboard`, `settings` and `poison` for nothing else. Without them a pool
# starts 15 ms sooner, and needs 4 MiB more.
from supervisor import frames, logs, scoreboard, settings, streams  # noqa: F401
from supervisor.link import Link
from supervisor.linux import prctl, proctitle
from supervisor.messages import Fork, Forked, ForkFailed
from supervisor.parent.descriptors import close
from supervisor.parent.environment import NOTIFY, SECRETS
from supervisor.policy import poison  # noqa: F401
from supervisor.vocabulary import EXIT_SOFTWARE

NURSERY: Final = "supervisor.worker.nursery"
"""By name: the parent may not import `supervisor.worker`."""
_NOT_ITS_OWN: Final = "supervisor.parent"
"""A package that a nursery must not inherit."""
_ANSWERS: Final = frozenset({Forked, ForkFailed})
_ANSWERS_WITHIN: Final = 3.0
"""Seconds; it takes two milliseconds, and more where the machine stands still. The loop waits for it."""
_IS_READY_WITHIN: Final = 30.0
"""Seconds until its first answer, at the start; it imports for a tenth of a second, and for longer in a container with
little CPU."""


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
    def fork(cls, held: Collection[signal.Signals]) -> Zygote | None:
        """`held`: signals that are blocked for the supervisor alone. None if this process has threads, beside which it
        cannot be forked safely, or if the kernel refuses."""
        try:
            if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - threads of C libraries count, too
                return None
            streams.occupy()
            ours, its = Link.pair()
        except OSError:
            return None
        try:
            pid = _fork(its.fileno(), held)
            return cls(pid, os.pidfd_open(pid), ours)
        except OSError:
            ours.close()  # so it exits
            return None
        finally:
            its.close()

    def nursery(self, link_fd: int, board_fd: int, log_fd: int, output: int) -> int:
        """Have it fork a nursery with these, and our working directory. Returns the pid of our new child. Raises
        NoZygote, and OSError for a fork or a directory that fails."""
        ticket = next(self._tickets)
        directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            sent = self._link.send(Fork(ticket), (link_fd, board_fd, log_fd, output, directory), wait=False)
        finally:
            close(directory)
        match self._answer(_ANSWERS_WITHIN if ticket else _IS_READY_WITHIN) if sent else None:
            case Forked(number, pid) if number == ticket:
                return pid
            case ForkFailed(number, errno=code) if number == ticket:
                raise OSError(code, os.strerror(code))
        raise NoZygote("it has exited, or does not answer")

    def _answer(self, within: float) -> object:
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        try:
            if poll.poll(within * 1000) and (answer := self._link.hear()):
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


def _fork(link_fd: int, held: Collection[signal.Signals]) -> int:
    # These objects stay alive: their pages stay shared as long as the collector does not write to them.
    gc.collect()
    gc.freeze()
    # A signal that meets the child with our handlers would be reported to our loop.
    mask, parent = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()), os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become(link_fd, parent, mask.difference(held))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _become(link_fd: int, parent: int, mask: set[int | signal.Signals]) -> NoReturn:
    """The child: drop everything of the parent's, and become what `python -P -m` would have started."""
    code = EXIT_SOFTWARE
    try:
        prctl.follow(parent)
        _let_go_of_signals(mask)
        os.setsid()
        _keep_only(link_fd)
        _forget()
        nursery = import_module(NURSERY)
        sys.argv[:] = [str(nursery.__file__)]
        sys.modules["__main__"] = nursery
        code = nursery.breed(link_fd)
    finally:
        os._exit(code)


def _let_go_of_signals(mask: set[int | signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _keep_only(link_fd: int) -> None:
    """Close every other descriptor. Their owners are in frames that never resume, so none is closed twice."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(nowhere, number)
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > 2 and fd != link_fd:
            close(fd)  # or the listing's own, closed already
    # On 0 to 2, whatever is there; if we were started without one (`>&-`), Python has no stream for it.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _forget() -> None:
    """Drop the command line, what is in the environment for the supervisor alone, and its modules."""
    proctitle.name("workq-zygote")
    for name in (*SECRETS, *NOTIFY):
        os.environ.pop(name, None)
    proctitle.hide_removed_variables()
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's directory, or the working directory
    for name in [each for each in sys.modules if each == _NOT_ITS_OWN or each.startswith(f"{_NOT_ITS_OWN}.")]:
        del sys.modules[name]
