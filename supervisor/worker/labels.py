"""A message's properties as its sender made them, with headers of ours.

Not by way of pika's decoder and encoder: between them 1.5 becomes 1, every integer changes its width, text that is not
UTF-8 becomes binary, and of two headers with one name the first is gone. The sender's headers are copied as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import pika
from pika import data

from supervisor import queues
from supervisor.worker.undecodable import Remains, readable, split, split_table

ROOM: Final = 126 * 1024
"""Bytes of headers. Properties go in one frame (AMQP 0-9-1, 4.2.6.1) of frame_max bytes, 128 KiB by default; a larger
one, and the broker closes the connection (501). The other properties take 3 KiB at most, but hardly ever a tenth."""
_ADDRESSES: Final = ("CC", "BCC")
"""RabbitMQ sends a message to these queues, too (https://www.rabbitmq.com/docs/sender-selected), and has: parked with
them, it would get there once more."""
_LUXURIES: Final = (queues.EVIDENCE, queues.TRACEBACK)


class Labelled(pika.BasicProperties):
    """Properties that encode to `headers` and, before them, `kept`: entries of a table that are encoded already."""

    kept = b""

    def encode(self) -> list[bytes]:
        pieces: list[bytes] = super().encode()  # type: ignore[no-untyped-call]
        # Flags, then two pieces for each short string before the headers, then the table's size.
        at = 1 + 2 * (self.content_type is not None) + 2 * (self.content_encoding is not None)
        (size,) = struct.unpack(">I", pieces[at])
        pieces[at : at + 1] = [struct.pack(">I", size + len(self.kept)), self.kept]
        return pieces


def labelled(properties: pika.BasicProperties, headers: Mapping[str, Any]) -> Labelled:
    """A copy with these headers added, in the place of any with the same names.

    When that is more than fits into a frame, our traceback and evidence are left out, and after them the sender's
    largest headers: those are named in `x-workq-dropped`.
    """
    new = Labelled()  # type: ignore[no-untyped-call]
    vars(new).update(vars(properties))
    entries = [(name, entry) for name, entry in _entries(properties) if name not in headers and name not in _ADDRESSES]
    ours = dict(headers)
    dropped: list[str] = []
    while entries and _size(ours) + sum(len(entry) for _, entry in entries) > ROOM:
        luxury = next((name for name in _LUXURIES if name in ours), None)
        if luxury is not None:
            del ours[luxury]
            continue
        largest = max(entries, key=lambda each: len(each[1]))
        entries.remove(largest)
        dropped.append(f"{largest[0]!s} ({len(largest[1])} bytes)")
        ours[queues.DROPPED] = ", ".join(dropped)[:1024]
    new.kept = b"".join(entry for _, entry in entries)
    new.headers = ours
    return new


def _entries(properties: Any) -> list[tuple[str | bytes, bytes]]:
    """The sender's headers, still encoded; of undecodable properties those that pika can decode, so that whoever reads
    the dead letter does not fall over them in turn."""
    table = dict(split(properties.raw)).get("headers", b"")
    if isinstance(properties, Remains):
        return [(name, entry) for name, entry, _ in readable(table)]
    return list(split_table(table))


def _size(headers: dict[str, Any]) -> int:
    return int(data.encode_table([], headers))
