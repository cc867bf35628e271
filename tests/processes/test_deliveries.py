"""Deliveries read at once are what pika makes of them frame by frame, whatever comes and however it is cut; and
acknowledgements sent at once are what pika sends, however little the socket takes."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pika import frame, spec
from pika.adapters.base_connection import _StreamingProtocolShim
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.channel import Channel
from pika.exceptions import StreamLostError

from supervisor.amqp import deliveries, undecodable
from supervisor.amqp.ioloop import IOLoop, Services
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


WHOLE = method(1, TAG, 7, True, "", "q") + content(1, b"\0\0", b"body", 1)


class Seen:
    """What came by a connection that nobody has connected, with two channels, a consumer on each, and one
    that is being cancelled."""

    def __init__(self, kind: type[undecodable.Connection]) -> None:
        self.loop = IOLoop()
        self.io = Services(self.loop)
        self.connection: Any = kind(
            pika.ConnectionParameters(), custom_ioloop=self.io, internal_connection_workflow=False
        )
        self.deliveries: list[Any] = []
        self.sent: list[str] = []
        self.error = ""
        self.connection._send_method = lambda number, said, *_: self.sent.append(f"{number} {said}")
        for number in (1, 2):
            channel: Any = Channel(self.connection, number, lambda _: None)  # type: ignore[no-untyped-call]
            channel._set_state(channel.OPEN)
            channel._consumers[TAG] = channel._consumers["gone"] = self._deliver
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
@example(method(1, TAG, 7, False, "", "q") + WHOLE + content(1, b"\0\0", b"", 1), [])
@example(content(1, b"\0\0", b"cut", 3)[:-10] + WHOLE + frame.Body(1, b"c").marshal(), [])
@example(method(1, "gone", 7, False, "", "q") + content(1, b"\0\0", b"body", 1), [])
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


class Stingy:
    """A socket that takes so many bytes at a time, 0: not now, or fails with this; then whatever it is given."""

    def __init__(self, sock: socket.socket, takes: Iterable[int | OSError]) -> None:
        self._sock = sock
        self._takes = iter(takes)
        self.recv, self.fileno, self.close, self.shutdown = sock.recv, sock.fileno, sock.close, sock.shutdown

    def send(self, data: bytes) -> int:
        take = next(self._takes, len(data))
        if isinstance(take, OSError):
            raise take
        if take == 0:
            raise BlockingIOError(errno.EAGAIN, "not now")
        return self._sock.send(data[:take])


class Wired(Seen):
    """The same with a socket, whose other end is `peer`."""

    def __init__(self, kind: type[undecodable.Connection], takes: Iterable[int | OSError] = ()) -> None:
        super().__init__(kind)
        self.mine, self.peer = socket.socketpair()
        self.mine.setblocking(False)
        self.io.is_eager = True
        connection = self.connection
        del connection._send_method
        protocol = _StreamingProtocolShim(connection)
        connection._transport = _AsyncPlaintextTransport(Stingy(self.mine, takes), protocol, self.io)  # type: ignore[arg-type]
        connection._on_stream_terminated = lambda error: setattr(self, "error", repr(error))
        if isinstance(connection, deliveries.Connection):
            connection.shorten()

    def ack(self, number: int, tag: int) -> None:
        channel = self.connection._channels[number]
        if isinstance(self.connection, deliveries.Connection):
            self.connection.ack(channel, tag)
        else:
            channel.basic_ack(tag)

    def arrived(self) -> bytes:
        """What the peer has been sent by now."""
        self.peer.setblocking(False)
        try:
            return self.peer.recv(2**16)
        except BlockingIOError:
            return b""

    def turn(self) -> None:
        for _ in range(50):
            self.loop.turn(0.0)


@contextmanager
def wired(takes: Sequence[int | OSError] = ()) -> Iterator[tuple[Wired, Wired]]:
    quick, slow = Wired(deliveries.Connection, takes), Wired(undecodable.Connection, takes)
    try:
        yield quick, slow
    finally:
        for each in (quick, slow):
            each.mine.close()
            each.peer.close()
            each.loop.close()


acks = st.tuples(st.sampled_from([1, 1, 2, 65535]), st.integers(0, 2**64 - 1) | st.integers(1, 300))
takes = st.lists(st.integers(0, 25), max_size=12)


@settings(max_examples=300)
@given(st.lists(acks | st.sampled_from(["turn", "other"]), min_size=1, max_size=8), takes)
def test_an_acknowledgement_is_pikas_and_in_its_place_however_little_the_socket_takes(
    steps: list[Any], takes: list[int]
) -> None:
    with wired(takes) as (quick, slow):
        seen = []
        for each in (quick, slow):
            each.connection._channels[65535] = channel = Channel(each.connection, 65535, lambda _: None)  # type: ignore[no-untyped-call]
            channel._set_state(channel.OPEN)  # type: ignore[attr-defined]
            sent = b""
            for step in steps:
                if step == "turn":
                    each.loop.turn(0.0)
                elif step == "other":
                    each.connection._channels[1].basic_nack(5)
                else:
                    each.ack(*step)
                sent += each.arrived()
                assert each.io.has_written == (len(sent) == each.connection.bytes_sent)
            each.turn()
            sent += each.arrived()
            assert each.io.has_written
            seen.append((sent, each.connection.bytes_sent, each.connection.frames_sent, each.error))
        assert seen[0] == seen[1]


def test_an_acknowledgement_does_not_go_pikas_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with wired() as (quick, _):
        monkeypatch.setattr(Channel, "basic_ack", lambda *_: pytest.fail("pika's way"))
        monkeypatch.setattr(_AsyncPlaintextTransport, "write", lambda *_: pytest.fail("pika's way"))
        quick.ack(1, 7)
        assert quick.arrived() == frame.Method(1, spec.Basic.Ack(7)).marshal()
        assert quick.io.has_written


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "gone"), ConnectionResetError(errno.ECONNRESET, "gone")]
)
def test_an_acknowledgement_that_fails_is_none_and_pika_tells_why(error: OSError) -> None:
    with wired([error]) as (quick, slow):
        for each in (quick, slow):
            each.ack(1, 7)
            assert not each.io.has_written
            each.turn()
            assert (each.arrived(), each.error, each.io.has_written) == (
                b"",
                repr(StreamLostError(f"Stream connection lost: {error!r}")),
                False,
            )


def test_nothing_is_sent_by_a_connection_that_has_failed_and_has_not_said_so_yet() -> None:
    with wired() as (quick, slow):
        for each in (quick, slow):
            each.connection._transport._initiate_abort(OSError("failed"))
            each.ack(1, 7)
            assert (each.arrived(), each.io.has_written) == (b"", False)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("last", [b"", b"\1\0", frame.Heartbeat().marshal(), b"AMQP\0\0\x09\1", b"\xff" * 30])
def test_a_connection_comes_to_its_end_as_it_does_with_pika(last: bytes, is_reset: bool) -> None:
    whole = method(1, TAG, 7, True, "", "q") + content(1, b"\0\0", b"body" * 3000, 1)
    with wired() as (quick, slow):
        seen = []
        for each in (quick, slow):
            each.peer.sendall(whole * 2 + last)
            if is_reset:
                each.mine.send(b"not read")  # which has the peer's end say so
            each.peer.close()
            each.turn()
            seen.append((each.deliveries, each.error, each.io.has_written))
        assert seen[0] == seen[1]
        assert len(quick.deliveries) == 2
        assert quick.error


@pytest.mark.parametrize(
    "error", [None, BlockingIOError(errno.EAGAIN, "no"), ConnectionResetError(errno.ECONNRESET, "")]
)
def test_what_the_socket_says_to_a_reader_is_taken_as_pika_takes_it(error: OSError | None) -> None:
    def receive(_: int) -> bytes:
        if error is not None:
            raise error
        return b""

    with wired() as (quick, slow):
        seen = []
        for each in (quick, slow):
            each.connection._transport._sock.recv = receive
            if each is quick:
                each.connection.shorten()
            each.peer.sendall(b"something")
            each.loop.turn(0.0)
            each.loop.turn(0.0)
            seen.append((each.error, each.io.has_written))
        assert seen[0] == seen[1]
        assert quick.io.has_written == isinstance(error, BlockingIOError)


def test_a_socket_that_can_be_written_and_read_is_written_and_read() -> None:
    with wired([0, 0]) as (quick, _):
        quick.ack(1, 7)
        assert not quick.io.has_written
        quick.peer.sendall(WHOLE)
        quick.loop.turn(0.0)
        assert (quick.arrived(), len(quick.deliveries)) == (frame.Method(1, spec.Basic.Ack(7)).marshal(), 1)
