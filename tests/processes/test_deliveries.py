"""Deliveries that are read at once are what pika makes of them frame by frame, whatever comes and however it is cut."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import frame, spec
from pika.channel import Channel

from supervisor.worker import deliveries, undecodable
from supervisor.worker.ioloop import IOLoop, Services
from tests import wire

TAG = "worker-1"
UNDECODABLE = wire.properties(timestamp=struct.pack(">Q", 2**62))

names = st.text(max_size=20)
properties = st.builds(
    pika.BasicProperties,
    content_type=st.none() | names,
    headers=st.none() | st.dictionaries(names, st.none() | names | st.booleans() | st.integers(-(2**31), 2**31 - 1)),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    message_id=st.none() | names,
    timestamp=st.none() | st.integers(0, 2**32),
)


def method(channel: int, tag: str, number: int, redelivered: bool, exchange: str, key: str) -> bytes:
    return frame.Method(channel, spec.Basic.Deliver(tag, number, redelivered, exchange, key)).marshal()


def content(channel: int, raw: bytes, body: bytes, parts: int) -> bytes:
    """A header, and the body in so many frames, if it has so many bytes."""
    payload = struct.pack(">HHQ", spec.BasicProperties.INDEX, 0, len(body)) + raw
    header = struct.pack(">BHL", spec.FRAME_HEADER, channel, len(payload)) + payload + bytes([spec.FRAME_END])
    size = max(1, -(-len(body) // parts))
    return header + b"".join(frame.Body(channel, body[at : at + size]).marshal() for at in range(0, len(body), size))


numbers = st.integers(1, 2**64 - 1)
tags = st.sampled_from([TAG, TAG, "gone", "other"])
methods = st.builds(method, st.sampled_from([1, 1, 1, 2, 3]), tags, numbers, st.booleans(), names, names)
raws = properties.map(lambda these: b"".join(these.encode())) | st.just(UNDECODABLE)
contents = st.builds(
    content, st.sampled_from([1, 1, 1, 2]), raws, st.binary(max_size=40), st.sampled_from([1, 1, 1, 2, 3])
)
others = st.sampled_from([
    frame.Heartbeat().marshal(),
    frame.Method(1, spec.Basic.Ack(1, False)).marshal(),
    frame.Method(1, spec.Basic.GetOk(1, False, "", "q", 0)).marshal(),
])  # fmt: skip
wholes = st.builds(lambda number, content: method(1, TAG, number, False, "", "q") + content, numbers, contents)
parts = wholes | wholes | st.builds(bytes.__add__, methods, contents) | methods | contents | others
streams = st.lists(parts, max_size=8).map(b"".join)


class Seen:
    """What came by a connection that nobody has connected, with two channels and one consumer on the first."""

    def __init__(self, kind: type[undecodable.Connection]) -> None:
        self.loop = IOLoop()
        self.connection: Any = kind(
            pika.ConnectionParameters(), custom_ioloop=Services(self.loop), internal_connection_workflow=False
        )
        self.deliveries: list[Any] = []
        self.sent: list[str] = []
        self.error = ""
        self.connection._send_method = lambda number, said, *_: self.sent.append(f"{number} {said}")
        for number in (1, 2):
            channel: Any = Channel(self.connection, number, lambda _: None)  # type: ignore[no-untyped-call]
            channel._set_state(channel.OPEN)
            channel._consumers[TAG] = self._deliver
            channel._cancelled.add("gone")
            self.connection._channels[number] = channel

    def _deliver(self, channel: Any, deliver: Any, these: Any, body: bytes) -> None:
        given = {name: value for name, value in vars(these).items() if name != "error"}
        self.deliveries.append((int(channel), vars(deliver), given, body, type(these)))

    def feed(self, *pieces: bytes) -> Any:
        for piece in pieces:
            try:
                self.connection._on_data_available(piece)
            except Exception as error:
                self.error = type(error).__name__
                break
        connection = self.connection
        return (
            self.deliveries,
            self.sent,
            self.error,
            connection.bytes_received,
            connection.frames_received,
            connection._frame_buffer,
        )


@contextmanager
def both() -> Iterator[tuple[Seen, Seen]]:
    quick, slow = Seen(deliveries.Connection), Seen(undecodable.Connection)
    try:
        yield quick, slow
    finally:
        quick.loop.close()
        slow.loop.close()


def pieces(stream: bytes, cuts: list[float]) -> list[bytes]:
    at = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    return [stream[begin:end] for begin, end in itertools.pairwise(at)]


cuts = st.lists(st.floats(0, 1), max_size=4)


@settings(max_examples=500)
@given(streams, cuts)
def test_what_is_read_at_once_is_what_pika_reads_frame_by_frame(stream: bytes, at: list[float]) -> None:
    with both() as (quick, slow):
        assert quick.feed(*pieces(stream, at)) == slow.feed(*pieces(stream, at))


def test_what_is_broken_is_refused_as_pika_refuses_it() -> None:
    raw = wire.properties(message_id=wire.short(b"id"))
    delivery = method(1, TAG, 1, False, "", "q") + content(1, raw, b"body", 1)
    for at, byte in itertools.product(range(len(delivery)), (0, 1, 2, 3, 9, 255)):
        broken = bytearray(delivery)
        broken[at] = byte
        with both() as (quick, slow):
            assert quick.feed(delivery + broken + delivery) == slow.feed(delivery + broken + delivery), (at, byte)


def test_a_delivery_within_the_body_of_another_is_none() -> None:
    within = method(1, TAG, 2, False, "", "q") + content(1, b"\0\0", b"within", 1)
    before = method(1, TAG, 1, False, "", "q")
    around = content(1, b"\0\0", b"<" + within + b">", 1)
    at = around.index(within)
    with both() as (quick, _):
        quick.feed(before + around[:at], around[at:])
        assert [delivery[3] for delivery in quick.deliveries] == [b"<" + within + b">"]


def test_a_whole_delivery_does_not_go_pikas_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing is gained: this fails when pika has renamed what `deliveries` relies on."""
    stream = method(1, TAG, 7, True, "", "q") + content(1, b"\0\0", b"body", 1)
    monkeypatch.setattr(undecodable.Connection, "_on_data_available", lambda *_: pytest.fail("pika's way"))
    with both() as (quick, _):
        quick.feed(stream * 3)
        assert [delivery[1]["delivery_tag"] for delivery in quick.deliveries] == [7, 7, 7]


def test_pika_has_the_limits_on_reading_that_are_set() -> None:
    from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

    assert _AsyncPlaintextTransport._MAX_RECV_BYTES == 4096
    assert _AsyncPlaintextTransport._MAX_CONSUME_BYTES == 100 * 1024
