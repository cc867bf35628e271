"""`workq reload`: new code and new settings, one worker at a time; waits for how it ends."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click

from supervisor.clock import now
from supervisor.commands import codes, running
from supervisor.commands.plain import plain

_LOOK_EVERY: Final = 0.1
_STAGES: Final = {
    "loading": "generation {} is being imported",
    "trying": "one worker of generation {} is to show that it can consume",
    "waiting": "the broker is away; generation {} takes over when it is back",
    "replacing": "it consumes; the other workers follow, each when it has finished its task",
}


@click.command()
@running.options(changing=True)
@running.timeout("Give up waiting after so long; the reload itself goes on.")
def reload(find: running.Finder, timeout: float | None) -> None:
    """Take new code and settings, worker by worker.

    Both are loaded anew, one worker tries them, then the others are replaced, each when it has finished its task;
    the command waits for the end of it. If the code cannot be imported, the settings are wrong, or the first new
    worker cannot consume, everything stays as it was. Exit code: 0 finished, 1 failed or refused, 69 nobody
    answers, 77 no permission.
    """
    supervisor = find()
    answer = supervisor.wish("/reload")
    if not answer["ok"]:
        raise running.VerbError(f"reload failed: {plain(answer['because'])}")
    with running.interruptible("the reload goes on"):
        sys.exit(_follow(supervisor, answer["reload"], now() + timeout if timeout is not None else None))


def _follow(supervisor: running.Running, number: int, until: float | None) -> int:
    told = ""
    while True:
        document: dict[str, Any] = supervisor.status()
        latest = document["reload"]
        if latest["number"] != number:
            click.echo(f"workq: overtaken by another reload ({plain(latest['by'])})", err=True)
            return codes.INCOMPLETE
        state = str(latest["state"])
        if state == "finished":
            click.echo(f"finished: every worker is of generation {latest['generation']}")
            return 0
        if state not in _STAGES:
            click.echo(f"workq: reload {plain(state)}: {plain(latest['error'] or '')}", err=True)
            click.echo(f"workq: generation {document['generation']} stays", err=True)
            return codes.INCOMPLETE
        if state != told:
            told = state
            click.echo(_STAGES[state].format(latest["generation"]))
        if until is not None and now() >= until:
            click.echo(f"workq: still {state}; not waiting any longer, the reload goes on", err=True)
            return codes.INCOMPLETE
        time.sleep(_LOOK_EVERY)
