"""The consuming connection by AMQP 0-9-1's own rules, with a peer that says what no broker can be made to say."""

from __future__ import annotations

import _thread
import itertools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
from pika import exceptions, frame, spec

from supervisor import originals
from supervisor.amqp.channel import Channel
from supervisor.amqp.connection import Connection, Limits
from supervisor.amqp.ioloop import IOLoop
from supervisor.clock import now
from supervisor.endpoint import Endpoint

Method = Any
Asks = Callable[[Connection], None]

GREETING = spec.Connection.Start(0, 9, {"product": "RabbitMQ", "version": "4.2.0"}, "AMQPLAIN PLAIN", "en_US")
HEADER = b"AMQP\0\0\x09\x01"


class Peer:
    """What listens, and the connection to it, turn by turn: no thread, no wait that is not for something."""

    def __init__(
        self, *, heartbeat: float = 0, password: str = "hunter2", expected: str = "", greeted: Sequence[Asks] = ()
    ) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self._door.settimeout(10)
        self.loop = IOLoop()
        self.ends: list[BaseException] = []
        self.greeted = list(greeted)
        endpoint = Endpoint("127.0.0.1", self._door.getsockname()[1], user="dora", password=password)
        self.connection = Connection(
            endpoint,
            self.loop,
            heartbeat=heartbeat,
            name="test",
            on_greeted=self._greet,
            on_closed=self.ends.append,
            expected=expected,
        )
        self._heard = b""
        self.accept()

    def _greet(self, connection: Connection) -> None:
        for ask in self.greeted:
            ask(connection)

    def accept(self) -> None:
        while True:
            self.loop.turn(0.01)
            self._door.setblocking(False)
            try:
                self.line, _ = self._door.accept()
                break
            except BlockingIOError:
                pass
        self.line.setblocking(False)
        self._heard = b""

    def say(self, *methods: Any, channel: int = 0) -> None:
        """Methods, or frames' bytes; then the connection hears them."""
        said = b"".join(each if isinstance(each, bytes) else frame.Method(channel, each).marshal() for each in methods)
        stream, expected = self.connection._stream, self.consumed() + len(said)
        self.line.sendall(said)
        begun = now()
        while self.consumed() < expected and not self.ends and self.connection._stream is stream:
            assert now() - begun < 10
            self.loop.turn(0.1)

    def consumed(self) -> int:
        return self.connection.bytes_received + sum(map(len, self.connection._pieces))

    def settle(self) -> None:
        for _ in range(5):
            self.loop.turn(0.0)

    def bytes(self) -> bytes:
        """What has come since it was asked last."""
        self.settle()
        read = b""
        while select.select([self.line], [], [], 0.005 if read else 0.05)[0] and (more := self.line.recv(2**20)):
            read += more
        return read

    def heard(self) -> list[str]:
        """The same, as frames: channel and method."""
        self._heard += self.bytes()
        found = []
        if self._heard.startswith(HEADER):
            self._heard = self._heard[len(HEADER) :]
            found.append("header")
        while (read := frame.decode_frame(self._heard))[1] is not None:
            self._heard = self._heard[read[0] :]
            came: Any = read[1]
            found.append("heartbeat" if isinstance(came, frame.Heartbeat) else f"{came.channel_number} {name(came)}")
        return found

    def open(self) -> None:
        self.say(GREETING)
        self.say(spec.Connection.Tune(2047, 131072, 60), spec.Connection.OpenOk())
        self.heard()
        assert self.connection.is_open

    def channel(self) -> Channel:
        channel = self.connection.channel()
        self.say(spec.Channel.OpenOk(), channel=channel.channel_number)
        self.heard()
        return channel

    def close(self) -> None:
        self.connection.drop()
        self.line.close()
        self._door.close()
        self.loop.close()


def name(came: Any) -> str:
    return str(came.method.NAME)


@pytest.fixture
def peer() -> Iterator[Peer]:
    there = Peer()
    try:
        yield there
    finally:
        there.close()


