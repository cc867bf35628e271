"""FAULT 85: where every warning is an error, or Python looks for them, nothing of ours warns, and lines stay JSON."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests import handler_modules, workq
from tests.supervision import Runs, Supervision, retinue, supervised

pytestmark = pytest.mark.any_broker

STRICT = {
    "PYTHONWARNINGS=error": {"PYTHONWARNINGS": "error"},
    "PYTHONDEVMODE=1": {"PYTHONDEVMODE": "1"},
}
HANDLE = """
import os, signal
from handlers import note

async def work(task):
    note("began", task.text)
    if task.text == "raise":
        raise ValueError("as asked")
    if task.text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def a_whole_life(pool: Supervision, url: str, queue: str, control: str, env: dict[str, str]) -> None:
    """Everything that a supervisor does on a usual day, and every verb."""
    said = []

    def verb(*words: str) -> None:
        said.append(workq.run(*words, url=url, queue=queue, env=env)[1])

    pool.ready()
    verb("publish", "x", "raise", "die")
    pool.hear("task.retried")
    pool.hear("task.dead_lettered")
    pool.hear("task.quarantined")
    for path in ("/", "/livez", "/readyz", "/status", "/metrics"):
        pool.get(path)
    verb("status", "--control", control)
    verb("check", "--config", os.devnull)
    verb("dead", "list")
    verb("dead", "requeue", "--all", "--yes")
    verb("scale", "--control", control, "3")
    others = retinue(pool)
    os.kill(others["workq-nursery"], signal.SIGKILL)  # the next one is executed: the first was forked
    os.kill(pool.pids()[0], signal.SIGKILL)
    pool.send(signal.SIGHUP)
    pool.hear("reload.finished")
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        pool.send(number)
    pool.hear("supervisor.status")
    verb("drain", "--control", control)
    assert pool.wait() == 0
    assert not [text for text in said if "Warning" in text]


def says_nothing(pool: Supervision) -> None:
    """Of warnings: a line that is no JSON; what a process wrote to its stderr; what Python has logged."""
    assert pool.invalid == []
    lines = [line["line"] if line["event"] == "worker.output" else line["event"] for line in pool.events]
    assert not [line for line in lines if "Warning" in line or "Exception ignored" in line]
    assert not [line for line in pool.events if line.get("logger") == "py.warnings"]


@pytest.mark.parametrize(
    ("strict", "preload"), [("PYTHONWARNINGS=error", "--preload"), ("PYTHONDEVMODE=1", "--no-preload")]
)
def test_f85_where_warnings_are_errors_nothing_of_ours_warns_and_lines_stay_json(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, strict: str, preload: str
) -> None:
    env = STRICT[strict]
    control = str(tmp_path / "control.sock")
    handler_modules.write(tmp_path, "app", HANDLE)
    options = ("--workers", "2", "--retries", "1", "--retry-delay", "1s", "--max-crashes", "1", "--control", control)
    environ = runs.env | env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", *options, preload, url=broker_url, queue=queue, env=environ) as pool:
        a_whole_life(pool, broker_url, queue, control, env)
        says_nothing(pool)


@pytest.mark.parametrize("strict", STRICT)
def test_f85_where_warnings_are_errors_a_supervisor_that_cannot_start_says_so_in_one_line(
    tmp_path: Path, strict: str
) -> None:
    env = STRICT[strict] | {"PYTHONPATH": str(tmp_path)}
    with supervised("nothing:work", url="amqp://127.0.0.1:9", queue="any", env=env) as pool:
        assert pool.wait() == 78
        assert pool.named("handler.import_failed")
        says_nothing(pool)


@pytest.mark.parametrize("strict", STRICT)
def test_f85_a_verb_that_finds_nobody_leaves_no_socket_to_warn_of(tmp_path: Path, strict: str) -> None:
    """`workq drain` asks until nobody answers any more."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
        killed.listen()
    _, said = workq.run("status", "--control", path, code=69, env=STRICT[strict])
    assert "its supervisor was killed" in said
    assert "Warning" not in said
