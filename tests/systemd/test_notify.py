"""What systemd is sent, word for word, by a real supervisor to a socket of the test's. No systemd is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from supervisor.parent.systemd import MAX_STATUS, Systemd, summary, take
from supervisor.policy.pool import Pool
from supervisor.policy.view import PoolView
from supervisor.settings import Settings
from tests import handler_modules
from tests.supervision import PATIENCE, supervised


class Listener:
    """Where a service manager would listen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE)
        self.heard: list[list[str]] = []

    def next(self) -> list[str]:
        """The lines of the next datagram."""
        self.heard.append(self.socket.recv(65536).decode().split("\n"))
        return self.heard[-1]

    def until(self, line: str) -> list[str]:
        """Read on until a datagram has this line, and return that one."""
        while line not in (lines := self.next()):
            pass
        return lines

    def count(self, line: str) -> int:
        return sum(lines.count(line) for lines in self.heard)


@contextmanager
def listening(address: str) -> Iterator[Listener]:
    listener = Listener(address)
    with closing(listener.socket):
        yield listener


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    with listening(str(tmp_path / "notify") if request.param == "path" else f"@workq-test-{uuid4().hex}") as listener:
        yield listener


def test_ready_status_reload_and_stop_are_told_in_their_order(
    manager: Listener, broker_url: str, queue: str, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "app", "from handlers import work\n")
    env = {"NOTIFY_SOCKET": manager.address, "PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        status = "STATUS=2 workers, 0 busy, 0 restarting, broker ok"
        if status not in manager.until("READY=1"):  # as when both were ready by then
            manager.until(status)
        pool.ready()
        asked = time.monotonic()
        pool.send(signal.SIGHUP)
        told = manager.until("RELOADING=1")
        [usec] = [line.removeprefix("MONOTONIC_USEC=") for line in told if line.startswith("MONOTONIC_USEC=")]
        assert asked * 1e6 <= int(usec) <= time.monotonic() * 1e6
        manager.until("READY=1")
        # One that comes to nothing is told as well: who has sent the signal waits.
        handler_modules.write(tmp_path, "app", "this is no Python\n")
        pool.send(signal.SIGHUP)
        manager.until("RELOADING=1")
        manager.until("READY=1")
        assert manager.count("READY=1") == 3
        pool.send(signal.SIGTERM)
        told = manager.until("STOPPING=1")
        assert any(line.startswith("STATUS=draining, ") for line in told)
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in told)
        assert pool.wait() == 0
    assert not any(line.startswith("WATCHDOG") for lines in manager.heard for line in lines)


def test_a_start_is_prolonged_while_the_import_lasts_and_ready_is_not_told_before(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "app", handler_modules.HANGS)
    with listening(str(tmp_path / "notify")) as manager:
        env = {"NOTIFY_SOCKET": manager.address, "PYTHONPATH": str(tmp_path)}
        with supervised("app:work", "--boot-timeout", "3s", url=broker_url, queue=queue, env=env) as pool:
            for _ in range(2):
                assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.next())
            assert pool.wait() == 78
        manager.until("STOPPING=1")
    assert not manager.count("READY=1")


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_f73_a_start_is_prolonged_and_not_ready_while_the_import_fails_for_a_passing_reason(
    broker_url: str, queue: str, tmp_path: Path, preload: str
) -> None:
    handler_modules.write(tmp_path, "app", "from pathlib import Path\nPath(__file__).with_name('late').read_text()\n")
    with listening(str(tmp_path / "notify")) as manager:
        env = {"NOTIFY_SOCKET": manager.address, "PYTHONPATH": str(tmp_path)}
        options = ("--workers", "1", "--boot-retry", preload)
        with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
            pool.hear("handler.import_failed", count=3)
            for _ in range(3):
                assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.next())
            told = [line for lines in manager.heard for line in lines]
            assert any(line.startswith("STATUS=the handler cannot be imported yet: ") for line in told)
            assert "READY=1" not in told
            handler_modules.write(tmp_path, "app", "from handlers import work\n")
            manager.until("READY=1")
            assert pool.stop() == 0


def test_the_watchdog_is_for_the_process_that_it_names_only(broker_url: str, queue: str, tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
        with supervised("handlers:work", url=broker_url, queue=queue, env=env):
            for _ in range(3):
                manager.until("WATCHDOG=1")
        with supervised("handlers:work", url=broker_url, queue=queue, env=env | {"WATCHDOG_PID": "1"}) as pool:
            manager.heard.clear()
            pool.ready()
            pool.stop()
            manager.until("STOPPING=1")
        assert not manager.count("WATCHDOG=1")


def test_nothing_is_imported_where_nobody_listens() -> None:
    look = "print(main._systemd(), 'supervisor.parent.systemd' in sys.modules)"
    code = f"import sys; from supervisor.parent import main; {look}"
    environ = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout == "None False\n"


# ---------------------------------------------------------------------------------------------------- in one process


def view(**changed: object) -> PoolView:
    """Of a pool that starts, with these differences."""
    return replace(Pool(Settings("m:f")).view(0.0), **changed)  # type: ignore[arg-type]


def test_what_a_busy_manager_does_not_take_is_told_later(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with closing(filler):
            filler.setblocking(False)
            sent = 0
            with pytest.raises(BlockingIOError):
                while True:
                    filler.sendto(b"X=1", manager.address)
                    sent += 1
            systemd = Systemd(manager.address, float("inf"))
            systemd.tell(view(exits={"broker": 1}), (), 1.0, 30.0)
            assert systemd.due < time.monotonic() + 1
            for _ in range(sent):
                manager.next()
            systemd.tell(view(exits={"broker": 1}), (), 1.0, 30.0)
            assert manager.next()[0] == "READY=1"
            systemd.tell(view(exits={"broker": 1}), (), 1.0, 30.0)
            manager.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.next()


def test_the_brokers_words_do_not_become_assignments() -> None:
    line = summary(view(trouble="gone\nREADY=1\0 \x1b[31m" + "x" * 5000), ())
    assert "\n" not in line and "\0" not in line and "\x1b" not in line
    assert "broker: gone READY=1 [31m" in line and len(line) == MAX_STATUS


def test_why_tasks_have_to_wait_comes_first() -> None:
    line = summary(view(refusal="paused by workq pause (anna), until workq resume"), ())
    assert line.startswith("paused by workq pause (anna), until workq resume; ")


def test_the_environment_is_cleared_of_what_names_us() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    systemd = take(environ)
    assert systemd is not None and systemd.due == float("inf")
    assert environ == {"PATH": "/bin"}
    assert take({"NOTIFY_SOCKET": "vsock:2:1234"}) is None
    assert take({"NOTIFY_SOCKET": ""}) is None
