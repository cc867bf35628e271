"""FAULTS 51: nobody takes the log, and the work goes on."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import amqp
from tests.supervision import PATIENCE, Supervision, eventually, matches, supervised

TO = ("bash", "-c", 'exec "$@" 2>"$0"')
"""Before a command: its stderr is this file."""
F_SETPIPE_SZ = 1031
TASKS = 300


@pytest.fixture
def port() -> int:
    """Free a moment ago: the log cannot be asked for the one that the kernel chose."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


def dropped(port: int) -> float:
    lines = get(port, "/metrics").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("workq_log_lines_dropped_total ")), 0.0)


def work_is_done(pool: Supervision, port: int, url: str, queue: str) -> None:
    """All tasks are done, each line of theirs is counted as dropped, and nobody has died of it."""
    amqp.publish(url, queue, ["0"] * TASKS)
    eventually(lambda: json.loads(get(port, "/status") or "{}")["totals"]["succeeded"] >= TASKS)
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
        fcntl.fcntl(self.fd, F_SETPIPE_SZ, 4096)
        os.set_blocking(self.fd, True)
        self.lines: list[dict[str, Any]] = []

    def read_until(self, event: str, **fields: Any) -> None:
        rest = b""
        while not any(matches(line, event, fields) for line in self.lines):
            assert select.select([self.fd], [], [], PATIENCE)[0], f"no {event} {fields} after {self.lines[-5:]}"
            piece = os.read(self.fd, 65536)
            assert piece, "nobody writes any more"
            *lines, rest = (rest + piece).split(b"\n")
            self.lines += [json.loads(line) for line in lines if line]

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
        assert dropped(port) >= TASKS
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0


def test_f51_a_full_pipe_costs_lines_until_it_is_read_again(
    broker_url: str, queue: str, port: int, fifo: Fifo, tmp_path: Path
) -> None:
    options = ("--workers", "2", "--health", f"127.0.0.1:{port}")
    inside = (*TO, str(tmp_path / "log"))
    with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=inside) as pool:
        fifo.read_until("supervisor.ready")
        work_is_done(pool, port, broker_url, queue)
        lost = dropped(port)
        assert lost >= TASKS * 0.8  # a few were still taken by the pipe
        os.set_blocking(fifo.fd, False)
        assert len(os.read(fifo.fd, 65536)) <= 4096
        amqp.publish(broker_url, queue, ["0"], ids=["after"])
        fifo.read_until("task.succeeded", message_id="after")
        assert pool.stop() == 0


def test_f51_a_full_disk_costs_lines_and_nothing_else(broker_url: str, queue: str, port: int) -> None:
    options = ("--workers", "2", "--health", f"127.0.0.1:{port}")
    inside = (*TO, "/dev/full")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=inside) as pool:
        eventually(lambda: "workers consume" in get(port, "/readyz"))
        work_is_done(pool, port, broker_url, queue)
        assert dropped(port) >= TASKS
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0
