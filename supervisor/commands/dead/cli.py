"""`workq dead`: look at the dead letters of a queue, have them tried again, delete them.

Looking changes nothing, and interrupting loses nothing: see `queue`.
"""

from __future__ import annotations

import datetime
import functools
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import click

import supervisor.commands.dead.asking as asking
import supervisor.commands.dead.edit as edit
import supervisor.commands.dead.render as render
import supervisor.commands.dead.sweep as sweep
import supervisor.commands.dead.table as table
from supervisor import queues
from supervisor.amqp import properties as amqp_properties
from supervisor.amqp.client import Unreachable
from supervisor.clock import now
from supervisor.commands import attempts, codes, sources
from supervisor.commands.dead.choice import FIELDS, Choice, Condition, Conditions, moment
from supervisor.commands.dead.letter import Letter, original
from supervisor.commands.dead.pace import Spread
from supervisor.commands.dead.pace import parse as parse_rate
from supervisor.commands.dead.queue import CutOff, DeadQueue
from supervisor.commands.plain import plain
from supervisor.commands.sources import Sources
from supervisor.publisher import PublishError
from supervisor.settings.command_line import Command
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG

SPOOL: Final = 4 * 1024 * 1024

Parsed = TypeVar("Parsed")


@click.group()
def dead() -> None:
    """List, show, requeue or delete dead letters.

    They are in the queue QUEUE.dead. `list --group` counts what they died of; `list`, `requeue` and `drop` choose by
    --where, --since and --until. Interrupting loses nothing. Messages that another `workq dead` holds are not seen.

    Exit code: 0 done, 1 not all done, 75 broker unreachable, 78 refused by the broker or invalid settings, 130
    interrupted.
    """


_at_a_queue: Final = sources.options("url", "queue")


def _conditions(command: Command) -> Command:
    """Adds --where, --since and --until; the command gets `conditions`."""

    @functools.wraps(command)
    def run(*args: Any, where: tuple[str, ...], since: str | None, until: str | None, **values: Any) -> Any:
        present = datetime.datetime.now(datetime.UTC)
        said = [_parsed("--where", Condition.parse, each) for each in where]
        begin = None if since is None else _parsed("--since", partial(moment, present=present), since)
        end = None if until is None else _parsed("--until", partial(moment, present=present), until)
        if begin is not None and end is not None and begin >= end:
            raise click.UsageError("--since is not before --until: no dead letter is meant.")
        return command(*args, conditions=Conditions(said, begin, end), **values)

    for option in (
        click.option("--until", metavar="D|TIME", help="Only those first seen before this; like --since."),
        click.option(
            "--since",
            metavar="D|TIME",
            help="Only those first seen since this long ago (30m, 2h, 3d), or since an ISO 8601 time (UTC).",
        ),
        click.option(
            "--where",
            multiple=True,
            metavar="FIELD~TEXT",
            help="Only those whose FIELD contains TEXT (case matters); FIELD=TEXT: is TEXT. Repeatable: all must hold. "
            f"Fields: {', '.join(FIELDS)}.",
        ),
    ):
        run = option(run)
    return run


def _parsed(option: str, parse: Callable[[str], Parsed], said: str) -> Parsed:
    try:
        return parse(said)
    except ValueError as error:
        raise click.UsageError(f"{option} {plain(said)[:60]}: {error}.") from None


@dead.command("list")
@_at_a_queue
@_conditions
@click.option("--group", is_flag=True, help="Count them by exception and last frame, or by reason and cause.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the N oldest.")
@click.option("--wide", is_flag=True, help="Cut nothing, however long the lines.")
@click.option("--ids", "ids_only", is_flag=True, help="Print only ids, one per line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(
    sources: Sources, conditions: Conditions, group: bool, limit: int | None, wide: bool, ids_only: bool, as_json: bool
) -> None:
    """List the dead letters, oldest first. None is consumed.

    `--group` says how many died of what; its lines can be chosen with --where 'group=...'.
    """
    if ids_only and (group or as_json or wide):
        raise click.UsageError("--ids prints ids and nothing else: leave out --group, --json and --wide.")
    choice = Choice(conditions=conditions)
    # First all is noted and handed back, then it is printed: a pager keeps nothing from anybody.
    with tempfile.SpooledTemporaryFile(SPOOL) as spool, _reported("list"):
        with DeadQueue(*sources.place()) as letters, sweep.stoppable() as stop:
            noted = (sweep.count if group else sweep.note)(letters, choice, spool, limit, stop)
        form: table.Form = "json" if as_json else "ids" if ids_only else "groups" if group else "letters"
        table.print_spool(spool, form, is_wide=wide)
        if not ids_only:
            render.sum_up(letters, noted, err=as_json)
        render.warn("list", letters)
        render.tell_undated("list", choice.undated)
        if stop:
            sys.exit(codes.INTERRUPTED)


