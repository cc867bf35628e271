"""`workq kill`: kill one worker; its message is redelivered, or dead-lettered."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click

from supervisor.clock import now
from supervisor.commands import codes, running
from supervisor.commands.plain import argument, plain
from supervisor.commands.running import Running
from supervisor.settings.command_line import lasting

_LOOK_EVERY: Final = 0.05


@click.command()
@running.options(changing=True)
@click.option("--dead-letter", is_flag=True, help="Dead-letter its message instead of running it again.")
@click.option("--slot", "is_slot", is_flag=True, help="TARGET is a slot, whatever messages are called.")
@click.option("--id", "is_id", is_flag=True, help="TARGET is a message id, even if it is a number.")
@lasting("--timeout", help="Stop waiting for what follows after this long.", default="10s")
@click.argument("target", metavar="SLOT|ID")
def kill(
    find: running.Finder,
    dead_letter: bool,
    is_slot: bool,
    is_id: bool,
    timeout: float,
    target: str,
) -> None:
    """Kill the worker of a slot, or the one that runs a message.

    The worker writes its stacks to the log, dies and is replaced. Its message is redelivered and not blamed; with
    --dead-letter the next worker that gets it moves it to the dead letters, reason operator. Messages without an id go
    by the name that workq status shows. Exit code: 0 done, 1 refused or not seen within --timeout, 69 no answer, 77 no
    permission.
    """
    if not target:
        raise click.UsageError("SLOT|ID: a slot's number, or the id of a message in flight.")
    if is_slot and is_id:
        raise click.UsageError("Give --slot or --id, but not both.")
    supervisor = find()
    kind = "slot" if is_slot else "message" if is_id else ""
    answer = supervisor.wish("/kill", {"target": target, "kind": kind, "dead_letter": dead_letter})
    if not answer["ok"]:
        raise running.VerbError(plain(answer["because"]))
    click.echo(plain(answer["because"]))
    with running.interruptible("the worker is killed all the same"):
        is_done = _follow(supervisor, answer["worker"], dead_letter, now() + timeout)
    sys.exit(0 if is_done else codes.INCOMPLETE)


def _follow(supervisor: Running, killed: dict[str, Any], dead_letter: bool, until: float) -> bool:
    """Tell what becomes of it. Whether all of it was seen."""
    name, has_exited = plain(killed["message_id"] or ""), False
    while True:
        document = supervisor.status()
        exited = _latest(document, "worker.exited", pid=killed["pid"])
        if exited is not None and not has_exited:
            has_exited = True
            click.echo(f"worker {killed['slot']} (pid {killed['pid']}) is dead ({exited['status']}): {exited['next']}")
        if has_exited and not dead_letter:
            return True
        if has_exited and _is_parked(document, killed["message_id"]):
            click.echo(f"{name} is dead-lettered: workq dead show {argument(name)}")
            return True
        if now() >= until:
            what = "it has not exited yet"
            if has_exited:
                what = f"{name} is not dead-lettered yet: no worker has got it; a supervisor that stops forgets it"
            click.echo(f"workq: {what}; not waiting any longer", err=True)
            return False
        time.sleep(_LOOK_EVERY)


def _latest(document: dict[str, Any], event: str, **fields: Any) -> dict[str, Any] | None:
    """The latest of the supervisor's decisions with these fields."""
    wanted = {"event": event, **fields}
    found = (each for each in reversed(document["recent"]) if wanted.items() <= each.items())
    return next(found, None)


def _is_parked(document: dict[str, Any], name: str) -> bool:
    letters = document["dead_letters"]["recent"]
    return any(letter["message_id"] == name and letter["reason"] == "operator" for letter in letters)
