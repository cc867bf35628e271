"""`workq resume`: take tasks again."""

from __future__ import annotations

import click

from supervisor.commands import running


@click.command()
@running.options(changing=True)
def resume(find: running.Finder) -> None:
    """Take tasks again after workq pause.

    Exit code: 0 done, 69 no answer, 77 no permission.
    """
    running.report(find().wish("/resume", {"user": running.user()}))
