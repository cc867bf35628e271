"""`workq status`: show a running supervisor and its workers, once."""

from __future__ import annotations

import json
from typing import Final

import click
from rich.console import Console

from supervisor.commands import picture, running

_WIDE: Final = 500
"""Columns without a terminal."""
_DECISIONS: Final = 5


@click.command()
@running.options(changing=False)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON of /status.")
def status(find: running.Finder, as_json: bool) -> None:
    """Show a running supervisor and its workers.

    Asks the control socket, else the health port, where workq-supervise would open them with the same settings. Exit
    code: 0 ok, 69 no answer, 77 no permission, 78 invalid settings.
    """
    document = find().status()
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
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
