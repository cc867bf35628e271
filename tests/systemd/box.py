"""A systemd for tests: this machine's own, booted as PID 1 of namespaces of its own by `boot`, in half a second.

Units, users, the journal and files are the box's, and gone with it; the network is the machine's, so a broker on
loopback is seen inside. Needs root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from tests.supervision import PATIENCE, eventually

BOOT = Path(__file__).with_name("boot")
SYSTEMD = Path("/lib/systemd/systemd")
SYSTEMD_OFF = "RTMIN+4"  # to PID 1: start poweroff.target (systemd(1), SIGNALS)
UP = ("running", "degraded")
_GROUP = "workq-box-"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Box:
    """A context manager: entering boots, leaving shuts down. Dies with the thread that entered it."""

    def __init__(self, directory: Path, binds: Iterable[tuple[Path, str, str]] = ()) -> None:
        """`binds`: directories of the machine's that are seen inside, each with its path there and `ro` or `rw`."""
        self.directory = directory
        self._binds = tuple(binds)
        self._cgroups: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Of its PID 1, as seen from outside."""

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pid:
            subprocess.run(["kill", "-s", SYSTEMD_OFF, str(self.pid)], check=False)
            try:
                assert self._process is not None
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                pass
        self._end()

    def _boot(self) -> None:
        command = [str(BOOT), str(self.directory)]
        for source, target, mode in self._binds:
            command += ["--bind", str(source), target, mode]
        for home in own_cgroups():
            sweep(home)
            group = home / f"{_GROUP}{os.getpid()}-{uuid4().hex[:12]}"
            group.mkdir()
            self._cgroups.append(group)
            for name in ("cpuset.cpus", "cpuset.mems"):  # v1 starts them empty, and then nobody may enter
                if (group / name).exists() and not (group / name).read_text().strip():
                    (group / name).write_text((home / name).read_text())
            command += ["--cgroup", str(group)]
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.pid = eventually(self._find)
        eventually(lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in UP)

    @property
    def output(self) -> Path:
        """What booting wrote; nothing, if all went well."""
        return self.directory / "output"

    def _find(self) -> int:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the box did not boot:\n{self.output.read_text()}")
        unshare = self._process.pid
        for child in Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        return 0

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # and with it, by the kernel, PID 1 and all the rest
            self._process.wait()
        self.pid = 0
        for group in self._cgroups:
            eventually(lambda group=group: removed(group))  # type: ignore[misc]
        self._cgroups.clear()

    # --------------------------------------------------------------------------------------------- from outside

    def path(self, inside: str) -> Path:
        """A file of the box's, to read and to write."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in the box, as root. It is in no unit. To be ended before its time by `kill`."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"]
        environ = ["env", "-i", "TERM=dumb", "LANG=C.UTF-8", "HOME=/root", f"PATH={_PATH}", "SYSTEMD_PAGER="]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*enter, *environ, *command], text=True, cwd="/", **options)

    def run(self, *command: str, check: bool = True, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a command in the box, as root."""
        with self.popen(*command) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                kill(process)
                raise
        if check and process.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        out = self.run("systemctl", "show", unit, f"--property={','.join(properties)}").stdout
        return dict(line.split("=", 1) for line in out.splitlines())

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """What the journal holds, oldest first: all fields of each entry."""
        self.run("journalctl", "--sync")
        # --all: without it a field above 4 KiB is null.
        out = self.run("journalctl", "--output=json", "--all", "--no-pager", *matches).stdout
        return [json.loads(line) for line in out.splitlines()]


def sweep(home: Path) -> None:
    """Remove what boxes of processes that are gone have left: they were killed, and their boxes with them."""
    for left in home.glob(f"{_GROUP}*-*"):
        if not Path("/proc", left.name.removeprefix(_GROUP).partition("-")[0]).exists():
            removed(left)


def kill(process: subprocess.Popen[str]) -> None:
    """End what `Box.popen` has started. Not nsenter, which forks to change its pid namespace: a child that it did not
    reap would stay in the box as a zombie, and the box would wait for it to shut down."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if process.poll() is None:
        for pid in map(int, children) if children else [process.pid]:
            os.kill(pid, signal.SIGKILL)


def own_cgroups() -> list[Path]:
    """The directory of each cgroup that this process is in: one in version 2, one for each hierarchy in version 1."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, directory = before.split(" ")[3:5]
        names = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in names:
            mounts.setdefault(name, (root, Path(directory)))
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        name = controllers.split(",")[0]
        if name in mounts:
            # A mount may show only a part of the tree, as in a container with the host's names.
            root, directory = mounts[name]
            found.append(directory / path.removeprefix(root).lstrip("/"))
    return found


def removed(group: Path) -> bool:
    """Remove a cgroup with all below it. False while somebody in it is not reaped."""
    try:
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True
