"""`workq pause` and `workq resume`: no tasks, and everything else as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from supervisor.commands.node import LocalNode
from tests import amqp, handler_modules
from tests.broker.test_control import HELD, workq
from tests.supervision import Runs, eventually, supervised


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "held", HELD)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


def test_a_pause_finishes_what_is_in_flight_returns_the_rest_and_outlasts_reloads_deaths_and_scaling(
    node: LocalNode, typed_queue: str, env: dict[str, str], runs: Runs, path: str
) -> None:
    queue, tasks = typed_queue, [f"task-{number}" for number in range(6)]
    amqp.publish(node.url, queue, [""] * 6, ids=tasks)
    options = ("--workers", "1", "--prefetch", "4", "--control", path)
    with supervised("held:work", *options, url=node.url, queue=queue, env=env) as pool:
        runs.hear("began")
        pid = pool.ready().pids()[0]
        done = workq("pause", "--control", path, SUDO_USER="anna")
        assert (done.returncode, done.stdout) == (
            0,
            "workq pause (anna): until workq resume; no worker takes tasks, those in flight are finished\n",
        )
        # While the task still runs: what was prefetched behind it does not wait for its end.
        eventually(lambda: amqp.depth(node.url, queue) == 5)
        status, said = pool.get("/readyz")
        assert (status, said) == (503, "paused by workq pause (anna), until workq resume\n")
        assert pool.metric("workq_paused") == 1.0 and pool.metric("workq_broker_up") == 1.0
        Path(f"{runs.path}.go").touch()
        runs.hear("done")
        eventually(lambda: pool.metric("workq_tasks_total", outcome="succeeded") == 1.0)
        # A quorum queue counts a consumer for as long as it has messages.
        eventually(lambda: amqp.consumers(node.url, queue) == 0)
        assert pool.pids() == [pid] and pool.workers()[0]["state"] == "idle"

        assert workq("reload", "--control", path).returncode == 0
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.exited", cause="SIGKILL")
        assert workq("scale", "2", "--control", path).returncode == 0
        ready = pool.hear("worker.ready", count=4)
        assert ready["because"] == "connected; it may take no tasks yet"
        assert amqp.consumers(node.url, queue) == 0 and amqp.depth(node.url, queue) == 5
        assert pool.status()["paused"]["by"] == "workq pause (anna)"
        assert "paused by workq pause (anna)" in workq("status", "--control", path).stdout

        done = workq("resume", "--control", path, SUDO_USER="anna")
        assert (done.returncode, done.stdout) == (0, "workq resume (anna): workers take tasks again\n")
        assert sorted(runs.hear("done", 6)) == tasks
        assert pool.get("/readyz")[0] == 200 and pool.metric("workq_paused") == 0.0
        eventually(lambda: amqp.consumers(node.url, queue) == 2)
        assert pool.status()["paused"] is None
        assert "it is not paused" in workq("resume", "--control", path).stdout
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == tasks, "none ran twice"


def test_a_pause_ends_by_itself_when_told_to_and_a_paused_pool_can_be_drained(
    broker_url: str, queue: str, runs: Runs, path: str
) -> None:
    options = ("--workers", "2", "--control", path)
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        assert workq("pause", "--for", "0", "--control", path).returncode == 2
        assert workq("pause", "--for", "1s", "--control", path).returncode == 0
        amqp.publish(broker_url, queue, ["0"], ids=["waits"])
        assert pool.hear("pool.resumed")["because"].endswith("its --for has passed: workers take tasks again")
        runs.hear("done")
        assert workq("pause", "--control", path).returncode == 0
        eventually(lambda: amqp.consumers(broker_url, queue) == 0)
        amqp.publish(broker_url, queue, ["0"], ids=["stays"])
        assert workq("drain", "--control", path).returncode == 0
        assert pool.wait() == 0
    assert runs.lines("began") == ["waits"]
    assert amqp.depth(broker_url, queue) == 1


def test_a_paused_burst_ends_once_it_has_been_resumed_and_has_done_everything(
    broker_url: str, queue: str, runs: Runs, path: str
) -> None:
    amqp.publish(broker_url, queue, ["0.5"] * 4, ids=["a", "b", "c", "d"])
    options = ("--workers", "2", "--burst", "--control", path)
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        assert workq("pause", "--for", "1s", "--control", path).returncode == 0
        assert pool.wait() == 0
    assert sorted(runs.lines("done")) == ["a", "b", "c", "d"]
