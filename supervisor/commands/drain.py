"""`workq drain`: finish the tasks in flight and stop; waits until the supervisor has exited, and tells how."""

from __future__ import annotations

import os
import select
import socket
import sys
from http.client import HTTPConnection
from typing import Any, Final

import click

from supervisor.clock import now
from supervisor.commands import codes, picture, running
from supervisor.commands.plain import plain
from supervisor.settings.command_line import lasting
from supervisor.vocabulary import EXIT_KILLED

_LOOK_EVERY: Final = 0.5
_TELL_EVERY: Final = 5.0
_ASK_EVERY: Final = 2.0


@click.command()
@running.options(changing=True)
@lasting("--timeout", help="Stop waiting after this long; the drain continues.")
def drain(find: running.Finder, timeout: float | None) -> None:
    """Finish the tasks in flight, then stop the supervisor.

    Waits until the supervisor has exited and prints the tasks that are still in flight. Workers that are still busy
    after the supervisor's --grace are killed, and their messages redelivered. To stop at once, send SIGTERM twice. Exit
    code: 0 exited, everything finished; 1 exited, but something was killed or went wrong, as it says, or not exited
    within --timeout; 69 no answer; 77 no permission.
    """
    supervisor = find()
    pidfd = _pidfd(supervisor.pid())
    ending = Ending(supervisor)
    ending.ask()  # now, while it certainly runs
    answer = supervisor.wish("/drain")
    if not answer["ok"]:
        raise running.VerbError(f"drain refused: {plain(answer['because'])}")
    click.echo("draining: finishing tasks in flight, taking no new ones")
    with running.interruptible("the drain continues"):
        sys.exit(_follow(supervisor, pidfd, ending, now() + timeout if timeout is not None else None))


class Ending:
    """Hears the supervisor's last status. Each request for it is answered after some seconds, so the next one is made
    before that: there is always one."""

    def __init__(self, supervisor: running.Running) -> None:
        self._supervisor = supervisor
        self._ends: dict[socket.socket, HTTPConnection] = {}
        self._ask_at = 0.0
        self._last: dict[str, Any] | None = None

    def ask(self) -> None:
        """Take what has been answered, and ask again if it is time."""
        self._take()
        if self._last is None and now() >= self._ask_at:
            self._ask_at = now() + _ASK_EVERY
            try:
                asked = self._supervisor.end()
                self._ends[asked.sock] = asked
            except running.NoAnswer:
                pass  # it is gone, or has too many clients

    def last(self) -> dict[str, Any] | None:
        self._take()
        return self._last

    def _take(self) -> None:
        for sock in select.select([*self._ends], [], [], 0)[0]:
            try:
                _, document = self._supervisor.answer(self._ends.pop(sock), running.PATIENCE)
            except running.NoAnswer:
                continue
            if "recent" in document and _stopped(document) is not None:
                self._last = document


def _pidfd(pid: int | None) -> int | None:
    """Readable when the supervisor exits; None if its process is not visible, as from another container."""
    try:
        return os.pidfd_open(pid) if pid is not None else None
    except OSError:
        return None


def _follow(supervisor: running.Running, pidfd: int | None, ending: Ending, until: float | None) -> int:
    told: list[str] = []
    tell_at = 0.0
    while True:
        ending.ask()
        try:
            in_flight = picture.in_flight(supervisor.status())
        except running.NoAnswer:
            in_flight = []
            if pidfd is None:
                break
        names = [line.rpartition(" for ")[0] for line in in_flight]
        if in_flight and (names != told or now() >= tell_at):
            told, tell_at = names, now() + _TELL_EVERY
            for line in in_flight:
                click.echo(line)
        if until is not None and now() >= until:
            click.echo("workq: still running; not waiting any longer, the drain continues", err=True)
            return codes.INCOMPLETE
        if select.select([pidfd] if pidfd is not None else [], [], [], _LOOK_EVERY)[0]:
            break
    return _tell(ending.last())


def _tell(last: dict[str, Any] | None) -> int:
    """How the supervisor ended: `last` is its last status."""
    if last is None:
        click.echo("workq: gone, but not seen how: supervisor.stopped in its log has the exit code", err=True)
        return codes.INCOMPLETE
    stopped = _stopped(last)
    assert stopped is not None
    code = stopped["code"]
    if not code:
        click.echo("gone")
        return 0
    for each in last["recent"]:
        if each["event"] == "worker.exited" and not each["planned"] and each["at"] >= last["since"]:
            what = f" while it ran {plain(each['message_id'])}, which is redelivered" if each["message_id"] else ""
            click.echo(f"worker {each['slot']} (pid {each['pid']}) ended by {plain(each['cause'])}{what}", err=True)
    because = "not everything was finished" if code == EXIT_KILLED else plain(stopped["because"])
    click.echo(f"workq: gone with exit code {code}: {because}", err=True)
    return codes.INCOMPLETE


def _stopped(document: dict[str, Any]) -> dict[str, Any] | None:
    return next((each for each in reversed(document["recent"]) if each["event"] == "supervisor.stopped"), None)
