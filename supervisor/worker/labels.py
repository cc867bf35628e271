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
"""RabbitMQ has sent the message to these queues too (https://www.rabbitmq.com/docs/sender-selected); parked with the
header, it would get there again."""
_ESSENTIAL: Final = (
    queues.ATTEMPT, queues.REASON, queues.QUEUE, queues.CAUSE, queues.CRASHES, queues.FIRST_SEEN, queues.HOST,
    queues.EXPIRATION, queues.USER_ID, queues.PART, queues.PARTS, queues.PART_OF, queues.PUT_BACK,
    queues.BURST, queues.DEFERRED,
)  # fmt: skip
"""Without these a task might be retried for ever, or a dead letter lack its origin. A few hundred bytes, which fit
beside all other properties into AMQP's smallest frame (4 KiB)."""
_ERROR_LEAST: Final = 128
"""Bytes of the error that are essential too."""
_BY_IMPORTANCE: Final = (queues.ERROR, queues.COPIES, queues.PROPERTIES, queues.TRACEBACK, queues.EVIDENCE)
"""The rest of ours, the most important first."""
_ENDS: Final = (queues.TRACEBACK, queues.EVIDENCE)
"""Cut at the start; the others at the end."""
_WORTHWHILE: Final = 64
"""Bytes; a text that would be cut to fewer is left out."""
_DROPPED_MAX: Final = 1024
_OVERHEAD: Final = 7 + 12 + 4 + 1
"""Bytes of a content header without properties and headers: frame header, class, weight and body size, table size,
frame end (AMQP 0-9-1, 4.2.3 and 4.2.6.1)."""
_OURS_TO_SAY: Final = ("expiration", "user_id")
"""The sender's become headers: a parked message must not expire, and a user id other than ours is refused (406,
https://www.rabbitmq.com/docs/validated-user-id)."""


def labelled(
    properties: Properties,
    headers: Mapping[str, Any],
    frame_max: int = 131072,
    *,
    queue: str = "",
    is_ours: bool = False,
    **others: str | None,
) -> Encoded:
    """A copy with these headers added, replacing any of the same names, that fits into one frame of `frame_max` bytes:
    properties cannot be split, and the broker closes a connection that sends a larger frame (501).

    The broker's own headers, and headers with our names unless we published the message (`is_ours`), are kept under
    other names: `queues.WAS`. Delays of `queue` are not recorded. `others`: other properties to add; those of
    `_OURS_TO_SAY` have no other source.
    """
    parts = {name: part for name, part in split(properties.raw).items() if name not in _OURS_TO_SAY}
    parts |= {name: short(text.encode()) for name, text in others.items() if text}
    theirs = list(_kept(parts.pop("headers", b""), properties, headers, queue, is_ours))
    chosen, kept = fit(headers, theirs, frame_max - _OVERHEAD - len(Encoded(parts).raw))
    return Encoded(parts, [*(field.encoded for field in kept), encoded(chosen)])


def fit(ours: Mapping[str, Any], theirs: Sequence[Field], room: int) -> tuple[dict[str, Any], list[Field]]:
    """The headers, ours and the sender's, that fit into so many bytes.

    The sender's are part of the work, so they take precedence over all but our essential ones; if they do not fit, the
    largest is dropped first, and named in `x-workq-dropped`. The rest of the room is for ours, by importance; a text
    that does not fit is cut.
    """
    if _size(ours) + _total(theirs) <= room:
        return dict(ours), list(theirs)
    chosen = {name: ours[name] for name in _ESSENTIAL if name in ours}
    if queues.ERROR in ours:
        chosen[queues.ERROR] = clip_start(ours[queues.ERROR], _ERROR_LEAST)
    if queues.PROPERTIES in ours:
        # It holds everything the sender sent; its headers are copies of the readable ones.
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
    """Those that fit when the largest are dropped first, in order; and the dropped ones."""
    total, gone = _total(fields), list[int]()
    for at in sorted(range(len(fields)), key=lambda at: -fields[at].size):
        if total <= room:
            break
        total -= fields[at].size
        gone.append(at)
    left_out = set(gone)
    return [field for at, field in enumerate(fields) if at not in left_out], [fields[at] for at in gone]


def _cut(name: str, value: Any, excess: int) -> str | bytes | None:
    """The value cut by so many bytes; None when too little would remain."""
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
    """The original headers to keep, under their new names. Of undecodable properties only what pika can decode, so that
    readers of the dead letter do not fail on it in turn."""
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
