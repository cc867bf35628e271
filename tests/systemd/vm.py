"""A machine with a kernel of its own: this machine's root, read-only under a throw-away overlay, on Debian's kernel in
qemu. For what a namespace cannot show: cgroup v2 where this machine's controllers are on v1.

Without KVM, which test machines seldom have: ten to twenty times slower than this machine, the same everywhere.
10.0.2.2 is this machine's loopback inside (qemu-system(1), `-netdev user`).
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import NoReturn, Self

import pytest

from tests.debian import install
from tests.supervision import eventually

INIT = Path(__file__).with_name("vm-init")
KERNEL = "linux-image-cloud-amd64"
MODULES = (  # each after those that it needs
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net", "fuse", "virtiofs", "overlay"),
)
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")  # Debian 12: of qemu-system-common; 13: of its own
PATIENCE = 120.0
"""Seconds for what takes some twenty in there when this machine has nothing else to do: booting, starting a service."""
MEMORY = "1G"
SHELL = """
[Unit]
After=dbus.service
[Service]
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/ttyS1
Environment=SYSTEMD_PAGER= SYSTEMD_COLORS=0 LANG=C.UTF-8
ExecStart=/bin/bash -c 'stty raw -echo; echo ready; exec /bin/bash /dev/stdin'
"""
TARGET = """
[Unit]
Requires=basic.target dbus.service shell.service
After=basic.target dbus.service shell.service
"""


class VM:
    """A context manager: entering boots, leaving turns the power off. Dies with the thread that entered it."""

    def __init__(self, directory: Path, prefix: Path, files: Mapping[str, str]) -> None:
        """`prefix` is seen as /opt/workq; `files`, text by path, are there before systemd starts."""
        self.directory = directory
        self._prefix = prefix
        self._files = {"/etc/systemd/system/shell.service": SHELL, "/etc/systemd/system/vm.target": TARGET, **files}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._shell: socket.socket | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _boot(self) -> None:
        if platform.machine() != "x86_64":
            missing(f"an x86_64, and this is {platform.machine()}")
        qemu = install("qemu-system-x86_64", "qemu-system-common", "qemu-system-x86")
        virtiofsd = next((path for path in VIRTIOFSD if Path(path).exists()), None)
        if virtiofsd is None:
            missing("virtiofsd: apt-get install virtiofsd")
        fetched = fetch()
        initrd = pack(fetched, self.directory / "first")
        for path, text in self._files.items():
            file = self.directory / "files" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        shares, serial = self.directory / "shares", self.directory / "serial"
        self._start(virtiofsd, "-f", f"--socket-path={shares}", "-o", "source=/,sandbox=chroot,cache=always")
        eventually(lambda: shares.exists() or self._processes[0].poll() is not None, PATIENCE)
        said = [
            *("console=ttyS0", "quiet", "panic=-1", "mitigations=off"),
            *("systemd.unit=vm.target", "systemd.show_status=no", "systemd.unified_cgroup_hierarchy=1"),
            *(f"workq.files={self.directory / 'files'}", f"workq.prefix={self._prefix}"),
        ]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(serial))
            listener.listen()
            listener.settimeout(PATIENCE)
            self._start(
                *(qemu, "-nodefaults", "-display", "none", "-no-reboot"),
                *("-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "2"),
                # virtiofsd reads and writes the machine's memory.
                *("-m", MEMORY, "-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on"),
                *("-kernel", str(next(fetched.glob("boot/vmlinuz-*"))), "-initrd", str(initrd)),
                *("-append", " ".join(said)),
                *("-chardev", f"socket,id=root,path={shares}", "-device", "vhost-user-fs-pci,chardev=root,tag=outside"),
                *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
                *("-serial", f"file:{self.console}"),
                *("-chardev", f"socket,id=shell,path={serial}", "-serial", "chardev:shell"),
            )
            try:
                self._shell, _ = listener.accept()
            except TimeoutError:
                raise AssertionError(f"qemu does not start:\n{self.output.read_text()}") from None
        # Longer than what waits in there waits.
        self._shell.settimeout(PATIENCE * 1.5)
        self._until(b"ready\n")

    def _start(self, *command: str) -> None:
        with self.output.open("ab") as output:
            # Whatever becomes of the tests: their time limit ends them by os._exit.
            tied = ["setpriv", "--pdeathsig", "KILL", *command]
            self._processes.append(subprocess.Popen(tied, stdin=subprocess.DEVNULL, stdout=output, stderr=output))

    def _end(self) -> None:
        # Nothing of it is to be kept: no shutdown.
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()
        if self._shell is not None:
            self._shell.close()

    @property
    def output(self) -> Path:
        """What qemu and virtiofsd wrote."""
        return self.directory / "output"

    @property
    def console(self) -> Path:
        """What the kernel wrote."""
        return self.directory / "console"

    def run(self, command: str) -> str:
        """A line for the shell inside, as root; what it wrote to stdout and to stderr, whatever its exit status is."""
        assert self._shell is not None
        self._shell.sendall(f"( {command} ) </dev/null 2>&1; printf '\\0%s\\n' end\n".encode())
        return self._until(b"\0end\n").decode("utf-8", "replace")

    def _until(self, mark: bytes) -> bytes:
        assert self._shell is not None
        while mark not in self._unread:
            try:
                more = self._shell.recv(65536)
            except TimeoutError:
                more = b""
            if not more:
                kernel = self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""
                raise AssertionError(f"the machine does not answer:\n{self.output.read_text()}\n{kernel}")
            self._unread += more
        answer, _, self._unread = self._unread.partition(mark)
        return answer

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        out = self.run(f"systemctl show {unit} --property={','.join(properties)}")
        return dict(line.split("=", 1) for line in out.splitlines())


def fetch() -> Path:
    """Debian's kernel and a busybox, unpacked beside the brokers of scripts/rabbitmq; nothing is installed. Some 27 MB
    to fetch, once for each version of the kernel."""
    if (apt := shutil.which("apt-get")) is None:
        missing("a Debian kernel: there is no apt-get")
    if (image := newest_image()) is None:
        # A fresh container has no package lists.
        subprocess.run([apt, "-qq", "update"], capture_output=True)
        image = newest_image()
    if image is None:
        missing(f"a Debian kernel: apt knows no {KERNEL}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workq-supervise"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / image
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with TemporaryDirectory(dir=cache) as partial:
                download(apt, Path(partial), image, "busybox-static")
                root = Path(partial, "root")
                for package in Path(partial).glob("*.deb"):
                    subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
                root.rename(kept)
    return kept


def newest_image() -> str | None:
    """The package that Debian's name for the newest one depends on, as apt knows it."""
    shown = subprocess.run(["apt-cache", "depends", "--important", KERNEL], capture_output=True, text=True).stdout
    return next((line.split()[1] for line in shown.splitlines() if "Depends: linux-image-" in line), None)


