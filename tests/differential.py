"""The consuming connection beside pika's own, which is what it is held to: both are fed the same bytes."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Any

import pika
from pika import frame, spec
from pika.adapters.base_connection import _StreamingProtocolShim
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel

from supervisor.amqp.channel import Channel as OurChannel
from supervisor.amqp.connection import Connection
from supervisor.amqp.ioloop import IOLoop as OurLoop
from supervisor.amqp.properties import Remains
from supervisor.endpoint import Endpoint

TAG = "worker-1"


def method(channel: int, tag: str, number: int, redelivered: bool, exchange: str, key: str) -> bytes:
    return frame.Method(channel, spec.Basic.Deliver(tag, number, redelivered, exchange, key)).marshal()


def content(channel: int, raw: bytes, body: bytes, parts: int) -> bytes:
    """A header, and the body in so many frames, if it has so many bytes."""
    payload = struct.pack(">HHQ", spec.BasicProperties.INDEX, 0, len(body)) + raw
    header = struct.pack(">BHL", spec.FRAME_HEADER, channel, len(payload)) + payload + bytes([spec.FRAME_END])
    size = max(1, -(-len(body) // parts))
    return header + b"".join(frame.Body(channel, body[at : at + size]).marshal() for at in range(0, len(body), size))


class Reference(pika.SelectConnection):
    """One that nobody has connected, and that takes undecodable messages, too. What it would send is in `sent`."""

    def __init__(self) -> None:
        self.loop: Any = IOLoop()
        self.loop.activate_poller()
        super().__init__(pika.ConnectionParameters(), custom_ioloop=self.loop, internal_connection_workflow=False)

    def _read_frame(self) -> Any:
        """A header as pika decodes it, with the bytes that it was decoded from; or what remains of it."""
        buffer = self._frame_buffer
        try:
            read = frame.decode_frame(buffer)
        except Exception as error:
            end = 7 + int.from_bytes(buffer[3:7])
            if buffer[0] != spec.FRAME_HEADER or end < 21 or buffer[end] != spec.FRAME_END:
                raise
            if int.from_bytes(buffer[7:9]) != spec.BasicProperties.INDEX:
                raise
            properties = Remains(buffer[19:end], error)
            return end + 1, frame.Header(int.from_bytes(buffer[1:3]), int.from_bytes(buffer[11:19]), properties)
        if type(read[1]) is frame.Header:
            read[1].properties.raw = buffer[19 : read[0] - 1]
        return read

    def open_channel(self, number: int, consume: Any, *tags: str) -> Any:
        channel: Any = Channel(self, number, lambda _: None)
        channel._set_state(channel.OPEN)
        channel._consumers.update(dict.fromkeys(tags, consume))
        self._channels[number] = channel
        return channel

    def attach(self, sock: Any) -> None:
        """To a socket that is connected."""
        services = SelectorIOServicesAdapter(self.loop)
        self._transport = _AsyncPlaintextTransport(sock, _StreamingProtocolShim(self), services)

    def turn(self) -> None:
        self.loop.call_later(0, lambda: None)
        self.loop.poll()
        self.loop.process_timeouts()


class Seen:
    """What came by a connection that nobody has connected, with two channels, a consumer on each, and one
    that is being cancelled."""

    def __init__(self, connection: Any) -> None:
        self.connection: Any = connection
        self.deliveries: list[Any] = []
        self.sent: list[str] = []
        self.error = ""

    def deliver(self, channel: Any, deliver: Any, these: Any, body: bytes) -> None:
        given = {name: value for name, value in vars(these).items() if name != "error"}
        self.deliveries.append((channel.channel_number, vars(deliver), given, body, isinstance(these, Remains)))

    def send(self, number: int, said: Any, *_: Any) -> None:
        if isinstance(said, spec.Basic.Reject):
            # From 4.3 on RabbitMQ counts a reject against the message, which has done nothing: we send a nack.
            said = spec.Basic.Nack(said.delivery_tag, requeue=said.requeue)
        self.sent.append(f"{number} {said}")

    def feed(self, *pieces: bytes) -> Any:
        for piece in pieces:
            try:
                self.connection._on_data_available(piece)
            except Exception as error:
                # By accident, for want of the frame before this one.
                self.error = type(error).__name__.replace("AttributeError", "UnexpectedFrameError")
                break
        return self.deliveries, self.sent, self.error, self.connection.bytes_received, self.unread()

    def unread(self) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        self.loop.close()


class Ours(Seen):
    def __init__(self) -> None:
        self.loop: Any = OurLoop()
        self.ends: list[BaseException] = []
        nobody = Endpoint("127.0.0.1", 1)
        super().__init__(
            Connection(nobody, self.loop, heartbeat=0, name="", on_greeted=lambda _: None, on_closed=self.ended)
        )
        self.connection.has_opened = True
        for number in (1, 2):
            channel = self.channel(number)
            channel._consumers.update(dict.fromkeys([TAG, "gone"], self.deliver))
            channel._cancelled.add("gone")
        self.connection.send = self.send

    def channel(self, number: int) -> Any:
        """Opened, without a word."""
        channel = self.connection._channels[number] = OurChannel(self.connection, number)
        return channel

    def ended(self, error: BaseException) -> None:
        self.ends.append(error)
        self.error = repr(error)

    def unread(self) -> bytes:
        return b"".join(self.connection._pieces)


class Pikas(Seen):
    def __init__(self) -> None:
        super().__init__(Reference())
        self.loop = self.connection.loop
        for number in (1, 2):
            channel = self.connection.open_channel(number, self.deliver, TAG, "gone")
            channel._cancelled.add("gone")
        self.connection._send_method = self.send

    def unread(self) -> bytes:
        return bytes(self.connection._frame_buffer)


class Stingy:
    """A socket that takes so many bytes at a time, 0: not now, or fails with this; then whatever it is given."""

    def __init__(self, sock: socket.socket, takes: Iterable[int | OSError]) -> None:
        self._sock = sock
        self._takes = iter(takes)
        self.sends = 0
        self.recv, self.fileno, self.close, self.shutdown = sock.recv, sock.fileno, sock.close, sock.shutdown

    def send(self, data: bytes) -> int:
        self.sends += 1
        take = next(self._takes, len(data))
        if isinstance(take, OSError):
            raise take
        if take == 0:
            raise BlockingIOError(errno.EAGAIN, "not now")
        return self._sock.send(data[:take])


class Wire:
    """The two ends of a connection."""

    def __init__(self, takes: Iterable[int | OSError]) -> None:
        self._mine, self.peer = socket.socketpair()
        self._mine.setblocking(False)
        self.peer.setblocking(False)
        self.mine: Any = Stingy(self._mine, takes)

    def arrived(self) -> bytes:
        """What the peer has been sent by now."""
        try:
            return self.peer.recv(2**16)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self._mine.close()
        self.peer.close()


class WiredOurs(Ours):
    """The same with a socket, whose other end is `wire.peer`."""

    def __init__(self, takes: Iterable[int | OSError] = ()) -> None:
        super().__init__()
        del self.connection.send
        self.wire = Wire(takes)
        self.stream = self.connection._stream
        self.stream._sock = self.wire.mine
        self.stream._is_ready = self.stream.has_written = self.connection._is_connected = True
        self.loop._timers.clear()  # the look-up of nobody's address
        self.loop.add_handler(self.wire.mine.fileno(), self.stream._happened, self.loop.READ)

    @property
    def has_written(self) -> bool:
        return bool(self.connection.has_written)

    def turn(self) -> None:
        self.loop.turn(0.0)

    def close(self) -> None:
        self.wire.close()
        super().close()


class WiredPikas(Pikas):
    def __init__(self, takes: Iterable[int | OSError] = ()) -> None:
        super().__init__()
        del self.connection._send_method
        self.wire = Wire(takes)
        self.connection.attach(self.wire.mine)
        self.connection._on_stream_terminated = lambda error: setattr(self, "error", repr(error))

    def channel(self, number: int) -> Any:
        return self.connection.open_channel(number, self.deliver)

    def turn(self) -> None:
        self.connection.turn()

    def close(self) -> None:
        self.wire.close()
        super().close()
