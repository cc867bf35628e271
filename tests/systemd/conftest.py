"""A booted systemd with workq-supervise installed in it, once a session; and a service of each test's own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.systemd.box import SYSTEMD, Box
from tests.systemd.service import Service

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "/usr/src/workq-supervise"
PREFIX = "/opt/workq"


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A booted box that sees this checkout, in which nothing is installed yet but, perhaps, by another of pytest's
    processes: `PREFIX` is the session's."""
    check_that_it_boots_here()
    shared = of_the_session(tmp_path_factory)
    binds = [(snapshot(shared), CHECKOUT, "ro"), (folder(shared / "prefix"), PREFIX, "rw")]
    with Box(tmp_path_factory.mktemp("box"), binds) as box:
        yield box


@pytest.fixture(scope="session")
def box(machine: Box, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """The same, with what `scripts/install-service` installs."""
    with (of_the_session(tmp_path_factory) / "prefix.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine.run(f"{CHECKOUT}/scripts/install-service", "first", timeout=300)
    return machine


@pytest.fixture
def service(box: Box, broker_url: str, queue: str) -> Iterator[Service]:
    """One that is set up and not started."""
    yield from served(box, broker_url, queue)


@pytest.fixture
def service_at(box: Box, queue: str) -> Iterator[Callable[[str], Service]]:
    """The same, for a broker of the test's own."""
    made: list[Iterator[Service]] = []

    def make(url: str) -> Service:
        made.append(served(box, url, queue))
        return next(made[-1])

    yield make
    for each in made:
        next(each, None)


def served(box: Box, url: str, queue: str) -> Iterator[Service]:
    service = Service(box, url, queue)
    try:
        yield service
    finally:
        service.end()


def check_that_it_boots_here() -> None:
    """Skips where that cannot be had, and fails where it was not installed."""
    if os.geteuid() != 0:
        pytest.skip("booting a systemd takes root")
    if not SYSTEMD.exists():
        pytest.fail("there is no systemd on this machine: scripts/setup installs it")
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--uts",
        "--ipc",
        "--cgroup",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespaces with mounts of their own here: {tried.stderr.strip()}")


def of_the_session(factory: pytest.TempPathFactory) -> Path:
    """A directory that all of pytest's processes share, and no other run of it."""
    return factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()


def snapshot(shared: Path) -> Path:
    """A copy of what is installed from, so that whoever edits the checkout meanwhile does not edit the box's."""
    copy = shared / "checkout"
    with (shared / "checkout.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            ignored = shutil.ignore_patterns("__pycache__")
            for name in ("supervisor", "config", "scripts"):
                shutil.copytree(ROOT / name, copy / name, ignore=ignored)
            for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
                shutil.copy(ROOT / name, copy / name)
    return copy


def folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
    return path
