"""The connection of a worker: AMQP 0-9-1 on pika's codec (`pika.spec`, `pika.frame`), with the part of pika's public
interface that a consumer needs.

Requests are pipelined: each is sent when it is made, without waiting for earlier answers. A channel answers in order,
and ignores everything behind a request that it refuses. So a worker sends all its first requests in one write.

The end of the connection is reported once, at once: `error`. Requests made after that are dropped silently.
"""

from __future__ import annotations

import math
import platform
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pika import exceptions, frame
from pika import spec as annotated

from supervisor.amqp.deliveries import whole
from supervisor.amqp.errors import opening_error
from supervisor.amqp.ioloop import IOLoop, Timer
from supervisor.amqp.parameters import client_properties
from supervisor.amqp.pika_connection import START
from supervisor.amqp.properties import Properties, decode
from supervisor.amqp.stream import Stream
from supervisor.clock import now
from supervisor.endpoint import Endpoint

spec: Any = annotated  # in part only

TIMEOUT: Final = 15.0
"""Seconds for TCP, TLS and AMQP handshake together, for each of a host's addresses."""
_IDLE: Final = 4
"""Half heartbeats without a byte after which the broker is lost. It says something twice a heartbeat
(https://www.rabbitmq.com/docs/heartbeats#heartbeats-interval)."""
_CAPABILITIES: Final = ("authentication_failure_close", "basic.nack", "connection.blocked", "consumer_cancel_notify")
_MECHANISM: Final = "PLAIN"
_GOODBYE: Final = 200, "Normal shutdown"
_HEAD: Final = struct.Struct(">BHL")
"""Type, channel, size of the payload."""
_CONTENT: Final = struct.Struct(">HHQ")
"""Of a content header's payload: class, weight, size of the body (4.2.6.1); then the properties."""
_RAW_AT: Final = _HEAD.size + _CONTENT.size
_PROTOCOL: Final = b"AMQP"
_PROTOCOL_SIZE: Final = 8
_ACK: Final = struct.Struct(">BHLLQBB")
"""All of basic.ack: type, channel, size of the payload; class and method, delivery tag, whether it is for all before,
too; the end."""
_ACK_SIZE: Final = _ACK.size - spec.FRAME_HEADER_SIZE - 1

Consume = Callable[["Channel", Any, Properties, bytes], None]
Answered = Callable[[Any], None]


class Limits(NamedTuple):
    """What we propose before we know the broker's limits: RabbitMQ's default frame size, and more channels than we
    use."""

    channels: int = 128
    frame: int = 128 * 1024


