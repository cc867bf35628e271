"""`workq dead`: look at the dead letters of a queue, have them tried again, delete them.

Looking changes nothing, and interrupting loses nothing: see `dead_letters`. What a message says of itself is somebody
else's text: it reaches a terminal only through `plain`.
"""

from __future__ import annotations

import datetime
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

import click
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from supervisor import queues
from supervisor.commands import sources
from supervisor.commands.dead_letters import DeadLetter, DeadQueue, Lost, Target, Unreachable, decoded, original
from supervisor.commands.plain import plain
from supervisor.commands.sources import Sources
from supervisor.endpoint import Endpoint
from supervisor.publisher import PublishError
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG

__all__ = ["dead"]

EXIT_INCOMPLETE: Final = 1
"""Something that was asked for has not been done."""
EXIT_INTERRUPTED: Final = 130

LOOKING: Final = 500
"""Dead letters a window."""
ACTING: Final = 200
"""Fewer: as many may be there twice when we are killed between the confirm and the acknowledgement."""
BODY_SHOWN: Final = 64 * 1024
DUMPED: Final = 512
VALUE_SHOWN: Final = 2000
ERROR_KEPT: Final = 1024
PIPE_WIDTH: Final = 160
CHUNK: Final = 500
"""Rows a table: rich lays out a whole table before it prints."""
SPOOL: Final = 4 * 1024 * 1024
PROBLEMS: Final = 10
"""Problems told one by one."""


# --------------------------------------------------------------------------------------------------- commands


@click.group()
def dead() -> None:
    """Dead letters: look at them, have them tried again, delete them.

    They lie in the queue QUEUE.dead. Messages that another `workq dead` has in hand are not seen. Exit code: 0 done,
    1 not all of it, 75 no broker to be had, 78 the broker refuses us, 130 interrupted.
    """


_at_a_queue: Final = sources.options("url", "queue")


