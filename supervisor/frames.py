"""Messages as bytes, and back.

JSON, as pickle would let a handler run code in the parent. A child trusts its parent. The parent trusts nothing, since
a handler may write to the link too: `read` checks reports by the annotations in `messages`:

| annotation | accepted |
|---|---|
| `int` | 0 to 2^63 - 1; `Annotated[int, N]`: N at most |
| `float` | a finite number, not below 0 |
| `str` | encodable text; `Annotated[str, N]`: cut to N bytes, redacted |
| `list[X]` | each an X; cut to 1,000 |
| an enum, `Literal` | one of its values |
| `X | Y` | either |

Too long is cut, not refused: an error's text may be of any length.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from supervisor import messages
from supervisor.redaction import clip_start

MAX_BYTES: Final = 160 * 1024
"""Below the default send buffer (212,992 bytes, socket(7)), above every bounded field."""
RECORD: Final = b'["Record",'
"""The start of every log line, and of nothing else."""

_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind
    for union in (messages.WorkerReport, messages.NurseryReport, messages.Order)
    for kind in get_args(union)
}
_FIELDS: Final = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _KINDS.values()}
_INT_MOST: Final = 2**63 - 1
_ITEMS_MOST: Final = 1000
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

Check = Callable[[Any], Any]
"""Returns the value as it is kept. Raises ValueError."""


class BadFrame(Exception):
    """An invalid message. Its text has the reason, and quotes nothing."""


def write(message: object) -> bytes:
    """Raises ValueError when it is too long."""
    kind = type(message)
    fields = {name: getattr(message, name) for name in _FIELDS[kind]}
    text = _encode([kind.__name__, fields])
    if "\\ud" in text:
        # Perhaps a lone surrogate, from a non-UTF-8 path in an error's text, which the parent would refuse.
        fields = {name: _whole(value) if isinstance(value, str) else value for name, value in fields.items()}
        text = _encode([kind.__name__, fields])
    data = text.encode()
    if len(data) > MAX_BYTES:
        raise ValueError(f"a {kind.__name__} of {len(data)} bytes is too long for a link")
    return data


def believe(data: bytes) -> Any:
    """A message from the parent."""
    name, fields = json.loads(data.decode())
    return _KINDS[name](**fields)


def read(data: bytes, kinds: frozenset[type[Any]]) -> Any:
    """A message of one of these kinds. Raises BadFrame."""
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise BadFrame("it is not JSON") from None
    match document:
        case [str(name), dict(fields)] if _KINDS.get(name) in kinds:
            kind: Any = _KINDS[name]
        case [str(name), dict(_)] if name in _KINDS:
            raise BadFrame(f"a {name} is not allowed from it")
        case _:
            raise BadFrame("its kind is unknown")
    if fields.keys() != set(_FIELDS[kind]):
        raise BadFrame(f"a {name} has the wrong fields")
    for field, check in _checks(kind).items():
        try:
            fields[field] = check(fields[field])
        except ValueError as error:
            raise BadFrame(f"the {field} of a {name} {error}") from None
    return kind(**fields)


def kinds_of(union: Any) -> frozenset[type[Any]]:
    """The members of a union of messages."""
    return frozenset(get_args(union))


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@cache
def _checks(kind: Any) -> dict[str, Check]:
    return {name: _check(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _check(hint: Any) -> Check:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _integer(arguments[1]) if arguments[0] is int else _text(arguments[1])
    if origin in (Union, UnionType):
        return _either([_check(each) for each in arguments])
    if origin is Literal:
        return _one_of({each: each for each in arguments})
    if origin is list:
        return _items(_check(arguments[0]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of({each.value: each for each in hint})
    return {bool: _truth, int: _integer(_INT_MOST), float: _number, str: _text(MAX_BYTES), NoneType: _nothing}[hint]


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)


def _truth(value: Any) -> bool:
    return value if type(value) is bool else _refuse("is not a boolean")


def _nothing(value: Any) -> None:
    return None if value is None else _refuse("is not null")


def _integer(most: int) -> Check:
    def check(value: Any) -> int:
        return value if type(value) is int and 0 <= value <= most else _refuse(f"is not an integer from 0 to {most}")

    return check


def _number(value: Any) -> float:
    if type(value) is int and 0 <= value <= _INT_MOST:
        return float(value)
    return value if type(value) is float and math.isfinite(value) and value >= 0 else _refuse("is not a number")


def _text(most: int) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str:
            _refuse("is not a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse("contains a lone surrogate")
        # Redacts first: a password cut in two would not be recognised later.
        return value if len(value) <= most else clip_start(value, most)

    return check


def _one_of(values: dict[Any, Any]) -> Check:
    def check(value: Any) -> Any:
        return values[value] if type(value) is str and value in values else _refuse("is not one of the allowed values")

    return check


def _items(check: Check) -> Check:
    def check_all(value: Any) -> list[Any]:
        return [check(item) for item in value[:_ITEMS_MOST]] if type(value) is list else _refuse("is not a list")

    return check_all


def _either(checks: list[Check]) -> Check:
    def check(value: Any) -> Any:
        for each in checks:
            try:
                return each(value)
            except ValueError:
                continue
        return _refuse("has the wrong type")

    return check