class Connection:
    """One connection to one broker. Connecting starts in the constructor.

    `on_greeted` is called when connection.start arrives; requests made in it are sent in one write with the rest of
    the handshake. (Not earlier: a server that is no broker would be sent the password.) If the broker then proposes
    lower limits than ours, we connect again within them, and `on_greeted` is called again. `on_closed` is called once,
    at the end.

    `heartbeat` in seconds, rounded up; 0 is off. Raises what `Stream` raises.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ioloop: IOLoop,
        *,
        heartbeat: float,
        name: str,
        on_greeted: Callable[[Connection], None],
        on_closed: Callable[[BaseException], None],
        timeout: float = TIMEOUT,
    ) -> None:
        self.ioloop = ioloop
        self._endpoint = endpoint
        self._heartbeat = math.ceil(heartbeat)
        self._name = name
        self._on_greeted = on_greeted
        self._on_closed = on_closed
        self._timeout = timeout
        self._limits = Limits()
        self._channels: dict[int, Channel] = {}
        self._held: list[bytes] | None = None
        """Written when all that has been read is handled; None: write at once."""
        self._timer: Timer | None = None
        self._idle = 0
        self._has_heard = False
        self._is_closing = False
        self.error: BaseException | None = None
        """Why it has ended, if so."""
        self.has_opened = False
        self._begin()

    def _begin(self) -> None:
        self._pieces: list[bytes] = []
        self._missing = 0
        self._is_connected = self._is_tuned = False
        self.bytes_received = 0
        self.server_properties: Mapping[str, Any] | None = None
        """What the broker says about itself."""
        self._touched = math.inf
        self._longest = 0.0
        self._stream = Stream(
            self.ioloop, self._endpoint, self._timeout, self._connected, self._on_data_available, self._lost
        )

    @property
    def is_open(self) -> bool:
        return self.has_opened and self.error is None and not self._is_closing

    @property
    def is_closed(self) -> bool:
        return self.error is not None

    @property
    def has_written(self) -> bool:
        """Whether the kernel has taken everything written. False once the connection has ended."""
        return self._stream.has_written

    @property
    def silence(self) -> float:
        """Seconds since the last byte in either direction; 0 if the connection has survived a longer silence."""
        lasts = now() - self._touched
        return max(0.0, lasts) if lasts > 0.9 * self._longest else 0.0

    @property
    def is_strange(self) -> bool:
        """Whether the peer has sent something that is not the start of connection.start."""
        begun = b"".join(self._pieces)[: len(START)]
        return self.server_properties is None and (self.bytes_received > 0 or not START.startswith(begun))

    def channel(self, on_open_callback: Callable[[Channel], None] | None = None) -> Channel:
        """Open a channel. It can be used at once. Raises NoFreeChannels."""
        number = next((each for each in range(1, self._limits.channels + 1) if each not in self._channels), 0)
        if not number:
            raise exceptions.NoFreeChannels
        channel = Channel(self, number)
        if self.error is None:
            self._channels[number] = channel
            channel.ask(spec.Channel.Open(), spec.Channel.OpenOk)
        else:
            channel.end(self.error)
        if on_open_callback is not None:
            on_open_callback(channel)
        return channel

    def close(self) -> None:
        """Send connection.close. When the answer arrives, the broker has processed everything sent before, and the
        connection ends with ConnectionClosedByClient."""
        if self.is_open:
            self._is_closing = True
            self.send(0, spec.Connection.Close(*_GOODBYE, 0, 0))

    @property
    def has_taken_leave(self) -> bool:
        """Whether we closed the connection and the broker has confirmed that."""
        return isinstance(self.error, exceptions.ConnectionClosedByClient)

    def send(self, channel: int, method: Any) -> None:
        self.write(frame.Method(channel, method).marshal())

    def write(self, data: bytes) -> None:
        self._touch()
        if self._held is not None:
            self._held.append(data)
        else:
            self._stream.write(data)

    # ----------------------------------------------------------------------------------------------- what comes

    def _connected(self) -> None:
        self._is_connected = True
        self.write(frame.ProtocolHeader().marshal())

    def _touch(self) -> None:
        """A byte is sent, or has arrived."""
        at = now()
        if at - self._touched > self._longest:
            self._longest = at - self._touched
        self._touched = at

    def _on_data_available(self, read: bytes) -> None:
        self._touch()
        self._has_heard = True  # a part of a large frame is a sign of life, too
        if self._pieces:
            self._pieces.append(read)
            self._missing -= len(read)
            if self._missing > 0:
                return
            read = b"".join(self._pieces)
            self._pieces = []
        self._held = []
        stream, at = self._stream, 0
        try:
            while at < len(read) and not stream.is_over:
                delivery = whole(read, at)
                channel = None if delivery is None else self._channels.get(delivery[1])
                if delivery is None or channel is None or channel.is_expecting:
                    taken, size = self._frame(read, at)
                    if not size:
                        break
                    at += size
                    self.bytes_received += size
                    self._take(taken)
                else:
                    end, _, method, properties, body = delivery
                    self.bytes_received += end - at
                    at = end
                    channel.deliver(method, properties, body)
        finally:
            if stream is self._stream:
                if at < len(read):
                    self._pieces = [read[at:]]
                self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held:
            self._stream.write(b"".join(held))

    def _frame(self, read: bytes, at: int) -> tuple[Any, int]:
        """The frame at this offset and its size; 0 if it is incomplete. Raises what pika's decoders raise."""
        head = read[at : at + _HEAD.size]
        if head.startswith(_PROTOCOL):
            size = _PROTOCOL_SIZE
        elif len(head) == _HEAD.size:
            size = _HEAD.size + _HEAD.unpack(head)[2] + spec.FRAME_END_SIZE
        else:
            size = _HEAD.size
        self._missing = at + size - len(read)
        if self._missing > 0:
            return None, 0
        raw = read[at : at + size]
        return _content_header(raw) or frame.decode_frame(raw)[1], size

    def _take(self, taken: Any) -> None:
        """Raises what `Channel.take` does."""
        number = getattr(taken, "channel_number", 0)
        if number:
            if (channel := self._channels.get(number)) is not None:
                channel.take(taken)
        elif isinstance(taken, frame.Method):
            self._obey(taken.method)

    def _obey(self, method: Any) -> None:
        """Ignores unexpected methods, and connection.blocked: we publish nothing here."""
        match method:
            case spec.Connection.Close():
                self.send(0, spec.Connection.CloseOk())
                self._end(exceptions.ConnectionClosedByBroker(method.reply_code, method.reply_text))
            case spec.Connection.CloseOk() if self._is_closing:
                self._end(exceptions.ConnectionClosedByClient(*_GOODBYE))
            case spec.Connection.Start() if self.server_properties is None:
                self._greet(method)
            case spec.Connection.Tune() if self.server_properties is not None and not self._is_tuned:
                self._tune(method)
            case spec.Connection.OpenOk() if self._is_tuned:
                self.has_opened = True
                self._stream.keep()

    def _greet(self, start: Any) -> None:
        if (start.version_major, start.version_minor) != spec.PROTOCOL_VERSION[:2]:
            self._end(exceptions.ProtocolVersionMismatch(frame.ProtocolHeader(), start))
            return
        self.server_properties = start.server_properties
        offered = start.mechanisms.encode() if isinstance(start.mechanisms, str) else start.mechanisms
        if _MECHANISM.encode() not in offered.split():
            self._end(exceptions.AuthenticationError(_MECHANISM))
            return
        login = "\0".join(("", self._endpoint.user, self._endpoint.password))
        said = {
            "platform": f"Python {platform.python_version()}",
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
            **client_properties(self._name),
        }
        self.send(0, spec.Connection.StartOk(said, _MECHANISM, login, "en_US"))
        self.send(0, spec.Connection.TuneOk(*self._limits, self._heartbeat))
        self.send(0, spec.Connection.Open(self._endpoint.vhost, insist=True))
        self._on_greeted(self)

    def _tune(self, tune: Any) -> None:
        ours = self._limits
        theirs = Limits(tune.channel_max or ours.channels, tune.frame_max or ours.frame)  # 0: there is none
        self._limits = Limits(*map(min, ours, theirs))
        if self._limits != ours:
            self._stream.close()
            self._channels = {}
            self._held = None
            self._begin()
            return
        self._is_tuned = True
        if self._heartbeat:
            self._timer = self.ioloop.call_later(self._heartbeat / 2, self._beat)

    def _beat(self) -> None:
        self._idle = 0 if self._has_heard else self._idle + 1
        self._has_heard = False
        if self._idle >= _IDLE:
            self._end(exceptions.AMQPHeartbeatTimeout(f"nothing heard for {self._heartbeat * _IDLE / 2:g} s"))
            return
        self._timer = self.ioloop.call_later(self._heartbeat / 2, self._beat)
        self.write(frame.Heartbeat().marshal())

    # ------------------------------------------------------------------------------------------------- its end

    def forget(self, channel: Channel) -> None:
        """Free its number."""
        self._channels.pop(channel.channel_number, None)

    def drop(self) -> None:
        """End the connection at once, without connection.close."""
        self._end(exceptions.StreamLostError("dropped"))

    def _lost(self, error: Exception) -> None:
        if isinstance(error, EOFError):
            self._end(exceptions.StreamLostError("Transport indicated EOF"))
        elif self._is_connected and not isinstance(error, TimeoutError):
            self._end(exceptions.StreamLostError(f"Stream connection lost: {error!r}"))
        else:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error = error = error if self.has_opened else opening_error(self, self._interpreted(error))
        self._release()  # close-ok, for instance
        self._stream.close()
        if self._timer is not None:
            self._timer.callback = None
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.end(error)
        self._on_closed(error)

    def _interpreted(self, error: BaseException) -> BaseException:
        """What the end of a connection that is not open yet means depends on how far the handshake got."""
        if not isinstance(error, exceptions.StreamLostError | exceptions.ConnectionClosedByBroker):
            return error
        if self.server_properties is None:
            return exceptions.IncompatibleProtocolError(repr(error))
        if not self._is_tuned:
            return exceptions.ProbableAuthenticationError(repr(error))
        return exceptions.ProbableAccessDeniedError(repr(error))


