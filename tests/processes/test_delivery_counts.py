"""The numbers in a delivery's headers, whoever has written them, and in whatever width."""

from __future__ import annotations

import struct

import pytest

from supervisor.amqp.properties import decode
from supervisor.worker.delivery import Delivery
from tests import wire

WIDTHS = {b"b": ">b", b"B": ">B", b"s": ">h", b"u": ">H", b"I": ">i", b"i": ">I", b"l": ">q"}
"""AMQP's integers, as RabbitMQ reads them (https://www.rabbitmq.com/amqp-0-9-1-errata#section_3). 4.3 counts returns in
the widest."""


def delivered(name: bytes, value: wire.Value) -> Delivery:
    return Delivery(1, "q", True, decode(wire.properties(headers=wire.table({name: value}))), b"", "one")


@pytest.mark.parametrize("kind", WIDTHS)
def test_a_count_is_read_in_every_width(kind: bytes) -> None:
    eleven = kind, struct.pack(WIDTHS[kind], 11)
    assert delivered(b"x-delivery-count", eleven).delivery_count == 11
    assert delivered(b"x-workq-put-back", eleven).put_back == 11
    assert delivered(b"x-workq-deferred", eleven).deferred == 11
    assert delivered(b"x-workq-attempt", eleven).attempt == 11
    assert delivered(b"x-workq-attempt", eleven).step == 11


@pytest.mark.parametrize(
    "value",
    [
        (b"t", b"\1"),
        (b"l", struct.pack(">q", -1)),
        (b"l", struct.pack(">q", 2**31)),
        (b"S", wire.long(b"11")),
        (b"V", b""),
    ],
)
def test_what_is_no_count_counts_nothing(value: wire.Value) -> None:
    assert delivered(b"x-delivery-count", value).delivery_count == 0
    assert delivered(b"x-workq-put-back", value).put_back == 0
    assert delivered(b"x-workq-attempt", value).attempt == 1


def test_retries_and_deferrals_are_the_steps_of_a_message() -> None:
    both = wire.table({b"x-workq-attempt": (b"b", b"\3"), b"x-workq-deferred": (b"b", b"\4")})
    delivery = Delivery(1, "q", True, decode(wire.properties(headers=both)), b"", "one")
    assert (delivery.attempt, delivery.deferred, delivery.step) == (3, 4, 7)
