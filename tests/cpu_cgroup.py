"""A cgroup of a test's own that limits CPU time, and one below it that does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from supervisor.linux import cgroup
from tests.memory_cgroup import removed
from tests.supervision import eventually


class CpuCgroup:
    """Two directories, of either version. `inside` is what a command line begins with to be run in the lower one: it
    joins, and then execs the rest."""

    def __init__(self, directory: Path, is_v2: bool) -> None:
        self._directory = directory
        self._is_v2 = is_v2
        self.inside = ("sh", "-c", f'echo $$ > {directory}/below/cgroup.procs && exec "$@"', "sh")

    def limit(self, cpus: float) -> None:
        """What all in it may use together."""
        quota = f"{int(cpus * 100_000)}"
        if self._is_v2:
            (self._directory / "cpu.max").write_text(f"{quota} 100000")
        else:
            (self._directory / "cpu.cfs_period_us").write_text("100000")
            (self._directory / "cpu.cfs_quota_us").write_text(quota)


@contextmanager
def cpu_cgroup() -> Iterator[CpuCgroup]:
    """One that is removed afterwards. Skips the test where none can be made."""
    for own, _, is_v2 in cgroup._own(Path("/proc/self"), "cpu"):
        # Version 2 has no controllers below a cgroup with processes in it (cgroups(7)), so there it is made beside.
        directory = (own.parent if is_v2 else own) / f"workq-test-{uuid4().hex[:12]}"
        try:
            (directory / "below").mkdir(parents=True)
        except OSError:
            continue
        limit = directory / ("cpu.max" if is_v2 else "cpu.cfs_quota_us")
        try:
            if limit.exists() and os.access(directory / "below" / "cgroup.procs", os.W_OK):
                yield CpuCgroup(directory, is_v2)
                return
        finally:
            for each in (directory / "below", directory):
                eventually(lambda each=each: removed(each))
    pytest.skip("no cgroup can be made that limits CPU time")
