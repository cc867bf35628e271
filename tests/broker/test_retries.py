"""After an exception: tried again, later and later; then the dead-letter queue. Nothing is lost on the way."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests import amqp, handler_modules
from tests.supervision import Runs, eventually, supervised

FAILS_UNTIL = """
import supervisor
from handlers import note
def work(task):
    order = task.json()
    note(f"try-{task.attempt}", task.message_id)
    if task.attempt < order["good"]:
        if "delay" in order:
            raise supervisor.Retry("not yet", delay=order["delay"])
        raise ConnectionError(f"try {task.attempt}")
    note("done", task.message_id)
"""


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "fails", FAILS_UNTIL)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


def test_f15_a_task_that_raises_is_tried_again_with_growing_delays_and_then_dead_lettered(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs
) -> None:
    queue = typed_queue
    body = json.dumps({"good": 99})
    sent = {"correlation_id": "c-7", "headers": {"tenant": "blue", "ratio": 1}, "content_type": "text/x-mine"}
    amqp.publish(broker_url, queue, [body], ids=["bad"], **sent)
    options = ("--workers", "1", "--retries", "2", "--retry-delay", "100ms")
    with supervised("fails:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", message_id="bad", attempt=3)
        retried = pool.named("task.retried", message_id="bad")
        assert [line["attempt"] for line in retried] == [1, 2]
        assert "ConnectionError: try 1; try 2 of 3 in 0.1 s" in retried[0]["because"]
        assert "try 3 of 3 in 0.5 s" in retried[1]["because"]
        totals = pool.status()["totals"]
        assert (totals["failed"], totals["retried"], totals["dead_lettered"], totals["succeeded"]) == (3, 2, 1, 0)
        assert pool.metric("workq_tasks_total", outcome="retried") == 2
        assert pool.stop() == 0
    assert [runs.lines(f"try-{n}") for n in (1, 2, 3)] == [["bad"]] * 3
    [(_, properties, dead_body)] = amqp.drain(broker_url, f"{queue}.dead")
    headers = properties.headers or {}
    assert dead_body.decode() == body
    assert (properties.message_id, properties.correlation_id, properties.content_type) == ("bad", "c-7", "text/x-mine")
    assert (headers["tenant"], headers["ratio"]) == ("blue", 1)
    assert (headers["x-workq-reason"], headers["x-workq-attempt"]) == ("exception", 3)
    assert headers["x-workq-error"] == "ConnectionError: try 3"
    assert "fails.py" in headers["x-workq-traceback"]
    assert properties.delivery_mode == 2
    assert amqp.depth(broker_url, queue) == 0


def test_a_task_that_recovers_is_a_success_and_retry_may_choose_its_delay(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs
) -> None:
    orders = [{"good": 2}, {"good": 3, "delay": 0.3}]
    amqp.publish(broker_url, typed_queue, [json.dumps(order) for order in orders], ids=["second", "third"])
    options = ("--workers", "2", "--retry-delay", "100ms")
    with supervised("fails:work", *options, url=broker_url, queue=typed_queue, env=env) as pool:
        pool.hear("task.succeeded", message_id="second", attempt=2)
        pool.hear("task.succeeded", message_id="third", attempt=3)
        assert all("in 0.5 s" in line["because"] for line in pool.named("task.retried", message_id="third"))
        assert pool.stop() == 0
    assert sorted(runs.lines("done")) == ["second", "third"]
    assert amqp.depth(broker_url, f"{typed_queue}.dead") == 0


def test_retry_asked_for_too_often_is_a_dead_letter(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"good": 99, "delay": 0.01})])
    with supervised("fails:work", "--workers", "1", "--retries", "1", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", attempt=2)
        assert pool.stop() == 0
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    assert (properties.headers or {})["x-workq-error"] == "no retry left, attempt 2 asked for one: not yet"


def test_burst_waits_for_tasks_that_wait_for_another_try(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"good": 2, "delay": 2})], ids=["late"])
    with supervised("fails:work", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    assert runs.lines("done") == ["late"]


def test_two_delays_do_not_block_each_other(broker_url: str, queue: str, env: dict[str, str], runs: Runs) -> None:
    orders = [{"good": 2, "delay": 600}, {"good": 2, "delay": 0.1}]
    amqp.publish(broker_url, queue, [json.dumps(order) for order in orders], ids=["slow", "quick"])
    with supervised("fails:work", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.succeeded", message_id="quick", attempt=2)
        assert amqp.depth(broker_url, f"{queue}.delay.600000") == 1
        assert pool.stop() == 0


def test_a_delay_queue_that_has_not_got_its_time_to_live_yet_gives_the_task_back_all_the_same(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    """As a quorum queue is in its first milliseconds, when one worker declares it and another publishes already: a
    message that cannot expire would hold back all that come after it."""
    with amqp.connection(broker_url) as link:
        channel = link.channel()
        for name in (queue, f"{queue}.dead"):
            channel.queue_declare(name, durable=True)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
        channel.queue_declare(f"{queue}.delay.100", durable=True, arguments={"x-queue-type": "quorum", **back})
    body = json.dumps({"good": 99, "delay": 0.1})
    amqp.publish(broker_url, queue, [body], ids=["again"], expiration="3600000")
    options = ("--workers", "1", "--no-declare", "--retries", "2")
    with supervised("fails:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", message_id="again", attempt=3)
        assert pool.stop() == 0
    assert [runs.lines(f"try-{n}") for n in (1, 2, 3)] == [["again"]] * 3
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    assert (properties.headers or {})["x-workq-expiration"] == "3600000"  # the producer's, not the delay's


def test_f31_a_dead_letter_queue_that_refuses_leaves_the_message_unacknowledged_and_says_so(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs
) -> None:
    queue = typed_queue
    with amqp.connection(broker_url) as link:
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        link.channel().queue_declare(f"{queue}.dead", durable=True, arguments=full)
    amqp.publish(broker_url, queue, [json.dumps({"good": 99})], ids=["bad"])
    with supervised("fails:work", "--workers", "1", "--retries", "0", url=broker_url, queue=queue, env=env) as pool:
        failed = pool.hear("task.parking_failed", message_id="bad", count=2)
        assert "full" in failed["because"] and "stays in flight" in failed["because"]
        assert runs.lines("try-1") == ["bad"]
        with amqp.connection(broker_url) as link:
            link.channel().queue_delete(f"{queue}.dead")
            link.channel().queue_declare(f"{queue}.dead", durable=True)
        pool.hear("task.dead_lettered", message_id="bad")
        assert pool.stop() == 0
    assert len(amqp.drain(broker_url, f"{queue}.dead")) == 1
    assert runs.lines("try-1") == ["bad"]


@pytest.mark.timeout(180)
def test_random_kills_while_everything_is_retried_and_dead_lettered_lose_nothing(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs
) -> None:
    """Half fail for good, half recover at the second try; workers are killed between confirm and ack among the rest."""
    queue = typed_queue
    names = [f"t{n}" for n in range(300)]
    bodies = [json.dumps({"good": 99 if n % 2 else 2}) for n in range(300)]
    amqp.publish(broker_url, queue, bodies, ids=names)
    dice = random.Random(3)
    options = ("--workers", "4", "--retries", "2", "--retry-delay", "100ms", "--max-crashes", "50")
    with supervised("fails:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        kills = 0

        dead: Counter[str] = Counter()

        def settled() -> bool:
            dead.update(properties.message_id for _, properties, _ in amqp.drain(broker_url, f"{queue}.dead"))
            return set(names) == set(runs.lines("done")) | set(dead)

        for _ in range(60):
            if settled():
                break
            pids = pool.pids()
            if pids:
                os.kill(dice.choice(pids), signal.SIGKILL)
                kills += 1
                pool.hear("worker.exited", count=kills)
        eventually(settled, timeout=60)
        eventually(lambda: all(worker["state"] == "idle" for worker in pool.workers()))
        assert pool.stop() == 0
    dead.update(properties.message_id for _, properties, _ in amqp.drain(broker_url, f"{queue}.dead"))
    # From RabbitMQ 4.0 on a message that was killed under that often is put aside before the broker drops it.
    often = {line["message_id"] for line in pool.named("task.quarantined") if "returned" in line["because"]}
    assert set(runs.lines("done")) | often >= {name for n, name in enumerate(names) if n % 2 == 0}
    assert set(dead) - often == {name for n, name in enumerate(names) if n % 2} - often
    # A crash between confirm and acknowledgement makes a duplicate, one at most for each kill.
    assert dead.total() - len(dead) <= kills
