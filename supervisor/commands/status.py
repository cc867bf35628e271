"""`workq status`: show a running supervisor and its workers, once."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from supervisor.commands import codes, running
from supervisor.commands.plain import plain

_WIDE: Final = 500
"""Columns without a terminal."""
_DECISIONS: Final = 5


@click.command()
@running.options(changing=False)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON of /status.")
@click.option("--ready", is_flag=True, help="Print only what /readyz says; exit with 1 when not ready.")
def status(find: running.Finder, as_json: bool, ready: bool) -> None:
    """Show a running supervisor and its workers.

    Asks the control socket, else the health port, where workq-supervise would open them with the same settings. Exit
    code: 0 ok, 1 not ready (--ready), 69 no answer, 77 no permission, 78 invalid settings.
    """
    if ready and as_json:
        raise click.UsageError("--ready and --json: give only one.")
    document = find().status()
    if ready:
        click.echo(plain(document["readiness"]))
        sys.exit(0 if document["ready"] else codes.INCOMPLETE)
    _show(document, as_json)


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    # Imported late: a health check comes every few seconds, and draws nothing.
    from rich.console import Console

    from supervisor.commands import picture

    console = Console(highlight=False)
    if not console.is_terminal:
        # For a file, or for grep: shorten nothing.
        console = Console(highlight=False, width=_WIDE)
    for line in picture.head(document):
        console.print(line)
    console.print()
    console.print(picture.workers(document, fit=console.is_terminal))
    if document["recent"]:
        console.print()
        for entry in document["recent"][-_DECISIONS:]:
            console.print(picture.decision(entry))
