"""A message's properties as its sender made them, with headers of ours.

Not by way of pika's decoder and encoder: between them 1.5 becomes 1, every integer changes its width, text that is not
UTF-8 becomes binary, and of two headers with one name the first is gone. The sender's headers are copied as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import pika
from pika import data

from supervisor import queues
from supervisor.amqp.properties import Remains, readable, split, split_table
from supervisor.redaction import clip_end, clip_start

_ADDRESSES: Final = ("CC", "BCC")
"""RabbitMQ sends a message to these queues, too (https://www.rabbitmq.com/docs/sender-selected), and has: parked with
them, it would get there once more."""
_ESSENTIAL: Final = (
    queues.ATTEMPT, queues.REASON, queues.QUEUE, queues.CAUSE, queues.CRASHES, queues.FIRST_SEEN, queues.HOST,
    queues.EXPIRATION, queues.USER_ID, queues.PART, queues.PARTS, queues.PART_OF, queues.PUT_BACK,
    queues.BURST,
)  # fmt: skip
"""Small, and without some of them a task is tried for ever, or a dead letter does not know where it came from. A few
hundred bytes, for which there is room beside all other properties in the smallest frame of AMQP (4 KiB)."""
_ERROR_LEAST: Final = 128
"""Bytes of the error that count as essential, too."""
_BY_IMPORTANCE: Final = (queues.ERROR, queues.COPIES, queues.PROPERTIES, queues.TRACEBACK, queues.EVIDENCE)
"""What is left of ours, the most important first."""
_ENDS: Final = (queues.TRACEBACK, queues.EVIDENCE)
"""Of these the end tells most; of the others the start."""
_WORTHWHILE: Final = 64
"""Bytes: a text cut to fewer is left out."""
_DROPPED_MAX: Final = 1024
_OVERHEAD: Final = 7 + 12 + 4 + 1
"""Bytes of a content header beside properties and headers: the frame's own head, class, weight and body size, the
table's size, the frame's end (AMQP 0-9-1, 4.2.3 and 4.2.6.1)."""
_EXPIRATION: Final = 1 + 20
"""Bytes of a time to live that whoever publishes may add."""


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


def labelled(
    properties: pika.BasicProperties,
    headers: Mapping[str, Any],
    frame_max: int = 131072,
    *,
    queue: str = "",
    is_ours: bool = False,
    user_id: str = "",
) -> Labelled:
    """A copy with these headers added, in the place of any with the same names, and all of it in one frame of
    `frame_max` bytes: properties cannot be split, and the broker closes a connection that sends a larger one (501).

    What the broker has recorded, and what has our names although it was not us who published it (`is_ours`), is kept
    under other names: `queues.WAS`. Delays of `queue` are not worth a record. There is room for
    `user_id`, whatever it came with.
    """
    new = Labelled()  # type: ignore[no-untyped-call]
    vars(new).update(vars(properties))
    entries = list(_kept(properties, headers, queue, is_ours))
    new.headers, new.user_id = None, user_id or None
    others: list[bytes] = pika.BasicProperties.encode(new)  # type: ignore[no-untyped-call]
    new.headers, kept = fit(headers, entries, frame_max - _OVERHEAD - _EXPIRATION - len(b"".join(others)))
    new.kept = b"".join(entry for _, entry in kept)
    return new


Entry = tuple[str | bytes, bytes]
"""A header of the sender's: its name; name, type and value as they are encoded."""


def fit(ours: Mapping[str, Any], theirs: Sequence[Entry], room: int) -> tuple[dict[str, Any], list[Entry]]:
    """What of our headers, and of the sender's, fits into so many bytes.

    The sender's are part of the work, so they stay as long as there is room for them beside the few of ours that are
    essential; then the largest goes first, and is named in `x-workq-dropped`. What is left is ours, by importance; a
    text that does not fit is cut.
    """
    if _size(ours) + _total(theirs) <= room:
        return dict(ours), list(theirs)
    chosen = {name: ours[name] for name in _ESSENTIAL if name in ours}
    if queues.ERROR in ours:
        chosen[queues.ERROR] = clip_start(ours[queues.ERROR], _ERROR_LEAST)
    if queues.PROPERTIES in ours:
        # All that the sender sent is in there; its headers are copies, of those that can be read.
        chosen[queues.PROPERTIES] = ours[queues.PROPERTIES][: room * 4 // 5 - _size(chosen) - 64]
    kept = list(theirs)
    if (left := room - _size(chosen)) < _total(kept):
        most = max(0, min(_DROPPED_MAX, left // 4))
        kept, dropped = _smallest(theirs, left - most - len(queues.DROPPED) - 6)
        names = ", ".join(f"{name!s} ({len(entry)} bytes)" for name, entry in dropped[:_DROPPED_MAX])
        chosen[queues.DROPPED] = clip_start(names, most)
    room -= _total(kept)
    for name in (*(name for name in ours if name not in _BY_IMPORTANCE), *_BY_IMPORTANCE):
        if name not in ours or chosen.get(name) == ours[name]:
            continue
        value = ours[name]
        if (excess := _size({**chosen, name: value}) - room) > 0:
            value = _cut(name, value, excess)
        if value is not None:
            chosen[name] = value
    return {name: chosen[name] for name in (*ours, queues.DROPPED) if name in chosen}, kept


def _smallest(entries: Sequence[Entry], room: int) -> tuple[list[Entry], list[Entry]]:
    """Those that fit when the largest go first, as they came; and those that went."""
    total, gone = _total(entries), list[int]()
    for at in sorted(range(len(entries)), key=lambda at: -len(entries[at][1])):
        if total <= room:
            break
        total -= len(entries[at][1])
        gone.append(at)
    left_out = set(gone)
    return [entry for at, entry in enumerate(entries) if at not in left_out], [entries[at] for at in gone]


def _cut(name: str, value: Any, excess: int) -> str | bytes | None:
    """The value without so many bytes; None when that leaves nothing worthwhile."""
    if not isinstance(value, str | bytes):
        return None
    size = len(value if isinstance(value, bytes) else value.encode("utf-8", "replace")) - excess
    if size < _WORTHWHILE:
        return None
    if isinstance(value, bytes):
        return value[:size]
    return clip_end(value, size) if name in _ENDS else clip_start(value, size)


def _kept(properties: pika.BasicProperties, headers: Mapping[str, Any], queue: str, is_ours: bool) -> Iterator[Entry]:
    """What stays of the headers that it came with, under the name that they have from here."""
    has_only_waited = queues.waited_only((properties.headers or {}).get("x-death"), queue)
    for name, entry in _entries(properties):
        text = name if isinstance(name, str) else ""
        if text.startswith(queues.RECORDS):
            if has_only_waited and "death" in text:
                continue
        elif not text.startswith(queues.OURS) or is_ours:
            if name not in headers and name not in _ADDRESSES:
                yield name, entry
            continue
        demoted = queues.demoted(entry[1 : 1 + entry[0]])
        yield demoted.decode("utf-8", "replace"), bytes([len(demoted)]) + demoted + entry[1 + entry[0] :]


def _entries(properties: Any) -> list[Entry]:
    """The sender's headers, still encoded; of undecodable properties those that pika can decode, so that whoever reads
    the dead letter does not fall over them in turn."""
    table = dict(split(properties.raw)).get("headers", b"")
    if isinstance(properties, Remains):
        return [(name, entry) for name, entry, _ in readable(table)]
    return list(split_table(table))


def _size(headers: Mapping[str, Any]) -> int:
    """Bytes of these headers in a table, without the table's own size."""
    return int(data.encode_table([], dict(headers))) - 4


def _total(entries: Iterable[Entry]) -> int:
    return sum(len(entry) for _, entry in entries)
