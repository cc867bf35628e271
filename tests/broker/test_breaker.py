"""`--breaker`: while what the handler needs is down, messages wait in the queue instead of failing one by one."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from supervisor import queues
from tests import amqp, handler_modules
from tests.supervision import Runs, eventually, supervised

CODE = """
import os, time
from handlers import note
from supervisor import Unavailable

def work(task):
    note("began", task.message_id)
    time.sleep(0.3)
    if os.path.exists(os.environ["TEST_AWAY"]):
        if task.text == "said":
            raise Unavailable("database", retry_after=1)
        raise ConnectionRefusedError("database")
    note("done", task.message_id)
"""


@pytest.fixture
def away(tmp_path: Path) -> Path:
    path = tmp_path / "away"
    path.touch()
    return path


@pytest.fixture
def env(tmp_path: Path, runs: Runs, away: Path) -> dict[str, str]:
    handler_modules.write(tmp_path, "app", CODE)
    return runs.env | {"PYTHONPATH": str(tmp_path), "TEST_AWAY": str(away)}


def test_an_outage_costs_a_few_messages_and_then_one_a_try_and_afterwards_all_others_are_done(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    names = [f"task-{number}" for number in range(60)]
    amqp.publish(broker_url, queue, [""] * 60, ids=names)
    options = ("--workers", "3", "--prefetch", "4", "--retries", "0", "--breaker", "50%/5", "--breaker-reset", "1s")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        opened = pool.hear("breaker.opened")
        assert opened["level"] == "error" and "the latest by ConnectionRefusedError" in opened["because"]
        failed = int(re.match(r"(\d+) of (\d+) tasks failed", opened["because"])[1])  # type: ignore[index]
        again = pool.hear("breaker.opened", 2)
        assert again["level"] == "warning" and again["seconds"] == 2.0
        # Nobody consumes, and what was prefetched is back.
        eventually(lambda: amqp.consumers(broker_url, queue) == 0)
        begun = len(runs.lines("began"))
        # Besides those that were counted: what was in flight then, and one for the one try.
        assert begun <= failed + 2 * 3 + 1
        eventually(lambda: amqp.depth(broker_url, queue) == 60 - begun)
        status, said = pool.get("/readyz")
        assert status == 503 and said.startswith("breaker ")
        assert pool.metric("workq_breaker_state") in (1.0, 2.0)
        assert len(pool.pids()) == 3 and not pool.named("worker.exited")
        away.unlink()
        pool.hear("breaker.closed")
        lost = int(pool.metric("workq_tasks_total", outcome="dead_lettered"))
        runs.hear("done", 60 - lost)
        assert pool.get("/readyz")[0] == 200 and pool.metric("workq_breaker_state") == 0.0
        assert pool.stop() == 0
    dead = amqp.depth(broker_url, queues.dead(queue))
    assert dead == lost <= begun + 1 + len(pool.named("breaker.half_open"))
    assert len(runs.lines("done")) + dead == 60
    assert len(runs.lines("began")) == len(set(runs.lines("began"))) == 60, "each ran once"


def test_a_handler_that_says_unavailable_says_for_how_long_and_no_message_is_lost(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    names = [f"task-{number}" for number in range(12)]
    amqp.publish(broker_url, queue, ["said"] * 12, ids=names)
    options = ("--workers", "2", "--retries", "0", "--breaker", "100%/4")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        opened = pool.hear("breaker.opened")
        assert opened["seconds"] == 1.0 and "the latest by Unavailable: database" in opened["because"]
        away.unlink()
        assert sorted(set(runs.hear("done", 12))) == sorted(names)
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queues.dead(queue)) == 0


def test_half_open_with_an_empty_queue_waits_for_a_task_and_a_reload_does_not_close_it(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    amqp.publish(broker_url, queue, [""] * 4, ids=["a", "b", "c", "d"])
    options = ("--workers", "2", "--retries", "0", "--breaker", "100%/4", "--breaker-reset", "1s")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("breaker.half_open")
        eventually(lambda: amqp.consumers(broker_url, queue) == 1)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        eventually(lambda: amqp.consumers(broker_url, queue) == 1)
        assert pool.status()["breaker"]["state"] == "half_open" and not runs.lines("done")
        away.unlink()
        amqp.publish(broker_url, queue, [""], ids=["next"])
        pool.hear("breaker.closed")
        eventually(lambda: amqp.consumers(broker_url, queue) == 2)
        assert runs.lines("done") == ["next"]
        assert pool.stop() == 0
