"""What RabbitMQ's versions do differently, as far as this project builds on it. All other tests hold on every version.

A test that needs a version says so; `scripts/test --rabbitmq newest tests/broker/test_versions.py` runs the newest's.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPConnectionError

from tests import amqp, handler_modules
from tests.conftest import release
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

LIMIT = 20
"""The delivery limit of quorum queues from 4.0 on, unless somebody sets another."""


@pytest.fixture
def quorum_queue(broker_url: str, queue: str) -> str:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    return queue


@contextmanager
def held(url: str, queue: str) -> Iterator[tuple[pika.BlockingConnection, Any, int]]:
    """The queue's message, unacknowledged: connection, channel, delivery tag."""
    link = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = link.channel()
        yield link, channel, eventually(lambda: channel.basic_get(queue)[0]).delivery_tag
    finally:
        if link.is_open:
            link.close()


def give_back(url: str, queue: str, how: str) -> None:
    """Take the queue's message and let it return."""
    with held(url, queue) as (link, channel, tag):
        match how:
            case "basic.nack":
                channel.basic_nack(tag, requeue=True)
            case "basic.reject":
                channel.basic_reject(tag, requeue=True)
            case "basic.recover":
                channel.basic_recover(requeue=True)
            case "channel closed":
                channel.close()
            case "connection lost":
                link._impl._transport._sock.shutdown(socket.SHUT_RDWR)
                with pytest.raises(AMQPConnectionError):
                    link.process_data_events(10)


def give_back_often(url: str, queue: str, method: str, times: int) -> int:
    """Return the queue's message so often, by one client; how often it could be had."""
    with amqp.connection(url) as link:
        channel = link.channel()
        for time in range(times):
            try:
                tag = eventually(lambda: channel.basic_get(queue)[0], timeout=2).delivery_tag
            except AssertionError:
                return time
            getattr(channel, method)(tag, requeue=True)
    return times


def delivery_count(properties: pika.BasicProperties) -> int:
    return int((properties.headers or {}).get("x-delivery-count", 0))


# ----------------------------------------------------------------------------------------------- delivery counts


@pytest.mark.parametrize("how", ["basic.nack", "basic.reject", "basic.recover", "channel closed", "connection lost"])
def test_up_to_4_2_any_return_raises_the_delivery_count_and_from_4_3_on_a_nack_does_not(
    node: PrivateNode, quorum_queue: str, how: str
) -> None:
    """https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling"""
    is_free = release(node.version) >= (4, 3) and how in ("basic.nack", "basic.recover")
    amqp.publish(node.url, quorum_queue, ["x"])
    give_back(node.url, quorum_queue, how)
    eventually(lambda: amqp.depth(node.url, quorum_queue) == 1)
    [(method, properties, _)] = amqp.drain(node.url, quorum_queue)
    assert method.redelivered
    assert delivery_count(properties) == (0 if is_free else 1)


@pytest.mark.rabbitmq(below="4.0")
def test_what_a_stopped_worker_hands_back_untouched_counts_once(
    node: PrivateNode, quorum_queue: str, runs: Runs
) -> None:
    """From 4.0 on a worker of a quorum queue has nothing beside the message that it runs."""
    amqp.publish(node.url, quorum_queue, ["1.5", *["0"] * 4], ids=["long", *"abcd"])
    options = ("--workers", "1", "--prefetch", "5")
    with supervised("handlers:work", *options, url=node.url, queue=quorum_queue, env=runs.env) as pool:
        runs.hear("began")
        eventually(lambda: amqp.depth(node.url, quorum_queue) == 0)
        assert pool.stop() == 0
    assert runs.lines("began") == runs.lines("done") == ["long"]
    eventually(lambda: amqp.depth(node.url, quorum_queue) == 4)
    back = {properties.message_id: properties for _, properties, _ in amqp.drain(node.url, quorum_queue)}
    assert {name: delivery_count(properties) for name, properties in back.items()} == dict.fromkeys("abcd", 1)


@pytest.mark.rabbitmq(at_least="4.3")
def test_a_message_that_was_handed_back_thirty_times_is_still_run(
    node: PrivateNode, quorum_queue: str, runs: Runs
) -> None:
    amqp.publish(node.url, quorum_queue, ["0"], ids=["innocent"])
    assert give_back_often(node.url, quorum_queue, "basic_nack", 30) == 30
    with supervised("handlers:work", "--workers", "1", url=node.url, queue=quorum_queue, env=runs.env) as pool:
        pool.hear("task.succeeded", message_id="innocent")
        assert pool.stop() == 0
    assert runs.lines("began") == ["innocent"]


# ----------------------------------------------------------------------------------------- the default delivery limit


@pytest.mark.rabbitmq(below="4.0")
def test_before_4_0_a_quorum_queue_has_no_delivery_limit(node: PrivateNode, quorum_queue: str) -> None:
    amqp.publish(node.url, quorum_queue, ["x"])
    assert give_back_often(node.url, quorum_queue, "basic_reject", 2 * LIMIT) == 2 * LIMIT
    eventually(lambda: amqp.depth(node.url, quorum_queue) == 1)


@pytest.mark.rabbitmq(at_least="4.0")
def test_from_4_0_on_a_quorum_queue_drops_a_message_at_its_twentieth_return(
    node: PrivateNode, quorum_queue: str
) -> None:
    """What the next tests are about: nobody is told, and nothing is left."""
    amqp.publish(node.url, quorum_queue, ["x"])
    assert give_back_often(node.url, quorum_queue, "basic_reject", 2 * LIMIT) == LIMIT + 1
    assert amqp.depth(node.url, quorum_queue) == 0


