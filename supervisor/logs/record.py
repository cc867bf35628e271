"""One record as one line: strict JSON or for a console, redacted, and cut to fit."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from supervisor import failure
from supervisor.light import structlog
from supervisor.logs.sink import MAX_LINE
from supervisor.redaction import SCHEME, clip_end, redact

if TYPE_CHECKING:
    from structlog.typing import EventDict

MAX_TRACEBACK: Final = 8 * 1024
"""Characters of a rendered exception; the end is kept."""
_MAX_KEY: Final = 256
_MIN_VALUE: Final = 64
_MAX_DEPTH: Final = 20

_encode: Final = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=lambda v: as_text(v)
).encode
"""ASCII, so that U+2028, U+0085 and C1 controls cannot break a line or a terminal."""


def utc() -> str:
    """Now: `2026-11-23T13:40:51.629Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def as_text(value: object) -> str:
    """A value that JSON does not have, as a string; never raises."""
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            text = bytes(value).decode("utf-8", "backslashreplace")
        elif isinstance(value, datetime | date | time_of_day):
            text = value.isoformat()
        elif isinstance(value, str | Decimal | UUID | PurePath):
            text = str(value)
        else:
            text = repr(value)
        return str.__str__(text)  # TypeError when a subclass's isoformat returns something else
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise anything
        return f"<{type(value).__name__}, and its repr fails>"


def _clean(text: str) -> str:
    """Without lone surrogates, which strict readers of JSON refuse (RFC 8259, section 8.2), and without secrets."""
    return redact(str.encode(text, "utf-8", "backslashreplace").decode())


def _plain(value: object, depth: int = 0) -> Any:
    """The value in types of strict JSON; never raises."""
    try:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return _clean(value)
        if isinstance(value, int):
            return int(repr(int(value)))  # ValueError for too many digits (sys.set_int_max_str_digits)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        if depth < _MAX_DEPTH and isinstance(value, dict):
            return {_clean(as_text(key)): _plain(item, depth + 1) for key, item in value.items()}
        if depth < _MAX_DEPTH and isinstance(value, list | tuple):
            return [_plain(item, depth + 1) for item in value]
    except Exception:  # noqa: BLE001 - a subclass of the user's may raise anything
        pass
    return _clean(as_text(value))


def as_json(record: dict[str, Any]) -> str:
    """One line of strict JSON without its newline, of at most `MAX_LINE` - 1 characters, all ASCII."""
    try:
        line = _encode(record)
        if len(line) < MAX_LINE and not ("\\ud" in line or ("://" in line and SCHEME.search(line))):
            return line
    except Exception:  # noqa: BLE001 - NaN, a circle, a key that is no string, a mapping that raises
        pass
    record = _plain(record)
    line = _encode(record)
    return line if len(line) < MAX_LINE else _encode(_fitted(record))


def _fitted(record: dict[str, Any]) -> dict[str, Any]:
    """A plain record with its longest values cut evenly until it fits; with too many fields, some are dropped."""
    room = MAX_LINE - _MIN_VALUE
    least = 0
    sizes: dict[str, int] = {}
    values: dict[str, Any] = {}
    for name, value in record.items():
        key, size = _cut(name, _MAX_KEY), len(_encode(value))
        punctuated = len(_encode(key)) + 2
        if least + min(size, _MIN_VALUE) + punctuated > room:
            break
        least += min(size, _MIN_VALUE)
        room -= punctuated
        sizes[key], values[key] = size, value
    lost = len(record) - len(values)
    most = _level(sizes.values(), room)
    for key, size in sizes.items():
        if size > most:
            value = values[key]
            text = value if isinstance(value, str) else _encode(value)
            values[key] = _cut(text, most, end=key in ("exception", "stack"))
    return values | {"fields_dropped": lost} if lost else values


def _level(sizes: Iterable[int], room: int) -> int:
    """The largest limit for each size that makes all fit into the room."""
    left = sorted(sizes)
    for index, size in enumerate(left):
        share = room // (len(left) - index)
        if size > share:
            return share
        room -= size
    return MAX_LINE


def _cut(text: str, most: int, *, end: bool = False) -> str:
    """As much of the beginning, or of the end, as fits into `most` characters of JSON together with the mark."""
    if len(text) <= most and len(_encode(text)) <= most:
        return text
    mark = f"…[{len(text)} chars]"
    kept = text[-most:] if end else text[:most]
    while True:
        shown = mark + kept if end else kept + mark
        size = len(_encode(shown))
        if size <= most or not kept:
            return shown
        count = min(len(kept) - 1, len(kept) * most // size)
        kept = kept[len(kept) - count :] if end else kept[:count]


def _printable(text: str) -> str:
    """Escape what moves a cursor, hides text or changes its direction: everything not str.isprintable."""
    return text if text.isprintable() else repr(text)[1:-1]


def _indented(text: str) -> str:
    """A traceback keeps its lines, indented so that none looks like a record."""
    return "\n".join("    " + _printable(line) for line in text.split("\n"))


def for_console(colors: bool) -> Callable[[dict[str, Any]], str]:
    render = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def line(record: dict[str, Any]) -> str:
        fields = cast("dict[str, Any]", json.loads(as_json(record)))
        # At a terminal the day and the queue are known, and the slot identifies a worker.
        fields["timestamp"] = str(fields["timestamp"])[11:23]
        for name in ("queue", "role"):
            fields.pop(name, None)
        shown: dict[str, Any] = {}
        for key, value in fields.items():
            if key in ("exception", "stack"):
                shown[key] = _indented(str(value))
            else:
                shown[_printable(key).replace(" ", "_")] = _printable(value) if isinstance(value, str) else value
        return render(None, str(fields["level"]), shown)

    return line


def render_exception(logger: object, method: str, fields: EventDict) -> None:
    exc_info = fields.pop("exc_info", None)
    if exc_info:
        if isinstance(exc_info, BaseException):
            error: BaseException | None = exc_info
        elif isinstance(exc_info, tuple) and len(exc_info) == 3:
            error = exc_info[1]
        else:
            error = sys.exc_info()[1]
        if error is not None:
            fields["exception"] = _traceback(error)
    if "stack_info" in fields:
        structlog.processors.StackInfoRenderer()(logger, method, fields)


def _traceback(error: BaseException) -> str:
    text = failure.rendered(error, error.__traceback__).rstrip("\n")
    return redact(text) if len(text) <= MAX_TRACEBACK else f"…[{len(text)} chars]{clip_end(text, MAX_TRACEBACK)}"
