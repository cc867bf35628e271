"""The consuming connection makes of a stream what pika's own makes of it, whatever comes and however it is cut, over
TLS too; and acknowledgements are what pika sends, however little the socket takes."""

from __future__ import annotations

import errno
import itertools
import ssl
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pika import frame, spec
from pika.exceptions import StreamLostError

from supervisor.amqp.connection import Connection
from supervisor.amqp.tls import tls
from supervisor.endpoint import Endpoint
from tests import certificates, wire
from tests.differential import TAG, Ours, Pikas, WiredOurs, WiredPikas, content, method

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


@contextmanager
def both() -> Iterator[tuple[Ours, Pikas]]:
    ours, pikas = Ours(), Pikas()
    try:
        yield ours, pikas
    finally:
        ours.close()
        pikas.close()


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
    with both() as (ours, pikas):
        assert ours.feed(*pieces(stream, at)) == pikas.feed(*pieces(stream, at))


def test_what_is_broken_is_refused_as_pika_refuses_it() -> None:
    raw = wire.properties(message_id=wire.short(b"id"))
    delivery = method(1, TAG, 1, False, "", "q") + content(1, raw, b"body", 1)
    for at, byte in itertools.product(range(len(delivery)), (0, 1, 2, 3, 9, 255)):
        broken = bytearray(delivery)
        broken[at] = byte
        stream = bytes(delivery + broken + delivery)
        with both() as (ours, pikas):
            assert ours.feed(stream) == pikas.feed(stream), (at, byte)


def test_a_delivery_within_the_body_of_another_is_none() -> None:
    within = method(1, TAG, 2, False, "", "q") + content(1, b"\0\0", b"within", 1)
    before = method(1, TAG, 1, False, "", "q")
    around = content(1, b"\0\0", b"<" + within + b">", 1)
    at = around.index(within)
    with both() as (ours, _):
        ours.feed(before + around[:at], around[at:])
        assert [delivery[3] for delivery in ours.deliveries] == [b"<" + within + b">"]


