"""`workq drain`: finish what is in hand and leave; waits until the supervisor is gone."""

from __future__ import annotations

import os
import select
import sys
from typing import Final

import click

from supervisor.clock import now
from supervisor.commands import codes, picture, running
from supervisor.commands.plain import plain

_LOOK_EVERY: Final = 0.5
_TELL_EVERY: Final = 5.0


@click.command()
@running.options(changing=True)
@running.timeout("Give up waiting after so long; the supervisor goes on leaving.")
def drain(find: running.Finder, timeout: float | None) -> None:
    """Finish the tasks in hand and leave.

    The supervisor takes nothing more; the command waits until it is gone, and tells what is still in hand. Whoever
    still has a task after --grace of the supervisor is killed. Asked again, nothing happens faster: for that there
    is SIGTERM a second time. Exit code: 0 gone, 1 not within --timeout, 69 nobody answers, 77 no permission.
    """
    supervisor = find()
    pidfd = _pidfd(supervisor.pid())
    answer = supervisor.wish("/drain")
    if not answer["ok"]:
        raise running.VerbError(f"drain refused: {plain(answer['because'])}")
    click.echo("draining: tasks in hand are finished, nothing else is taken")
    with running.interruptible("the supervisor goes on leaving"):
        sys.exit(_follow(supervisor, pidfd, now() + timeout if timeout is not None else None))


def _pidfd(pid: int | None) -> int | None:
    """Its end is the supervisor's; None where its process is not to be seen, as from another container."""
    try:
        return os.pidfd_open(pid) if pid is not None else None
    except OSError:
        return None


def _follow(supervisor: running.Running, pidfd: int | None, until: float | None) -> int:
    told: list[str] = []
    tell_at = 0.0
    while True:
        try:
            in_hand = picture.in_hand(supervisor.status())
        except running.NoAnswer:
            in_hand = []
            if pidfd is None:
                break
        names = [line.partition(", for")[0] for line in in_hand]
        if in_hand and (names != told or now() >= tell_at):
            told, tell_at = names, now() + _TELL_EVERY
            for line in in_hand:
                click.echo(line)
        if until is not None and now() >= until:
            click.echo("workq: still there; not waiting any longer, the supervisor goes on leaving", err=True)
            return codes.INCOMPLETE
        if select.select([pidfd] if pidfd is not None else [], [], [], _LOOK_EVERY)[0]:
            break
    click.echo("gone")
    return 0