@dead.command("list")
@_at_a_queue
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The N oldest only.")
def list_(sources: Sources, as_json: bool, limit: int | None) -> None:
    """List the dead letters, oldest first. None is consumed."""
    # First all is noted and handed back, then it is printed: a pager keeps nothing from anybody.
    with tempfile.SpooledTemporaryFile(SPOOL) as spool, _reported("list"):
        with DeadQueue(*sources.place()) as letters, _stoppable() as stop:
            noted = _note(letters, spool, limit, stop)
        spool.seek(0)
        if as_json:
            shutil.copyfileobj(spool, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        elif noted:
            _print_table(spool)
        _sum_up(letters, noted, err=as_json)
        _warn("list", letters)
        if stop:
            sys.exit(EXIT_INTERRUPTED)


@dead.command()
@_at_a_queue
@click.option("--body", "body_only", is_flag=True, help="Write the body, and nothing else, to standard output.")
@click.argument("identity", metavar="ID")
def show(sources: Sources, body_only: bool, identity: str) -> None:
    """Show a dead letter: what it died of, the evidence, properties, headers and body."""
    with _reported("show"):
        found: list[DeadLetter] = []
        with DeadQueue(*sources.place()) as letters, _stoppable() as stop:
            for window in _progress(letters.windows(size=LOOKING), letters.count, "looking"):
                found += [letter for letter in window if _meant(letter, {identity})]
                letters.keep(window)
                if stop:
                    break
            letters.hand_back()
        _warn("show", letters)
        if stop:
            sys.exit(EXIT_INTERRUPTED)
        if not found:
            _complain("show", _missing(letters, identity))
            sys.exit(EXIT_INCOMPLETE)
        if body_only:
            if found[0].number(queues.PARTS):
                _write_parts(found)
                return
            if len(found) > 1:
                _complain(
                    "show", f"{len(found)} dead letters have the id {plain(identity)}; this is the oldest one's body"
                )
            sys.stdout.buffer.write(found[0].body)
            sys.stdout.buffer.flush()
            return
        for number, letter in enumerate(found, 1):
            title = f"dead letter {plain(letter.id)}"
            _print_letter(letter, title if len(found) == 1 else f"{title} ({number} of {len(found)} with this id)")


@dead.command()
@_at_a_queue
@click.option("--all", "everything", is_flag=True, help="All that are there now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--to", metavar="QUEUE", help="Put them into this queue instead of their own.")
@click.argument("identities", nargs=-1, metavar="[ID]...")
def requeue(
    sources: Sources,
    everything: bool,
    to: str | None,
    yes: bool,
    identities: tuple[str, ...],
) -> None:
    """Put dead letters back into their queue as they were, to be tried again.

    Each leaves the dead letters only when the broker has confirmed it in its queue, so interrupting this at any moment
    loses nothing. If this or the broker is killed, up to 200 may be in both queues.
    """
    _either(everything, identities)
    endpoints, queue = sources.place()
    with _reported("requeue"):
        if everything and not yes:
            _confirm(endpoints, queue, lambda all_: f"Put {all_} back into {plain(to or queue)}, to be run again?")
        with DeadQueue(endpoints, queue) as letters, _stoppable() as stop:
            if letters.count:
                letters.prepare()
            _Requeueing(letters, identities, stop, to or queue).run()


@dead.command()
@_at_a_queue
@click.option("--all", "everything", is_flag=True, help="All that are there now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("identities", nargs=-1, metavar="[ID]...")
def drop(sources: Sources, everything: bool, yes: bool, identities: tuple[str, ...]) -> None:
    """Delete dead letters for good."""
    _either(everything, identities)
    endpoints, queue = sources.place()
    with _reported("drop"):
        if not yes and (everything or sys.stdin.isatty()):
            some = "" if everything else f"{', '.join(map(plain, identities))} of "
            _confirm(endpoints, queue, lambda all_: f"Delete {some}{all_} for good?")
        with DeadQueue(endpoints, queue) as letters, _stoppable() as stop:
            _Dropping(letters, identities, stop).run()


def _write_parts(found: Sequence[DeadLetter]) -> None:
    """One body, of several dead letters: see `queues.PART`. A part may be there twice, when a worker died over it."""
    parts = {letter.number(queues.PART): letter.body for letter in found}
    missing = [number for number in range(1, (found[0].number(queues.PARTS) or 0) + 1) if number not in parts]
    if missing:
        _complain("show", f"of its body parts {', '.join(map(str, missing))} are not there: nothing is written")
        sys.exit(EXIT_INCOMPLETE)
    for number in range(1, len(parts) + 1):
        sys.stdout.buffer.write(parts[number])
    sys.stdout.buffer.flush()


def _either(everything: bool, identities: Sequence[str]) -> None:
    if everything == bool(identities):
        raise click.UsageError("Name dead letters by their IDs, or all of them by --all.")


def _confirm(endpoints: Sequence[Endpoint], queue: str, question: Callable[[str], str]) -> None:
    """Ask, on a connection that is closed before the answer: nobody knows how long that takes. `question` is given what
    there is: how much, where."""
    with DeadQueue(endpoints, queue) as letters:
        count = letters.count
    if not count:
        return
    everything = f"{_so_many(count)} in {plain(letters.name)} on {letters.endpoint}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"--all means {everything}: confirm with --yes, since there is no terminal to ask on.")
    click.confirm(question(everything), abort=True)


# ---------------------------------------------------------------------------------------------------- sweeping


class _Sweep:
    """Something done to those of the dead letters that are meant, window by window."""

    name: str
    done_word: str

    def __init__(self, letters: DeadQueue, identities: Sequence[str], stop: _Stop) -> None:
        """No `identities`: all are meant."""
        self.done: Counter[str] = Counter()
        """How many, by the queue they went to."""
        self.problems: list[str] = []
        self.letters = letters
        self._wanted = set(identities)
        self._found: Counter[str] = Counter()
        self._stop = stop

    def act(self, chosen: list[DeadLetter]) -> list[DeadLetter]:
        """Do it, count it in `done`, and return those with which it cannot be done."""
        raise NotImplementedError

    def run(self) -> None:
        """Leaves with an exit code unless everything is done."""
        try:
            for window in _progress(self.letters.windows(size=ACTING), self.letters.count, self.name):
                chosen = [letter for letter in window if self._is_chosen(letter)]
                staying = self.act(chosen)
                meant = {letter.tag for letter in chosen}
                self.letters.keep([*staying, *(letter for letter in window if letter.tag not in meant)])
                if self._stop:
                    break
            self.letters.hand_back()
        finally:
            self._sum_up()
        self._finish()

    def _is_chosen(self, letter: DeadLetter) -> bool:
        if not self._wanted:
            return True
        meant = _meant(letter, self._wanted)
        if meant is not None:
            self._found[meant] += 1
        return meant is not None

    def _sum_up(self) -> None:
        total = self.done.total()
        among = f" of {self.letters.count or 0:,}" if not self._wanted else ""
        click.echo(f"{self.done_word} {total:,}{among} from {plain(self.letters.name)} on {self.letters.endpoint}")
        for identity, count in self._found.items():
            if count > 1:
                click.echo(f"  {count} dead letters have the id {plain(identity)}")

    def _finish(self) -> None:
        _warn(self.name, self.letters)
        for problem in self.problems[:PROBLEMS]:
            _complain(self.name, problem)
        if len(self.problems) > PROBLEMS:
            _complain(self.name, f"and {len(self.problems) - PROBLEMS:,} more like these")
        if self._stop:
            _complain(self.name, "interrupted; the others are where they were")
            sys.exit(EXIT_INTERRUPTED)
        missing = [identity for identity in sorted(self._wanted) if not self._found[identity]]
        for identity in missing:
            _complain(self.name, _missing(self.letters, identity))
        if missing or self.problems:
            sys.exit(EXIT_INCOMPLETE)


class _Requeueing(_Sweep):
    name = "requeue"
    done_word = "requeued"

    def __init__(self, letters: DeadQueue, identities: Sequence[str], stop: _Stop, to: str) -> None:
        super().__init__(letters, identities, stop)
        self._to = to

    def act(self, chosen: list[DeadLetter]) -> list[DeadLetter]:
        aimed = [(letter, target) for letter in chosen if (target := self._target(letter)) is not None]
        homeless = self.letters.publish(aimed, self.done)
        for letter in homeless:
            self.problems.append(f"{plain(letter.id)} stays: there is no queue {plain(self._to)} to take it")
        going = {letter.tag for letter, _ in aimed} - {letter.tag for letter in homeless}
        return [letter for letter in chosen if letter.tag not in going]

    def _target(self, letter: DeadLetter) -> Target | None:
        try:
            return Target(self._to, original(letter, self.letters.endpoint.user))
        except ValueError as error:
            self.problems.append(f"{plain(letter.id)} stays: {error}; `workq dead drop` deletes it")
            return None


class _Dropping(_Sweep):
    name = "drop"
    done_word = "dropped"

    def act(self, chosen: list[DeadLetter]) -> list[DeadLetter]:
        self.letters.acknowledge(chosen)
        self.done[self.letters.name] += len(chosen)
        return []


def _meant(letter: DeadLetter, wanted: set[str]) -> str | None:
    """By which of the wanted ids this one is meant: its own, or that as `list` shows it."""
    return next((name for name in (letter.id, plain(letter.id)) if name in wanted), None)


def _missing(letters: DeadQueue, identity: str) -> str:
    if letters.count is None:
        return f"there is no dead letter {plain(identity)}: there is no queue {plain(letters.name)}"
    return f"there is no dead letter {plain(identity)} in {plain(letters.name)}, or somebody else has it in hand"


# ----------------------------------------------------------------------------------------------------- listing


def _note(letters: DeadQueue, spool: IO[bytes], limit: int | None, stop: _Stop) -> int:
    """Write a line of JSON for each dead letter into the spool. Returns how many, and hands them back."""
    noted = 0
    total = min(letters.count or 0, limit or sys.maxsize)
    for window in _progress(letters.windows(limit, size=LOOKING), total, "list"):
        for letter in window:
            spool.write(json.dumps(_row(letter)).replace("\x7f", "\\u007f").encode() + b"\n")
        noted += len(window)
        letters.keep(window)
        if stop:
            break
    letters.hand_back()
    return noted


def _row(letter: DeadLetter) -> dict[str, Any]:
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


def _first_seen(letter: DeadLetter) -> datetime.datetime | None:
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


def _print_table(spool: IO[bytes]) -> None:
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


def _sum_up(letters: DeadQueue, noted: int, *, err: bool) -> None:
    where = f"{plain(letters.name)} on {letters.endpoint}"
    if letters.count is None:
        text = f"no dead letters: there is no queue {where}"
    elif letters.count == noted:
        text = f"{_so_many(noted)} in {where}"
    else:
        text = f"{noted:,} of {_so_many(letters.count)} in {where}"
    click.echo(text, err=err)


def _so_many(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}" if count else "no dead letters"


# ----------------------------------------------------------------------------------------------------- showing


def _print_letter(letter: DeadLetter, title: str) -> None:
    row = _row(letter)
    click.secho(title, bold=True)
    _print_pairs(
        {
            "reason": row["reason"],
            "cause": row["cause"],
            "attempts": f"{row['attempts'] or '?'}, after {row['crashes']} crashes",
            "first seen": f"{row['first_seen']} ({_age(row['age_seconds'])} ago)" if row["first_seen"] else "",
            "host": row["host"],
            "queue": row["queue"],
            "trouble": letter.trouble,
        }
    )
    names = [name for name in letter.parts if name != "headers"]
    _print_section("properties", {name: letter.part(name) for name in names})
    prefix = queues.OURS.encode()
    ours = [each for each in letter.fields if letter.is_ours and each.name.startswith(prefix)]
    _print_section("headers", {_text(each.name): decoded(each.value) for each in letter.fields if each not in ours})
    told = {queues.ERROR: "error", queues.TRACEBACK: "traceback", queues.EVIDENCE: "evidence"}
    for header, heading in told.items():
        _print_text(heading, letter.text(header))
    shown = {queues.REASON, queues.CAUSE, queues.ATTEMPT, queues.CRASHES, queues.FIRST_SEEN, queues.HOST, queues.QUEUE}
    rest = {_text(each.name): decoded(each.value) for each in ours if _text(each.name) not in {*shown, *told}}
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


# ------------------------------------------------------------------------------------------- ends and accidents


class _Stop:
    """Asked to stop? True from the first Ctrl-C or SIGTERM on."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def ask(self, _number: int, _frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not click.echo: what is interrupted may be in the middle of printing.
        os.write(sys.stderr.fileno(), b"\nstopping after what is in hand; once more to stop at once\n")


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """The first Ctrl-C or SIGTERM waits for the end of a window: then not even a duplicate is made."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Errors as one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the locale
    try:
        yield
    except Unreachable as error:
        _complain(name, str(error))
        sys.exit(EXIT_CONFIG if error.trouble.permanent else EXIT_BROKER)
    except PublishError as error:
        _complain(name, f"{error.reason}. Nothing is lost: what is not requeued is still a dead letter")
        sys.exit(EXIT_INCOMPLETE)
    except Lost as error:
        _complain(name, f"{error}. Nothing is lost: what was in hand is in the queue again")
        sys.exit(EXIT_INCOMPLETE)
    except KeyboardInterrupt:
        _complain(name, "interrupted. Nothing is lost: what was in hand is in the queue again")
        sys.exit(EXIT_INTERRUPTED)


def _complain(name: str, text: str) -> None:
    click.echo(f"workq dead {name}: {plain(text)}", err=True)


def _warn(name: str, letters: DeadQueue) -> None:
    if letters.warning:
        _complain(name, letters.warning)
    if letters.holders:
        _complain(
            name, f"{plain(letters.name)} has {letters.holders} other consumers; what they have in hand is not seen"
        )


def _progress(windows: Iterable[list[DeadLetter]], total: int | None, what: str) -> Iterator[list[DeadLetter]]:
    if not sys.stderr.isatty():
        yield from windows
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for window in windows:
            yield window
            bar.advance(task, len(window))
