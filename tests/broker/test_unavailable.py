"""`raise Unavailable`: what the handler needs is away, and that is not the message's fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.commands.node import LocalNode
from tests import amqp, handler_modules
from tests.proxy import Proxy
from tests.supervision import Runs, eventually, supervised

CODE = """
import os, time
from handlers import note
from supervisor import Unavailable

class DatabaseAway(Unavailable):
    def __init__(self):
        pass  # and not the base's: the class has the wait

    retry_after = 0.1

def work(task):
    note("began", f"{task.message_id} {task.attempt}")
    if task.text == "holds":
        while os.path.exists(os.environ["TEST_AWAY"]):
            time.sleep(0.01)
        return
    if "TEST_STUCK" in os.environ:
        time.sleep(600)
    if os.path.exists(os.environ["TEST_AWAY"]):
        if task.text == "long":
            raise Unavailable("database", retry_after=5)
        if task.text == "class":
            raise DatabaseAway
        raise Unavailable("database", retry_after=0.1)
    if task.text == "fails":
        raise ValueError("its own fault")
    note("done", task.message_id)
"""


@pytest.fixture
def away(tmp_path: Path) -> Path:
    return tmp_path / "away"


@pytest.fixture
def env(tmp_path: Path, runs: Runs, away: Path) -> dict[str, str]:
    handler_modules.write(tmp_path, "app", CODE)
    away.touch()
    return runs.env | {"PYTHONPATH": str(tmp_path), "TEST_AWAY": str(away)}


def test_no_try_is_counted_and_the_message_comes_back_until_it_is_done(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    amqp.publish(broker_url, typed_queue, ["", "class"], ids=["one", "two"])
    options = ("--workers", "2", "--retries", "1")
    with supervised("app:work", *options, url=broker_url, queue=typed_queue, env=env) as pool:
        pool.hear("task.deferred", message_id="one", count=4)
        deferred = pool.hear("task.deferred", message_id="two", count=4)
        assert deferred["attempt"] == 1 and deferred["level"] == "warning"
        assert pool.named("task.deferred", message_id="one")[0]["because"] == (
            "database; not counted as a try: try 1 starts again in 0.1 s"
        )
        away.unlink()
        runs.hear("done", 2)
        eventually(lambda: pool.status()["totals"]["succeeded"] == 2)
        totals = pool.status()["totals"]
        assert totals["failed"] == totals["retried"] == totals["dead_lettered"] == 0
        assert totals["deferred"] == len(pool.named("task.deferred")) >= 8
        assert pool.metric("workq_tasks_total", outcome="deferred") == totals["deferred"]
        assert pool.stop() == 0
    assert {line.split()[1] for line in runs.lines("began")} == {"1"}


def test_tries_of_its_own_are_counted_after_it_as_before(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    amqp.publish(broker_url, queue, ["fails"], ids=["one"])
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "100ms")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.deferred", count=2)
        away.unlink()
        pool.hear("task.dead_lettered")
        [first, last] = pool.named("task.failed")
        assert (first["attempt"], last["attempt"]) == (1, 2)
        assert first["exception"].endswith("ValueError: its own fault\n") and "/supervisor/" not in first["exception"]
        assert pool.stop() == 0


def test_a_copy_that_waits_is_not_taken_for_one_whose_acknowledgement_was_lost(
    broker_url: str, node: LocalNode, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    """Each time its connection is lost when it has been deferred: it is known by how often, as it is by its try."""
    amqp.publish(broker_url, queue, [""], ids=["one"])
    with (
        Proxy(node.port) as proxy,
        supervised("app:work", "--workers", "1", url=proxy.url, queue=queue, env=env) as pool,
    ):
        for count in range(1, 4):
            pool.hear("task.deferred", count=count)
            proxy.reset()
        away.unlink()
        runs.hear("done")
        eventually(lambda: amqp.depth(broker_url, queue) == 0 and amqp.unacked(node, queue) == 0)
        assert pool.stop() == 0
    assert runs.lines("done") == ["one"]


def test_a_copy_that_comes_back_from_elsewhere_is_not_taken_for_the_original_that_was_deferred_here(
    broker_url: str, node: LocalNode, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    """Our worker loses its connection when it has deferred the message: nobody knows that its acknowledgement has
    arrived. The copy goes to another supervisor, which is killed: it comes back redelivered, and is at its first try
    still."""
    amqp.publish(broker_url, queue, ["long"], ids=["one"])
    with (
        Proxy(node.port) as proxy,
        supervised("app:work", "--workers", "1", url=proxy.url, queue=queue, env=env) as pool,
    ):
        pool.hear("task.deferred", message_id="one")
        eventually(lambda: amqp.unacked(node, queue) == 0)
        proxy.reset()
        pool.hear("worker.ready", count=2)
        amqp.publish(broker_url, queue, ["holds"], ids=["other"])
        runs.hear("began", 2)
        elsewhere = supervised(
            "app:work", "--workers", "1", url=broker_url, queue=queue, env=env | {"TEST_STUCK": "yes"}
        )
        with elsewhere as other:
            other.ready()
            runs.hear("began", 3)
            other.process.kill()
            other.process.wait()
        away.unlink()
        pool.hear("task.succeeded", message_id="one")
        assert pool.stop() == 0
    assert runs.lines("done") == ["one"]


def test_a_burst_waits_for_what_is_deferred(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, away: Path
) -> None:
    amqp.publish(broker_url, queue, [""], ids=["one"])
    with supervised("app:work", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.deferred", count=3)
        away.unlink()
        assert pool.wait() == 0
    assert runs.lines("done") == ["one"]
