"""What the import of a handler has done to its process, where that is in the way of forking, of a stack at death, or of
leaving when asked to.

In the nursery it is undone, and said once; what a worker may have it finds as the import has left it.
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
"""Signals by which the supervisor, or an operator, asks a worker for its stacks or to leave."""


class DescriptorsClosed(Exception):
    """The import closed what is ours, the link to the supervisor perhaps."""


def arm() -> None:
    """Have a crash, SIGABRT and SIGUSR1 write the stacks to descriptor 2, whatever `sys.stderr` is by now, and whoever
    handles or blocks these signals."""
    # Not enable() alone: what is enabled already installs nothing, and the import may have put handlers over it.
    faulthandler.disable()
    faulthandler.enable(2, all_threads=True)
    faulthandler.unregister(signal.SIGUSR1)
    faulthandler.register(signal.SIGUSR1, 2, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL:
        # Or a connection that the broker has closed kills the worker, and the message in hand is blamed.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def demand(fds: Iterable[int]) -> None:
    """Raises DescriptorsClosed unless these are open still."""
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
    """In a worker, after the fork: have `numpy.random.randint` and the like draw other numbers than in its siblings.

    Python does the same for `random` by itself (os.register_at_fork, in random.py), whatever seed the import has set.
    Nothing is imported for it, and a generator that the module keeps for itself cannot be known.
    """
    seed = getattr(sys.modules.get("numpy.random"), "seed", None)
    if seed is not None:
        try:
            seed()
        except Exception:  # noqa: BLE001 - set_bit_generator() may have put another there, which cannot be seeded anew
            pass


class Undone:
    """What is undone in the nursery after the import. `said`: in words, empty when there was nothing."""

    def __init__(self) -> None:
        self._on_child: Any = signal.getsignal(signal.SIGCHLD)
        self.said = "; ".join(self._undo())

    def _undo(self) -> Iterator[str]:
        if self._on_child is not signal.SIG_DFL:
            # A handler would run between the forks, and reap what is waited for here.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            how = "ignores" if self._on_child is signal.SIG_IGN else "handles"
            yield f"it {how} SIGCHLD: kept in workers, undone in the process that forks them"
        for timer in _TIMERS:
            if signal.getitimer(timer) != (0.0, 0.0):
                signal.setitimer(timer, 0.0)
                yield "it set a timer, whose signal would kill the process that forks workers: stopped"
        if prctl.adopts():
            prctl.adopt(False)
            yield (
                "it made its process a child subreaper (prctl(2)): undone, or workers would not be the "
                "supervisor's children"
            )
        if left := _children():
            count = "a process it started keeps running" if len(left) == 1 else f"{len(left)} processes keep running"
            yield f"{count} ({', '.join(left)}), beside every worker and until the supervisor ends"

    def restore(self) -> None:
        """In a worker: what it may have."""
        if self._on_child is not None and self._on_child is not signal.SIG_DFL:  # None: C's, and not to be had back
            signal.signal(signal.SIGCHLD, self._on_child)


def threads_after_a_fork() -> list[str]:
    """The names of the threads that a fork would forget, this process's own first.

    Some libraries end their threads before a fork, and start them anew when they are needed (OpenBLAS, and with it
    numpy: pthread_atfork(3)). Whether one does is seen by trying.
    """
    if len(threads()) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of what is tried here
            pid = originals.fork()
        if pid == 0:
            os._exit(0)
        wait_for(pid)
    return threads()


def threads() -> list[str]:
    """The names of this process's threads, as the kernel knows them: threads of C libraries too."""
    names = []
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda path: int(path.name)):
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            pass  # it ended meanwhile
    return names


def wait_for(child: int) -> None:
    """Until it is gone."""
    try:
        originals.waitpid(child, 0)
    except ChildProcessError:
        pass  # it is: somebody else has reaped it, a handler of SIGCHLD in C


def _children() -> list[str]:
    """Name and pid of each child that lives."""
    found = []
    try:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            name, _, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")
            if state[0] not in "ZX":
                found.append(f"{name} {pid}")
    except OSError:
        pass  # a kernel without that file, or it ended meanwhile
    return found
