"""A connection: AMQP 0-9-1 on pika's codec (`pika.spec`, `pika.frame`), with the part of pika's public interface that
is needed here.

Requests are pipelined: each is sent when it is made, without waiting for earlier answers. A channel answers in order,
and ignores everything behind a request that it refuses. So a worker sends all its first requests in one write.

The end of the connection is reported once, at once: `error`. Requests made after that are dropped silently.
"""

from __future__ import annotations

import math
import platform
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pika import exceptions, frame
from pika import spec as annotated

from supervisor.amqp.channel import GOODBYE, Channel, ignore
from supervisor.amqp.deliveries import whole
from supervisor.amqp.errors import opening_error
from supervisor.amqp.ioloop import IOLoop, Timer
from supervisor.amqp.properties import decode
from supervisor.amqp.stream import Stream
from supervisor.clock import now
from supervisor.endpoint import Endpoint
from supervisor.version import __version__

spec: Any = annotated  # in part only

TIMEOUT: Final = 15.0
"""Seconds for TCP, TLS and AMQP handshake together, for each of a host's addresses."""
_IDLE: Final = 4
"""Half heartbeats without a byte after which the broker is lost. It says something twice a heartbeat
(https://www.rabbitmq.com/docs/heartbeats#heartbeats-interval)."""
_CAPABILITIES: Final = (
    "authentication_failure_close",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "publisher_confirms",
)
_MECHANISM: Final = "PLAIN"
_HEAD: Final = struct.Struct(">BHL")
"""Type, channel, size of the payload."""
_CONTENT: Final = struct.Struct(">HHQ")
"""Of a content header's payload: class, weight, size of the body (4.2.6.1); then the properties."""
_RAW_AT: Final = _HEAD.size + _CONTENT.size
_START: Final = b"\x01\x00\x00"
"""How the first frame begins: a method, on channel 0 (4.2.3)."""
_PROTOCOL: Final = b"AMQP"
_PROTOCOL_SIZE: Final = 8


class Limits(NamedTuple):
    """What we propose before we know the broker's limits: RabbitMQ's default frame size, and more channels than we
    use."""

    channels: int = 128
    frame: int = 128 * 1024


