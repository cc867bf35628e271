"""What `workq dead list` prints. An id stands in one piece in one line, since people copy it."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Final, Literal

import click
from rich.cells import cell_len, set_cell_size

from supervisor.commands.plain import plain

_WIDTHS: Final = {"id": 0, "reason": 9, "error": 0, "tries": 5, "age": 4, "host": 8, "size": 5}
"""0: from what is left."""
_RIGHT: Final = ("tries", "age", "size")
_DISPENSABLE: Final = ((), ("host",), ("host", "size"))
"""Columns left out where ids are long."""
_ERROR_LEAST: Final = 18
_MODULE: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_]\w*(?::|$))")
"""Of an exception, in front of its name."""
_UNCUT: Final = 10**6
_PIPE_WIDTH: Final = 160

Row = Mapping[str, Any]
Form = Literal["letters", "groups", "ids", "json"]


def print_spool(spool: IO[bytes], form: Form, *, is_wide: bool) -> None:
    """Print the rows of the spool, a line of JSON each."""
    spool.seek(0)
    if form == "json":
        shutil.copyfileobj(spool, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return

    def rows() -> Iterable[Row]:
        spool.seek(0)
        return map(json.loads, spool)

    if form == "ids":
        sys.stdout.writelines(f"{plain(row['id'])}\n" for row in rows())
    elif spool.read(1):
        width = None if is_wide else screen_width()
        lines = of_groups(rows(), width) if form == "groups" else of_letters(rows, width)
        click.secho(next(lines), bold=True)
        sys.stdout.writelines(f"{line}\n" for line in lines)


def screen_width() -> int:
    """Where nobody has said how wide it is, lines need not fit a screen."""
    is_said = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if is_said else _PIPE_WIDTH


def of_letters(rows: Callable[[], Iterable[Row]], width: int | None) -> Iterator[str]:
    """The heading, and then each as `render.row` tells of it. `rows` is asked for all of them twice.

    Every line but that of a longer id fits `width`: columns are left out or cut, exceptions are without their modules,
    and an id that would leave too little to the others gets a line of its own. None: every column as wide as it takes.
    """
    widths = _natural(rows()) if width is None else _fitting({cell_len(plain(row["id"])) for row in rows()}, width)
    yield _line(dict(zip(widths, widths, strict=True)), widths)
    for row in rows():
        cells = _cells(row)
        if width is not None:
            cells["error"] = _MODULE.sub("", cells["error"])
        if cell_len(cells["id"]) > widths["id"]:
            yield cells["id"]
            cells["id"] = ""
        yield _line(cells, widths)


def _fitting(lengths: set[int], width: int) -> dict[str, int]:
    widths: dict[str, int] = {}
    narrowest = _room(_DISPENSABLE[-1], width)
    longest = max((length for length in lengths if length <= narrowest), default=2)
    for left_out in _DISPENSABLE:
        room = _room(left_out, width)
        widths = {name: fixed for name, fixed in _WIDTHS.items() if name not in left_out}
        widths["id"] = max(2, min(longest, room))
        widths["error"] = max(_ERROR_LEAST, room + _ERROR_LEAST - widths["id"])
        if longest <= room:
            break
    return widths


def _room(left_out: Sequence[str], width: int) -> int:
    """For ids, beside these columns and the shortest errors."""
    shown = [fixed for name, fixed in _WIDTHS.items() if name not in left_out]
    return width - sum(shown) - (len(shown) - 1) - _ERROR_LEAST


def _natural(rows: Iterable[Row]) -> dict[str, int]:
    # The error last: nothing has to be padded to the length of the longest.
    widths = {name: max(fixed, len(name)) for name, fixed in _WIDTHS.items() if name != "error"} | {"error": 5}
    for row in rows:
        for name, cell in _cells(row).items():
            widths[name] = max(widths[name], cell_len(cell))
    return widths


def _line(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return " ".join(_cell(cells[name], width, name in _RIGHT) for name, width in widths.items()).rstrip()


def _cell(text: str, width: int, is_right: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - length) + text if is_right else text + " " * (width - length)


def _cells(row: Row) -> dict[str, str]:
    crashes = f"{row['crashes']} {'crash' if row['crashes'] == 1 else 'crashes'}" if row["crashes"] else ""
    cause = ", ".join(filter(None, (row["cause"], crashes)))
    return {
        "id": plain(row["id"]),
        "reason": plain(row["reason"]) or "-",
        "error": plain(": ".join(filter(None, (cause, row["error"]))).strip()) or "-",
        "tries": f"{row['attempts'] or '-'}",
        "age": age(row["age_seconds"]),
        "host": plain(row["host"]) or "-",
        "size": _size(row["size"]),
    }


def of_groups(rows: Iterable[Row], width: int | None) -> Iterator[str]:
    """The heading, and for each of `groups.Groups.rows` its name, as many lines as it takes, and an example."""
    present = datetime.datetime.now(datetime.UTC)
    yield f"{'count':>9} {'first':>5} {'last':>5}  group"
    margin = " " * 23
    for row in rows:
        name, *more = _folded(plain(row["group"]), _UNCUT if width is None else width - len(margin))
        yield f"{row['count']:>9,} {_ago(row['first'], present):>5} {_ago(row['last'], present):>5}  {name}"
        yield from (margin + rest for rest in more)
        yield f"{margin}such as {plain(row['example'])}"


def _folded(text: str, width: int) -> list[str]:
    """In lines; a word that is longer stays in one piece, too: a path."""
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False) or ["-"]


def _ago(time: str | None, present: datetime.datetime) -> str:
    return age((present - datetime.datetime.fromisoformat(time)).total_seconds() if time else None)


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(0.0, seconds))}s"


def _size(size: float) -> str:
    for unit in ("", "K", "M"):
        if size < 1000:
            return f"{size:.0f}{unit}" if size >= 10 or not unit else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}G"