@pytest.mark.rabbitmq(at_least="4.0")
def test_a_message_that_kills_every_worker_is_quarantined_before_the_broker_would_drop_it(
    node: PrivateNode, quorum_queue: str, runs: Runs
) -> None:
    """However patient --max-crashes is. (test_returns has what is not known to kill.)"""
    amqp.publish(node.url, quorum_queue, [json.dumps({"kill": "SIGKILL"}), "{}"], ids=["killer", "good"])
    options = ("--workers", "3", "--max-crashes", "1000")
    with supervised("handlers:act", *options, url=node.url, queue=quorum_queue, env=runs.env) as pool:
        pool.hear("task.quarantined", message_id="killer", timeout=60)
        pool.hear("task.succeeded", message_id="good")
        assert pool.status()["totals"]["quarantined"] == 1
        assert pool.stop() == 0
    deaths = runs.lines("began").count("killer")
    assert deaths < LIMIT
    assert len(pool.named("worker.exited", cause="SIGKILL", message_id="killer")) == deaths
    [(_, properties, body)] = amqp.drain(node.url, f"{quorum_queue}.dead")
    headers = properties.headers or {}
    assert (properties.message_id, json.loads(body)) == ("killer", {"kill": "SIGKILL"})
    assert (headers["x-workq-reason"], headers["x-workq-crashes"]) == ("crash", deaths)
    assert headers["x-workq-cause"] == f"returned {deaths} times"
    assert amqp.depth(node.url, quorum_queue) == 0


# ----------------------------------------------------------------------- the acknowledgement timeout, from 4.3 on
# How it was before is in test_long_tasks.

IMPATIENT = """
import os, time
from handlers import note
from supervisor.policy import advice
advice.NO_LIMIT = 2000  # milliseconds, of ten years
def work(task):
    note("began", task.message_id)
    if task.redelivered:
        note("done", task.message_id)
        return
    while not task.lost:
        time.sleep(0.02)
    note("lost", task.message_id)
    while not os.path.exists(os.environ["TEST_RUNS"] + ".go"):
        time.sleep(0.02)
"""
"""The first run goes on after it is told that its result is lost, until the test lets it go. Workers ask the broker for
two seconds."""


@pytest.mark.rabbitmq(at_least="4.3")
@pytest.mark.parametrize("workers", [1, 2])
def test_f39_a_consumer_cancelled_for_its_late_acknowledgement_is_named_and_replaced_and_its_message_run_again(
    node: PrivateNode, quorum_queue: str, tmp_path: Path, runs: Runs, workers: int
) -> None:
    handler_modules.write(tmp_path, "impatient", IMPATIENT)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", str(workers))
    with supervised("impatient:work", *options, url=node.url, queue=quorum_queue, env=env) as pool:
        pool.ready()
        amqp.publish(node.url, quorum_queue, ["x"], ids=["long"])
        runs.hear("lost")
        # The broker takes the message back with the cancel. A second worker has it at once and waits for the first run.
        runs.path.with_name("runs.go").touch()
        unsettled = pool.hear("task.unsettled", message_id="long")
        left = pool.hear("worker.exited", cause="broker")
        for line in (unsettled, left):
            assert "the broker cancelled the consumer" in line["because"]
            assert "held for longer than 2 s (x-consumer-timeout)" in line["because"]
        pool.hear("worker.ready", count=workers + 1)
        pool.hear("task.succeeded", message_id="long")
        eventually(lambda: amqp.consumers(node.url, quorum_queue) == workers)
        totals = pool.status()["totals"]
        assert (totals["unsettled"], totals["succeeded"], totals["redelivered"]) == (1, 1, 1)
        assert pool.stop() == 0
        assert len(pool.named("worker.exited", cause="broker")) == 1
    assert runs.lines("began") == ["long"] * 2
    assert runs.lines("lost") == runs.lines("done") == ["long"]
    assert amqp.depth(node.url, quorum_queue) == 0
    eventually(lambda: amqp.unacked(node, quorum_queue) == 0)


@pytest.mark.rabbitmq(at_least="4.3")
def test_f19_a_task_outlasts_the_timeout_of_the_queue_because_the_worker_asks_for_another(
    node: PrivateNode, quorum_queue: str, runs: Runs
) -> None:
    policy = ("set_policy", "--apply-to", "queues", quorum_queue, f"^{quorum_queue}$", '{"consumer-timeout":1000}')
    node.ctl(*policy)
    try:
        amqp.publish(node.url, quorum_queue, ["4"], ids=["long"])
        with amqp.connection(node.url) as link:  # anybody else is cancelled
            cancels: list[Any] = []
            channel = link.channel()
            channel.add_on_cancel_callback(cancels.append)
            channel.basic_consume(quorum_queue, lambda *_: None)
            eventually(lambda: link.process_data_events(0.1) or cancels)
        with supervised("handlers:work", "--workers", "1", url=node.url, queue=quorum_queue, env=runs.env) as pool:
            pool.hear("task.succeeded", message_id="long")
            assert pool.stop() == 0
            assert not pool.named("worker.exited", cause="broker")
        assert runs.lines("began") == ["long"]
    finally:
        node.ctl("clear_policy", quorum_queue)