class Connection:
    """One connection to one broker. Connecting starts in the constructor.

    `on_greeted` is called when connection.start arrives; requests made in it are sent in one write with the rest of
    the handshake. (Not earlier: a server that is no broker would be sent the password.) With `expected`, the version of
    RabbitMQ that was met there before, all of this is sent at once, which saves a round trip. If it has another version
    by now, or proposes lower limits than ours, we connect again, and `on_greeted` is called again. `on_closed` is
    called once, at the end; `on_blocked`, which may be set, when the broker takes no messages for now.

    `heartbeat` in seconds, rounded up; 0 is off. Raises what `Stream` raises.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ioloop: IOLoop,
        *,
        heartbeat: float,
        name: str,
        on_closed: Callable[[BaseException], None],
        on_greeted: Callable[[Connection], None] = ignore,
        expected: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        self.ioloop = ioloop
        self._endpoint = endpoint
        self.heartbeat = math.ceil(heartbeat)
        self._name = name
        self._on_greeted = on_greeted
        self._on_closed = on_closed
        self._expected = expected
        self._timeout = timeout
        self.limits = Limits()
        """As agreed with the broker, once the connection is open."""
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
        self.blocked: str | None = None
        """Why the broker takes no messages for now; None: it takes them."""
        self.on_blocked: Callable[[], None] = ignore
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
    def frame_max(self) -> int:
        return self.limits.frame

    @property
    def has_written(self) -> bool:
        """Whether the kernel has taken everything written. False once the connection has ended."""
        return self._stream.has_written

    @property
    def version(self) -> str:
        """RabbitMQ's: `3.10.8`; as expected, until it says. Empty if unknown or another broker's."""
        said = self.server_properties
        if said is None:
            return self._expected
        return str(said.get("version", "")) if said.get("product") == "RabbitMQ" else ""

    @property
    def silence(self) -> float:
        """Seconds since the last byte in either direction; 0 if the connection has survived a longer silence."""
        lasts = now() - self._touched
        return max(0.0, lasts) if lasts > 0.9 * self._longest else 0.0

    @property
    def is_strange(self) -> bool:
        """Whether the peer has sent something that is not the start of connection.start."""
        begun = b"".join(self._pieces)[: len(_START)]
        return self.server_properties is None and (self.bytes_received > 0 or not _START.startswith(begun))

    @property
    def has_free_channel(self) -> bool:
        return len(self._channels) < self.limits.channels

    def channel(self, on_open_callback: Callable[[Channel], None] | None = None) -> Channel:
        """Open a channel. It can be used at once. Raises NoFreeChannels."""
        number = next((each for each in range(1, self.limits.channels + 1) if each not in self._channels), 0)
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
            self.send(0, spec.Connection.Close(*GOODBYE, 0, 0))

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

    def hold(self) -> None:
        """From now on what is written waits for `release`, and is then one write."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        held, self._held = self._held, None
        if held:
            self._stream.write(b"".join(held))

    # ----------------------------------------------------------------------------------------------- what comes

    def _connected(self) -> None:
        self._is_connected = True
        self.hold()
        self.write(frame.ProtocolHeader().marshal())
        if self._expected:
            self._introduce()
        self.release()

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
        self.hold()
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
                self.release()

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
        """Ignores unexpected methods."""
        match method:
            case spec.Connection.Close():
                self.send(0, spec.Connection.CloseOk())
                self._end(exceptions.ConnectionClosedByBroker(method.reply_code, method.reply_text))
            case spec.Connection.CloseOk() if self._is_closing:
                self._end(exceptions.ConnectionClosedByClient(*GOODBYE))
            case spec.Connection.Start() if self.server_properties is None:
                self._greet(method)
            case spec.Connection.Tune() if self.server_properties is not None and not self._is_tuned:
                self._tune(method)
            case spec.Connection.Blocked():
                self.blocked = str(method.reason)
                self.on_blocked()
            case spec.Connection.Unblocked():
                self.blocked = None
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
        if not self._expected:
            self._introduce()
        elif self._expected != self.version:
            self._expected = ""
            self._connect_again()

    def _introduce(self) -> None:
        """Send our part of the handshake, and what `on_greeted` asks for."""
        login = "\0".join(("", self._endpoint.user, self._endpoint.password))
        said = {
            "platform": f"Python {platform.python_version()}",
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
            "connection_name": self._name,
            "product": "workq-supervise",
            "version": __version__,
        }
        self.send(0, spec.Connection.StartOk(said, _MECHANISM, login, "en_US"))
        self.send(0, spec.Connection.TuneOk(*self.limits, self.heartbeat))
        self.send(0, spec.Connection.Open(self._endpoint.vhost, insist=True))
        self._on_greeted(self)

    def _tune(self, tune: Any) -> None:
        ours = self.limits
        theirs = Limits(tune.channel_max or ours.channels, tune.frame_max or ours.frame)  # 0: there is none
        self.limits = Limits(*map(min, ours, theirs))
        if self.limits != ours:
            self._connect_again()
            return
        self._is_tuned = True
        if self.heartbeat:
            self._timer = self.ioloop.call_later(self.heartbeat / 2, self._beat)

    def _connect_again(self) -> None:
        self._stream.close()
        self._channels = {}
        self._held = None
        self._begin()

    def _beat(self) -> None:
        self._idle = 0 if self._has_heard else self._idle + 1
        self._has_heard = False
        if self._idle >= _IDLE:
            self._end(exceptions.AMQPHeartbeatTimeout(f"nothing heard for {self.heartbeat * _IDLE / 2:g} s"))
            return
        self._timer = self.ioloop.call_later(self.heartbeat / 2, self._beat)
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
        self.release()  # close-ok, for instance
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


def _content_header(read: bytes) -> frame.Header | None:
    """The frame as a content header; None if it is anything else, or broken: then pika's decoder says what is wrong."""
    if read[0] != spec.FRAME_HEADER or len(read) < _RAW_AT + 2 + spec.FRAME_END_SIZE or read[-1] != spec.FRAME_END:
        return None
    of_class, _, body_size = _CONTENT.unpack_from(read, _HEAD.size)
    if of_class != spec.BasicProperties.INDEX:
        return None
    return frame.Header(_HEAD.unpack_from(read)[1], body_size, decode(read[_RAW_AT:-1]))
