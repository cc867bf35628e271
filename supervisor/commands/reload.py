"""`workq reload`: new code and new settings, one worker at a time; waits for the result. With --canary, a share of the
workers first."""

from __future__ import annotations

import re
import sys
import time
from typing import Any, Final

import click

from supervisor.clock import now
from supervisor.commands import codes, picture, running
from supervisor.commands.plain import plain
from supervisor.settings.command_line import lasting, seconds

_LOOK_EVERY: Final = 0.1
_FOR: Final = "10m"
_STAGES: Final = {
    "loading": "importing generation {}",
    "trying": "trying generation {} with one worker",
    "waiting": "the broker is down; generation {} takes over once it is back",
    "replacing": "it consumes; replacing the other workers, each after its current task",
}


def _percent(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if (match := re.fullmatch(r"([0-9]{1,2})%", value.strip())) and int(match[1]):
        return int(match[1])
    raise click.BadParameter(f"got {value}, expected a share of the workers from 1% to 99%")


@click.command()
@running.options(changing=True)
@click.option(
    "--canary",
    metavar="N%",
    callback=_percent,
    help="Run the new code in this share of the workers first, at least one and never all, and compare it.",
)
@lasting("--for", "duration", help=f"How long, with --canary (default {_FOR}).", above_zero=True)
@click.option("--no-wait", is_flag=True, help="With --canary: return once it runs.")
@lasting("--timeout", help="Stop waiting after this long; the reload continues.")
def reload(
    find: running.Finder, canary: int | None, duration: float | None, no_wait: bool, timeout: float | None
) -> None:
    """Load new code and settings, one worker at a time.

    Loads both, tries them with one worker, then replaces the others, each after its current task; waits until all
    are replaced. If the import fails, the settings are invalid, or the first new worker cannot consume, nothing
    changes. Exit code: 0 finished, 1 failed or refused, 69 no answer, 77 no permission.

    With --canary 20% --for 10m, that share of the workers runs the new code for that long. It is rolled back as soon as
    it crashes or fails more than the old code, and at the end if it is slower, or had too few tasks to tell; else the
    other workers follow.
    """
    if canary is None and (duration is not None or no_wait):
        raise click.UsageError("--for and --no-wait need --canary.")
    body: dict[str, Any] = {}
    if canary is not None:
        body = {"canary": canary, "seconds": seconds("--for", _FOR) if duration is None else duration}
    supervisor = find()
    answer = supervisor.wish("/reload", body)
    if not answer["ok"]:
        raise running.VerbError(f"reload failed: {plain(answer['because'])}")
    with running.interruptible("the reload continues"):
        until = now() + timeout if timeout is not None else None
        sys.exit(_follow(supervisor, answer["reload"], until, to_the_end=not no_wait))


def _follow(supervisor: running.Running, number: int, until: float | None, *, to_the_end: bool) -> int:
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
        if state not in _STAGES and state != "canary":
            click.echo(f"workq: reload {plain(state)}: {plain(latest['error'] or '')}", err=True)
            click.echo(f"workq: generation {document['generation']} stays", err=True)
            return codes.INCOMPLETE
        if state != told:
            told = state
            click.echo(_canary(document) if state == "canary" else _STAGES[state].format(latest["generation"]))
        if state == "canary" and not to_the_end:
            return 0
        if until is not None and now() >= until:
            click.echo(f"workq: still {state}; not waiting any longer, the reload continues", err=True)
            return codes.INCOMPLETE
        time.sleep(_LOOK_EVERY)


def _canary(document: dict[str, Any]) -> str:
    latest = document["reload"]
    canary = latest["canary"]
    share, of = f"{canary['percent']}%", document["scale"]["wanted"]
    return (
        f"canary: generation {latest['generation']} runs in {share} of {of} workers for "
        f"{picture.duration(canary['seconds'])}, then it is finished or rolled back by itself; `workq status` and "
        "`workq top` show it, `workq reload` replaces it"
    )
