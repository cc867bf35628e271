"""What the kernel refuses, in words: the limit that was reached, its value, and how to raise it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any, Final

from supervisor.clock import now
from supervisor.linux import cgroup
from supervisor.parent.descriptors import Descriptors

RESTART_MAY_HELP: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EINTR})
"""errno of resources that may be free again a minute later."""
REPEAT_AFTER: Final = 60.0
"""Seconds."""


class Said:
    """Keeps the log from repeating itself every second."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def is_news(self, because: str, now: float) -> bool:
        """Whether this was not logged within the last minute. `now`: monotonic seconds."""
        if now - self._at.get(because, -REPEAT_AFTER) < REPEAT_AFTER:
            return False
        if len(self._at) >= 100:
            self._at.clear()
        self._at[because] = now
        return True


class Refusals:
    """Logs what the kernel refuses the parent, and retries it."""

    def __init__(self, log: Any, descriptors: Descriptors) -> None:
        self._log = log
        self._descriptors = descriptors
        self._said = Said()
        self._owed: list[tuple[str, Callable[[], bool]]] = []

    def because(self, doing: str, error: Exception) -> str:
        return because(doing, error, self._descriptors.needed)

    def say(self, doing: str, error: OSError) -> None:
        text = self.because(doing, error)
        if self._said.is_news(text, now()):
            self._log.warning("supervisor.refused", because=f"{text}; retried within a second")

    def insist(self, doing: str, act: Callable[[], bool]) -> None:
        """Do this, now or at a later `try_again`. `act` returns False to be retried."""
        try:
            if act():
                return
        except ProcessLookupError:
            pass  # a zombie, most likely: its exit is on the way, and the next look finds it gone
        except OSError as error:
            self.say(doing, error)
        self._owed.append((doing, act))

    def try_again(self) -> None:
        """Once a second."""
        owed, self._owed = self._owed, []
        for doing, act in owed:
            self.insist(doing, act)


def because(doing: str, error: Exception, descriptors: int = 0) -> str:
    """`doing`: what was refused; `descriptors`: the limit that all workers need."""
    number = error.errno if isinstance(error, OSError) else None
    return f"{doing}: {_words(error)}{remedy(number, descriptors)}"


def _words(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return f"{type(error).__name__}: {error}"
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def remedy(number: int | None, descriptors: int = 0) -> str:
    """The remedy for an errno, as the end of a sentence."""
    match number:
        case errno.EMFILE:
            return f". {_descriptor_limit(descriptors)}"
        case errno.ENFILE:
            return ". The machine has reached its limit of open files: raise fs.file-max (sysctl)"
        case errno.EAGAIN:
            return f". {_process_limit()}"
        case errno.ENOMEM:
            return ". The machine or its cgroup (MemoryMax=, docker --memory) is out of memory"
        case _:
            return ""


def _descriptor_limit(needed: int) -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = f" to {needed}" if needed > soft else ""
    limit = f"{soft}" if soft == hard else f"{soft} (at most {hard})"
    return f"The supervisor's limit is {limit} descriptors: raise LimitNOFILE= or `ulimit -n`{raised}"


def _process_limit() -> str:
    """The limit on processes that is reached: of a cgroup, of the user, or of the machine."""
    try:
        if (full := cgroup.full_of_processes()) is not None:
            directory, most = full
            full_at = f"The cgroup {directory} has reached its limit of {most} processes (pids.max)"
            return f"{full_at}: raise TasksMax= or docker --pids-limit"
    except (OSError, ValueError):
        pass
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        return f"This user has reached its limit of {soft} processes and threads: raise LimitNPROC= or `ulimit -u`"
    return "No process left: raise TasksMax=, `ulimit -u`, or kernel.pid_max and kernel.threads-max (sysctl)"