@dead.command()
@_at_a_queue
@click.option("--body", "body_only", is_flag=True, help="Write only the body to stdout.")
@click.argument("identity", metavar="ID")
def show(sources: Sources, body_only: bool, identity: str) -> None:
    """Show a dead letter: cause, evidence, properties, headers and body."""
    with _reported("show"):
        with DeadQueue(*sources.place()) as letters, sweep.stoppable() as stop:
            found = sweep.find(letters, identity, stop)
        render.warn("show", letters)
        if stop:
            sys.exit(codes.INTERRUPTED)
        if not found:
            render.complain("show", sweep.absence(letters, identity))
            sys.exit(codes.INCOMPLETE)
        if body_only:
            if found[0].number(queues.PARTS):
                _write_parts(found)
                return
            if len(found) > 1:
                render.complain(
                    "show", f"{len(found)} dead letters have the id {plain(identity)}; this is the oldest one's body"
                )
            sys.stdout.buffer.write(found[0].body)
            sys.stdout.buffer.flush()
            return
        for number, letter in enumerate(found, 1):
            title = f"dead letter {plain(letter.id)}"
            render.print_letter(
                letter, title if len(found) == 1 else f"{title} ({number} of {len(found)} with this id)"
            )


@dead.command()
@_at_a_queue
@_conditions
@click.option("--all", "everything", is_flag=True, help="All dead letters in the queue now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--to", metavar="QUEUE", help="Requeue to this queue instead of QUEUE.")
@click.option("--rate", metavar="N/s", help="At most N per second (N/m: per minute), evenly.")
@click.option("--edit", "is_edited", is_flag=True, help="Change the body of this one in $VISUAL or $EDITOR first.")
@click.argument("identities", nargs=-1, metavar="[ID]...")
def requeue(
    sources: Sources,
    conditions: Conditions,
    everything: bool,
    yes: bool,
    to: str | None,
    rate: str | None,
    is_edited: bool,
    identities: tuple[str, ...],
) -> None:
    """Put dead letters back into QUEUE, to be run again.

    Chosen by ID, by --where, --since and --until, or all; except by ID it shows what is chosen, and asks.

    A dead letter is removed only after the broker has confirmed the requeued message, so interrupting this loses
    nothing. If this process or the broker is killed, up to 200 messages may be in both queues.

    With --edit the old body is kept in the header x-workq-edited-from.
    """
    choice = _chosen(identities, everything, conditions)
    pace = None if rate is None else Spread(_parsed("--rate", parse_rate, rate))
    if is_edited and (len(identities) != 1 or pace is not None):
        raise click.UsageError("--edit is for one dead letter: give its ID, and no --rate.")
    endpoints, queue = sources.place()
    with _reported("requeue"):
        if is_edited:
            edit.requeue(endpoints, queue, identities[0], to or queue)
            return
        if not identities and not yes:
            agreed = asking.agreed(
                "requeue", endpoints, queue, choice, lambda these: f"Put {these} back into {plain(to or queue)}?"
            )
            if agreed is None:
                return
            choice = agreed
        with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
            if letters.count:
                letters.prepare()
            sweep.Requeueing(letters, choice, stop, to or queue, pace).run()


