"""A whole delivery at once: method, content header and body, as they come from a broker, in one read. And its
acknowledgement in one send.

pika takes a delivery for three frames, and each frame on the same long way: a copy of all that has been read, an
object, look-ups for callbacks, a state machine that waits for the next. Here the three are recognised by their places
(AMQP 0-9-1, 4.2.3 and 4.2.6), and what they say is given to the consumer that pika's channel would have given it to;
the properties are decoded by pika's own decoder. Whatever is not exactly that, a delivery in pieces, a body in several
frames, properties that cannot be decoded, is left to pika: this can be quicker, and nothing else. What it saves:
docs/decisions/0020.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from pika import spec
from pika.channel import Channel
from pika.frame import Header, Method

from supervisor.amqp import undecodable

_METHOD: Final = struct.Struct(">BHLL")
"""Type, channel, size of the payload; the payload begins with class and method."""
_HEADER: Final = struct.Struct(">BBHLHHQ")
"""The end of the frame before; type, channel, size of the payload; class, weight, size of the body."""
_BODY: Final = struct.Struct(">BBHL")
"""The end of the frame before; type, channel, size of the payload."""
_TAG: Final = struct.Struct(">QBB")
"""Behind the consumer's tag: delivery tag, whether it is redelivered, size of the exchange's name."""
_CLASS: Final = spec.BasicProperties.INDEX
_ACK: Final = struct.Struct(">BHLLQBB")
"""All of basic.ack: type, channel, size of the payload; class and method, delivery tag, whether it is for all before,
too; the end."""
_ACK_SIZE: Final = _ACK.size - spec.FRAME_HEADER_SIZE - 1

_READ: Final = 64 * 1024
"""Bytes to ask the socket for; pika asks for 4 KiB, 256 times for a body of 1 MiB."""

Whole = tuple[int, int, int, spec.Basic.Deliver, spec.BasicProperties, bytes]


class Connection(undecodable.Connection):
    """A pika connection for one who consumes: less to do for each delivery, and for its acknowledgement."""

    _send: Callable[[bytes], int] | None = None
    """The socket's own, where it may be used."""
    _receive: Callable[[int], bytes]

    def shorten(self) -> None:
        """Once it is open, and without TLS: send acknowledgements past pika, and read the socket once for each time
        that epoll tells of something to read.

        pika reads until there is nothing left, which costs one more system call and an exception for each delivery. If
        something is left, epoll tells again. (TLS keeps what it has decrypted where epoll does not see it.)
        """
        transport: Any = self._transport
        self._send = transport._sock.send
        self._receive = transport._sock.recv
        self._nbio.read_directly(transport._sock.fileno(), self._read)

    def ack(self, channel: Channel, tag: int) -> None:
        """`channel.basic_ack(tag)` on a channel that is open, in one step when nothing waits to be sent before it.

        What the socket does not take, or not wholly, is pika's to send, and what is wrong with it pika's to tell.
        """
        self.touch()
        if self._send is None or not self._nbio.has_written:
            channel.basic_ack(tag)
            return
        frame = _ACK.pack(
            spec.FRAME_METHOD, channel.channel_number, _ACK_SIZE, spec.Basic.Ack.INDEX, tag, 0, spec.FRAME_END
        )
        transport: Any = self._transport
        self.bytes_sent += len(frame)
        self.frames_sent += 1
        try:
            sent = self._send(frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            transport._initiate_abort(error)
            return
        if sent < len(frame):
            transport.write(frame[sent:])

    def _read(self) -> None:
        """What pika's transport does when there is something to read, but once; the end is left to it."""
        transport: Any = self._transport
        try:
            read = self._receive(_READ)
            if read:
                self._on_data_available(read)
                return
        except BlockingIOError:
            return
        except Exception as error:  # noqa: BLE001 - the socket's, or what pika raises about what has come
            transport._initiate_abort(error)
            return
        transport._on_socket_readable()

    def _on_data_available(self, data_in: bytes) -> None:
        self.touch()
        at = 0
        if not self._frame_buffer:
            while (delivery := whole(data_in, at)) is not None:
                end, frames, number, method, properties, body = delivery
                channel: Any = self._channels.get(number)
                if channel is None or _is_expecting(channel._content_assembler):
                    break
                self.frames_received += frames
                self.bytes_received += end - at
                at = end
                tag = method.consumer_tag
                deliver = channel._consumers.get(tag)
                if deliver is None or tag in channel._cancelled:
                    channel._on_deliver(Method(number, method), Header(number, len(body), properties), body)
                else:
                    deliver(channel, method, properties, body)
        if at < len(data_in):
            super()._on_data_available(data_in[at:] if at else data_in)


def _is_expecting(content: Any) -> bool:
    """Whether there was a method or a header, and not yet the body that belongs to it."""
    return content._method_frame is not None or content._header_frame is not None


def whole(read: bytes, at: int) -> Whole | None:
    """The delivery that begins there: where it ends, how many frames it is, on which channel, and what it consists of.

    None when something else begins there, or not all of it has been read.
    """
    try:
        kind, channel, size, index = _METHOD.unpack_from(read, at)
        if kind != spec.FRAME_METHOD or index != spec.Basic.Deliver.INDEX:
            return None
        header_at = at + spec.FRAME_HEADER_SIZE + size
        mark, kind, of_channel, size, of_class, _, body_size = _HEADER.unpack_from(read, header_at)
        if (mark, kind, of_channel, of_class) != (spec.FRAME_END, spec.FRAME_HEADER, channel, _CLASS):
            return None
        raw_at, end = header_at + _HEADER.size, header_at + _BODY.size + size
        raw = read[raw_at:end]
        frames, body = 2, b""
        if body_size:
            mark, kind, of_channel, size = _BODY.unpack_from(read, end)
            if (mark, kind, of_channel, size) != (spec.FRAME_END, spec.FRAME_BODY, channel, body_size):
                return None
            body_at, end = end + _BODY.size, end + _BODY.size + size
            frames, body = 3, read[body_at:end]
        if read[end] != spec.FRAME_END:
            return None
        tag_at = at + _METHOD.size + 1
        tag_end = tag_at + read[tag_at - 1]
        number, bits, size = _TAG.unpack_from(read, tag_end)
        exchange_at = tag_end + _TAG.size
        exchange_end = exchange_at + size
        key_at = exchange_end + 1
        if key_at + read[exchange_end] != header_at:
            return None
        method = spec.Basic.Deliver(  # type: ignore[no-untyped-call]
            str(read[tag_at:tag_end], "utf-8"),
            number,
            bool(bits & 1),
            str(read[exchange_at:exchange_end], "utf-8"),
            str(read[key_at:header_at], "utf-8"),
        )
        properties: Any = spec.BasicProperties().decode(raw)  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - too short, or what pika's decoders raise: pika shall say so, and `undecodable`
        return None
    properties.raw = raw
    return end + 1, frames, channel, method, properties, body
