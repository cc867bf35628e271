"""Run a real supervisor, hear what it logs, ask its health, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from typing import Any

from supervisor.linux import descendants
from tests import launching

HERE = Path(__file__).resolve().parent
EXECUTED = ("env",)
"""`inside` of a supervisor that is executed, not forked (tests/launching.py): the test is about its command line, its
modules or its cgroup."""
PATIENCE = 30.0
"""Seconds that a test waits for something that takes milliseconds, on a machine that may have something else to do."""


class Supervision:
    """One running `workq-supervise`. Its log lines are read as they come; each must be one JSON object."""

    def __init__(
        self,
        handler: str,
        *options: str,
        url: str,
        queue: str,
        env: dict[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        command = [launching.SUPERVISE, "--queue", queue, "--health", "127.0.0.1:0", "--app-dir", str(HERE)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
        self.start([*inside, *command, *options, handler], {**environ, "WORKQ_URL": url, **(env or {})}, queue)

    def start(self, command: Sequence[str], env: dict[str, str], queue: str, cwd: Path | None = None) -> None:
        """Run this, whose stderr is the log, and begin to read it."""
        self.queue = queue
        self.events: list[dict[str, Any]] = []
        self.invalid: list[str] = []
        self._changed = threading.Condition()
        self._reading = threading.Event()
        self._reading.set()
        self.process = launching.popen(command, env=env, cwd=cwd)
        self.pid = self.process.pid
        assert self.process.stderr is not None
        self._fd = self.process.stderr.fileno()
        self._bytes_read = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    # ------------------------------------------------------------------------------------------------- its log

    def _read(self) -> None:
        fd, part = self._fd, b""
        while select.select([fd], [], []):
            self._reading.wait()
            with self._changed:
                chunk = os.read(fd, 65536)
                self._bytes_read += len(chunk)
                *lines, part = (part + chunk).split(b"\n")
                for line in lines:
                    self._note(line + b"\n")
                if part and not chunk:
                    self._note(part)
                self._changed.notify_all()
            if not chunk:
                return

    def _note(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            self.events.append(event)
        else:
            self.invalid.append(line.decode("utf-8", "replace"))

    def _catch_up(self) -> None:
        """Wait until all has been read that is written by now: who has asked /status, the broker or a handler's notes
        must not know more than the log."""
        with self._changed:
            if self._reader.is_alive() and self._reading.is_set():
                until = self._bytes_read + struct.unpack("i", ioctl(self._fd, termios.FIONREAD, bytes(4)))[0]
                self._changed.wait_for(lambda: self._bytes_read >= until or not self._reading.is_set(), PATIENCE)

    def stall(self) -> None:
        """Read its log no more, until `resume`: the pipe fills up."""
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines with this event and these fields, so far."""
        self._catch_up()
        return [line for line in list(self.events) if matches(line, event, fields)]

    def hear(self, event: str, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Wait until `count` such lines have come; the last of them."""
        deadline = time.monotonic() + timeout
        found: list[dict[str, Any]] = []
        seen = 0
        with self._changed:
            self._catch_up()
            while True:
                found += [line for line in self.events[seen:] if matches(line, event, fields)]
                seen = len(self.events)
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise AssertionError(f"{len(found)} of {count} {event} {fields} came; the log:\n{self.log()}")

    def log(self, last: int = 60) -> str:
        return "\n".join(json.dumps(line) for line in self.events[-last:]) + "".join(self.invalid)

    # ---------------------------------------------------------------------------------------------- its health

    @property
    def health(self) -> str:
        return str(self.hear("health.listening")["url"])

    def get(self, path: str) -> tuple[int, str]:
        """A path's status and body."""
        try:
            with urllib.request.urlopen(self.health + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/status")[1]))

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics; 0 when there is none."""
        for line in self.get("/metrics")[1].splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")) == labels:
                return float(found[3])
        return 0.0

    def ready(self, workers: int | None = None) -> Supervision:
        """Wait until that many workers consume (all, unless said)."""
        if workers is None:
            self.hear("supervisor.ready")
        else:
            self.hear("worker.ready", count=workers)
        return self

    def workers(self) -> list[dict[str, Any]]:
        return list(self.status()["workers"])

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.workers() if worker["pid"]]

    # ------------------------------------------------------------------------------------------------- its end

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code. Afterwards every line of its log has been read."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; the log:\n{self.log()}") from None
        self._reader.join(PATIENCE)
        return code

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        self.send(number)
        return self.wait(timeout)

    def end(self) -> None:
        """Whatever happened: nothing of it is left."""
        self.resume()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def supervised(
    handler: str, *options: str, url: str, queue: str, env: dict[str, str] | None = None, inside: Sequence[str] = ()
) -> Iterator[Supervision]:
    """A supervisor for the length of a block. Fails if any line of its log was not a JSON object.

    `inside`: what goes before its command line, and becomes it by exec(2): `OtherHost.inside`.
    """
    supervision = Supervision(handler, *options, url=url, queue=queue, env=env, inside=inside)
    try:
        yield supervision
    except BaseException:
        print(supervision.log(400))
        raise
    finally:
        supervision.end()
    assert not supervision.invalid


def matches(line: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    return line.get("event") == event and all(line.get(name) == value for name, value in fields.items())


def retinue(pool: Supervision, *, zygote: bool = True) -> dict[str, int]:
    """The supervisor's children beside its workers, by name: `workq-zygote`, unless it was ended, `workq-nursery` and
    `workq-spare`, awaited until the supervisor knows it."""
    expected = {"workq-nursery", "workq-spare"} | ({"workq-zygote"} if zygote else set())

    def everybody() -> dict[str, int] | None:
        others = set(descendants.children(pool.pid)) - set(pool.pids())
        try:
            named = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in others}
        except (FileNotFoundError, ProcessLookupError):
            return None  # an orphan, reaped before its name is opened or before it is read
        is_complete = named.keys() == expected and len(others) == len(expected)
        return named if is_complete and named["workq-spare"] in _watched(pool.pid) else None

    return dict(eventually(everybody))


def _watched(pid: int) -> set[int]:
    """The processes that this one has pidfds of."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(line.split()[1]) for line in entry.read_text().splitlines() if line.startswith("Pid:")}
    return found


def eventually(happens: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait for what cannot be awaited: ask until the answer is true, and return it. What takes long is asked less and
    less often: many ask at once, of whom they wait for."""
    deadline = time.monotonic() + timeout
    pause = 0.01
    while not (answer := happens()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s")
        time.sleep(pause)
        pause = min(0.2, pause * 1.3)
    return answer


def gone(pid: int, timeout: float) -> bool:
    """Whether this process ends within the time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)


class Runs:
    """What handlers did, written by them to a file: `handlers.note`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def env(self) -> dict[str, str]:
        return {"TEST_RUNS": str(self.path)}

    def lines(self, word: str) -> list[str]:
        """The names noted with this word, in order."""
        return [line.split(" ", 1)[1] for line in self.path.read_text().splitlines() if line.startswith(word + " ")]

    def hear(self, word: str, count: int = 1, timeout: float = PATIENCE) -> list[str]:
        eventually(lambda: len(self.lines(word)) >= count, timeout)
        return self.lines(word)
