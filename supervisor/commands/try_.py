"""`workq try`: run a handler once, in the foreground, on a body from the command line."""

from __future__ import annotations

from typing import BinaryIO

import click

from supervisor import testing
from supervisor.commands import attempts, foreground, message, sources
from supervisor.commands.sources import Sources

__all__ = ["try_"]


@click.command("try", short_help="Run a handler once, here: breakpoint() works.")
@sources.options(*attempts.SETTINGS)
@click.option("--header", "pairs", multiple=True, metavar="K=V", help="A header of the message; may be repeated.")
@click.option("--id", "message_id", metavar="ID", help="The message id. None otherwise.")
@click.option("--attempt", type=click.IntRange(min=1), default=1, show_default=True, help="Which try it is.")
@click.option("--file", type=click.File("rb"), metavar="PATH", help="The body is this file; - is standard input.")
@attempts.options
@click.argument("handler", metavar="MODULE:FUNCTION")
@click.argument("body", required=False)
def try_(
    sources: Sources,
    pairs: tuple[str, ...],
    message_id: str | None,
    attempt: int,
    file: BinaryIO | None,
    times: int,
    pdb: bool,
    handler: str,
    body: str | None,
) -> None:
    """Run a handler once in the foreground: no broker, no other process, breakpoint() works.

    Prints how it ended, how long it took, and what a supervisor would do then. Exit code: 0 it returned, 1 not, 78 the
    handler cannot be loaded.
    """
    if (body is None) == (file is None):
        raise click.UsageError("one body is needed: BODY, or --file PATH.")
    settings = sources.read()
    content = file.read() if file is not None else (body or "").encode("utf-8", "surrogateescape")
    made = testing.Message(headers=message.headers(pairs) or {}, attempt=attempt, queue=settings["queue"])
    if message_id is not None:
        message.check_short("--id", "message id", message_id)
        made["message_id"] = message_id
    foreground.run(handler, settings, lambda: testing.task(content, **made), times, pdb=pdb)
