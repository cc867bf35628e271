"""`--rate` with a broker: how many tasks begin, and what a worker does while it waits."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from click.testing import CliRunner

from supervisor.commands import main
from supervisor.policy.rate import BURST
from tests import amqp, handler_modules
from tests.supervision import Runs, Supervision, eventually, supervised

TIMED = """
import time
from handlers import note

def work(task):
    note("began", repr(time.monotonic()))
"""


def states(pool: Supervision) -> list[str]:
    return [worker["state"] for worker in pool.workers()]


def workq(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments, env={"WORKQ_CONFIG": None})
    assert done.exit_code == 0, done.output
    return done.output


def test_no_more_tasks_begin_than_the_rate_allows_by_the_bucket_s_own_clock(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "timed", TIMED)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("timed:work", "--workers", "4", "--rate", "40/s", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        before = time.monotonic()
        amqp.publish(broker_url, queue, ["{}"] * 60)
        began = sorted(map(float, runs.hear("began", 60)))
        # The first begins after `before`, and each one at least its interval after that, less the burst.
        for number, instant in enumerate(began):
            assert instant - before >= number / 40 - BURST
        assert pool.metric("workq_rate_limit") == 40
        assert pool.stop() == 0


def test_a_worker_that_waits_is_seen_to_and_hears_of_pause_reload_and_drain(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    path, file = str(tmp_path / "control.sock"), tmp_path / "workq.toml"
    file.write_text("rate = '1/h'\n")
    options = ("--workers", "2", "--control", path, "--config", str(file))
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["0"] * 3, ids=["1", "2", "3"])
        runs.hear("done")
        eventually(lambda: states(pool) == ["waiting", "waiting"])
        assert pool.status()["rate"] == "1/h" and pool.metric("workq_workers", state="waiting") == 2
        assert "at most 1/h; 2 workers wait for it" in workq("status", "--control", path)
        assert all(worker["message_id"] is None for worker in pool.workers())
        # Its message was not begun, and its place in the queue for a token is given to others.
        assert "with no message in flight" in workq("kill", "--control", path, "0")
        pool.hear("worker.ready", count=3)
        eventually(lambda: states(pool) == ["waiting", "waiting"])
        workq("pause", "--control", path)
        eventually(lambda: amqp.depth(broker_url, queue) == 2)
        workq("resume", "--control", path)
        eventually(lambda: states(pool) == ["waiting", "waiting"])
        assert len(runs.lines("began")) == 1
        file.write_text("rate = '1000/s'\n")
        workq("reload", "--control", path)
        assert len(runs.hear("done", 3)) == 3
        file.write_text("rate = '1/h'\n")
        workq("reload", "--control", path)
        amqp.publish(broker_url, queue, ["0"] * 3)
        eventually(lambda: states(pool) == ["waiting", "waiting"])
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) >= 2


def test_waiting_is_neither_silence_towards_the_broker_nor_time_of_the_task(
    broker_url: str, queue: str, runs: Runs
) -> None:
    """The second task begins three seconds after the first; the broker gives up a silent connection after two."""
    options = ("--workers", "1", "--rate", "20/m", "--heartbeat", "1", "--task-timeout", "1", "--max-tasks", "2")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["0", "0"])
        runs.hear("done", 2)
        assert pool.hear("worker.exited")["cause"] == "max_tasks"
        assert not pool.named("worker.hung") and not pool.named("broker.lost")
        assert pool.stop(signal.SIGTERM) == 0