def ask_for_all(connection: Connection) -> None:
    channel = connection.channel()
    channel.queue_declare("q", passive=True)
    channel.basic_qos(1)
    channel.basic_consume("q", lambda *_: None, "tag", {})


# ------------------------------------------------------------------------------------------------- the handshake


def test_whoever_is_no_broker_is_told_a_protocol_and_nothing_else(peer: Peer) -> None:
    assert peer.bytes() == HEADER
    peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert peer.bytes() == b""
    assert peer.connection.is_strange


def test_all_that_is_wanted_goes_out_at_once_when_the_broker_has_said_who_it_is(peer: Peer) -> None:
    peer.greeted.append(ask_for_all)
    assert peer.heard() == ["header"]
    peer.say(GREETING)
    assert peer.heard() == FROM_START_OK
    assert not peer.connection.is_open


FROM_START_OK = [
    "0 Connection.StartOk",
    "0 Connection.TuneOk",
    "0 Connection.Open",
    "1 Channel.Open",
    "1 Queue.Declare",
    "1 Basic.Qos",
    "1 Basic.Consume",
]


def test_a_broker_that_has_been_met_is_sent_everything_with_the_first_byte() -> None:
    with closing(Peer(expected="4.2.0", greeted=[ask_for_all])) as peer:
        assert peer.heard() == ["header", *FROM_START_OK]
        assert peer.connection.version == "4.2.0"
        peer.say(GREETING)
        assert peer.heard() == []
        peer.say(spec.Connection.Tune(2047, 131072, 60), spec.Connection.OpenOk())
        assert peer.connection.is_open


@pytest.mark.parametrize(
    "said", [{"product": "RabbitMQ", "version": "4.3.0"}, {"product": "LavinMQ", "version": "4.2.0"}, {}]
)
def test_a_broker_that_is_not_the_one_that_was_met_is_connected_to_once_more_and_asked_in_turn(
    said: dict[str, str],
) -> None:
    greeting = spec.Connection.Start(0, 9, said, "PLAIN", "en_US")
    with closing(Peer(expected="4.2.0", greeted=[ask_for_all])) as peer:
        peer.say(greeting)
        assert not peer.ends
        peer.accept()
        assert peer.heard() == ["header"]
        peer.say(greeting)
        assert peer.heard() == FROM_START_OK
        assert peer.connection.version == (said.get("version") if said.get("product") == "RabbitMQ" else "")


def test_a_broker_that_has_been_met_and_allows_less_now_is_connected_to_once_more_within_that() -> None:
    with closing(Peer(expected="4.2.0", greeted=[ask_for_all])) as peer:
        peer.say(GREETING, spec.Connection.Tune(8, 4096, 60))
        assert not peer.ends
        peer.accept()
        sent = peer.bytes()
        assert sent.startswith(HEADER) and frame.Method(0, spec.Connection.TuneOk(8, 4096, 0)).marshal() in sent
        peer.say(GREETING, spec.Connection.Tune(8, 4096, 60), spec.Connection.OpenOk())
        assert peer.connection.is_open


def test_what_answers_where_a_broker_was_met_is_a_stranger_all_the_same() -> None:
    with closing(Peer(expected="4.2.0")) as peer:
        peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert peer.connection.is_strange


def test_it_introduces_itself_and_proposes_what_rabbitmq_allows(peer: Peer) -> None:
    peer.bytes()
    peer.say(GREETING)
    read, said = peer.bytes(), []
    while read:
        size, came = frame.decode_frame(read)
        read = read[size:]
        said.append(getattr(came, "method", None))
    start_ok, tune_ok, opening = said
    assert (start_ok.mechanism, start_ok.response, start_ok.locale) == ("PLAIN", b"\0dora\0hunter2", "en_US")
    about = start_ok.client_properties
    assert (about["product"], about["connection_name"]) == ("workq-supervise", "test")
    assert all(about["capabilities"][each] for each in ("basic.nack", "consumer_cancel_notify", "connection.blocked"))
    assert about["capabilities"]["authentication_failure_close"]
    assert (tune_ok.channel_max, tune_ok.frame_max, tune_ok.heartbeat) == (*Limits(), 0)
    assert opening.virtual_host == "/"


