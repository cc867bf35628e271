"""Messages that come later, and messages that come first: `Publisher.publish(delay=, priority=)`, `workq publish`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor import Publisher, queues
from supervisor.amqp.properties import BasicProperties
from tests import amqp, workq
from tests.supervision import Runs, eventually, supervised


def get(url: str, queue: str) -> tuple[dict[str, object], object, bytes]:
    """Headers, properties and body of the next message, which is consumed."""
    with amqp.connection(url) as link:
        channel = link.channel()
        got: list[tuple[object, ...]] = []

        def has_come() -> bool:
            got.append(channel.basic_get(queue, auto_ack=True))
            return got[-1][0] is not None

        eventually(has_come)
        _, properties, body = got[-1]
        return dict(properties.headers or {}), properties, body  # type: ignore[attr-defined, return-value]


def test_a_delayed_message_waits_in_its_step_and_comes_to_the_queue_as_it_was(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        name = publisher.publish("later", delay=4, headers={"tenant": "a"}, message_id="one")
        assert name == "one"
        assert amqp.depth(broker_url, queue) == 0
        assert amqp.depth(broker_url, queues.delay(queue, 5000)) == 1
        publisher.publish("now")
        assert get(broker_url, queue)[2] == b"now"
        headers, properties, body = get(broker_url, queue)
    assert body == b"later" and headers["tenant"] == "a"
    assert properties.message_id == "one" and properties.delivery_mode == 2  # type: ignore[attr-defined]


def test_many_delays_in_one_call_each_find_their_queue(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        delays = [0.1, 3600.0, 0.1, 86400.0, 0.2]
        assert publisher.publish_many((str(delay), {"delay": delay}) for delay in delays) == 5
        assert {get(broker_url, queue)[2] for _ in range(3)} == {b"0.1", b"0.2"}
    for ms in (3_600_000, 86_400_000):
        assert amqp.depth(broker_url, queues.delay(queue, ms)) == 1


def test_a_delayed_task_is_run_and_has_all_its_tries(broker_url: str, queue: str, runs: Runs) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        with Publisher(broker_url, queue) as publisher:
            publisher.publish("0", delay=0.1, message_id="one")
        done = pool.hear("task.succeeded", message_id="one")
        assert done["attempt"] == 1
        assert pool.status()["totals"]["redelivered"] == 0
        assert pool.stop() == 0


def test_its_own_expiration_is_kept_as_a_header(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        given = BasicProperties(expiration="60000", message_id="one")  # type: ignore[no-untyped-call]
        publisher.publish("x", properties=given, delay=0.1)
        assert given.expiration == "60000" and given.headers is None, "the caller's own was changed"
        headers, properties, _ = get(broker_url, queue)
    assert headers[queues.EXPIRATION] == "60000"
    assert properties.expiration is None  # type: ignore[attr-defined]


def test_a_priority_comes_first(broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-max-priority": 9})
    with Publisher(broker_url, queue) as publisher:
        publisher.publish_many([("low", {"priority": 1}), "none", ("high", {"priority": 9})])
        assert [get(broker_url, queue)[2] for _ in range(3)] == [b"high", b"low", b"none"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"delay": -1.0}, "from 0 to 86400"),
        ({"delay": 86401.0}, "from 0 to 86400"),
        ({"delay": float("nan")}, "from 0 to 86400"),
        ({"delay": 1.0, "exchange": "amq.topic"}, "give no exchange and no routing_key"),
        ({"delay": 1.0, "routing_key": "other"}, "give no exchange and no routing_key"),
        ({"priority": 256}, "from 0 to 255"),
        ({"priority": -1}, "from 0 to 255"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    broker_url: str, queue: str, options: dict[str, object], why: str
) -> None:
    with Publisher(broker_url, queue) as publisher:
        with pytest.raises(ValueError, match=why):
            publisher.publish("x", **options)  # type: ignore[arg-type]
        publisher.publish("good")
        assert amqp.depth(broker_url, queue) == 1


def test_a_delay_queue_that_somebody_deletes_is_made_again(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        publisher.publish("x", delay=3600)
        publisher.close()
        with amqp.connection(broker_url) as link:
            link.channel().queue_delete(queues.delay(queue, 3_600_000))
        publisher.publish("y", delay=3600)
        assert amqp.depth(broker_url, queues.delay(queue, 3_600_000)) == 1


def test_workq_publishes_later_first_and_whole_files(broker_url: str, queue: str, tmp_path: Path) -> None:
    body = bytes(range(256)) * 100
    (tmp_path / "body").write_bytes(body)
    out, _ = workq.run("publish", "--file", str(tmp_path / "body"), "--id", "one", url=broker_url, queue=queue)
    assert out.startswith("published 1, confirmed 1")
    _, properties, got = get(broker_url, queue)
    assert got == body and properties.message_id == "one"  # type: ignore[attr-defined]
    out, _ = workq.run("publish", "--delay", "30m", "--priority", "7", "a", "b", url=broker_url, queue=queue)
    assert out.startswith("published 2, confirmed 2")
    _, properties, _ = get(broker_url, queues.delay(queue, 1_800_000))
    assert properties.priority == 7  # type: ignore[attr-defined]
    for words, why in [
        (("--delay", "25h", "x"), "24h at most"),
        (("--delay", "soon", "x"), "--delay: expected"),
        ((), "Missing argument: BODY..."),
        (("--file", os.devnull, "x"), "give no other BODY"),
    ]:
        _, err = workq.run("publish", *words, url=broker_url, queue=queue, code=2)
        assert why in err
