"""A real Prometheus and a real Alertmanager for tests, from Debian's packages, each a process of the test's own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.supervision import eventually

SETUP = Path(__file__).parents[2] / "scripts" / "setup"
PACKAGES = ("prometheus", "prometheus-alertmanager")
PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
POLICY = Path("/usr/sbin/policy-rc.d")


def install() -> None:
    """Install Debian's packages where that may be done without asking; skip the test where not.

    Not a matter of scripts/setup: who works on something else shall not wait for 100 MB. On continuous integration
    (CI is set) the rules are tested or the run fails.
    """
    if _is_installed():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
    if _is_installed():
        return
    if os.environ.get("CI"):
        pytest.fail("Prometheus cannot be installed here, and the rules must be tested")
    pytest.skip(f"needs Prometheus: apt-get install --no-install-recommends {' '.join(PACKAGES)}")


def _is_installed() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


def _install() -> None:
    apt = ["apt-get", "-y", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with SETUP.open() as lock:
        # As scripts/setup does: of two that install at a time, one waits.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_installed():
            return
        with _services_denied():
            install = [*apt, "install", "--no-install-recommends", *PACKAGES]
            if subprocess.run(install, env=env, capture_output=True).returncode != 0:
                # A fresh container has no package lists, an old machine stale ones.
                subprocess.run([*apt, "update"], env=env, capture_output=True)
                subprocess.run(install, env=env, check=False)


@contextmanager
def _services_denied() -> Iterator[None]:
    """The packages start services on 9090 and 9093, which nobody asked for. invoke-rc.d asks policy-rc.d first; 101 is
    its "no" (invoke-rc.d(8))."""
    is_ours = not POLICY.exists()
    if is_ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if is_ours:
            POLICY.unlink()


def check(*command: str | Path, stdin: str | None = None) -> str:
    """Run `promtool` or `amtool`: what it says. Fails, with that, when it finds a fault."""
    done = subprocess.run([*map(str, command)], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Server:
    """Prometheus or Alertmanager, on a port that the kernel chose."""

    def __init__(self, log: Path, *command: str | Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command), "--web.listen-address=127.0.0.1:0"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start(self) -> Server:
        self.address = str(eventually(self._listens))
        eventually(self._is_ready)
        return self

    def _listens(self) -> str | None:
        said = self._log.read_text()
        assert self.process.poll() is None, f"it has left:\n{said}"
        found = re.search(r'msg="Listening on" address=(\S+)', said)
        return found[1] if found else None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """What `/api/v1/PATH` has for `data`. Fails with the server's own words where it has none."""
        query = urllib.parse.urlencode({name.replace("__", "[]"): value for name, value in parameters.items()})
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)  # its data are the test's, and of no use to anybody
        self.process.wait()


@contextmanager
def prometheus(config: Path) -> Iterator[Server]:
    """A Prometheus with this configuration, its data beside it, for the length of a block."""
    storage = f"--storage.tsdb.path={config.parent / 'data'}"
    server = Server(config.parent / "prometheus.log", "prometheus", f"--config.file={config}", storage)
    try:
        yield server.start()
    finally:
        server.end()


@contextmanager
def alertmanager(config: Path) -> Iterator[Server]:
    """An Alertmanager with this configuration, alone in its cluster, for the length of a block."""
    storage = f"--storage.path={config.parent / 'alertmanager-data'}"
    log = config.parent / "alertmanager.log"
    server = Server(log, "prometheus-alertmanager", f"--config.file={config}", storage, "--cluster.listen-address=")
    try:
        yield server.start()
    finally:
        server.end()