@pytest.mark.parametrize(("channels", "size"), [(2047, 4096), (8, 131072), (8, 4096)])
def test_a_broker_that_allows_less_is_connected_to_once_more_within_that(peer: Peer, channels: int, size: int) -> None:
    peer.greeted.append(ask_for_all)
    peer.say(GREETING)
    peer.say(spec.Connection.Tune(channels, size, 60), spec.Connection.Close(530, "NOT_ALLOWED", 0, 0))
    assert not peer.ends
    peer.accept()
    assert peer.heard() == ["header"]
    peer.say(GREETING)
    sent = peer.bytes()
    expected = spec.Connection.TuneOk(min(channels, Limits().channels), min(size, Limits().frame), 0)
    assert frame.Method(0, expected).marshal() in sent
    assert frame.Method(1, spec.Channel.Open()).marshal() in sent
    peer.say(spec.Connection.Tune(channels, size, 60), spec.Connection.OpenOk())
    assert peer.connection.is_open


@pytest.mark.parametrize("tune", [(0, 0), (65535, 2**31), (2047, 131072)])
def test_a_broker_that_allows_as_much_or_anything_is_taken_at_once(peer: Peer, tune: tuple[int, int]) -> None:
    peer.say(GREETING)
    peer.say(spec.Connection.Tune(*tune, 60), spec.Connection.OpenOk())
    assert peer.connection.is_open


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (spec.Connection.Start(0, 9, {}, "EXTERNAL AMQPLAIN", "en_US"), exceptions.AuthenticationError),
        (spec.Connection.Start(0, 9, {}, "PLAINER", "en_US"), exceptions.AuthenticationError),
        (spec.Connection.Start(0, 8, {}, "PLAIN", "en_US"), exceptions.ProtocolVersionMismatch),
    ],
)
def test_a_broker_that_cannot_be_talked_to_is_not_told_the_password(
    peer: Peer, start: Any, kind: type[Exception]
) -> None:
    peer.bytes()
    peer.say(start)
    assert peer.line.recv(100) == b""
    assert [type(end) for end in peer.ends] == [kind]


@pytest.mark.parametrize(
    "script", list(itertools.permutations([GREETING, spec.Connection.Tune(), spec.Connection.OpenOk()]))
)
def test_a_handshake_in_another_order_is_none(peer: Peer, script: tuple[Any, ...]) -> None:
    peer.say(*script)
    in_order = [type(each) for each in script]
    assert peer.connection.is_open == (
        in_order == [spec.Connection.Start, spec.Connection.Tune, spec.Connection.OpenOk]
    )


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        ([], exceptions.ProtocolVersionMismatch),
        ([GREETING], exceptions.ProbableAuthenticationError),
        ([GREETING, spec.Connection.Tune(0, 0, 60)], exceptions.ProbableAccessDeniedError),
        ([GREETING, spec.Connection.Tune(0, 0, 60), spec.Connection.OpenOk()], exceptions.ConnectionClosedByBroker),
    ],
)
def test_what_a_close_means_depends_on_when_it_comes_and_it_is_answered(
    peer: Peer, before: list[Any], kind: type[Exception]
) -> None:
    peer.say(*before, spec.Connection.Close(403, "ACCESS_REFUSED - Login was refused", 0, 0))
    assert [type(end) for end in peer.ends] == [kind]
    assert ("ACCESS_REFUSED - Login was refused" in str(peer.ends[0])) == bool(before)
    assert peer.heard()[-1] == "0 Connection.CloseOk"
    assert peer.connection.is_closed and not peer.connection.is_open


# ------------------------------------------------------------------------------------------------------ channels