@dead.command()
@_at_a_queue
@_conditions
@click.option("--all", "everything", is_flag=True, help="All dead letters in the queue now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("identities", nargs=-1, metavar="[ID]...")
def drop(sources: Sources, conditions: Conditions, everything: bool, yes: bool, identities: tuple[str, ...]) -> None:
    """Delete dead letters. They cannot be recovered.

    Chosen by ID, by --where, --since and --until, or all; it shows what is chosen, and asks, without a terminal only
    for --yes unless chosen by ID.
    """
    choice = _chosen(identities, everything, conditions)
    endpoints, queue = sources.place()
    with _reported("drop"):
        if not yes and (not identities or sys.stdin.isatty()):
            agreed = asking.agreed("drop", endpoints, queue, choice, lambda these: f"Delete {these} for good?")
            if agreed is None:
                return
            choice = agreed
        with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
            sweep.Dropping(letters, choice, stop).run()


@dead.command()
@sources.options("url", *attempts.SETTINGS, "handler")
@click.option("--handler", metavar="MODULE:FUNCTION", help="The handler, if not the one of the settings.")
@attempts.options
@click.argument("identity", metavar="ID")
def replay(sources: Sources, handler: str | None, times: int, pdb: bool, identity: str) -> None:
    """Run a handler here, in the foreground, on a dead letter as it was before it died.

    Nothing is consumed, published or acknowledged, and breakpoint() works. Exit code: 0 it returned, 1 not, 78 the
    handler cannot be loaded.
    """
    # Imported late: the other verbs start in two thirds of the time without the worker's code.
    from supervisor.commands import foreground
    from supervisor.worker.delivery import Delivery
    from supervisor.worker.task import Task

    settings = sources.read()
    handler = handler or settings.get("handler")
    if not handler:
        raise click.UsageError("which handler? Give --handler MODULE:FUNCTION, or a --config that names it.")
    with _reported("replay"), DeadQueue(list(settings["url"]), settings["queue"]) as letters, sweep.stoppable() as stop:
        found = sweep.find(letters, identity, stop)
    if not found:
        render.complain("replay", sweep.absence(letters, identity))
        sys.exit(codes.INCOMPLETE)
    try:
        properties = amqp_properties.decode(b"".join(original(found[0], "").encode()))
    except ValueError as error:
        render.complain("replay", f"{plain(identity)} cannot be run: {error}")
        sys.exit(codes.INCOMPLETE)

    def make() -> Task:
        return Task(Delivery(1, found[0].queue, True, properties, found[0].body, found[0].id), 1, now(), found[0].queue)

    foreground.run(handler, settings, make, times, pdb=pdb)


def _write_parts(found: Sequence[Letter]) -> None:
    """One body, of several dead letters: see `queues.PART`. A part may be there twice, when a worker died over it."""
    parts = {letter.number(queues.PART): letter.body for letter in found}
    missing = [number for number in range(1, (found[0].number(queues.PARTS) or 0) + 1) if number not in parts]
    if missing:
        render.complain("show", f"body parts {', '.join(map(str, missing))} are missing: nothing was written")
        sys.exit(codes.INCOMPLETE)
    for number in range(1, len(parts) + 1):
        sys.stdout.buffer.write(parts[number])
    sys.stdout.buffer.flush()


def _chosen(identities: Sequence[str], everything: bool, conditions: Conditions) -> Choice:
    if identities and (everything or conditions):
        raise click.UsageError("Give IDs, or --all, --where, --since and --until, but not both.")
    if not (identities or everything or conditions):
        raise click.UsageError("Give IDs, or --where, --since or --until, or --all.")
    return Choice(identities, conditions)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Errors as one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the locale
    try:
        yield
    except Unreachable as error:
        render.complain(name, str(error))
        sys.exit(EXIT_CONFIG if error.trouble.permanent else EXIT_BROKER)
    except PublishError as error:
        render.complain(name, f"{error.reason}. Nothing is lost: what is not requeued is still a dead letter")
        sys.exit(codes.INCOMPLETE)
    except CutOff as error:
        render.complain(name, f"{error}. Nothing is lost: unfinished dead letters are back in the queue")
        sys.exit(codes.INCOMPLETE)
    except KeyboardInterrupt:
        render.complain(name, "interrupted. Nothing is lost: unfinished dead letters are back in the queue")
        sys.exit(codes.INTERRUPTED)
