"""Side effects of a handler's import that would break forking, stacks at a crash, or a requested exit.

The nursery undoes them, and logs that once; those that are allowed in workers are restored there.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from supervisor import originals, streams
from supervisor.linux import prctl

_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_OURS: Final = (signal.SIGABRT, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""Signals that request stacks or an exit."""


class DescriptorsClosed(Exception):
    """The import closed a descriptor of ours, perhaps the link to the supervisor."""


def arm() -> None:
    """Have a crash, SIGABRT and SIGUSR1 write the stacks to descriptor 2, whatever the import did to `sys.stderr` and
    these signals."""
    # Not enable() alone, which does nothing if already enabled: the import may have replaced its handlers.
    faulthandler.disable()
    faulthandler.enable(2, all_threads=True)
    faulthandler.unregister(signal.SIGUSR1)
    faulthandler.register(signal.SIGUSR1, 2, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL:
        # Else a connection closed by the broker kills the worker, and the message in flight is blamed.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def demand(fds: Iterable[int]) -> None:
    """Raises DescriptorsClosed unless these are still open."""
    streams.occupy()
    for fd in fds:
        try:
            os.fstat(fd)
        except OSError:
            raise DescriptorsClosed(
                "the import closed descriptors that are not its own (os.closerange, a library that makes daemons): "
                "workers need them to reach the supervisor; close only what the module has opened"
            ) from None


def reseed() -> None:
    """In a worker, after the fork: reseed `numpy.random`, or all workers would draw the same numbers.

    Python does the same for `random` (os.register_at_fork, in random.py), whatever seed the import set. Does not import
    numpy, and cannot reach generators that a module keeps for itself.
    """
    seed = getattr(sys.modules.get("numpy.random"), "seed", None)
    if seed is not None:
        try:
            seed()
        except Exception:  # noqa: BLE001 - set_bit_generator() may have put another there, which cannot be seeded anew
            pass


class Undone:
    """Undoes an import's side effects in the nursery. `said`: what was undone, in words."""

    def __init__(self) -> None:
        self._on_child: Any = signal.getsignal(signal.SIGCHLD)
        self.said = "; ".join(self._undo())

    def _undo(self) -> Iterator[str]:
        if self._on_child is not signal.SIG_DFL:
            # A handler would run between the forks, and reap children that are waited for here.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            how = "ignores" if self._on_child is signal.SIG_IGN else "handles"
            yield f"it {how} SIGCHLD: kept in workers, undone in the process that forks them"
        for timer in _TIMERS:
            if signal.getitimer(timer) != (0.0, 0.0):
                signal.setitimer(timer, 0.0)
                yield "it set a timer, whose signal would kill the process that forks workers: stopped"
        if prctl.is_subreaper():
            prctl.be_subreaper(False)
            yield (
                "it made its process a child subreaper (prctl(2)): undone, or workers would not be the "
                "supervisor's children"
            )
        if left := _children():
            count = "a process it started keeps running" if len(left) == 1 else f"{len(left)} processes keep running"
            yield f"{count} ({', '.join(left)}), beside every worker and until the supervisor ends"

    def restore(self) -> None:
        """In a worker: restore what is allowed there."""
        if self._on_child is not None and self._on_child is not signal.SIG_DFL:  # None: set by C code
            signal.signal(signal.SIGCHLD, self._on_child)


def threads_after_a_fork() -> list[str]:
    """The names of the threads that a fork would lose, the main thread first.

    Some libraries stop their threads before a fork, and restart them when needed (OpenBLAS, and so numpy:
    pthread_atfork(3)). A trial fork shows whether one does.
    """
    if len(threads()) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of this fork
            pid = originals.fork()
        if pid == 0:
            os._exit(0)
        wait_for(pid)
    return threads()


def threads() -> list[str]:
    """The kernel's names of this process's threads, including those of C libraries."""
    names = []
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda path: int(path.name)):
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            pass  # it ended meanwhile
    return names


def wait_for(child: int) -> None:
    """Wait for the process."""
    try:
        originals.waitpid(child, 0)
    except ChildProcessError:
        pass  # reaped elsewhere, by a SIGCHLD handler in C


def _children() -> list[str]:
    """Name and pid of each living child."""
    found = []
    try:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            name, _, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")
            if state[0] not in "ZX":
                found.append(f"{name} {pid}")
    except OSError:
        pass  # a kernel without that file, or it ended meanwhile
    return found