def test_answers_come_in_their_turn_and_a_refusal_takes_what_was_asked_behind_it(peer: Peer) -> None:
    peer.open()
    channel, answers, refusals = peer.channel(), list[str](), list[BaseException]()
    channel.add_on_close_callback(lambda _, reason: refusals.append(reason))
    for number in range(3):
        channel.queue_declare(f"q{number}", passive=True, callback=lambda came: answers.append(came.method.queue))
    channel.basic_qos(1, callback=lambda came: answers.append("qos"))
    assert channel.awaited == "queue.declare"
    peer.say(spec.Queue.DeclareOk("q0", 0, 0), channel=1)
    assert answers == ["q0"]
    peer.say(spec.Channel.Close(404, "NOT_FOUND", 50, 10), channel=1)
    assert peer.heard() == ["1 Queue.Declare"] * 3 + ["1 Basic.Qos", "1 Channel.CloseOk"]
    assert [(type(each), each.reply_code) for each in refusals] == [(exceptions.ChannelClosedByBroker, 404)]  # type: ignore[attr-defined]
    assert channel.is_closed and not channel.is_open
    channel.basic_ack(1)
    channel.basic_nack(1)
    channel.basic_qos(1)
    channel.close()
    assert peer.heard() == []
    peer.say(spec.Queue.DeclareOk("q1", 0, 0), channel=1)
    assert answers == ["q0"]
    assert peer.connection.channel().channel_number == 1
    assert peer.heard() == ["1 Channel.Open"]
    assert peer.connection.is_open


def test_an_answer_to_something_else_is_none(peer: Peer) -> None:
    peer.open()
    channel, answers = peer.channel(), list[Any]()
    channel.basic_qos(1, callback=answers.append)
    peer.say(spec.Queue.DeclareOk("q", 0, 0), spec.Basic.ConsumeOk("tag"), spec.Basic.GetEmpty(), channel=1)
    assert not answers and peer.connection.is_open
    peer.say(spec.Basic.QosOk(), channel=1)
    assert [name(answer) for answer in answers] == ["Basic.QosOk"]


def test_a_channel_that_is_closed_keeps_its_number_until_that_is_answered(peer: Peer) -> None:
    peer.open()
    channel = peer.channel()
    ends: list[BaseException] = []
    channel.add_on_close_callback(lambda _, reason: ends.append(reason))
    channel.close()
    channel.close()
    assert peer.heard() == ["1 Channel.Close"]
    assert not channel.is_open and not channel.is_closed
    assert peer.connection.channel().channel_number == 2
    peer.say(spec.Channel.CloseOk(), channel=1)
    assert channel.is_closed
    assert peer.connection.channel().channel_number == 1
    assert not ends


def test_two_goodbyes_that_cross_are_both_answered(peer: Peer) -> None:
    peer.open()
    channel = peer.channel()
    channel.basic_qos(1)
    channel.close()
    peer.heard()
    peer.say(spec.Channel.Close(406, "PRECONDITION_FAILED", 0, 0), channel=1)
    assert peer.heard() == ["1 Channel.CloseOk"]
    assert not channel.is_closed
    peer.say(spec.Channel.CloseOk(), channel=1)
    assert channel.is_closed and peer.connection.channel().channel_number == 1


def test_there_are_only_so_many_channels(peer: Peer) -> None:
    peer.open()
    taken = [peer.connection.channel() for _ in range(Limits().channels)]
    with pytest.raises(exceptions.NoFreeChannels):
        peer.connection.channel()
    peer.say(spec.Channel.Close(404, "", 0, 0), channel=taken[6].channel_number)
    assert peer.connection.channel().channel_number == taken[6].channel_number


def test_flow_is_answered(peer: Peer) -> None:
    peer.open()
    peer.channel()
    for active in (False, True):
        peer.say(spec.Channel.Flow(active), channel=1)
        assert peer.bytes() == frame.Method(1, spec.Channel.FlowOk(active)).marshal()
    assert peer.connection.is_open


def test_blocked_and_unblocked_change_nothing_for_who_only_consumes(peer: Peer) -> None:
    peer.open()
    channel = peer.channel()
    noted: list[str | None] = []
    peer.connection.on_blocked = lambda: noted.append(peer.connection.blocked)
    assert peer.connection.blocked is None
    peer.say(spec.Connection.Blocked("low on memory"))
    channel.basic_ack(7)
    assert noted == ["low on memory"]
    peer.say(spec.Connection.Unblocked())
    assert peer.heard() == ["1 Basic.Ack"]
    assert (peer.connection.is_open, peer.connection.blocked, len(noted)) == (True, None, 1)


