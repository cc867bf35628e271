"""`workq pause`: take no more tasks, and keep everything else as it is."""

from __future__ import annotations

from typing import Any

import click

from supervisor.commands import running
from supervisor.settings.command_line import lasting


@click.command()
@running.options(changing=True)
@lasting("--for", "duration", help="Resume by itself after this long.", above_zero=True)
def pause(find: running.Finder, duration: float | None) -> None:
    """Take no more tasks until workq resume.

    Consumers are cancelled, so tasks wait in the queue or go to other supervisors. Workers stay connected and finish
    the tasks in flight. The pause outlasts reloads and workers, not the supervisor. Exit code: 0 done, 1 refused, 69
    no answer, 77 no permission.
    """
    body: dict[str, Any] = {"user": running.user()}
    if duration is not None:
        body["seconds"] = duration
    running.report(find().wish("/pause", body))