def test_a_whole_delivery_is_not_taken_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing is gained."""
    stream = method(1, TAG, 7, True, "", "q") + content(1, b"\0\0", b"body", 1)
    monkeypatch.setattr(Connection, "_frame", lambda *_: pytest.fail("frame by frame"))
    with both() as (ours, _):
        ours.feed(stream * 3)
        assert [delivery[1]["delivery_tag"] for delivery in ours.deliveries] == [7, 7, 7]


@pytest.mark.parametrize("size", [1, 4088, 4089, 3 * 4088, 1_000_000])
def test_a_body_in_many_frames_is_put_together_however_it_comes(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    stream = method(1, TAG, 7, False, "", "q") + content(1, b"\0\0", body, -(-size // 4088))
    for read in (1, 4096, 65536) if size < 100_000 else (4096, 65536):
        with both() as (ours, _):
            ours.feed(*(stream[at : at + read] for at in range(0, len(stream), read)), WHOLE)
            assert [delivery[3] for delivery in ours.deliveries] == [body, b"body"]


@contextmanager
def wired(takes: Sequence[int | OSError] = ()) -> Iterator[tuple[WiredOurs, WiredPikas]]:
    ours, pikas = WiredOurs(takes), WiredPikas(takes)
    try:
        yield ours, pikas
    finally:
        ours.close()
        pikas.close()


def turn(each: WiredOurs | WiredPikas) -> None:
    for _ in range(50):
        each.turn()


acks = st.tuples(st.sampled_from([1, 1, 2, 65535]), st.integers(0, 2**64 - 1) | st.integers(1, 300))
takes = st.lists(st.integers(0, 25), max_size=12)


@settings(max_examples=300)
@given(st.lists(acks | st.sampled_from(["turn", "other"]), min_size=1, max_size=8), takes)
def test_an_acknowledgement_is_pikas_and_in_its_place_however_little_the_socket_takes(
    steps: list[Any], takes: list[int]
) -> None:
    with wired(takes) as (ours, pikas):
        seen = []
        for each in (ours, pikas):
            channels = {65535: each.channel(65535), **each.connection._channels}
            sent, asked = b"", 0
            for step in steps:
                if step == "turn":
                    each.turn()
                elif step == "other":
                    channels[1].basic_nack(5)
                    asked += len(frame.Method(1, spec.Basic.Nack(5)).marshal())
                else:
                    number, tag = step
                    channels[number].basic_ack(tag)
                    asked += len(frame.Method(1, spec.Basic.Ack(tag)).marshal())
                sent += each.wire.arrived()
                if isinstance(each, WiredOurs):
                    assert each.has_written == (len(sent) == asked)
            turn(each)
            sent += each.wire.arrived()
            assert len(sent) == asked
            seen.append((sent, each.error))
        assert ours.has_written
        assert seen[0] == seen[1]


def test_an_acknowledgement_is_one_send() -> None:
    with wired() as (ours, _):
        ours.connection._channels[1].basic_ack(7)
        assert ours.wire.arrived() == frame.Method(1, spec.Basic.Ack(7)).marshal()
        assert ours.has_written
        assert ours.wire.mine.sends == 1


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "gone"), ConnectionResetError(errno.ECONNRESET, "gone")]
)
def test_an_acknowledgement_that_fails_is_none_and_the_end_says_why(error: OSError) -> None:
    with wired([error]) as (ours, pikas):
        for each in (ours, pikas):
            each.connection._channels[1].basic_ack(7)
            if each is ours:
                assert not ours.has_written
            turn(each)
            assert (each.wire.arrived(), each.error) == (
                b"",
                repr(StreamLostError(f"Stream connection lost: {error!r}")),
            )
        assert not ours.has_written


def test_nothing_is_sent_by_a_connection_that_has_failed() -> None:
    with wired() as (ours, pikas):
        channels = {each: each.connection._channels[1] for each in (ours, pikas)}
        ours.stream._fail(OSError("failed"))
        pikas.connection._transport._initiate_abort(OSError("failed"))
        for each in (ours, pikas):
            channels[each].basic_ack(7)
        assert ours.wire.arrived() == pikas.wire.arrived() == b""
        assert not ours.has_written


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("last", [b"", b"\1\0", frame.Heartbeat().marshal(), b"AMQP\0\0\x09\1", b"\xff" * 30])
def test_a_connection_comes_to_its_end_as_it_does_with_pika(last: bytes, is_reset: bool) -> None:
    whole = method(1, TAG, 7, True, "", "q") + content(1, b"\0\0", b"body" * 3000, 1)
    with wired() as (ours, pikas):
        seen = []
        for each in (ours, pikas):
            each.wire.peer.sendall(whole * 2 + last)
            if is_reset:
                each.wire.mine.send(b"not read")  # which has the peer's end say so
            each.wire.peer.close()
            turn(each)
            seen.append((each.deliveries, each.error))
        assert seen[0] == seen[1]
        assert len(ours.deliveries) == 2
        assert ours.error
        assert not ours.has_written


@pytest.mark.parametrize(
    "error", [None, BlockingIOError(errno.EAGAIN, "no"), ConnectionResetError(errno.ECONNRESET, "")]
)
def test_what_the_socket_says_to_a_reader_is_taken_as_pika_takes_it(error: OSError | None) -> None:
    def receive(_: int) -> bytes:
        if error is not None:
            raise error
        return b""

    with wired() as (ours, pikas):
        seen = []
        for each in (ours, pikas):
            each.wire.mine.recv = receive
            each.wire.peer.sendall(b"something")
            each.turn()
            each.turn()
            seen.append(each.error)
        assert seen[0] == seen[1]
        assert ours.has_written == isinstance(error, BlockingIOError)


def test_a_socket_that_can_be_written_and_read_is_written_and_read() -> None:
    with wired([0]) as (ours, _):
        ours.connection._channels[1].basic_ack(7)
        assert not ours.has_written
        ours.wire.peer.sendall(WHOLE)
        ours.turn()
        assert (ours.wire.arrived(), len(ours.deliveries)) == (frame.Method(1, spec.Basic.Ack(7)).marshal(), 1)


# ------------------------------------------------------------------------------------------------------ over TLS


@dataclass
class Files:
    """Whom to trust, and what a broker shows."""

    cafile: Path
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    authority = certificates.Authority(tmp_path_factory.mktemp("certificates"))
    identity = authority.sign("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    return Files(authority.certificate, context)


class Broker:
    """The other side of TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._came, self._goes, server_side=True)
        self.plain = b""

    def hear(self, data: bytes) -> None:
        self._came.write(data)
        try:
            self._object.do_handshake()
            while data := self._object.read(2**16):
                self.plain += data
        except ssl.SSLWantReadError:
            pass

    def say(self, data: bytes = b"") -> bytes:
        if data:
            self._object.write(data)
        return self._goes.read()