def published(read: bytes) -> list[tuple[Any, Any, bytes]]:
    """Each message of a stream: basic.publish, its properties, its body."""
    found: list[tuple[Any, Any, bytes]] = []
    at = 0
    while at < len(read):
        kind, _, size = struct.unpack_from(">BHL", read, at)
        came: Any = frame.decode_frame(read[at : at + 8 + size])[1]
        at += 8 + size
        if kind == spec.FRAME_METHOD:
            found.append((came.method, None, b""))
        elif kind == spec.FRAME_HEADER:
            found[-1] = (found[-1][0], came.properties, b"")
        else:
            assert 8 + size <= Limits().frame
            found[-1] = (*found[-1][:2], found[-1][2] + came.fragment)
    return found


def test_what_is_published_is_held_until_it_is_released_and_sent_in_frames_of_the_size_agreed_upon(peer: Peer) -> None:
    peer.open()
    channel = peer.channel()
    bodies = [b"", b"one", bytes(range(256)) * 1024]
    peer.connection.hold()
    for body in bodies:
        channel.basic_publish("e", "key", body, spec.BasicProperties(message_id=str(len(body))))
    assert peer.bytes() == b""
    peer.connection.release()
    sent = published(peer.bytes())
    assert [(made.exchange, made.routing_key, made.mandatory) for made, _, _ in sent] == 3 * [("e", "key", True)]
    assert [(properties.message_id, body) for _, properties, body in sent] == [
        (str(len(body)), body) for body in bodies
    ]
    channel.basic_publish("", "key", b"at once", spec.BasicProperties())
    assert published(peer.bytes())[0][2] == b"at once"


def test_what_the_kernel_does_not_take_waits_and_arrives_whole_and_in_order(peer: Peer) -> None:
    peer.open()
    channel = peer.channel()
    bodies = [bytes([number]) * 2_000_000 for number in range(8)]
    for body in bodies:
        channel.basic_publish("", "key", body, spec.BasicProperties())
    assert not peer.connection.has_written
    read = b""
    while not peer.connection.has_written:
        read += peer.bytes()
    read += peer.bytes()
    assert [body for _, _, body in published(read)] == bodies


def test_confirms_and_returns_are_told(peer: Peer) -> None:
    peer.open()
    channel, told = peer.channel(), list[Any]()
    channel.confirm_select(lambda *confirm: told.append(confirm), told.append)
    channel.on_return = lambda method, properties: told.append((method.reply_code, properties.message_id))
    peer.say(spec.Confirm.SelectOk(), channel=1)
    assert [name(each) for each in told] == ["Confirm.SelectOk"]
    head = frame.Header(1, 1, spec.BasicProperties(message_id="lost")).marshal()
    returned = frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "q")).marshal()
    peer.say(returned, head, frame.Body(1, b"x").marshal(), spec.Basic.Ack(3, True), channel=1)
    peer.say(spec.Basic.Nack(4), channel=1)
    assert told[1:] == [(312, "lost"), (3, True, False), (4, False, True)]


def test_what_a_peer_said_before_it_went_is_heard_though_it_takes_nothing_more(peer: Peer) -> None:
    peer.open()
    channel = peer.channel()
    peer.line.sendall(frame.Method(0, spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0)).marshal())
    peer.line.close()
    for tag in (1, 2):  # the kernel takes the first
        channel.basic_ack(tag)
    assert not peer.connection.has_written
    peer.settle()
    [end] = peer.ends
    assert isinstance(end, exceptions.ConnectionClosedByBroker)
    assert end.reply_code == 320


