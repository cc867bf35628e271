"""Exits: how a child died, and what it leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Set
from typing import Final

from supervisor.clock import now
from supervisor.linux import cgroup, descendants, prctl
from supervisor.vocabulary import Cause

_UNKNOWN: Final = "unknown"
"""The status of a child that was reaped elsewhere."""


class Reaper:
    """Makes this process the subreaper: processes below it whose parent exits become its children. Raises OSError."""

    def __init__(self) -> None:
        self.has_reparented = False
        """A process exited: perhaps a grandchild that was reparented to us."""
        self._has_leftovers = False
        self._not_ours = frozenset(descendants.children(os.getpid()))
        """Children that a shell had started before it exec'd this process."""
        self._oom_kills = cgroup.OomKills(cgroup.find_counter())
        prctl.be_subreaper(True)

    def sampled(self, living: Set[int]) -> None:
        """Once a second. `living`: the workers."""
        if self._has_leftovers:
            self.kill_leftovers(living)
        self._oom_kills.look(now())

    def reap(self, pidfd: int) -> str:
        """Reap this child: `exit 3`, `SIGKILL`, `OOM`. Raises OSError."""
        status = _reap(pidfd)
        return str(Cause.OOM) if status == "SIGKILL" and self._oom_kills.claim(now()) else status

    def reap_reparented(self, ours: Set[int], living: Set[int]) -> None:
        """Reap reparented grandchildren, but none of `ours`, which are reaped by their pidfds."""
        found_any = False
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                found = None
            except OSError:
                break  # at the next turn
            if found is None:
                self.has_reparented = False
                break
            if found.si_pid in ours:
                break  # its pidfd comes first; then we are called again
            try:
                os.waitid(os.P_PID, found.si_pid, os.WEXITED)
            except OSError:
                break
            found_any = True
        if found_any:
            self.kill_leftovers(living)  # its children are ours now, and may be leftovers too

    def kill_leftovers(self, living: Set[int]) -> None:
        """Kill descendants of workers that have exited."""
        try:
            descendants.kill(living)
            self._has_leftovers = False
        except OSError:
            self._has_leftovers = True  # at the next sample

    def kill_all(self) -> bool:
        """Kill all that was reparented to us. False when there is nothing."""
        try:
            is_some = descendants.kill_all(self._not_ours)
        except OSError:
            is_some = True  # perhaps
        self.has_reparented = self.has_reparented or is_some
        return is_some


def _reap(pidfd: int) -> str:
    """From the kernel: `exit 3`, `SIGKILL`. Raises OSError."""
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return _UNKNOWN
    assert found is not None
    if found.si_code == os.CLD_EXITED:
        return f"exit {found.si_status}"
    try:
        return signal.Signals(found.si_status).name
    except ValueError:
        return f"signal {found.si_status}"
