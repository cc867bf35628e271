"""`workq drain`: finish the tasks in flight and stop; waits until the supervisor has exited."""

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
@running.timeout("Stop waiting after this long; the drain continues.")
def drain(find: running.Finder, timeout: float | None) -> None:
    """Finish the tasks in flight, then stop the supervisor.

    Waits until the supervisor has exited and prints the tasks that are still in flight. Workers that are still busy
    after the supervisor's --grace are killed. To stop at once, send SIGTERM twice. Exit code: 0 exited, 1 not within
    --timeout, 69 no answer, 77 no permission.
    """
    supervisor = find()
    pidfd = _pidfd(supervisor.pid())
    answer = supervisor.wish("/drain")
    if not answer["ok"]:
        raise running.VerbError(f"drain refused: {plain(answer['because'])}")
    click.echo("draining: finishing tasks in flight, taking no new ones")
    with running.interruptible("the drain continues"):
        sys.exit(_follow(supervisor, pidfd, now() + timeout if timeout is not None else None))


def _pidfd(pid: int | None) -> int | None:
    """Readable when the supervisor exits; None if its process is not visible, as from another container."""
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
            click.echo("workq: still running; not waiting any longer, the drain continues", err=True)
            return codes.INCOMPLETE
        if select.select([pidfd] if pidfd is not None else [], [], [], _LOOK_EVERY)[0]:
            break
    click.echo("gone")
    return 0
