"""Control groups: OOM kills, limits on processes, CPU quotas.

The OOM killer kills by SIGKILL; only the counter of the memory cgroup tells the difference: `oom_kill` in
`memory.events` (cgroup v2, Documentation/admin-guide/cgroup-v2.rst) or `memory.oom_control` (v1, from Linux 4.13 on).
The kernel counts before it sends the signal (mm/oom_kill.c, __oom_kill_process).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

EXPENDABLE: Final = 500
"""Added to oom_score_adj: counts like using half of the allowed memory more (proc(5))."""
UNCLAIMED_FOR: Final = 10.0
"""Seconds for which a kill may be matched with a death. An unmatched one was a handler's child."""
LOOK_EVERY: Final = 5.0
"""Seconds. To read the counter each second was a sixth of what an idle pool costs."""

_V1: Final = "memory.oom_control"
_V2: Final = "memory.events"


def make_expendable(pid: int) -> None:
    """Make the OOM killer prefer this process and its children to ours. Raising the score needs no privilege."""
    ours = Path("/proc/self/oom_score_adj")
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(min(1000, int(ours.read_text()) + EXPENDABLE)))
    except OSError:
        pass  # it is dead, or /proc is read-only: not worth a failure


class OomKills:
    """OOM kills in this cgroup. Call `look` regularly: an old kill must not explain a later death."""

    def __init__(self, counter: Path | None) -> None:
        self._counter = counter
        self._seen = self._read()
        self._unclaimed: deque[float] = deque()
        self._look_at = 0.0

    def look(self, now: float) -> None:
        """Note new kills, if it is time, and forget old ones."""
        if now >= self._look_at:
            self._note(now)

    def _note(self, now: float) -> None:
        self._look_at = now + LOOK_EVERY
        count = self._read()
        if count is not None:
            # Kills before the first look do not count.
            self._unclaimed.extend([now] * (count - (count if self._seen is None else self._seen)))
            self._seen = count
        while self._unclaimed and self._unclaimed[0] < now - UNCLAIMED_FOR:
            self._unclaimed.popleft()

    def claim(self, now: float) -> bool:
        """Whether a death by SIGKILL just now was one of them."""
        self._note(now)
        if not self._unclaimed:
            return False
        self._unclaimed.popleft()
        return True

    def _read(self) -> int | None:
        """None when it cannot be read."""
        if self._counter is None:
            return None
        try:
            return _oom_kills(self._counter.read_text())
        except OSError:
            return None


def find_counter(proc: Path = Path("/proc/self")) -> Path | None:
    """The file with the OOM kill counter of this process's memory cgroup, if any."""
    for directory, _, is_v2 in _own(proc, "memory"):
        counter = directory / (_V2 if is_v2 else _V1)
        try:
            if _oom_kills(counter.read_text()) is not None:
                return counter
        except OSError:
            continue
    return None


def full_of_processes() -> tuple[Path, int] | None:
    """The cgroup of this process, or above it, that has reached its limit of processes, and the limit."""
    for directory, _ in _upwards(Path("/proc/self"), "pids"):
        try:
            most = (directory / "pids.max").read_text().strip()
            if most != "max" and int((directory / "pids.current").read_text()) >= int(most):
                return directory, int(most)
        except (OSError, ValueError):
            pass  # the root has neither file
    return None


def cpu_quota(proc: Path = Path("/proc/self")) -> float | None:
    """CPUs, by the smallest quota of this process's cgroup and those above; None: no quota."""
    quotas = (_quota(directory, is_v2) for directory, is_v2 in _upwards(proc, "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(directory: Path, is_v2: bool) -> float | None:
    try:
        if is_v2:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # `max`; -1 in v1; the root has no quota


def _upwards(proc: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """These and the cgroups above, up to the mount point."""
    for own, top, is_v2 in _own(proc, controller):
        for directory in (own, *own.parents):
            yield directory, is_v2
            if directory == top:
                break


def _own(proc: Path, controller: str) -> Iterator[tuple[Path, Path, bool]]:
    """For each cgroup with this controller: directory, mount point, and whether it is cgroup v2."""
    try:
        memberships = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)  # cgroups(7)
        is_v2 = not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        for root, directory in _mounted(mounts, "cgroup2" if is_v2 else "cgroup", "" if is_v2 else controller):
            yield _below(directory, root, path), Path(directory), is_v2


def _mounted(mounts: list[str], filesystem: str, option: str) -> list[tuple[str, str]]:
    """Root and mount point of each mount of this kind (proc(5), /proc/PID/mountinfo)."""
    found = []
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == filesystem and (not option or option in options.split(",")):
            _, _, _, root, directory, *_ = before.split(" ")
            found.append((root, directory))
    return found


def _below(directory: str, root: str, path: str) -> Path:
    """The directory of a cgroup. A mount may show only a part of the tree, as in a container with the host's names."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return Path(directory) / path.lstrip("/")


def _oom_kills(text: str) -> int | None:
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return None
