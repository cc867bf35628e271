"""Finds and kills the processes that a dead worker leaves behind.

The kernel reparents them to the supervisor (PR_SET_CHILD_SUBREAPER), and a live worker's daemons, too. So the parent
marks each worker by prlimit(2), and its descendants inherit the mark, across fork, exec and setsid: the soft
RLIMIT_LOCKS, unused since Linux 2.4.25 (getrlimit(2)). Its limits: docs/decisions/0009.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

_RLIMIT_LOCKS: Final = 10  # asm-generic/resource.h, on every architecture; Python's resource module does not name it
_PID_BITS: Final = 24
"""More than any pid has: PID_MAX_LIMIT is 2^22 (proc(5), pid_max)."""
_OURS: Final = (int.from_bytes(os.urandom(5), "big") >> 2) << _PID_BITS
"""Makes a mark this supervisor's: a handler may run another one, and an operator may have set the limit."""
_CHILDREN_ARE_LISTED: Final = Path(f"/proc/self/task/{os.getpid()}/children").exists()
"""Needs CONFIG_PROC_CHILDREN, which distributions enable."""


def mark(worker: int) -> None:
    """Mark this process and its future descendants; without prlimit(2) only its process group is found."""
    try:
        _, hard = resource.prlimit(worker, _RLIMIT_LOCKS)
        resource.prlimit(worker, _RLIMIT_LOCKS, (_OURS | worker, hard))
    except (OSError, ValueError):
        pass


def owner(pid: int) -> int | None:
    """The worker that this process, perhaps a zombie, is or descends from; None: none, or gone."""
    try:
        soft, _ = resource.prlimit(pid, _RLIMIT_LOCKS)
    except OSError:
        return None
    return soft - _OURS if 0 < soft - _OURS < 1 << _PID_BITS else None


def kill(living: Collection[int]) -> None:
    """SIGKILL descendants of dead workers; takes 50 us when there are none. Raises OSError."""
    for child in children(os.getpid()):
        worker = owner(child)
        # A worker that is not reaped yet is not its own leftover.
        if worker is not None and worker != child and worker not in living:
            _kill_tree(child)


def kill_all(spared: Collection[int]) -> bool:
    """SIGKILL everything below this process but these children. False: there is nothing. Raises OSError."""
    found = [child for child in children(os.getpid()) if child not in spared]
    for child in found:
        _kill_tree(child)
    return bool(found)


def children(pid: int) -> list[int]:
    """The children of every thread of a process (proc(5), /proc/PID/task/TID/children)."""
    if not _CHILDREN_ARE_LISTED:
        return [int(other) for other in os.listdir("/proc") if other.isdigit() and _parent(other) == pid]  # noqa: PTH208
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - Path.iterdir costs twice as much
            with open(f"/proc/{pid}/task/{tid}/children", "rb") as listed:  # noqa: PTH123
                found += map(int, listed.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it, or a thread of it, has ended: its children are ours by now, or another thread's
    return found


def _parent(pid: str) -> int | None:
    """None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as told:  # noqa: PTH123
            return int(told.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _kill_tree(root: int) -> None:
    tree = [root]
    for pid in tree:
        tree += children(pid)
    for pid in tree:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass  # gone, or another user's
