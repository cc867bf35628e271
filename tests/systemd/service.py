"""A `workq-supervise@NAME.service` of a test's own: its settings, its drop-in, its journal."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.supervision import PATIENCE, Runs, eventually, matches
from tests.systemd.box import Box, kill

HANDLERS = Path(__file__).resolve().parents[1]


class Service:
    def __init__(self, box: Box, url: str, queue: str) -> None:
        self.box = box
        self.queue = queue
        self.name = f"test-{uuid4().hex[:12]}"
        self.unit = f"workq-supervise@{self.name}.service"
        self.app = f"/srv/{self.name}"
        box.write(f"/etc/workq/{self.name}.amqp-url", f"{url}\n", 0o600)
        for handlers in ("handlers.py", "offspring.py"):
            self.code(handlers, (HANDLERS / handlers).read_text())
        self.runs = Runs(box.path(f"{self.app}/runs"))
        self.runs.path.chmod(0o666)
        self._lines = (f"_SYSTEMD_UNIT={self.unit}", "SYSLOG_IDENTIFIER=workq-supervise")
        self._follower: Follower | None = None
        self.drop_in()

    # ----------------------------------------------------------------------------------------- how it is set up

    def settings(self, handler: str, **values: object) -> Service:
        """Write its TOML file: two workers and a free health port, unless said otherwise."""
        given = {"queue": self.queue, "workers": 2, "health": "127.0.0.1:0", "app_dir": self.app, "heartbeat": "2s"}
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"handler": handler, **given, **values}.items()]
        self.box.write(f"/etc/workq/{self.name}.toml", "\n".join(lines) + "\n")
        return self

    def code(self, file: str, text: str) -> None:
        self.box.write(f"{self.app}/{file}", text)

    def drop_in(self, *lines: str) -> Service:
        """Change the unit as an operator would. Handlers may always write to the file that tells of them."""
        ours = ["[Service]", "RestartSec=100ms", f"ReadWritePaths={self.app}", f"Environment=TEST_RUNS={self.app}/runs"]
        self.box.write(f"/etc/systemd/system/{self.unit}.d/test.conf", "\n".join([*ours, *lines]) + "\n")
        self.box.run("systemctl", "daemon-reload")
        return self

    # --------------------------------------------------------------------------------------------- what it is told

    @contextmanager
    def begin(self, verb: str) -> Iterator[subprocess.Popen[str]]:
        """Call systemctl and do not wait for it. At the end it is over, or it is ended."""
        with self.box.popen("systemctl", verb, self.unit) as calling:
            try:
                yield calling
            finally:
                if calling.poll() is None:
                    calling.kill()

    def call(self, verb: str, check: bool = True, timeout: float = PATIENCE) -> int:
        return self.box.run("systemctl", verb, self.unit, check=check, timeout=timeout).returncode

    def start(self) -> Service:
        try:
            self.call("start")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return self

    def kill(self, number: int) -> None:
        """Send a signal to the supervisor alone, from outside its namespace."""
        self.box.run("kill", f"-{int(number)}", self.show("MainPID"))

    def end(self) -> None:
        """Whatever happened: nothing of it is left."""
        if self._follower is not None:
            self._follower.end()
        self.box.run("systemctl", "kill", "--signal=SIGKILL", self.unit, check=False)
        self.box.run("systemctl", "stop", self.unit, check=False)
        self.box.run("systemctl", "reset-failed", self.unit, check=False)
        for path in (self.app, f"/etc/systemd/system/{self.unit}.d"):
            shutil.rmtree(self.box.path(path))
        for suffix in ("toml", "amqp-url"):
            self.box.path(f"/etc/workq/{self.name}.{suffix}").unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ what it is

    def show(self, name: str) -> str:
        return self.box.show(self.unit, name)[name]

    def becomes(self, timeout: float = PATIENCE, **wanted: object) -> None:
        """Wait until these of its properties have these values."""
        expected = {name: str(value) for name, value in wanted.items()}
        try:
            eventually(lambda: self.box.show(self.unit, *expected) == expected, timeout)
        except AssertionError:
            now = self.box.show(self.unit, *expected)
            raise AssertionError(f"{expected} is {now} after {timeout} s; the log:\n{self.log()}") from None

    def pids(self) -> list[int]:
        """Everybody in its cgroup, as the box counts."""
        group = self.show("ControlGroup")
        if not group:
            return []
        for hierarchy in ("unified", "systemd", "."):
            procs = self.box.path(f"/sys/fs/cgroup/{hierarchy}{group}/cgroup.procs")
            if procs.exists():
                inside = self.box.run("cat", f"/sys/fs/cgroup/{hierarchy}{group}/cgroup.procs", check=False).stdout
                return [int(pid) for pid in inside.split()]
        return []

    # --------------------------------------------------------------------------------------------- what it says

    def journal(self) -> list[dict[str, Any]]:
        """All that came from its processes. What `workq reload` says, for people, has another identifier."""
        return self.box.journal(*self._lines)

    def manager(self) -> list[str]:
        """What systemd itself said of it."""
        return [entry["MESSAGE"] for entry in self.box.journal(f"UNIT={self.unit}", "_PID=1")]

    def events(self) -> list[dict[str, Any]]:
        """Its lines. Each must be one JSON object."""
        return [json.loads(text(entry["MESSAGE"])) for entry in self.journal()]

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [line for line in self.events() if matches(line, event, fields)]

    def hear(self, event: str, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Wait until `count` such lines have come; the last of them."""
        if self._follower is None:
            self._follower = Follower(self.box, *self._lines)
        found = self._follower.hear(lambda line: matches(line, event, fields), count, timeout)
        if len(found) < count:
            raise AssertionError(f"{len(found)} of {count} {event} {fields} came; the log:\n{self.log()}")
        return found[count - 1]

    def log(self) -> str:
        entries = self.box.journal("--unit", self.unit)
        return "\n".join(text(entry["MESSAGE"])[:2000] for entry in entries[-80:])

    def get(self, path: str) -> tuple[int, str]:
        """A path of its health port: status and body."""
        try:
            with urllib.request.urlopen(self.hear("health.listening")["url"] + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class Follower:
    """Reads a part of the journal as it grows."""

    def __init__(self, box: Box, *matches: str) -> None:
        follow = ["--follow", "--lines=all", "--output=json", "--all"]
        self._process = box.popen("journalctl", *follow, *matches)
        self._lines: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for entry in self._process.stdout:
            if not entry.endswith("\n"):
                return  # killed while it wrote
            with self._changed:
                self._lines.append(json.loads(text(json.loads(entry)["MESSAGE"])))
                self._changed.notify_all()

    def hear(self, wanted: Callable[[dict[str, Any]], bool], count: int, timeout: float) -> list[dict[str, Any]]:
        """Wait until so many lines are wanted; those that came, if not in time."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(found := [line for line in self._lines if wanted(line)]) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
        return found

    def end(self) -> None:
        kill(self._process)
        self._process.wait()
        self._reader.join(PATIENCE)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


def text(message: str | list[int]) -> str:
    """journald exports what is not printable as a list of bytes."""
    return message if isinstance(message, str) else bytes(message).decode("utf-8", "replace")