@pytest.mark.parametrize("nowait", [False, True])
def test_a_consumer_that_the_broker_cancels_is_told_and_gets_nothing_more(peer: Peer, nowait: bool) -> None:
    peer.open()
    channel, came, cancelled = peer.channel(), list[bytes](), list[str]()
    channel.add_on_cancel_callback(lambda said: cancelled.append(said.method.consumer_tag))
    channel.basic_consume("q", lambda *args: came.append(args[3]), "tag", {})
    peer.say(spec.Basic.ConsumeOk("tag"), channel=1)
    peer.heard()
    peer.say(delivery(b"one"), frame.Method(1, spec.Basic.Cancel("tag", nowait)).marshal(), delivery(b"two"))
    assert (came, cancelled) == ([b"one"], ["tag"])
    assert peer.heard() == ([] if nowait else ["1 Basic.CancelOk"])


def test_what_comes_while_a_consumer_is_being_cancelled_goes_back(peer: Peer) -> None:
    peer.open()
    channel, came, answers = peer.channel(), list[bytes](), list[Any]()
    channel.basic_consume("q", lambda *args: came.append(args[3]), "tag", {})
    peer.say(spec.Basic.ConsumeOk("tag"), channel=1)
    channel.basic_cancel("tag", callback=answers.append)
    peer.heard()
    peer.say(delivery(b"one"))
    assert peer.bytes() == frame.Method(1, spec.Basic.Nack(1, requeue=True)).marshal()
    peer.say(spec.Basic.CancelOk("tag"), channel=1)
    peer.say(delivery(b"two"))
    assert (came, len(answers)) == ([], 1)
    assert peer.bytes() == b""


def delivery(body: bytes) -> bytes:
    return bytes(
        frame.Method(1, spec.Basic.Deliver("tag", 1, False, "", "q")).marshal()
        + frame.Header(1, len(body), spec.BasicProperties()).marshal()
        + frame.Body(1, body).marshal()
    )


# ------------------------------------------------------------------------------------------------------- its end


def test_a_goodbye_is_done_when_it_is_answered(peer: Peer) -> None:
    peer.open()
    peer.connection.close()
    peer.connection.close()
    assert peer.heard() == ["0 Connection.Close"]
    assert not peer.connection.is_open and not peer.connection.is_closed
    peer.say(spec.Connection.CloseOk())
    assert peer.connection.has_taken_leave and peer.connection.is_closed
    assert [type(end) for end in peer.ends] == [exceptions.ConnectionClosedByClient]


def test_the_brokers_goodbye_that_crosses_ours_is_what_counts(peer: Peer) -> None:
    peer.open()
    peer.connection.close()
    peer.say(spec.Connection.Close(320, "CONNECTION_FORCED - as an operator", 0, 0))
    assert peer.heard() == ["0 Connection.Close", "0 Connection.CloseOk"]
    assert not peer.connection.has_taken_leave
    assert str(peer.ends[0]) == "(320, 'CONNECTION_FORCED - as an operator')"


def test_an_answer_to_no_goodbye_is_none(peer: Peer) -> None:
    peer.open()
    peer.say(spec.Connection.CloseOk())
    assert peer.connection.is_open


def test_its_end_is_told_once_to_each_channel_and_then_to_the_owner(peer: Peer) -> None:
    peer.open()
    told: list[Any] = []
    for _ in range(2):
        channel = peer.channel()
        channel.add_on_close_callback(lambda channel, reason: told.append((channel.channel_number, reason)))
    peer.line.close()
    peer.settle()
    [end] = peer.ends
    assert told == [(1, end), (2, end)]
    assert str(end) == "Transport indicated EOF"
    peer.connection.drop()
    assert len(peer.ends) == 1
    assert not peer.connection.has_written


# ---------------------------------------------------------------------------------------------------- heartbeats


@contextmanager
def beating(seconds: float) -> Iterator[Peer]:
    there = Peer(heartbeat=seconds)
    there.open()
    try:
        yield there
    finally:
        there.close()


def test_a_heartbeat_is_sent_twice_in_its_time_and_a_silent_broker_is_lost_after_two() -> None:
    with beating(0.9) as peer:  # rounded up to 1
        begun, beats = now(), 0
        while not peer.ends:
            assert now() - begun < 20, "nobody notices"
            peer.loop.turn(0.2)
            beats += peer.heard().count("heartbeat")
        assert isinstance(peer.ends[0], exceptions.AMQPHeartbeatTimeout)
        # Timers may be late, and never early.
        assert beats == 4
        assert now() - begun >= 1.9


