"""What a message says of itself is not believed: the broker's record of an earlier dead-lettering, and headers with our
names that a sender wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pika
import pytest

from tests import amqp, handler_modules, workq
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

FAILS_ONCE = """
from handlers import note
def work(task):
    note(f"try-{task.attempt}", task.message_id)
    if task.attempt == 1:
        raise ConnectionError("the first try")
    note("done", task.message_id)

def never(task):
    note(f"try-{task.attempt}", task.message_id)
    raise ValueError("no")
"""

RECORD = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "flaky", FAILS_ONCE)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


def headers_of(url: str, queue: str) -> list[dict[str, Any]]:
    """The headers of all messages in a queue, which is empty afterwards."""
    return [dict(properties.headers or {}) for _, properties, _ in amqp.drain(url, queue)]


def let_the_broker_dead_letter(url: str, queue: str, names: list[str], **properties: Any) -> None:
    """By a queue that dead-letters by itself, as the policy does that `workq check` advises: they expire. (Rejected
    ones would not do: RabbitMQ takes a rejection for somebody's decision, and no cycle.)"""
    with amqp.connection(url) as link:
        channel = link.channel()
        channel.queue_declare(f"{queue}.dead", durable=True)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.dead"}
        channel.queue_declare(queue, durable=True, arguments=back)
    amqp.publish(url, queue, ["0"] * len(names), ids=names, expiration="1", **properties)
    eventually(lambda: amqp.depth(url, f"{queue}.dead") == len(names))


def test_f117_a_dead_letter_of_the_brokers_that_is_requeued_and_raises_comes_back_from_its_delay(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    let_the_broker_dead_letter(broker_url, queue, ["a", "b"])
    [row, _] = workq.dead_letters(broker_url, queue)
    assert row["reason"] == "expired", "the broker's own word"
    workq.run("dead", "requeue", "--all", "--yes", url=broker_url, queue=queue)
    options = ("--workers", "1", "--retry-delay", "100ms")
    with supervised("flaky:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.succeeded", count=2, attempt=2)
        assert pool.stop() == 0
    assert sorted(runs.lines("done")) == ["a", "b"]


@pytest.mark.parametrize("handler", ["work", "never"])
def test_f117_a_message_with_a_record_of_dead_lettering_survives_our_delays_and_keeps_it_as_evidence(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, handler: str
) -> None:
    """As a sender's own topology of retries leaves it: dead-lettered from our queue once, and published to it again."""
    let_the_broker_dead_letter(broker_url, queue, ["m"])
    [(_, properties, body)] = amqp.drain(broker_url, f"{queue}.dead")
    amqp.publish(broker_url, queue, [body], ids=["m"], headers=properties.headers)
    options = ("--workers", "1", "--retry-delay", "100ms", "--retries", "2")
    with supervised(f"flaky:{handler}", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.succeeded" if handler == "work" else "task.dead_lettered", message_id="m")
        assert pool.stop() == 0
    if handler == "never":
        [headers] = headers_of(broker_url, f"{queue}.dead")
        assert not [name for name in headers if name.startswith(RECORD)]
        [death] = headers["x-workq-was-x-death"]
        assert (death["queue"], death["reason"]) == (queue, "expired")
        assert [runs.lines(f"try-{n}") for n in (1, 2, 3)] == [["m"]] * 3


FORGED = {
    "x-workq-user-id": "guest",
    "x-workq-expiration": "1",
    "x-workq-queue": "elsewhere",
    "x-workq-crashes": 99,
    "x-workq-cause": "SIGSEGV",
    "x-workq-first-seen": "1999-01-01T00:00:00Z",
    "x-workq-evidence": "forged",
    "x-workq-properties": b"\x00\x00",
    "x-workq-anything": "else",
}
"""What a sender has no business to say."""


def test_f99_a_senders_headers_with_our_names_are_evidence_and_no_more(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, ["0"], ids=["m"], headers=FORGED | {"tenant": "blue"})
    options = ("--workers", "1", "--retry-delay", "100ms", "--retries", "2")
    with supervised("flaky:never", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", message_id="m", attempt=3)
        assert pool.stop() == 0
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare("elsewhere", durable=True)
    [row] = workq.dead_letters(broker_url, queue)
    assert (row["queue"], row["crashes"], row["cause"]) == (queue, 0, "")
    assert row["first_seen"] > "2001"
    workq.run("dead", "requeue", "--all", "--yes", url=broker_url, queue=queue)
    [(_, properties, _)] = amqp.drain(broker_url, queue)
    headers = dict(properties.headers or {})
    assert (properties.user_id, properties.expiration) == (None, None)
    assert headers.pop("tenant") == "blue"
    assert headers == {f"x-workq-was-{name}": value for name, value in FORGED.items()}
    assert amqp.depth(broker_url, "elsewhere") == 0


def test_f99_nor_where_the_broker_dead_lettered_the_message_itself(broker_url: str, queue: str) -> None:
    let_the_broker_dead_letter(broker_url, queue, ["m"], headers=FORGED)
    [row] = workq.dead_letters(broker_url, queue)
    assert (row["queue"], row["crashes"], row["cause"], row["reason"]) == (queue, 0, "", "expired")
    workq.run("dead", "requeue", "m", url=broker_url, queue=queue)
    [(_, properties, _)] = amqp.drain(broker_url, queue)
    assert (properties.user_id, properties.expiration) == (None, None)
    assert not [name for name in properties.headers or {} if name in FORGED]


@pytest.mark.parametrize(
    ("said", "tries"), [(2**31 - 1, ["3"]), (-7, ["1", "2", "3"]), ("x", ["1", "2", "3"]), (2, ["2", "3"])]
)
def test_f99_a_sender_can_give_up_tries_of_its_own_and_gain_none(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, said: object, tries: list[str]
) -> None:
    amqp.publish(broker_url, queue, ["0"], ids=["m"], headers={"x-workq-attempt": said})
    options = ("--workers", "1", "--retry-delay", "100ms", "--retries", "2")
    with supervised("flaky:never", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", message_id="m", attempt=3)
        assert pool.stop() == 0
    noted = [line.split()[0].removeprefix("try-") for line in runs.path.read_text().splitlines()]
    assert noted == tries


def test_f99_what_is_put_into_a_delay_queue_with_another_login_is_not_taken_for_ours(
    node: PrivateNode, broker_url: str, queue: str, env: dict[str, str]
) -> None:
    """With the same headers as a retry of ours, and the broker's own record of the delay."""
    user = amqp.binary(f"mallory-{queue}")
    node.eval(f'rabbit_auth_backend_internal:add_user({user}, <<"pw">>, <<"test">>)')
    try:
        every = ", ".join(['<<".*">>'] * 3)
        node.eval(f'rabbit_auth_backend_internal:set_permissions({user}, <<"/">>, {every}, <<"test">>)')
        url = broker_url.replace("guest:guest", f"mallory-{queue}:pw")
        options = ("--workers", "1", "--retry-delay", "100ms", "--retries", "1")
        with supervised("flaky:never", *options, url=broker_url, queue=queue, env=env) as pool:
            pool.ready()
            forged = FORGED | {"x-workq-attempt": 2}
            amqp.publish(url, f"{queue}.delay.100", ["0"], ids=["m"], headers=forged)
            pool.hear("task.dead_lettered", message_id="m", attempt=2)
            assert pool.stop() == 0
    finally:
        node.eval(f'rabbit_auth_backend_internal:delete_user({user}, <<"test">>)')
    [headers] = headers_of(broker_url, f"{queue}.dead")
    assert {name: headers.get(f"x-workq-was-{name}") for name in FORGED} == FORGED
    assert not {"x-workq-user-id", "x-workq-expiration", "x-workq-crashes", "x-workq-anything"} & headers.keys()


def test_f99_our_own_retries_keep_what_the_sender_set_as_properties(
    broker_url: str, queue: str, env: dict[str, str]
) -> None:
    sent = pika.BasicProperties(message_id="m", expiration="3600000", user_id="guest", delivery_mode=2)
    with amqp.connection(broker_url) as link:
        channel = link.channel()
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, b"0", sent)
    options = ("--workers", "1", "--retry-delay", "100ms", "--retries", "2")
    with supervised("flaky:never", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", message_id="m", attempt=3)
        assert pool.stop() == 0
    workq.run("dead", "requeue", "m", url=broker_url, queue=queue)
    [(_, properties, _)] = amqp.drain(broker_url, queue)
    assert (properties.expiration, properties.user_id, properties.headers) == ("3600000", "guest", None)


def test_f99_requeue_goes_elsewhere_only_when_told_to(broker_url: str, queue: str) -> None:
    other = f"{queue}.dead.other"
    with amqp.connection(broker_url) as link:
        for name in (queue, f"{queue}.dead", other):
            link.channel().queue_declare(name, durable=True)
    amqp.publish(broker_url, f"{queue}.dead", ["0", "0"], ids=["a", "b"], headers={"x-workq-queue": other})
    workq.run("dead", "requeue", "a", url=broker_url, queue=queue)
    assert (amqp.depth(broker_url, queue), amqp.depth(broker_url, other)) == (1, 0)
    workq.run("dead", "requeue", "b", "--to", other, url=broker_url, queue=queue)
    assert (amqp.depth(broker_url, queue), amqp.depth(broker_url, other)) == (1, 1)
    assert json.loads(workq.run("dead", "list", "--json", url=broker_url, queue=queue)[0] or "null") is None
