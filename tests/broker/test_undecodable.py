"""Messages that are odd: those that no client can decode, and those that are merely unusual."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests import amqp, handler_modules, wire
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

PERSISTENT = b"\x02"
TIMESTAMP = (b"T", struct.pack(">Q", 2**62))
"""The year 146 billion; datetime ends with 9999."""
NESTED = wire.nested(3000)


def declare(url: str, queue: str, kind: str = "classic") -> None:
    with amqp.connection(url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": kind})


# -------------------------------------------------------------------------------------------- F27: undecodable


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_f27_undecodable_messages_are_dead_lettered_with_their_bytes_and_disturb_nobody(
    broker_url: str, queue: str, runs: Runs, node: PrivateNode, kind: str
) -> None:
    declare(broker_url, queue, kind)
    tenant = {b"tenant": (b"S", wire.long(b"blue")), b"share": (b"d", struct.pack(">d", 1.5))}
    stamped = wire.properties(
        content_type=wire.short(b"image/jpeg"),
        headers=wire.table({b"bad": TIMESTAMP, **tenant}),
        delivery_mode=PERSISTENT,
        message_id=wire.short(b"stamped"),
        timestamp=struct.pack(">Q", 7),
    )
    nested = wire.properties(headers=wire.table({b"bad": NESTED}), delivery_mode=PERSISTENT)
    amqp.publish(broker_url, queue, ["0"] * 2, ids=["before-1", "before-2"])
    wire.publish(broker_url, queue, stamped, b"a picture")
    wire.publish(broker_url, queue, nested, b"another")
    amqp.publish(broker_url, queue, ["0"] * 4, ids=[f"after-{n}" for n in range(4)])
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=6)
        pool.hear("task.dead_lettered", count=2)
        assert "cannot be decoded" in pool.hear("task.dead_lettered", message_id="stamped")["because"]
        assert not pool.named("worker.exited")
        assert not pool.named("broker.lost")
        assert len(pool.named("worker.ready")) == 2
        assert pool.status()["totals"]["dead_lettered"] == 2
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == ["after-0", "after-1", "after-2", "after-3", "before-1", "before-2"]
    assert amqp.depth(broker_url, queue) == 0
    eventually(lambda: amqp.unacked(node, queue) == 0)  # a quorum queue counts every few seconds
    # By an ordinary client: what we publish can be read.
    dead = {body: properties for _, properties, body in amqp.drain(broker_url, f"{queue}.dead")}
    assert set(dead) == {b"a picture", b"another"}
    known = dead[b"a picture"]
    assert (known.message_id, known.content_type, known.timestamp) == ("stamped", "image/jpeg", 7)
    headers = known.headers or {}
    assert headers["tenant"] == "blue"
    assert "bad" not in headers
    assert headers["x-workq-reason"] == "undecodable"
    assert headers["x-workq-error"].startswith("OSError: ")
    assert evidence(headers["x-workq-properties"])[b"bad"] == TIMESTAMP
    headers = dead[b"another"].headers or {}
    assert "RecursionError" in headers["x-workq-error"]
    assert evidence(headers["x-workq-properties"])[b"bad"] == NESTED


def evidence(raw: bytes) -> dict[bytes, wire.Value]:
    return wire.fields(wire.split(raw)["headers"])


def test_f27_undecodable_properties_that_fill_a_frame_are_dead_lettered_too(broker_url: str, queue: str) -> None:
    declare(broker_url, queue)
    # In the order of their names, as RabbitMQ 4 delivers headers.
    small = {f"n{n:04}".encode(): (b"b", b"\x01") for n in range(9000)}
    large = wire.table({b"bad": TIMESTAMP, **small, b"obese": (b"x", wire.long(b"z" * 50_000))})
    wire.publish(broker_url, queue, wire.properties(headers=large, delivery_mode=PERSISTENT))
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.hear("task.dead_lettered")
        assert pool.stop() == 0
    [(_, properties, body)] = amqp.drain(broker_url, f"{queue}.dead")
    headers = properties.headers or {}
    assert body == b"0"
    assert headers["x-workq-properties"] == wire.properties(headers=large, delivery_mode=PERSISTENT)[: 96 * 1024]
    assert headers["x-workq-dropped"].startswith("obese (50")


def test_f27_a_message_that_comes_back_undecodable_is_still_only_dead_lettered(
    broker_url: str, queue: str, runs: Runs
) -> None:
    declare(broker_url, queue)
    wire.publish(broker_url, queue, wire.properties(headers=wire.table({b"bad": TIMESTAMP})), b"picture")
    redeliver(broker_url, queue)
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        died = pool.hear("task.dead_lettered")
        assert died["message_id"].startswith("digest:")
        assert pool.status()["totals"]["redelivered"] == 1
        assert pool.stop() == 0
    assert not runs.lines("began")


def redeliver(url: str, queue: str) -> None:
    """Have the head of the queue marked redelivered, by a client that dies of it."""
    with pytest.raises(Exception), amqp.connection(url) as link:  # noqa: B017 - pika raises this and that
        link.channel().basic_get(queue)


# ------------------------------------------------------------------------------------------------- F28: odd

ODD = """
from handlers import note
def work(task):
    note("began", ascii(task.message_id))
    note("headers", sorted(map(ascii, task.headers)))
    task.log.info("handler.saw", headers=task.headers, odd=repr(task), text=task.correlation_id, route=task.routing_key)
    if b"fail" in task.body:
        raise ValueError("as told")
