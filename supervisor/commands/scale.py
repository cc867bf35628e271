"""`workq scale N`: set the number of workers."""

from __future__ import annotations

import click

from supervisor.commands import running
from supervisor.settings import WORKERS_MOST


@click.command()
@running.options(changing=True)
@click.argument("workers", metavar="N", type=click.IntRange(1, WORKERS_MOST))
def scale(find: running.Finder, workers: int) -> None:
    """Set the number of workers to N.

    N must be within MIN..MAX if the supervisor scales. Surplus workers finish their tasks first. Exit code: 0 done,
    1 refused, 69 no answer, 77 no permission.
    """
    running.report(find().wish("/scale", {"workers": workers}))