def download(apt: str, directory: Path, *packages: str) -> None:
    command = [apt, "-qq", "-o", "APT::Sandbox::User=root", "download", *packages]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        # An old machine has stale package lists.
        subprocess.run([apt, "-qq", "update"], capture_output=True)
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        missing(f"a Debian kernel: {done.stderr.strip()}")


def pack(fetched: Path, first: Path) -> Path:
    """The initrd, of what is needed to see this machine's root; `first` is a directory to make it in."""
    modules = {path.stem: path for path in fetched.glob("lib/modules/**/*.ko")}
    if lacking := [name for name in MODULES if name not in modules]:
        missing(f"a kernel with modules as Debian 12 has them; {fetched.name} lacks {' '.join(lacking)}")
    for name in ("bin", "modules", "dev", "proc"):
        (first / name).mkdir(parents=True)
    for name in MODULES:
        shutil.copy(modules[name], first / "modules")
    (first / "modules" / "order").write_text("\n".join(MODULES) + "\n")
    shutil.copy(fetched / "bin" / "busybox", first / "bin")
    shutil.copy(INIT, first / "init")
    initrd = first.with_name("initrd")
    with initrd.open("wb") as output:
        command = "find . | ./bin/busybox cpio -o -H newc"
        subprocess.run(["sh", "-c", command], cwd=first, stdout=output, stderr=subprocess.DEVNULL, check=True)
    return initrd


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"no virtual machine here, and what needs it must be tested; it needs {what}")
    pytest.skip(f"no virtual machine here; it needs {what}")
