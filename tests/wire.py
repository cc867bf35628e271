"""AMQP 0-9-1 by hand: properties that pika would not encode, or not so, and what really lies in a queue."""

from __future__ import annotations

import struct
from typing import Any

import pika

from tests import amqp

Value = tuple[bytes, bytes]
"""A field's type and its encoded value."""

_FLAGS = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip
_FIXED = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
_SIZES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8, b"f": 4, b"d": 8,
          b"D": 5, b"T": 8, b"V": 0}  # fmt: skip


def short(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def long(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def table(fields: dict[bytes, Value]) -> bytes:
    return long(b"".join(short(name) + kind + value for name, (kind, value) in fields.items()))


def properties(**fields: bytes) -> bytes:
    """Flags and values; each field is given encoded."""
    flags = sum(0x8000 >> bit for bit, name in enumerate(_FLAGS) if name in fields)
    return struct.pack(">H", flags) + b"".join(fields[name] for name in _FLAGS if name in fields)


def nested(depth: int) -> Value:
    inner = table({})
    for _ in range(depth):
        inner = table({b"n": (b"F", inner)})
    return b"F", inner


class _Raw(pika.BasicProperties):
    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.raw = raw

    def encode(self) -> list[bytes]:
        return [self.raw]


def publish(
    url: str, queue: str, raw: bytes, body: bytes = b"0", *, exchange: str = "", routing_key: Any = None
) -> None:
    """One message with these very properties, confirmed. The queue must exist."""
    with amqp.connection(url) as link:
        channel = link.channel()
        channel.confirm_delivery()
        channel.basic_publish(exchange, queue if routing_key is None else routing_key, body, _Raw(raw), mandatory=True)


class _Tap(pika.SelectConnection):
    """Keeps the properties of every message, as they came over the wire."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.raws: list[bytes] = []
        super().__init__(*args, **kwargs)

    def _read_frame(self) -> Any:
        buffer = self._frame_buffer
        consumed, frame = super()._read_frame()
        if isinstance(frame, pika.frame.Header):
            self.raws.append(bytes(buffer[7 + 12 : consumed - 1]))
        return consumed, frame


def drain(url: str, queue: str) -> list[tuple[dict[str, bytes], bytes]]:
    """Every message in the queue, taken out: its properties still encoded, and its body."""
    link = pika.BlockingConnection(pika.URLParameters(url), _impl_class=_Tap)
    try:
        channel, bodies = link.channel(), []
        while (got := channel.basic_get(queue, auto_ack=True))[0]:
            bodies.append(got[2])
        return [(split(raw), body) for raw, body in zip(link._impl.raws, bodies, strict=True)]
    finally:
        link.close()


def split(raw: bytes) -> dict[str, bytes]:
    """The properties that are there, each still encoded."""
    (flags,) = struct.unpack_from(">H", raw)
    at, found = 2, {}
    for bit, name in enumerate(_FLAGS):
        if flags & 0x8000 >> bit:
            size = _FIXED.get(name) or 1 + raw[at]
            if name == "headers":
                size = 4 + struct.unpack_from(">I", raw, at)[0]
            found[name] = raw[at : at + size]
            at += size
    assert at == len(raw)
    return found


def fields(encoded: bytes) -> dict[bytes, Value]:
    """The fields of a table, each still encoded."""
    at, found = 4, {}
    while at < len(encoded):
        end = at + 1 + encoded[at]
        name, kind = encoded[at + 1 : end], encoded[end : end + 1]
        size = _SIZES[kind] if kind in _SIZES else 4 + struct.unpack_from(">I", encoded, end + 1)[0]
        found[name] = kind, encoded[end + 1 : end + 1 + size]
        at = end + 1 + size
    return found
