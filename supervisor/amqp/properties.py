"""A message's properties, and what remains of properties that pika cannot decode: a header timestamp of 2**62 (OSError,
from the C library), three thousand nested tables (RecursionError).

Such a message must not end the connection: the broker would deliver it again, on a classic queue for ever. It is
accepted with what *remains* of its properties (everything that can be decoded by itself, the raw bytes, the error), and
then dead-lettered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pika
from pika import data

from supervisor.content_header import NUMBERS, PROPERTIES, SIZED, SIZES


class Properties(pika.BasicProperties):
    """A message's properties, and the bytes they were decoded from."""

    raw = b""
    """Flags and values, without the frame around them."""


class Remains(Properties):
    """What is left of properties that pika cannot decode. Can be published: it encodes what could be read."""

    def __init__(self, raw: bytes, error: BaseException) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.raw = raw
        self.error = f"{type(error).__name__}: {error}"
        for name, field in split(raw):
            setattr(self, name, _decode(name, field))


def decode(raw: bytes) -> Properties:
    """Raises struct.error if there are not even flags."""
    properties: Any = Properties()  # type: ignore[no-untyped-call]
    try:
        properties.decode(raw)
    except Exception as error:  # noqa: BLE001 - the decoder raises whatever it stumbles over
        return Remains(raw, error)
    properties.raw = raw
    return properties  # type: ignore[no-any-return]


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


def _decode(name: str, field: bytes) -> Any:
    if name == "headers":
        return {name: value for name, _, value in readable(field)}
    if name in NUMBERS:
        return int.from_bytes(field)
    return data.decode_short_string(field, 0)[0]
