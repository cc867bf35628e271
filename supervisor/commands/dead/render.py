"""Dead letters one by one, and in words. A message's own text is foreign, and passes through `plain`."""

from __future__ import annotations

import datetime
import json
from typing import Any, Final

import click

from supervisor import queues
from supervisor.amqp.properties import decoded
from supervisor.commands.dead.letter import Letter
from supervisor.commands.dead.queue import DeadQueue
from supervisor.commands.dead.table import age
from supervisor.commands.plain import plain

BODY_SHOWN: Final = 64 * 1024
DUMPED: Final = 512
VALUE_SHOWN: Final = 2000
ERROR_KEPT: Final = 1024


def row(letter: Letter) -> dict[str, Any]:
    seen = letter.first_seen
    past = (datetime.datetime.now(datetime.UTC) - seen).total_seconds() if seen else None
    return {
        "id": letter.id,
        "reason": letter.reason[:ERROR_KEPT],
        "cause": letter.text(queues.CAUSE)[:ERROR_KEPT],
        "error": letter.error[:ERROR_KEPT],
        "attempts": letter.number(queues.ATTEMPT),
        "crashes": letter.number(queues.CRASHES) or 0,
        "first_seen": seen.isoformat() if seen else None,
        "age_seconds": round(max(0.0, past), 3) if past is not None else None,
        "host": letter.text(queues.HOST)[:ERROR_KEPT],
        "size": len(letter.body),
        "queue": letter.queue,
    }


def sum_up(letters: DeadQueue, noted: int, *, err: bool) -> None:
    where = f"{plain(letters.name)} on {letters.endpoint}"
    if letters.count is None:
        text = f"no dead letters: there is no queue {where}"
    elif letters.count == noted:
        text = f"{so_many(noted)} in {where}"
    else:
        text = f"{noted:,} of {so_many(letters.count)} in {where}"
    click.echo(text, err=err)


def tell_undated(name: str, count: int) -> None:
    if count:
        complain(name, f"--since and --until leave out {so_many(count)} without a time of being first seen")


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
            "first seen": f"{told['first_seen']} ({age(told['age_seconds'])} ago)" if told["first_seen"] else "",
            "host": told["host"],
            "queue": told["queue"],
            "trouble": letter.trouble,
        }
    )
    names = [name for name in letter.parts if name != "headers"]
    _print_section("properties", {name: letter.part(name) for name in names})
    prefix = queues.OURS.encode()
    ours = [each for each in letter.fields if letter.is_ours and each.name.startswith(prefix)]
    _print_section("headers", {text_of(each.name): decoded(each.value) for each in letter.fields if each not in ours})
    texts = {queues.ERROR: "error", queues.TRACEBACK: "traceback", queues.EVIDENCE: "evidence"}
    for header, heading in texts.items():
        _print_text(heading, letter.text(header))
    shown = {queues.REASON, queues.CAUSE, queues.ATTEMPT, queues.CRASHES, queues.FIRST_SEEN, queues.HOST, queues.QUEUE}
    rest = {text_of(each.name): decoded(each.value) for each in ours if text_of(each.name) not in {*shown, *texts}}
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
        return "binary", dump(body)
    if any(not char.isprintable() and char not in "\n\r\t" for char in text[:VALUE_SHOWN]):
        return "binary", dump(body)
    if len(body) > BODY_SHOWN:
        return "text", f"{text}\n... (cut; --body writes all of it)"
    if text.lstrip()[:1] in ("{", "["):
        try:
            return "JSON", json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return "text", text


def dump(body: bytes) -> str:
    """The head in hex, as hexdump -C writes it."""
    lines = []
    for at in range(0, min(len(body), DUMPED), 16):
        row = body[at : at + 16]
        lines.append(f"{at:08x}  {row.hex(' '):47}  |{''.join(chr(c) if 32 <= c < 127 else '.' for c in row)}|")
    if len(body) > DUMPED:
        lines.append("... (cut; --body writes all of it)")
    return "\n".join(lines)


def text_of(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def complain(name: str, text: str) -> None:
    click.echo(f"workq dead {name}: {plain(text)}", err=True)


def warn(name: str, letters: DeadQueue) -> None:
    if letters.warning:
        complain(name, letters.warning)
    if letters.holders:
        complain(name, f"{plain(letters.name)} has {letters.holders} other consumers; messages they hold are not seen")
