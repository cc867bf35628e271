"""Messages that come back and are not to blame: RabbitMQ 4 drops what a quorum queue has had back 20 times."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pika
import pytest

from tests import amqp, handler_modules
from tests.conftest import release
from tests.node import PrivateNode
from tests.supervision import Runs, Supervision, eventually, supervised

UNTIL_LOST = """
import os, time
from handlers import note

def work(task):
    note("began", task.message_id)
    while not task.lost and not os.path.exists(os.environ["TEST_RUNS"] + ".go"):
        time.sleep(0.01)
    if not task.lost:
        note("done", task.message_id)
"""
NEAR: int = 10
"""Returns at which a worker looks twice."""
CLOSE_ALL = '[rabbit_networking:close_connection(P, <<"test">>) || P <- rabbit_networking:connections()].'


@pytest.fixture
def quorum_queue(broker_url: str, queue: str) -> str:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    return queue


def have_returned(url: str, queue: str, times: int, messages: int = 1) -> None:
    """Have the broker count so many returns of each message in the queue."""
    with amqp.connection(url) as link:
        channel = link.channel()
        for _ in range(times):
            tags = [eventually(lambda: channel.basic_get(queue)[0]).delivery_tag for _ in range(messages)]
            for tag in tags:
                channel.basic_reject(tag, requeue=True)


def account(url: str, queue: str) -> Counter[str]:
    """What lies in the queue and among its dead letters, by id."""
    taken = [*amqp.drain(url, queue), *amqp.drain(url, f"{queue}.dead")]
    return Counter(str(properties.message_id) for _, properties, _ in taken)


def settled(pool: Supervision, succeeded: int, quarantined: int = 0) -> bool:
    totals = pool.status()["totals"]
    return bool(totals["succeeded"] >= succeeded and totals["quarantined"] >= quarantined)


@pytest.mark.rabbitmq(below="4.0")
def test_f111_where_the_broker_drops_nothing_a_message_that_came_back_fifty_times_is_run(
    broker_url: str, quorum_queue: str, runs: Runs
) -> None:
    amqp.publish(broker_url, quorum_queue, ["0"], ids=["much-travelled"])
    have_returned(broker_url, quorum_queue, 50)
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=quorum_queue, env=runs.env) as pool:
        pool.hear("task.succeeded", message_id="much-travelled")
        assert not pool.named("task.put_back")
        assert pool.stop() == 0
    assert account(broker_url, quorum_queue) == {}


@pytest.mark.rabbitmq(at_least="4.0")
def test_f111_what_the_broker_would_soon_drop_is_put_back_as_it_came_and_run(
    broker_url: str, quorum_queue: str, runs: Runs
) -> None:
    sent = {"colour": "blau", "x-workq-attempt": 2}
    with amqp.connection(broker_url) as link:
        properties = pika.BasicProperties(
            message_id="much-travelled",
            headers=sent,
            delivery_mode=2,
            priority=1,
            correlation_id="c",
            content_type="t/x",
        )
        link.channel().basic_publish("", quorum_queue, b"0", properties)
    have_returned(broker_url, quorum_queue, NEAR)
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=quorum_queue, env=runs.env) as pool:
        put_back = pool.hear("task.put_back", message_id="much-travelled")
        assert "returned 10 times" in put_back["because"]
        pool.hear("task.succeeded", message_id="much-travelled", attempt=2)
        assert pool.status()["totals"]["quarantined"] == 0
        assert pool.stop() == 0
    assert runs.lines("done") == ["much-travelled"]
    assert account(broker_url, quorum_queue) == {}


@pytest.mark.rabbitmq(at_least="4.0")
def test_f111_the_copy_is_the_message_uncounted(broker_url: str, quorum_queue: str, runs: Runs) -> None:
    sent = {"colour": "blau", "x-workq-attempt": 2}
    with amqp.connection(broker_url) as link:
        properties = pika.BasicProperties(
            message_id="one",
            headers=sent,
            delivery_mode=2,
            correlation_id="c",
            content_type="t/x",
            expiration="3600000",
        )
        link.channel().basic_publish("", quorum_queue, b"9", properties)
    amqp.publish(broker_url, quorum_queue, ["20"], ids=["holds the worker"])
    have_returned(broker_url, quorum_queue, NEAR, messages=2)
    env = runs.env
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=quorum_queue, env=env) as pool:
        pool.hear("task.put_back", message_id="one")
        runs.hear("began")  # both are at the end of the queue now, and the first of them is run
        pool.end()
    [(_, copy, body)] = [
        taken for taken in eventually(lambda: _both(broker_url, quorum_queue)) if taken[1].message_id == "one"
    ]
    headers = copy.headers or {}
    assert {name: headers[name] for name in sent} == sent
    assert headers["x-workq-put-back"] == 1
    assert headers.get("x-delivery-count", 0) <= 1
    assert (body, copy.correlation_id, copy.content_type, copy.delivery_mode) == (b"9", "c", "t/x", 2)
    assert copy.expiration == "3600000"


def _both(url: str, queue: str) -> Sequence[amqp.Taken] | None:
    return amqp.drain(url, queue) if amqp.depth(url, queue) == 2 else None


@pytest.mark.rabbitmq(at_least="4.0")
@pytest.mark.timeout(120)
def test_f111_a_long_task_whose_connections_are_closed_one_by_one_is_never_quarantined(
    node: PrivateNode, quorum_queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "until_lost", UNTIL_LOST)
    amqp.publish(node.url, quorum_queue, ["x"], ids=["innocent"])
    have_returned(node.url, quorum_queue, NEAR - 2)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("until_lost:work", "--workers", "2", url=node.url, queue=quorum_queue, env=env) as pool:
        for cuts in range(1, 5):
            runs.hear("began", cuts)
            node.eval(CLOSE_ALL)
        runs.hear("began", 5)
        runs.path.with_name("runs.go").touch()
        pool.hear("task.succeeded", message_id="innocent")
        assert pool.named("task.put_back", message_id="innocent")
        assert not pool.named("task.quarantined")
        assert pool.stop() == 0
    assert account(node.url, quorum_queue) == {}


@pytest.mark.timeout(120)
def test_f115_killers_among_what_is_prefetched_cost_no_innocent_its_life(
    broker_url: str, typed_queue: str, node: PrivateNode, runs: Runs
) -> None:
    killers = [f"killer-{n}" for n in range(15)]
    good = [f"good-{n}" for n in range(60)]
    names = [name for n, name in enumerate(good) for name in (name, *killers[n // 4 : n // 4 + (n % 4 == 0)])]
    bodies = [json.dumps({"kill": "SIGKILL"} if name in killers else {}) for name in names]
    amqp.publish(broker_url, typed_queue, bodies, ids=names)
    options = ("--workers", "3", "--prefetch", "50")
    with supervised("handlers:act", *options, url=broker_url, queue=typed_queue, env=runs.env) as pool:
        eventually(lambda: settled(pool, len(good), len(killers)), timeout=90)
        assert pool.stop() == 0
        named = pool.named("queue.prefetch_reduced")
    is_limited = release(node.version) >= (4, 0) and "quorum" in _type(node, typed_queue)
    assert len(named) == is_limited
    began = Counter(runs.lines("began"))
    assert all(began[name] <= 3 for name in killers)
    assert account(broker_url, typed_queue) == dict.fromkeys(killers, 1)


@pytest.mark.rabbitmq(at_least="4.0")
@pytest.mark.timeout(120)
def test_f115_workers_that_leave_as_planned_return_nothing_that_the_broker_would_drop(
    broker_url: str, quorum_queue: str, runs: Runs
) -> None:
    names = [f"t{n}" for n in range(200)]
    amqp.publish(broker_url, quorum_queue, ["0"] * len(names), ids=names)
    options = ("--workers", "2", "--prefetch", "100", "--max-tasks", "4")
    with supervised("handlers:work", *options, url=broker_url, queue=quorum_queue, env=runs.env) as pool:
        eventually(lambda: settled(pool, len(names)), timeout=90)
        [told] = pool.named("queue.prefetch_reduced")
        assert told["prefetch"] == 1 and "--prefetch 100 is reduced to 1" in told["because"]
        assert not pool.named("task.put_back")
        assert pool.stop() == 0
    assert Counter(runs.lines("done")) == dict.fromkeys(names, 1)


@pytest.mark.rabbitmq(below="4.0")
def test_f115_where_the_broker_drops_nothing_prefetch_holds_and_a_planned_leave_hands_back_what_it_did_not_run(
    node: PrivateNode, quorum_queue: str, runs: Runs
) -> None:
    names = [f"t{n}" for n in range(60)]
    amqp.publish(node.url, quorum_queue, ["0"] * len(names), ids=names)
    options = ("--workers", "1", "--prefetch", "30", "--max-tasks", "2")
    with supervised("handlers:work", *options, url=node.url, queue=quorum_queue, env=runs.env) as pool:
        eventually(lambda: settled(pool, len(names)))
        assert not pool.named("queue.prefetch_reduced")
        assert pool.stop() == 0
    assert Counter(runs.lines("done")) == dict.fromkeys(names, 1)


def _type(node: PrivateNode, queue: str) -> str:
    return node.eval(
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, {amqp.binary(queue)})), amqqueue:get_type(Q)'
    )
