"""A memory cgroup of a test's own, of either version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from supervisor.linux import cgroup
from tests.supervision import eventually


class MemoryCgroup:
    """A directory that processes can be put into. `counter` counts its OOM kills."""

    def __init__(self, directory: Path, counter: str) -> None:
        self.directory = directory
        self.counter = directory / counter
        self._is_v1 = counter == "memory.oom_control"

    def limit(self, size: int) -> None:
        """Bytes that all in it may have together; nothing is swapped."""
        limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self._is_v1 else ("memory.max",)
        for name in limits:
            if (self.directory / name).exists():
                (self.directory / name).write_text(str(size))
        if not self._is_v1 and (self.directory / "memory.swap.max").exists():
            (self.directory / "memory.swap.max").write_text("0")

    def take(self, pid: int) -> None:
        (self.directory / "cgroup.procs").write_text(str(pid))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This process is in it for a while, so that what it starts is born there."""
        home = _own()[0]
        self.take(os.getpid())
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(os.getpid()))


def _own() -> tuple[Path, str]:
    """This process's memory cgroup, and its counter's name."""
    counter = cgroup.find_counter()
    if counter is None:
        pytest.skip("this process is in no memory cgroup with an OOM counter")
    return counter.parent, counter.name


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """One that is removed afterwards. Skips the test where none can be made."""
    own, counter = _own()
    # Version 2 has no controllers below a cgroup with processes in it (cgroups(7)), so there it is made beside.
    directory = (own if counter == "memory.oom_control" else own.parent) / f"workq-test-{uuid4().hex[:12]}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made: {error}")
    try:
        if not (directory / counter).exists() or not os.access(directory / "cgroup.procs", os.W_OK):
            pytest.skip(f"{directory} has no {counter}")
        yield MemoryCgroup(directory, counter)
    finally:
        eventually(lambda: removed(directory))


def removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:  # EBUSY as long as somebody in it is not reaped
        return False
    return True