class Channel:
    """One channel. Callbacks have the signatures of pika's channel."""

    def __init__(self, connection: Connection, channel_number: int) -> None:
        self._connection = connection
        self.channel_number = channel_number
        self.is_open = True
        """Whether requests can be made: from the start until either side closes it."""
        self.is_closed = False
        self._asked: deque[tuple[Any, type, Answered | None]] = deque()
        self._consumers: dict[str, Consume] = {}
        self._cancelled: set[str] = set()
        self._on_close: list[Callable[[Channel, BaseException], None]] = []
        self._on_cancel: list[Callable[[Any], None]] = []
        self._method: Any = None
        self._header: Any = None
        self._fragments: list[bytes] = []
        self._size = 0

    def ask(self, method: Any, answer: type, callback: Answered | None = None) -> None:
        if self.is_open:
            self._asked.append((method, answer, callback))
            self._connection.send(self.channel_number, method)

    @property
    def awaited(self) -> str:
        """The oldest unanswered request, such as `basic.qos`; empty if there is none."""
        return str(self._asked[0][0].NAME).lower() if self._asked else ""

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        callback: Answered | None = None,
    ) -> None:
        method = spec.Queue.Declare(
            queue=queue, passive=passive, durable=durable, auto_delete=auto_delete, arguments=arguments or {}
        )
        self.ask(method, spec.Queue.DeclareOk, callback)

    def basic_qos(self, prefetch_count: int, callback: Answered | None = None) -> None:
        self.ask(spec.Basic.Qos(0, prefetch_count, False), spec.Basic.QosOk, callback)

    def basic_consume(
        self,
        queue: str,
        on_message_callback: Consume,
        consumer_tag: str,
        arguments: Mapping[str, Any],
        callback: Answered | None = None,
    ) -> None:
        self._consumers[consumer_tag] = on_message_callback
        method = spec.Basic.Consume(queue=queue, consumer_tag=consumer_tag, arguments=arguments)
        self.ask(method, spec.Basic.ConsumeOk, callback)

    def basic_cancel(self, consumer_tag: str, callback: Answered | None = None) -> None:
        """Deliveries that arrive before the answer are requeued."""
        self._cancelled.add(consumer_tag)
        self.ask(spec.Basic.Cancel(consumer_tag), spec.Basic.CancelOk, callback)

    def basic_ack(self, delivery_tag: int) -> None:
        if self.is_open:
            number, index = self.channel_number, spec.Basic.Ack.INDEX
            self._connection.write(
                _ACK.pack(spec.FRAME_METHOD, number, _ACK_SIZE, index, delivery_tag, 0, spec.FRAME_END)
            )

    def basic_nack(self, delivery_tag: int) -> None:
        """Requeue. From 4.3 on RabbitMQ does not count this against the message, as it counts basic.reject."""
        if self.is_open:
            self._connection.send(self.channel_number, spec.Basic.Nack(delivery_tag, requeue=True))

    def close(self) -> None:
        self.ask(spec.Channel.Close(*_GOODBYE, 0, 0), spec.Channel.CloseOk, self._gone)
        self.is_open = False

    def add_on_close_callback(self, callback: Callable[[Channel, BaseException], None]) -> None:
        """Called when the broker closes it, or the connection ends."""
        self._on_close.append(callback)

    def add_on_cancel_callback(self, callback: Callable[[Any], None]) -> None:
        """Called when the broker cancels a consumer."""
        self._on_cancel.append(callback)

    # ------------------------------------------------------------------------------------- what the broker says

    @property
    def is_expecting(self) -> bool:
        """Whether part of a message has arrived, and the rest is outstanding."""
        return self._method is not None or self._header is not None

    def take(self, came: Any) -> None:
        """Handle a frame. Raises UnexpectedFrameError and BodyTooLongError."""
        if isinstance(came, frame.Method):
            self._obey(came)
        elif isinstance(came, frame.Header):
            self._header = came
            if came.body_size == 0:
                self._finish()
        elif isinstance(came, frame.Body):
            self._fragments.append(came.fragment)
            self._size += len(came.fragment)
            if self._header is None:
                raise exceptions.UnexpectedFrameError(came)
            if self._size > self._header.body_size:
                raise exceptions.BodyTooLongError(self._size, self._header.body_size)
            if self._size == self._header.body_size:
                self._finish()

    def deliver(self, method: Any, properties: Properties, body: bytes) -> None:
        tag = method.consumer_tag
        if tag in self._cancelled:
            self.basic_nack(method.delivery_tag)
        elif (consumer := self._consumers.get(tag)) is not None:
            consumer(self, method, properties, body)

    def end(self, reason: BaseException) -> None:
        """The channel, or its connection, has ended."""
        self.is_open, self.is_closed = False, True
        self._asked.clear()
        for callback in self._on_close:
            callback(self, reason)

    def _obey(self, came: Any) -> None:
        """Ignores unexpected methods."""
        method = came.method
        match method:
            case spec.Channel.Close():
                self._connection.send(self.channel_number, spec.Channel.CloseOk())
                if self.is_open:
                    self._connection.forget(self)
                    self.end(exceptions.ChannelClosedByBroker(method.reply_code, method.reply_text))
                else:  # our channel.close is still answered; requests before it are not
                    self._asked = deque([self._asked[-1]])
            case spec.Channel.Flow():
                self._connection.send(self.channel_number, spec.Channel.FlowOk(method.active))
            case spec.Basic.Cancel():
                if not method.nowait:
                    self._connection.send(self.channel_number, spec.Basic.CancelOk(method.consumer_tag))
                if method.consumer_tag not in self._cancelled:
                    self._consumers.pop(method.consumer_tag, None)
                for callback in self._on_cancel:
                    callback(came)
            case _ if self._asked and type(method) is self._asked[0][1]:
                answered = self._asked.popleft()[2]
                if isinstance(method, spec.Basic.CancelOk):
                    self._consumers.pop(method.consumer_tag, None)
                    self._cancelled.discard(method.consumer_tag)
                if answered is not None:
                    answered(came)
            case _ if spec.has_content(method.INDEX):
                self._method = came

    def _gone(self, _: Any) -> None:
        self.is_closed = True
        self._connection.forget(self)

    def _finish(self) -> None:
        method, header, body = self._method, self._header, b"".join(self._fragments)
        self._method, self._header, self._fragments, self._size = None, None, [], 0
        if method is None:
            raise exceptions.UnexpectedFrameError(header)
        if isinstance(method.method, spec.Basic.Deliver):
            self.deliver(method.method, header.properties, body)


def _content_header(read: bytes) -> frame.Header | None:
    """The frame as a content header; None if it is anything else, or broken: then pika's decoder says what is wrong."""
    if read[0] != spec.FRAME_HEADER or len(read) < _RAW_AT + 2 + spec.FRAME_END_SIZE or read[-1] != spec.FRAME_END:
        return None
    of_class, _, body_size = _CONTENT.unpack_from(read, _HEAD.size)
    if of_class != spec.BasicProperties.INDEX:
        return None
    return frame.Header(_HEAD.unpack_from(read)[1], body_size, decode(read[_RAW_AT:-1]))
