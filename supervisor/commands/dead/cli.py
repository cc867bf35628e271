"""`workq dead`: look at the dead letters of a queue, have them tried again, delete them.

Looking changes nothing, and interrupting loses nothing: see `queue`.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click

import supervisor.commands.dead.render as render
import supervisor.commands.dead.sweep as sweep
from supervisor import queues
from supervisor.amqp import properties as amqp_properties
from supervisor.amqp.client import Unreachable
from supervisor.clock import now
from supervisor.commands import codes, foreground, sources
from supervisor.commands.dead.letter import Letter, original
from supervisor.commands.dead.queue import CutOff, DeadQueue
from supervisor.commands.plain import plain
from supervisor.commands.sources import Sources
from supervisor.endpoint import Endpoint
from supervisor.publisher import PublishError
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG
from supervisor.worker.delivery import Delivery
from supervisor.worker.task import Task

SPOOL: Final = 4 * 1024 * 1024


@click.group()
def dead() -> None:
    """List, show, requeue or delete dead letters.

    They are in the queue QUEUE.dead. Messages that another `workq dead` holds are not seen. Exit code: 0 done,
    1 not all done, 75 broker unreachable, 78 refused by the broker or invalid settings, 130 interrupted.
    """


_at_a_queue: Final = sources.options("url", "queue")


@dead.command("list")
@_at_a_queue
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the N oldest.")
def list_(sources: Sources, as_json: bool, limit: int | None) -> None:
    """List the dead letters, oldest first. None is consumed."""
    # First all is noted and handed back, then it is printed: a pager keeps nothing from anybody.
    with tempfile.SpooledTemporaryFile(SPOOL) as spool, _reported("list"):
        with DeadQueue(*sources.place()) as letters, sweep.stoppable() as stop:
            noted = sweep.note(letters, spool, limit, stop)
        spool.seek(0)
        if as_json:
            shutil.copyfileobj(spool, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        elif noted:
            render.print_table(spool)
        render.sum_up(letters, noted, err=as_json)
        render.warn("list", letters)
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
@click.option("--all", "everything", is_flag=True, help="All dead letters in the queue now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--to", metavar="QUEUE", help="Requeue to this queue instead of QUEUE.")
@click.argument("identities", nargs=-1, metavar="[ID]...")
def requeue(
    sources: Sources,
    everything: bool,
    to: str | None,
    yes: bool,
    identities: tuple[str, ...],
) -> None:
    """Put dead letters back into QUEUE, to be run again.

    A dead letter is removed only after the broker has confirmed the requeued message, so interrupting this loses
    nothing. If this process or the broker is killed, up to 200 messages may be in both queues.
    """
    _either(everything, identities)
    endpoints, queue = sources.place()
    with _reported("requeue"):
        if everything and not yes:
            _confirm(endpoints, queue, lambda all_: f"Put {all_} back into {plain(to or queue)}, to be run again?")
        with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
            if letters.count:
                letters.prepare()
            sweep.Requeueing(letters, identities, stop, to or queue).run()


@dead.command()
@_at_a_queue
@click.option("--all", "everything", is_flag=True, help="All dead letters in the queue now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("identities", nargs=-1, metavar="[ID]...")
def drop(sources: Sources, everything: bool, yes: bool, identities: tuple[str, ...]) -> None:
    """Delete dead letters. They cannot be recovered."""
    _either(everything, identities)
    endpoints, queue = sources.place()
    with _reported("drop"):
        if not yes and (everything or sys.stdin.isatty()):
            some = "" if everything else f"{', '.join(map(plain, identities))} of "
            _confirm(endpoints, queue, lambda all_: f"Delete {some}{all_} for good?")
        with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
            sweep.Dropping(letters, identities, stop).run()


@dead.command()
@sources.options("url", *foreground.SETTINGS, "handler")
@click.option("--handler", metavar="MODULE:FUNCTION", help="The handler, if not the one of the settings.")
@foreground.options
@click.argument("identity", metavar="ID")
def replay(sources: Sources, handler: str | None, times: int, pdb: bool, identity: str) -> None:
    """Run a handler here, in the foreground, on a dead letter as it was before it died.

    Nothing is consumed, published or acknowledged, and breakpoint() works. Exit code: 0 it returned, 1 not, 78 the
    handler cannot be loaded.
    """
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


def _either(everything: bool, identities: Sequence[str]) -> None:
    if everything == bool(identities):
        raise click.UsageError("Give IDs, or --all.")


def _confirm(endpoints: Sequence[Endpoint], queue: str, question: Callable[[str], str]) -> None:
    """Ask, on a connection that is closed before the answer: nobody knows how long that takes. `question` is given what
    there is: how much, where."""
    with DeadQueue(endpoints, queue) as letters:
        count = letters.count
    if not count:
        return
    everything = f"{render.so_many(count)} in {plain(letters.name)} on {letters.endpoint}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"--all means {everything}: confirm with --yes, since there is no terminal to ask on.")
    click.confirm(question(everything), abort=True)


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
