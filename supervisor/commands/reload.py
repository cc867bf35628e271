"""`workq reload`: new code and new settings, one worker at a time; waits for the result."""

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
    "loading": "importing generation {}",
    "trying": "trying generation {} with one worker",
    "waiting": "the broker is down; generation {} takes over once it is back",
    "replacing": "it consumes; replacing the other workers, each after its current task",
}


@click.command()
@running.options(changing=True)
@running.timeout("Stop waiting after this long; the reload continues.")
def reload(find: running.Finder, timeout: float | None) -> None:
    """Load new code and settings, one worker at a time.

    Loads both, tries them with one worker, then replaces the others, each after its current task; waits until all
    are replaced. If the import fails, the settings are invalid, or the first new worker cannot consume, nothing
    changes. Exit code: 0 finished, 1 failed or refused, 69 no answer, 77 no permission.
    """
    supervisor = find()
    answer = supervisor.wish("/reload")
    if not answer["ok"]:
        raise running.VerbError(f"reload failed: {plain(answer['because'])}")
    with running.interruptible("the reload continues"):
        sys.exit(_follow(supervisor, answer["reload"], now() + timeout if timeout is not None else None))


def _follow(supervisor: running.Running, number: int, until: float | None) -> int:
    told = ""
    while True:
        document: dict[str, Any] = supervisor.status()
        latest = document["reload"]
        if latest["number"] != number:
            click.echo(f"workq: replaced by another reload ({plain(latest['by'])})", err=True)
            return codes.INCOMPLETE
        state = str(latest["state"])
        if state == "finished":
            click.echo(f"finished: every worker runs generation {latest['generation']}")
            return 0
        if state not in _STAGES:
            click.echo(f"workq: reload {plain(state)}: {plain(latest['error'] or '')}", err=True)
            click.echo(f"workq: generation {document['generation']} stays", err=True)
            return codes.INCOMPLETE
        if state != told:
            told = state
            click.echo(_STAGES[state].format(latest["generation"]))
        if until is not None and now() >= until:
            click.echo(f"workq: still {state}; not waiting any longer, the reload continues", err=True)
            return codes.INCOMPLETE
        time.sleep(_LOOK_EVERY)
