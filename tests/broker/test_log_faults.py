"""Nobody takes the log, and the work goes on; somebody takes it again, and every line is whole."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from supervisor.commands.node import Port
from tests import amqp
from tests.supervision import PATIENCE, Supervision, eventually, matches, supervised

pytestmark = pytest.mark.any_broker

TO = ("bash", "-c", 'exec "$@" 2>"$0"')
"""Before a command: its stderr is this file."""
F_SETPIPE_SZ = 1031
TASKS = 300


@pytest.fixture
def port() -> Iterator[int]:
    """The log cannot be asked for one that the kernel chose."""
    claimed = Port()
    yield claimed.number


def get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


def succeeded(port: int) -> int:
    return int(json.loads(get(port, "/status") or '{"totals": {"succeeded": 0}}')["totals"]["succeeded"])


def dropped(port: int) -> float:
    lines = get(port, "/metrics").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("workq_log_lines_dropped_total ")), 0.0)


def work_is_done(pool: Supervision, port: int, url: str, queue: str) -> None:
    """All tasks are done, each line of theirs is counted as dropped, and nobody has died of it."""
    amqp.publish(url, queue, ["0"] * TASKS)
    eventually(lambda: succeeded(port) >= TASKS)
    status = json.loads(get(port, "/status"))
    assert status["state"] == "running"
    assert status["totals"]["worker_exits"] == 0
    assert [worker["restarts"] for worker in status["workers"]] == [0, 0]
    assert pool.process.poll() is None


class Fifo:
    """A log's reader, who may stop reading, or leave."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self.fd, F_SETPIPE_SZ, 16384)
        os.set_blocking(self.fd, True)
        self.lines: list[dict[str, Any]] = []
        self.rest = b""

    def read_until(self, event: str, repeat: Callable[[], object] = lambda: None, **fields: Any) -> None:
        """Fails for a line that is not whole. `repeat` causes the event once more: its line may be one that is lost."""
        deadline = time.monotonic() + PATIENCE
        while not any(matches(line, event, fields) for line in self.lines):
            assert time.monotonic() < deadline, f"no {event} {fields} after {self.lines[-5:]}"
            if not select.select([self.fd], [], [], 1)[0]:
                repeat()
                continue
            piece = os.read(self.fd, 65536)
            assert piece, "nobody writes any more"
            *lines, self.rest = (self.rest + piece).split(b"\n")
            self.lines += [json.loads(line) for line in lines]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    reader = Fifo(tmp_path / "log")
    yield reader
    reader.close()


def test_f51_a_log_reader_that_leaves_costs_lines_and_nothing_else(
    broker_url: str, queue: str, port: int, fifo: Fifo, tmp_path: Path
) -> None:
    options = ("--workers", "2", "--health", f"127.0.0.1:{port}")
    inside = (*TO, str(tmp_path / "log"))
    with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=inside) as pool:
        fifo.read_until("supervisor.ready")
        fifo.close()
        work_is_done(pool, port, broker_url, queue)
        eventually(lambda: dropped(port) >= TASKS)
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0


def test_f51_f112_a_full_pipe_costs_lines_until_it_is_read_again_and_all_that_come_are_whole(
    broker_url: str, queue: str, port: int, fifo: Fifo, tmp_path: Path
) -> None:
    options = ("--workers", "2", "--health", f"127.0.0.1:{port}")
    inside = (*TO, str(tmp_path / "log"))
    with supervised("handlers:narrate", *options, url=broker_url, queue=queue, inside=inside) as pool:
        fifo.read_until("supervisor.ready")
        amqp.publish(broker_url, queue, ["20000"], ids=["long"])  # the supervisor writes it, as far as the pipe goes
        eventually(lambda: succeeded(port) == 1)
        work_is_done(pool, port, broker_url, queue)
        eventually(lambda: dropped(port) >= TASKS * 0.8)  # a few were still taken by the pipe
        again = partial(amqp.publish, broker_url, queue, ["0"], ids=["after"])
        fifo.read_until("task.succeeded", again, message_id="after")
        [long] = [line for line in fifo.lines if line.get("message_id") == "long" and line["event"] == "narrated"]
        assert long["text"] == "x" * 20000
        assert pool.stop() == 0


def test_f51_a_full_disk_costs_lines_and_nothing_else(broker_url: str, queue: str, port: int) -> None:
    options = ("--workers", "2", "--health", f"127.0.0.1:{port}")
    inside = (*TO, "/dev/full")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=inside) as pool:
        eventually(lambda: "workers consume" in get(port, "/readyz"))
        work_is_done(pool, port, broker_url, queue)
        eventually(lambda: dropped(port) >= TASKS)
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> tuple[str, ...]:
    """Before a command: its stderr is the file `log` in this directory, where nobody else sees a disk of its own."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("takes root, with CAP_SYS_ADMIN")
    script = 'mount -t tmpfs -o size=256k small "$0" && exec "$@" 2>>"$0/log"'
    return ("unshare", "-m", "bash", "-c", script, str(tmp_path))


def test_f89_a_disk_that_was_full_has_whole_lines_only(
    broker_url: str, queue: str, port: int, on_a_small_disk: tuple[str, ...], tmp_path: Path
) -> None:
    options = ("--workers", "2", "--health", f"127.0.0.1:{port}")
    with supervised("handlers:narrate", *options, url=broker_url, queue=queue, inside=on_a_small_disk) as pool:
        disk = Path(f"/proc/{pool.pid}/root") / tmp_path.relative_to("/")
        eventually(lambda: "workers consume" in get(port, "/readyz"))
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(bytes(4096))
        work_is_done(pool, port, broker_url, queue)
        amqp.publish(broker_url, queue, ["20000"], ids=["long"])
        eventually(lambda: succeeded(port) > TASKS)
        eventually(lambda: dropped(port) >= TASKS)
        (disk / "filler").unlink()
        amqp.publish(broker_url, queue, ["0", "20000"], ids=["after", "long after"])
        eventually(lambda: succeeded(port) > TASKS + 2)
        text = eventually(lambda: logged if (logged := (disk / "log").read_bytes()).count(b"long after") == 2 else None)
        lines = [json.loads(line) for line in text.splitlines()]
        assert {line["message_id"] for line in lines if line["event"] == "task.succeeded"} >= {"after", "long after"}
        assert text.endswith(b"\n")
        assert pool.stop() == 0
