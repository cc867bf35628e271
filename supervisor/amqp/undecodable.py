"""Messages whose properties pika cannot decode: taken like any other, so that they can be put aside.

pika decodes a content header before any of our code sees the message, and lets what that raises end the connection: a
header timestamp of 2**62 (OSError, from the C library), three thousand tables in one another (RecursionError). The
broker then gives the same message to the next connection, on a classic queue for ever. So the one method of pika that
turns bytes into a frame is overridden, for the consuming connection only, and the message goes on with what *remains*
of its properties: all that can be read one by one, the raw bytes, and the error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import pika
from pika import data, spec
from pika.frame import Header, decode_frame

from supervisor import amqp
from supervisor.content_header import NUMBERS, PROPERTIES, SIZED, SIZES

_FRAME_HEAD: Final = struct.Struct(">BHL")  # type, channel, size of the payload (AMQP 0-9-1, 4.2.3)
_CONTENT_HEAD: Final = struct.Struct(">HHQ")  # class, weight, size of the body (4.2.6.1)
_RAW_AT: Final = _FRAME_HEAD.size + _CONTENT_HEAD.size


class Remains(pika.BasicProperties):
    """What is left of properties that pika cannot decode. Can be published: it encodes what could be read."""

    def __init__(self, raw: bytes, error: BaseException) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.raw = raw
        """The properties as they came: flags and values, without the frame around them."""
        self.error = f"{type(error).__name__}: {error}"
        for name, field in split(raw):
            setattr(self, name, _decode(name, field))


class Connection(amqp.Connection):
    """A pika connection that takes undecodable messages too, with `Remains` for their properties. All properties that
    come by it have the bytes that they were decoded from, as `raw`."""

    def _read_frame(self) -> Any:
        # The only override of pika's inner workings. Not `spec.props[60]`, which would also change the connections that
        # a handler opens for itself; and a `try` costs a good message nothing.
        try:
            read = decode_frame(self._frame_buffer)
        except Exception as error:  # the decoder raises whatever it stumbles over
            undecodable = _undecodable(self._frame_buffer, error)
            if undecodable is None:
                raise
            return undecodable
        header = read[1]
        if type(header) is Header:
            header.properties.raw = self._frame_buffer[_RAW_AT : read[0] - 1]  # type: ignore[attr-defined]
        return read


def split(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Each property that is there, and its bytes, up to the first that is cut short."""
    (flags,) = struct.unpack_from(">H", raw)
    at = 2
    for bit, name in enumerate(PROPERTIES):
        if flags & 0x8000 >> bit:
            if name == "headers":
                end = at + 4 + int.from_bytes(raw[at : at + 4])
            else:
                end = at + (NUMBERS.get(name) or 1 + int.from_bytes(raw[at : at + 1]))
            if end > len(raw):
                return
            yield name, raw[at:end]
            at = end


def split_table(table: bytes) -> Iterator[tuple[str | bytes, bytes]]:
    """Each entry's name, and the entry's bytes (name, type, value), up to the first that is cut short, or of a type
    that AMQP does not have."""
    at = 4
    while at < len(table):
        name, value_at = data.decode_short_string(table, at)
        kind = table[value_at : value_at + 1]
        if kind in SIZED:
            end = value_at + 5 + int.from_bytes(table[value_at + 1 : value_at + 5])
        else:
            end = value_at + 1 + SIZES.get(kind, len(table))
        if end > len(table):
            return
        yield name, table[at:end]
        at = end


def readable(table: bytes) -> Iterator[tuple[str | bytes, bytes, Any]]:
    """Each entry that can be decoded by itself: its name, its bytes, its value."""
    for name, entry in split_table(table):
        try:
            value, _ = data.decode_value(entry, 1 + entry[0])
        except Exception:  # noqa: BLE001, S112 - as above
            continue
        yield name, entry, value


def _undecodable(buffer: bytes, error: BaseException) -> tuple[int, Header] | None:
    """The size of the content header at the start of the buffer, and it, with what remains of its properties. None when
    something else is there, or the frame itself is broken: that is no single message's fault."""
    kind, channel, size = _FRAME_HEAD.unpack_from(buffer)
    end = _FRAME_HEAD.size + size
    if kind != spec.FRAME_HEADER or end < _RAW_AT + 2 or buffer[end] != spec.FRAME_END:
        return None
    content_class, _, body_size = _CONTENT_HEAD.unpack_from(buffer, _FRAME_HEAD.size)
    if content_class != spec.BasicProperties.INDEX:
        return None
    return end + 1, Header(channel, body_size, Remains(buffer[_RAW_AT:end], error))


def _decode(name: str, field: bytes) -> Any:
    if name == "headers":
        return {name: value for name, _, value in readable(field)}
    if name in NUMBERS:
        return int.from_bytes(field)
    return data.decode_short_string(field, 0)[0]
