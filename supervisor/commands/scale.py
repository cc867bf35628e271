"""`workq scale N`: so many workers, from now on."""

from __future__ import annotations

import sys

import click

from supervisor.commands import codes, running
from supervisor.commands.plain import plain
from supervisor.settings import WORKERS_MOST


@click.command()
@running.options(changing=True)
@click.argument("workers", metavar="N", type=click.IntRange(1, WORKERS_MOST))
def scale(find: running.Finder, workers: int) -> None:
    """Have N workers from now on.

    N is to be within MIN..MAX if the supervisor has such limits. Those that are too many finish what they have in
    hand. Exit code: 0 done, 1 refused, 69 nobody answers, 77 no permission.
    """
    answer = find().wish("/scale", {"workers": workers})
    click.echo(plain(answer["because"]), err=not answer["ok"])
    if not answer["ok"]:
        sys.exit(codes.INCOMPLETE)
