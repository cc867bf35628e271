"""A cgroup of a test's own that limits the number of processes."""

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


class PidsCgroup:
    """A directory. `inside` is what a command line begins with to be run there: it joins, and then execs the rest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inside = ("sh", "-c", f'echo $$ > {directory}/cgroup.procs && exec "$@"', "sh")

    def limit(self, most: int | None) -> None:
        """Processes and threads that it may have; None for any number. Below those it has, none can be added."""
        (self.directory / "pids.max").write_text("max" if most is None else str(most))


@contextmanager
def pids_cgroup() -> Iterator[PidsCgroup]:
    """One that is removed afterwards. Skips the test where none can be made."""
    for own, _, is_v2 in cgroup._own(Path("/proc/self"), "pids"):
        # Version 2 has no controllers below a cgroup with processes in it (cgroups(7)), so there it is made beside.
        directory = (own.parent if is_v2 else own) / f"workq-test-{uuid4().hex[:12]}"
        try:
            directory.mkdir()
        except OSError:
            continue
        try:
            if (directory / "pids.max").exists() and os.access(directory / "cgroup.procs", os.W_OK):
                yield PidsCgroup(directory)
                return
        finally:
            eventually(lambda directory=directory: removed(directory))
    pytest.skip("no cgroup can be made that limits processes")
