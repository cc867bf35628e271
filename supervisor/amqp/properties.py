"""A message's properties: decoded, and as the bytes that came.

In a content header stand two bytes of flags and then, one after the other, the properties whose flags are set.

pika cannot decode all of them: a header timestamp of 2**62 (OSError, from the C library), three thousand nested tables
(RecursionError). Such a message must not end the connection: the broker would deliver it again, on a classic queue for
ever. It is accepted with what *remains* of its properties (everything that can be decoded by itself, the raw bytes, the
error), and then dead-lettered.

What is published again is copied as bytes (`Encoded`). Between pika's decoder and encoder 1.5 becomes 1, every integer
changes its width, text that is not UTF-8 becomes binary, and of two headers with one name the first is gone.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple
from uuid import uuid4

from pika import data, spec

BasicProperties = spec.BasicProperties
"""What a program may give its messages; ours are of this class, too."""

NAMES: Final = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip
"""In the order of the wire, from flag 15 downwards (https://www.rabbitmq.com/amqp-0-9-1-reference#class.basic)."""
NUMBERS: Final = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
"""Those that are numbers, by size; `headers` is a table, and the others are short strings."""
PERSISTENT: Final = 2
_FLAGS: Final = struct.Struct(">H")
_FIRST: Final = 0x8000
_UNUSED: Final = 0b11
_LENGTH: Final = struct.Struct(">I")
"""Of a table, in front of it."""
_SIZES: Final = {
    b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"U": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8,
    b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0,
}  # fmt: skip
"""Types of a header's value by the size of what follows the type
(https://www.rabbitmq.com/amqp-0-9-1-errata#section_3)."""
_SIZED: Final = (b"S", b"x", b"A", b"F")
"""Types of a header's value that begins with its size, four bytes."""


class Field(NamedTuple):
    """One header, still encoded: `value` begins with its type."""

    name: bytes
    value: bytes

    @property
    def encoded(self) -> bytes:
        return short(self.name) + self.value

    @property
    def size(self) -> int:
        """Bytes of it in a table."""
        return 1 + len(self.name) + len(self.value)

    @property
    def text(self) -> str:
        """Its name."""
        return self.name.decode("utf-8", "replace")


# ------------------------------------------------------------------------------------------------- taken apart


def split(raw: bytes) -> dict[str, bytes]:
    """The properties that are there, each still encoded, up to the first that is cut short. Raises struct.error if
    there are not even flags."""
    (flags,) = _FLAGS.unpack_from(raw)
    at, parts = _FLAGS.size, {}
    for bit, name in enumerate(NAMES):
        if flags & _FIRST >> bit:
            if name == "headers":
                end = at + 4 + int.from_bytes(raw[at : at + 4])
            else:
                end = at + (NUMBERS.get(name) or 1 + int.from_bytes(raw[at : at + 1]))
            if end > len(raw):
                break
            parts[name] = raw[at:end]
            at = end
    return parts


def split_whole(raw: bytes) -> dict[str, bytes]:
    """The same of all that is there. Raises ValueError if that is cut short."""
    with suppress(struct.error):
        parts = split(raw)
        if join(parts) == bytes([raw[0], raw[1] & ~_UNUSED]) + raw[2:]:
            return parts
    raise ValueError("the properties are cut short, or something follows them")


def join(parts: Mapping[str, bytes]) -> bytes:
    flags = sum(_FIRST >> bit for bit, name in enumerate(NAMES) if name in parts)
    return _FLAGS.pack(flags) + b"".join(parts[name] for name in NAMES if name in parts)


def fields(table: bytes) -> Iterator[Field]:
    """The headers of a table with its size in front; of nothing, none. Raises ValueError at the first that is cut
    short, or of a type that AMQP does not have."""
    at = _LENGTH.size
    while at < len(table):
        value_at = at + 1 + table[at]
        kind = table[value_at : value_at + 1]
        if kind in _SIZED:
            end = value_at + 5 + int.from_bytes(table[value_at + 1 : value_at + 5])
        elif kind in _SIZES:
            end = value_at + 1 + _SIZES[kind]
        elif kind:
            raise ValueError(f"a header has the type {kind!r}, which AMQP 0-9-1 does not know")
        else:
            end = len(table) + 1
        if end > len(table):
            raise ValueError("the headers are cut short")
        yield Field(table[at + 1 : value_at], table[value_at:end])
        at = end


def readable(table: bytes) -> Iterator[tuple[Field, Any]]:
    """Each header that can be decoded by itself, and its value, up to the first that is cut short."""
    with suppress(ValueError):
        for field in fields(table):
            try:
                value, _ = data.decode_value(field.value, 0)
            except Exception:  # noqa: BLE001, S112 - whatever it stumbles over: OverflowError, RecursionError, ...
                continue
            yield field, value


def value_of(name: str, part: bytes) -> Any:
    """Of a property but the headers. A text is bytes when it is not UTF-8."""
    return int.from_bytes(part) if name in NUMBERS else data.decode_short_string(part, 0)[0]


def decoded(value: bytes) -> Any:
    """A header's value, for people; of what cannot be decoded, the bytes."""
    try:
        if value[:1] in (b"d", b"f"):
            return struct.unpack(">d" if value[:1] == b"d" else ">f", value[1:])[0]
        return data.decode_value(value, 0)[0]
    except Exception:  # noqa: BLE001 - as above
        return value


# ------------------------------------------------------------------------------------------------ put together


def short(text: bytes) -> bytes:
    """A short string."""
    return bytes([len(text)]) + text


def long(text: bytes) -> bytes:
    """A header's value."""
    return b"S" + _LENGTH.pack(len(text)) + text


def encoded(headers: Mapping[str, Any]) -> bytes:
    """The entries of a table, without its size. Raises what pika's encoder does for what AMQP cannot carry."""
    pieces: list[bytes] = []
    data.encode_table(pieces, dict(headers))
    return b"".join(pieces)[_LENGTH.size :]


class Properties(BasicProperties):
    """A message's properties, and the bytes they were decoded from."""

    raw = b""
    """Flags and values, without the frame around them."""


class Remains(Properties):
    """What is left of properties that pika cannot decode."""

    def __init__(self, raw: bytes, error: BaseException) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.raw = raw
        self.error = f"{type(error).__name__}: {error}"
        for name, part in split(raw).items():
            setattr(self, name, _headers(part) if name == "headers" else value_of(name, part))


class Encoded(Properties):
    """Persistent properties to be published, as they are encoded."""

    def __init__(self, parts: Mapping[str, bytes], entries: Iterable[bytes] = ()) -> None:
        """`entries` of the table of headers, instead of the one among the parts."""
        super().__init__()  # type: ignore[no-untyped-call]
        parts = {**parts, "delivery_mode": bytes([PERSISTENT])}
        parts.pop("headers", None)
        if table := b"".join(entries):
            parts["headers"] = _LENGTH.pack(len(table)) + table
        self.raw = join(parts)
        if "message_id" in parts:
            # By this the publisher knows which message the broker returns.
            self.message_id = value_of("message_id", parts["message_id"])

    def encode(self) -> list[bytes]:
        return [self.raw]


def persistent(given: BasicProperties | None, message_id: str | None, headers: Mapping[str, Any]) -> BasicProperties:
    """A persistent copy with that message id, if there is one, and with these headers added. Of nothing, new ones,
    whose message id is made up."""
    if given is None:
        properties = BasicProperties()  # type: ignore[no-untyped-call]
        properties.message_id = message_id or uuid4().hex
    else:
        properties = copy.copy(given)
        properties.message_id = message_id or given.message_id
    if headers:
        properties.headers = {**(properties.headers or {}), **headers}
    properties.delivery_mode = PERSISTENT
    return properties


def decode(raw: bytes) -> Properties:
    """Raises struct.error if there are not even flags."""
    properties: Any = Properties()  # type: ignore[no-untyped-call]
    try:
        properties.decode(raw)
    except Exception as error:  # noqa: BLE001 - as above
        return Remains(raw, error)
    properties.raw = raw
    return properties  # type: ignore[no-any-return]


def _headers(table: bytes) -> dict[str | bytes, Any]:
    return {value_of("", short(field.name)): value for field, value in readable(table)}
