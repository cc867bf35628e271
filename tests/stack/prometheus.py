"""A real Prometheus and a real Alertmanager for tests, from Debian's packages, each a process of the test's own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import debian
from tests.supervision import eventually

PACKAGES = ("prometheus", "prometheus-alertmanager")


def install() -> None:
    """Prometheus with promtool, and Alertmanager with amtool; skips the test where they are not to be had."""
    debian.install("amtool", *PACKAGES)


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
