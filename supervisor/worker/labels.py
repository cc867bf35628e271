"""A message's properties as its sender made them, with headers of ours.

The sender's are copied as bytes, not decoded and encoded again: see `amqp/properties.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from supervisor import queues
from supervisor.amqp.properties import Encoded, Field, Properties, Remains, encoded, fields, readable, short, split
from supervisor.redaction import clip_end, clip_start

_ADDRESSES: Final = ("CC", "BCC")
"""RabbitMQ sends a message to these queues, too (https://www.rabbitmq.com/docs/sender-selected), and has: parked with
them, it would get there once more."""
_ESSENTIAL: Final = (
    queues.ATTEMPT, queues.REASON, queues.QUEUE, queues.CAUSE, queues.CRASHES, queues.FIRST_SEEN, queues.HOST,
    queues.EXPIRATION, queues.USER_ID, queues.PART, queues.PARTS, queues.PART_OF, queues.PUT_BACK,
    queues.BURST, queues.DEFERRED,
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
_OURS_TO_SAY: Final = ("expiration", "user_id")
"""The sender's become headers: a message that expires while it is parked is evidence, or work, lost; and with a user
id other than our own it is refused (406, https://www.rabbitmq.com/docs/validated-user-id)."""


def labelled(
    properties: Properties,
    headers: Mapping[str, Any],
    frame_max: int = 131072,
    *,
    queue: str = "",
    is_ours: bool = False,
    **others: str | None,
) -> Encoded:
    """A copy with these headers added, in the place of any with the same names, and all of it in one frame of
    `frame_max` bytes: properties cannot be split, and the broker closes a connection that sends a larger one (501).

    What the broker has recorded, and what has our names although it was not us who published it (`is_ours`), is kept
    under other names: `queues.WAS`. Delays of `queue` are not worth a record. `others` are other properties to be
    added; those of `_OURS_TO_SAY` have no other source.
    """
    parts = {name: part for name, part in split(properties.raw).items() if name not in _OURS_TO_SAY}
    parts |= {name: short(text.encode()) for name, text in others.items() if text}
    theirs = list(_kept(parts.pop("headers", b""), properties, headers, queue, is_ours))
    chosen, kept = fit(headers, theirs, frame_max - _OVERHEAD - len(Encoded(parts).raw))
    return Encoded(parts, [*(field.encoded for field in kept), encoded(chosen)])


def fit(ours: Mapping[str, Any], theirs: Sequence[Field], room: int) -> tuple[dict[str, Any], list[Field]]:
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
        names = ", ".join(f"{field.text} ({field.size} bytes)" for field in dropped[:_DROPPED_MAX])
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


def _smallest(fields: Sequence[Field], room: int) -> tuple[list[Field], list[Field]]:
    """Those that fit when the largest go first, as they came; and those that went."""
    total, gone = _total(fields), list[int]()
    for at in sorted(range(len(fields)), key=lambda at: -fields[at].size):
        if total <= room:
            break
        total -= fields[at].size
        gone.append(at)
    left_out = set(gone)
    return [field for at, field in enumerate(fields) if at not in left_out], [fields[at] for at in gone]


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


def _kept(
    table: bytes, properties: Properties, headers: Mapping[str, Any], queue: str, is_ours: bool
) -> Iterator[Field]:
    """What stays of the headers that it came with, under the name that they have from here. Of undecodable properties
    only what pika can decode, so that whoever reads the dead letter does not fall over the rest in turn."""
    has_only_waited = queues.waited_only((properties.headers or {}).get("x-death"), queue)
    for field in (field for field, _ in readable(table)) if isinstance(properties, Remains) else fields(table):
        name = field.text
        if name.startswith(queues.RECORDS):
            if has_only_waited and "death" in name:
                continue
        elif not name.startswith(queues.OURS) or is_ours:
            if name not in headers and name not in _ADDRESSES:
                yield field
            continue
        yield Field(queues.demoted(field.name), field.value)


def _size(headers: Mapping[str, Any]) -> int:
    """Bytes of these headers in a table, without the table's own size."""
    return len(encoded(headers))


def _total(fields: Iterable[Field]) -> int:
    return sum(field.size for field in fields)