"""

FIELDS: dict[bytes, wire.Value] = {
    b"bool": (b"t", b"\x01"),
    b"int8": (b"b", b"\xfb"),
    b"uint8": (b"B", b"\xfb"),
    b"int16": (b"s", b"\xff\xfb"),
    b"uint16": (b"u", b"\xff\xfb"),
    b"int32": (b"I", b"\xff\xff\xff\xfb"),
    b"uint32": (b"i", b"\xff\xff\xff\xfb"),
    b"int64": (b"l", struct.pack(">q", -5)),
    b"float": (b"f", struct.pack(">f", 1.5)),
    b"double": (b"d", struct.pack(">d", -0.1)),
    b"decimal": (b"D", b"\x03" + struct.pack(">i", 1200)),
    b"text": (b"S", wire.long("naïve \N{SNOWMAN}".encode())),
    b"not utf-8": (b"S", wire.long(b"\xff\xfe\x00")),
    b"binary": (b"x", wire.long(bytes(range(256)))),
    b"time": (b"T", struct.pack(">Q", 1_700_000_000)),
    b"nothing": (b"V", b""),
    b"array": (b"A", wire.long(b"t\x01" + b"f" + struct.pack(">f", 2.5) + b"S" + wire.long(b"\xff"))),
    b"table": (b"F", wire.table({b"\xc3": (b"d", struct.pack(">d", 3.5))})),
    b"\xff\xfe": (b"V", b""),
    b"": (b"I", struct.pack(">i", 7)),
    b"x-workq-attempt": (b"l", struct.pack(">q", 2**63 - 1)),
}
"""Every type of field that RabbitMQ lets in (3.10 closes the connection of whoever publishes another), and some names
and values to stumble over."""


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_f28_odd_but_legal_messages_run_are_retried_and_are_dead_lettered_byte_for_byte(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, kind: str
) -> None:
    handler_modules.write(tmp_path, "odd", ODD)
    declare(broker_url, queue, kind)
    sent = {
        "content_type": wire.short(b"\xff/\xfe"),
        "content_encoding": wire.short(b"br"),
        "headers": wire.table(FIELDS),
        "delivery_mode": PERSISTENT,
        "priority": b"\x07",
        "correlation_id": wire.short(b"\xc3("),
        "reply_to": wire.short(b"answers"),
        "message_id": wire.short(b"\xff\x00id"),
        "timestamp": struct.pack(">Q", 2**62),
        "type": wire.short(b"\x00"),
        "app_id": wire.short(b""),
        "cluster_id": wire.short(b"c"),
    }
    wire.publish(broker_url, queue, wire.properties(**sent), b"fail")
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "100ms")
    with supervised("odd:work", *options, url=broker_url, queue=queue, env=env) as pool:
        failed = pool.hear("task.dead_lettered")
        assert failed["message_id"].startswith("digest:")
        assert pool.hear("task.retried")["message_id"] == failed["message_id"]
        saw = pool.hear("handler.saw")
        assert saw["text"] == "\\xc3("
        assert pool.stop() == 0
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"]
    assert runs.lines("began") == [ascii("\\xff\x00id")] * 2
    [(properties, body)] = wire.drain(broker_url, f"{queue}.dead")
    assert body == b"fail"
    headers = wire.fields(properties.pop("headers"))
    assert properties == {name: value for name, value in sent.items() if name != "headers"}
    added = (b"x-workq-", b"x-death", b"x-first-death-", b"x-last-death-", b"x-delivery-count")
    theirs = {name: value for name, value in headers.items() if not name.startswith(added)}
    assert theirs == {name: value for name, value in FIELDS.items() if name != b"x-workq-attempt"}
    assert headers[b"x-workq-reason"] == (b"S", wire.long(b"exception"))
    assert headers[b"x-workq-attempt"] == (b"I", struct.pack(">i", 2))


def test_f28_messages_without_anything_run_and_have_an_identity(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "odd", ODD)
    declare(broker_url, queue)
    with amqp.connection(broker_url) as link:
        link.channel().queue_bind(queue, "amq.fanout")
    wire.publish(broker_url, queue, wire.properties(), b"")
    wire.publish(broker_url, queue, wire.properties(), b"")
    wire.publish(broker_url, queue, wire.properties(message_id=wire.short(b"")), b"\xff\xfe\x00")
    wire.publish(
        broker_url, queue, wire.properties(headers=wire.table({})), b"x", exchange="amq.fanout", routing_key=b"\xff"
    )
    wire.publish(broker_url, queue, wire.properties(message_id=wire.short(b"\xff\x01")), b"x")
    wire.publish(broker_url, queue, wire.properties(message_id=wire.short(b"\xff\x02")), b"x")
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("odd:work", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.succeeded", count=6)
        ids = [line["message_id"] for line in pool.named("task.succeeded")]
        assert pool.named("handler.saw")[3]["route"] == "\\xff"
        assert pool.stop() == 0
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"]
    assert all(each.startswith("digest:") for each in ids)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5


def test_f28_headers_that_leave_no_room_for_ours_are_dead_lettered_without_the_largest(
    broker_url: str, queue: str, runs: Runs
) -> None:
    declare(broker_url, queue)
    fields = {b"large": (b"x", wire.long(b"z" * 70_000)), b"larger": (b"x", wire.long(b"z" * 60_000 + b"y" * 900))}
    body = json.dumps({"raise": "ValueError"}).encode()
    raw = wire.properties(headers=wire.table(fields), message_id=wire.short(b"full"), delivery_mode=PERSISTENT)
    wire.publish(broker_url, queue, raw, body)
    options = ("--workers", "1", "--retries", "0")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.dead_lettered", message_id="full")
        assert pool.stop() == 0
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    headers = properties.headers or {}
    assert headers["x-workq-dropped"] == "large (70011 bytes)"
    assert len(headers["larger"]) == 60_900
    assert headers["x-workq-error"] == "ValueError: as told"
