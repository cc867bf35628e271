"""A podman of the tests' own: its images and containers are in a directory named by this process, and end with it.

The base image is unpacked from Debian's packages, so no registry is needed. WORKQ_TEST_PYTHON names another, as
`podman pull` knows it. The image is built as docs/containers.md says, from wheels that this machine's pip has fetched.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.debian import install
from tests.supervision import HERE, PATIENCE, Supervision

ROOT = HERE.parent
CONTAINERFILE = ROOT / "config" / "container" / "Containerfile"
IMAGE = "localhost/workq-supervise"
BUILD = ("build", "--format", "docker", "-t", IMAGE, "-f", "config/container/Containerfile", ".")
BASE = "docker.io/library/python:3.13-slim"
"""The Containerfile's own default. Here this name is given to another."""
PACKAGES = ("python3-venv", "base-files", "bash", "coreutils", "dash", "grep", "libc-bin", "sed")
LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
ROOM = 3 << 30
"""Bytes for images and containers; 1.5 GB are taken."""
EXTRA = "humanize"
"""A small package that a handler of the tests requires."""


def in_memory(directory: Path) -> None:
    """Thousands of files are made, and removed at the end: seconds there, and minutes on a disk that others use."""
    available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if available and int(available[1]) > 2 * ROOM // 1024:
        options = f"size={ROOM},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True)


class Engine:
    """Give it an empty directory with a short name: runtimes keep sockets there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.podman = install("podman", "runc", "buildah", "uidmap", "podman")
        self.env = os.environ | {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
        }
        # podman's own defaults are more than this machine may allow. runc: crun refuses hybrid cgroups.
        limits = json.dumps([f"{name}={at_most(kind)}" for name, kind in LIMITS.items()])
        (directory / "containers.conf").write_text(
            f'[containers]\nnetns = "host"\nlog_driver = "k8s-file"\ndefault_ulimits = {limits}\n'
            f'[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{directory}/tmp"\n'
        )
        # In a privileged container, as on GitHub, the kernel has no overlay upon an overlay, but one upon memory.
        system = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True).stdout.strip()
        driver = "vfs" if system == "overlayfs" else "overlay"
        (directory / "storage.conf").write_text(
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{directory}/store"\nrunroot = "{directory}/run"\n'
        )

    def __call__(
        self, *arguments: str | Path, code: int | None = 0, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.podman, *map(str, arguments)],
            env=self.env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert code in (None, done.returncode), f"podman {arguments} ended with {done.returncode}:\n{done.stderr}"
        return done

    def inspect(self, name: str, kind: str = "image") -> dict[str, Any]:
        return dict(json.loads(self("inspect", "--type", kind, name).stdout)[0])

    def share_cgroups(self) -> None:
        """Let there be limits where this machine is a container with cgroup v2: a cgroup with processes in it can
        limit none below (cgroups(7)), so all move one down, as the image docker:dind has it."""
        top = Path("/sys/fs/cgroup")
        if not (top / "cgroup.controllers").exists() or Path("/proc/self/cgroup").read_text() != "0::/\n":
            return
        (top / "init").mkdir(exist_ok=True)
        for pid in (top / "cgroup.procs").read_text().split():
            with suppress(OSError):  # it has ended, or is the kernel's
                (top / "init" / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            names = (top / "cgroup.controllers").read_text().split()
            (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))

    def make_base(self) -> None:
        if image := os.environ.get("WORKQ_TEST_PYTHON"):
            self("tag", self("pull", "--quiet", image).stdout.split()[-1], BASE)
            return
        root = self.directory / "root"
        unpack(root, fetch(self.directory))
        # A build knows no settings of this machine, and so no index: it gets what pip has fetched here.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", root / "wheels"]
        subprocess.run([*pip, "-r", ROOT / "requirements/runtime.txt"], check=True, capture_output=True)
        subprocess.run([*pip, "hatchling", EXTRA], check=True, capture_output=True)
        (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        tar = ["tar", "-C", root, "--exclude=./usr/share/doc", "--exclude=./usr/share/locale", "-c", "."]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
            load = [self.podman, "import", "--quiet", "-", BASE]
            done = subprocess.run(load, env=self.env, stdin=packing.stdout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(root)

    def remove(self) -> None:
        """Everything: the containers, and the directory with the images."""
        self("rm", "--all", "--force", "--time", "0", code=None)
        subprocess.run(["umount", "--recursive", "--lazy", self.directory], capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)


class Contained(Supervision):
    """A supervisor in a container: `podman run`, attached. `wait` gives the container's exit code."""

    def __init__(self, engine: Engine, name: str, *command: str, options: tuple[str, ...], queue: str) -> None:
        self.engine, self.name = engine, name
        # Its health check would be a timer of systemd, which is not there.
        arguments = ["run", "--no-healthcheck", "--name", name, *options, *command]
        # Not in the checkout: conmon writes a file `oom` where it was started.
        self.start([engine.podman, *arguments], engine.env, queue, engine.directory)

    def exec(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.engine("exec", self.name, *command, code=code)

    def send(self, number: int) -> None:
        self.engine("kill", "--signal", signal.Signals(number).name, self.name)

    def end(self) -> None:
        self.engine("rm", "--force", "--time", "0", self.name, code=None)
        self.process.wait(PATIENCE)
        super().end()


def at_most(kind: int) -> str:
    hard = resource.getrlimit(kind)[1]
    most = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    return f"{most}:{most}"


def fetch(directory: Path) -> Path:
    """Where the packages of a small Debian with Python are, as this machine's apt has them. Nothing is installed."""
    cache = directory / "cache"
    (cache / "archives" / "partial").mkdir(parents=True)
    apt = ["apt-get", "-qq", "--yes", "--no-install-recommends", "-o", "APT::Sandbox::User=root"]
    # As if nothing was installed, so that it is all that they need.
    apart = ["-o", "Dir::State::status=/dev/null", "-o", f"Dir::Cache={cache}", "-o", "Debug::NoLocking=1"]
    download = [*apt, *apart, "--download-only", "install", *PACKAGES]
    done = subprocess.run(download, capture_output=True, text=True)
    if done.returncode:
        # A fresh machine has no package lists, an old one stale ones.
        subprocess.run([*apt, "update"], capture_output=True)
        done = subprocess.run(download, capture_output=True, text=True)
    if done.returncode:
        missing(f"packages of Debian: {done.stderr[-500:]}")
    return cache / "archives"


def unpack(root: Path, packages: Path) -> None:
    """debootstrap would also configure them, which nothing here needs: thousands of processes, a minute or several."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    into = ["tar", "-x", "-C", root, "--keep-directory-symlink", "--no-same-owner"]
    for package in packages.glob("*.deb"):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as packed:
            subprocess.run(into, stdin=packed.stdout, check=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    subprocess.run(["ldconfig", "-r", root], check=True)


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"no container can be run here, and the image must be tested; it needs {what}")
    pytest.skip(f"no container can be run here; it needs {what}")
