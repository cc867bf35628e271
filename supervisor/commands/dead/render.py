"""Dead letters as a table, one by one, and in words. A message's own text is foreign, and passes through `plain`."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, Final

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from supervisor import queues
from supervisor.amqp.properties import decoded
from supervisor.commands.dead.letter import Letter
from supervisor.commands.dead.queue import DeadQueue
from supervisor.commands.plain import plain

BODY_SHOWN: Final = 64 * 1024
DUMPED: Final = 512
VALUE_SHOWN: Final = 2000
ERROR_KEPT: Final = 1024
PIPE_WIDTH: Final = 160
CHUNK: Final = 500
"""Rows a table: rich lays out a whole table before it prints."""


def row(letter: Letter) -> dict[str, Any]:
    seen = _first_seen(letter)
    age = (datetime.datetime.now(datetime.UTC) - seen).total_seconds() if seen else None
    return {
        "id": letter.id,
        "reason": letter.reason[:ERROR_KEPT],
        "cause": letter.text(queues.CAUSE)[:ERROR_KEPT],
        "error": letter.text(queues.ERROR)[:ERROR_KEPT] or letter.trouble,
        "attempts": letter.number(queues.ATTEMPT),
        "crashes": letter.number(queues.CRASHES) or 0,
        "first_seen": seen.isoformat() if seen else None,
        "age_seconds": round(max(0.0, age), 3) if age is not None else None,
        "host": letter.text(queues.HOST)[:ERROR_KEPT],
        "size": len(letter.body),
        "queue": letter.queue,
    }


def _first_seen(letter: Letter) -> datetime.datetime | None:
    """When we first had it, else when the sender says that it was sent."""
    try:
        seen = datetime.datetime.fromisoformat(letter.text(queues.FIRST_SEEN))
        return seen.astimezone(datetime.UTC) if seen.tzinfo else seen.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        pass
    stamp = letter.part("timestamp")
    try:
        return datetime.datetime.fromtimestamp(stamp, datetime.UTC) if isinstance(stamp, int) else None
    except (ValueError, OverflowError, OSError):
        return None


def print_table(spool: IO[bytes]) -> None:
    """Readable from 80 columns on: an id that does not fit is folded rather than cut, since people copy it."""
    to_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if to_terminal else PIPE_WIDTH, highlight=False, markup=False, emoji=False)
    longest = max(len(plain(json.loads(line)["id"])) for line in spool)
    spool.seek(0)
    fixed = sum(width for _, width, _ in COLUMNS if width) + len(COLUMNS) - 1
    identity = max(12, min(longest, console.width - fixed - 24))
    error = max(12, console.width - fixed - identity)
    head = True
    while lines := list(itertools.islice(spool, CHUNK)):
        table = Table(box=None, show_header=head, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        for name, width, align in COLUMNS:
            wide = width or (identity if name == "id" else error)
            fold = name == "id"
            table.add_column(name, width=wide, justify=align, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
        for line in lines:
            table.add_row(*(Text(cell) for cell in _cells(json.loads(line))))
        console.print(table)
        head = False


COLUMNS: Final[tuple[tuple[str, int, JustifyMethod], ...]] = (
    ("id", 0, "left"),
    ("reason", 9, "left"),
    ("error", 0, "left"),
    ("tries", 5, "right"),
    ("age", 4, "right"),
    ("host", 8, "left"),
    ("size", 5, "right"),
)
"""Name, width (0: what is left) and side."""


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield plain(row["id"])
    yield plain(row["reason"]) or "-"
    yield plain(": ".join(filter(None, (row["cause"], row["error"]))).strip().partition("\n")[0]) or "-"
    yield f"{row['attempts'] or '-'}/{row['crashes']}"
    yield _age(row["age_seconds"])
    yield plain(row["host"]) or "-"
    yield _size(row["size"])


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def _size(size: float) -> str:
    for unit in ("", "K", "M"):
        if size < 1000:
            return f"{size:.0f}{unit}" if size >= 10 or not unit else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}G"


def sum_up(letters: DeadQueue, noted: int, *, err: bool) -> None:
    where = f"{plain(letters.name)} on {letters.endpoint}"
    if letters.count is None:
        text = f"no dead letters: there is no queue {where}"
    elif letters.count == noted:
        text = f"{so_many(noted)} in {where}"
    else:
        text = f"{noted:,} of {so_many(letters.count)} in {where}"
    click.echo(text, err=err)


def so_many(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}" if count else "no dead letters"


def print_letter(letter: Letter, title: str) -> None:
    told = row(letter)
    click.secho(title, bold=True)
    _print_pairs(
        {
            "reason": told["reason"],
            "cause": told["cause"],
            "attempts": f"{told['attempts'] or '?'}, after {told['crashes']} crashes",
            "first seen": f"{told['first_seen']} ({_age(told['age_seconds'])} ago)" if told["first_seen"] else "",
            "host": told["host"],
            "queue": told["queue"],
            "trouble": letter.trouble,
        }
    )
    names = [name for name in letter.parts if name != "headers"]
    _print_section("properties", {name: letter.part(name) for name in names})
    prefix = queues.OURS.encode()
    ours = [each for each in letter.fields if letter.is_ours and each.name.startswith(prefix)]
    _print_section("headers", {_text(each.name): decoded(each.value) for each in letter.fields if each not in ours})
    texts = {queues.ERROR: "error", queues.TRACEBACK: "traceback", queues.EVIDENCE: "evidence"}
    for header, heading in texts.items():
        _print_text(heading, letter.text(header))
    shown = {queues.REASON, queues.CAUSE, queues.ATTEMPT, queues.CRASHES, queues.FIRST_SEEN, queues.HOST, queues.QUEUE}
    rest = {_text(each.name): decoded(each.value) for each in ours if _text(each.name) not in {*shown, *texts}}
    _print_section("original", rest)
    heading, text = _readable(letter.body)
    _print_text(f"body: {len(letter.body):,} bytes, {heading}", text or "(empty)")


def _print_section(heading: str, pairs: dict[str, Any]) -> None:
    if pairs:
        click.secho(heading, bold=True)
        _print_pairs({name: value if isinstance(value, str | int) else repr(value) for name, value in pairs.items()})


def _print_pairs(pairs: dict[str, Any]) -> None:
    shown = {plain(name): plain(str(value)) for name, value in pairs.items() if value != ""}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        cut = f"... ({len(value):,} characters)" if len(value) > VALUE_SHOWN else ""
        click.echo(f"  {name:{width}}  {value[:VALUE_SHOWN]}{cut}")


def _print_text(heading: str, text: str) -> None:
    if text:
        click.secho(heading, bold=True)
        for line in text.rstrip("\n").split("\n"):
            click.echo("  " + plain(line.removesuffix("\r").expandtabs(4)))


def _readable(body: bytes) -> tuple[str, str]:
    """What a body is, and a text for it."""
    try:
        text = body[:BODY_SHOWN].decode() if len(body) <= BODY_SHOWN else body[:BODY_SHOWN].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return "binary", _dump(body)
    if any(not char.isprintable() and char not in "\n\r\t" for char in text[:VALUE_SHOWN]):
        return "binary", _dump(body)
    if len(body) > BODY_SHOWN:
        return "text", f"{text}\n... (cut; --body writes all of it)"
    if text.lstrip()[:1] in ("{", "["):
        try:
            return "JSON", json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return "text", text


def _dump(body: bytes) -> str:
    """The head in hex, as hexdump -C writes it."""
    lines = []
    for at in range(0, min(len(body), DUMPED), 16):
        row = body[at : at + 16]
        lines.append(f"{at:08x}  {row.hex(' '):47}  |{''.join(chr(c) if 32 <= c < 127 else '.' for c in row)}|")
    if len(body) > DUMPED:
        lines.append("... (cut; --body writes all of it)")
    return "\n".join(lines)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def complain(name: str, text: str) -> None:
    click.echo(f"workq dead {name}: {plain(text)}", err=True)


def warn(name: str, letters: DeadQueue) -> None:
    if letters.warning:
        complain(name, letters.warning)
    if letters.holders:
        complain(name, f"{plain(letters.name)} has {letters.holders} other consumers; messages they hold are not seen")