class Secure(WiredOurs):
    """Over TLS, with a broker that has just shaken hands."""

    def __init__(self, files: Files, takes: Iterable[int | OSError] = ()) -> None:
        super().__init__()
        self.broker = Broker(files.server)
        self.stream._is_ready = self.connection._is_connected = False
        self.stream._tls = tls(Endpoint("localhost", tls=True, query=(("cafile", str(files.cafile)),))).layer()
        self.stream._shake_hands(self.stream._tls)
        while not self.stream._is_ready:
            self.broker.hear(self.wire.arrived())
            self.wire.peer.sendall(self.broker.say())
            self.turn()
        self.broker.hear(self.wire.arrived())
        self.wire.peer.sendall(self.broker.say())
        turn(self)
        self.broker.hear(self.wire.arrived())
        assert self.broker.plain == frame.ProtocolHeader().marshal()
        self.broker.plain = b""
        self.wire.mine._takes = iter(takes)

    def receive(self, stream: bytes, at: list[float]) -> None:
        for piece in pieces(self.broker.say(stream), at):
            self.wire.peer.sendall(piece)
            turn(self)


@contextmanager
def secure(files: Files, takes: Iterable[int | OSError] = ()) -> Iterator[Secure]:
    ours = Secure(files, takes)
    try:
        yield ours
    finally:
        ours.close()


@settings(max_examples=100)
@given(streams, cuts)
def test_over_tls_too_what_is_read_is_what_pika_reads(files: Files, stream: bytes, at: list[float]) -> None:
    pikas = Pikas()
    with secure(files) as ours:
        ours.connection.send = ours.send
        ours.receive(stream, at)
        deliveries, sent, error, received, unread = pikas.feed(stream)
        pikas.close()
        assert (ours.deliveries, ours.sent) == (deliveries, sent)
        assert (error in ours.error) == bool(ours.error or not error)
        assert bool(ours.error) == bool(error)
        assert (ours.connection.bytes_received, ours.unread()) == (received, unread)


@settings(max_examples=50)
@given(st.lists(acks, min_size=1, max_size=8), takes)
def test_over_tls_too_acknowledgements_arrive_in_their_order_however_little_the_socket_takes(
    files: Files, steps: list[tuple[int, int]], takes: list[int]
) -> None:
    with secure(files, takes) as ours:
        ours.channel(65535)
        for number, tag in steps:
            ours.connection._channels[number].basic_ack(tag)
        turn(ours)
        ours.broker.hear(ours.wire.arrived())
        assert ours.has_written
        asked = [frame.Method(number, spec.Basic.Ack(tag)) for number, tag in steps]
        assert ours.broker.plain == b"".join(each.marshal() for each in asked)


def test_over_tls_too_a_body_larger_than_a_record_and_a_read_comes_whole(files: Files) -> None:
    body = bytes(range(256)) * 2000
    with secure(files) as ours:
        ours.receive(method(1, TAG, 7, True, "", "q") + content(1, b"\0\0", body, 4), [n / 9 for n in range(9)])
        assert [delivery[3] for delivery in ours.deliveries] == [body]


@pytest.mark.parametrize("is_polite", [False, True])
def test_over_tls_too_the_end_is_told_after_what_came_before_it(files: Files, is_polite: bool) -> None:
    with secure(files) as ours:
        ours.wire.peer.sendall(ours.broker.say(WHOLE))
        if is_polite:
            with pytest.raises(ssl.SSLWantReadError):
                ours.broker._object.unwrap()
            ours.wire.peer.sendall(ours.broker.say())
        ours.wire.peer.close()
        turn(ours)
        assert len(ours.deliveries) == 1
        assert ours.error == repr(StreamLostError("Transport indicated EOF"))