def test_whatever_the_broker_says_is_a_sign_of_life() -> None:
    part = frame.Body(1, b"large").marshal()[:8]  # of which the rest is long in coming
    said = [frame.Heartbeat().marshal(), frame.Method(0, spec.Connection.Unblocked()).marshal(), part, b"a", b"a", b"a"]
    with beating(1) as peer:
        for say in said:
            beats = 0
            while beats < 2:
                peer.loop.turn(0.2)
                beats += peer.heard().count("heartbeat")
            peer.say(say)
        assert not peer.ends


def test_without_heartbeats_there_is_no_timer(peer: Peer) -> None:
    peer.open()
    assert not [timer for timer in peer.loop._timers if timer.callback is not None]


# -------------------------------------------------------------------------------------------------------- to get there


def connecting(endpoint: Endpoint, loop: IOLoop, ends: list[BaseException], timeout: float = 15.0) -> Connection:
    return Connection(
        endpoint, loop, heartbeat=0, name="", on_greeted=lambda _: None, on_closed=ends.append, timeout=timeout
    )


def turn_until(loop: IOLoop, happened: Callable[[], bool]) -> None:
    begun = now()
    while not happened():
        assert now() - begun < 20
        loop.turn(0.1)


def test_the_next_address_is_tried_when_one_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, ends = IOLoop(), list[BaseException]()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=lambda: door.accept()[0].sendall(frame.Method(0, GREETING).marshal())).start()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in (nobody, nobody, door.getsockname())]
        monkeypatch.setattr("supervisor.amqp.stream.look_up", lambda *args: loop.call_later(0, lambda: args[-1](found)))
        connection = connecting(Endpoint("several", 1), loop, ends)
        turn_until(loop, lambda: connection.server_properties is not None)
    connection.drop()
    loop.close()


def test_a_name_that_is_none_and_a_port_where_nobody_listens_are_told_as_the_system_tells_them(
    unused_port: int,
) -> None:
    for endpoint, kind in (
        (Endpoint("no-such-host.invalid"), socket.gaierror),
        (Endpoint("127.0.0.1", unused_port), ConnectionRefusedError),
    ):
        loop, ends = IOLoop(), list[BaseException]()
        connecting(endpoint, loop, ends)
        turn_until(loop, lambda ends=ends: bool(ends))
        assert isinstance(ends[0], kind)
        assert not [timer for timer in loop._timers if timer.callback is not None]
        loop.close()


def test_a_peer_that_says_nothing_is_given_up_in_time() -> None:
    loop, ends = IOLoop(), list[BaseException]()
    with socket.create_server(("127.0.0.1", 0)) as door:
        connecting(Endpoint("127.0.0.1", door.getsockname()[1]), loop, ends, timeout=0.3)
        turn_until(loop, lambda: bool(ends))
    assert isinstance(ends[0], TimeoutError)
    loop.close()


def test_a_connection_that_is_dropped_while_its_name_is_looked_up_leaves_nothing_behind() -> None:
    loop, ends = IOLoop(), list[BaseException]()
    connecting(Endpoint("localhost", 1), loop, ends).drop()
    for _ in range(20):
        loop.turn(0.01)
    assert len(ends) == 1
    assert len(loop._handlers) == 1  # its bell
    loop.close()


def test_a_name_that_is_found_after_the_loop_was_closed_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()

    def getaddrinfo(*query: Any) -> list[Any]:
        if query[5:] == (socket.AI_NUMERICHOST,):
            raise socket.gaierror
        found.wait()
        return []

    monkeypatch.setattr(originals, "getaddrinfo", getaddrinfo)
    before = _thread._count()
    loop, ends = IOLoop(), list[BaseException]()
    connection = connecting(Endpoint("localhost", 1), loop, ends)
    bell = loop.bell
    connection.drop()
    loop.close()
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    try:
        assert bell in others
        found.set()
        while _thread._count() > before:
            os.sched_yield()
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in others:
            os.close(other)
