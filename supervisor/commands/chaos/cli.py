"""`workq chaos`: kill workers of a running supervisor for a while, and say what that did.

The supervisor kills them at our request, so that its log says who asked, and no message is blamed.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from contextlib import ExitStack
from typing import Any, Final

import click

from supervisor.clock import now
from supervisor.commands import codes, running
from supervisor.commands.chaos.account import Account, Marked, in_words
from supervisor.commands.chaos.marked import Record, Sending
from supervisor.commands.plain import plain
from supervisor.commands.running import Running
from supervisor.commands.sources import Sources
from supervisor.publisher import Publisher, PublishError
from supervisor.settings.command_line import lasting

LEAST: Final = 0.01
"""Seconds between two kills, at least."""
_LOOK_EVERY: Final = 0.1
_QUIET: Final = 12.0
"""Seconds without a message ready or in flight after which none is to come: the supervisor looks every five."""
_LIVE: Final = ("starting", "connecting", "idle", "waiting", "busy")


@click.command(short_help="Kill random workers for a while, and account for it.")
@running.options(changing=True, publishing=True)
@lasting("--for", "duration", help="How long to kill.", default="1m", above_zero=True)
@lasting("--kill-every", "pause", help="Time between two kills.", default="200ms")
@click.option("--publish", type=click.IntRange(min=1), metavar="N", help="Publish N marked tasks meanwhile.")
@lasting("--timeout", help="Wait no longer than this for the end of what was begun.", default="1m")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
def chaos(
    find: running.Finder,
    sources: Sources,
    duration: float,
    pause: float,
    publish: int | None,
    timeout: float,
    yes: bool,
    as_json: bool,
) -> None:
    """Kill random workers of a running supervisor for a while, then account for it.

    The supervisor sends the SIGKILLs and logs who asked; tasks in flight run again, none is blamed. --publish N adds
    tasks with header x-workq-chaos: a handler that notes them (docs/chaos.md) makes the count of lost tasks and extra
    runs exact. Ctrl-C stops the killing and prints the account. Exit code: 0 all well, 1 published tasks lost,
    unfinished or not noted, or workers missing, 69 no answer, 77 no permission.
    """
    if pause < LEAST:
        raise click.UsageError(f"--kill-every: expected at least {LEAST * 1000:g}ms.")
    supervisor = find()
    first = supervisor.status()
    if first["state"] in ("draining", "stopped"):
        raise running.VerbError(f"the supervisor is {first['state']}: nothing was killed")
    if not yes:
        _ask(first, duration, pause, publish)
    with ExitStack() as stack:
        sending = _sending(stack, supervisor, sources, publish, duration)
        run = _Run(supervisor, Account(supervisor.status()), sending, duration, pause)
        code = run.through(timeout)
        found = run.document()
    run.end_line()
    click.echo(json.dumps(found, indent=2) if as_json else _lines(found))
    for trouble in run.troubles():
        click.echo(f"workq: {trouble}", err=True)
    sys.exit(code or (0 if found["ok"] else codes.INCOMPLETE))


def _lines(found: dict[str, Any]) -> str:
    return "\n".join(map(plain, in_words(found)))


def _ask(document: dict[str, Any], duration: float, pause: float, publish: int | None) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("--yes is needed without a terminal.")
    queue, wanted = plain(document["queue"]["name"]), document["scale"]["wanted"]
    also = f", and {publish} tasks are published to it" if publish else ""
    click.echo(f"One of the {wanted} workers on {queue} is killed every {pause:g} s for {duration:g} s{also}.")
    click.confirm("Their tasks run again. Begin?", abort=True)


def _sending(
    stack: ExitStack, supervisor: Running, sources: Sources, count: int | None, duration: float
) -> tuple[Sending, Record] | None:
    if count is None:
        return None
    settings = sources.read()
    assert isinstance(supervisor.address, str)
    record = Record(supervisor.address)
    queue = supervisor.status()["queue"]["name"]
    try:
        stack.enter_context(record.kept())
        publisher = stack.enter_context(
            Publisher(settings["url"], queue, queue_type=settings["queue_type"], name="workq chaos")
        )
    except OSError as error:
        raise running.VerbError(f"{record.path}: {error.strerror}: nothing was killed") from None
    except PublishError as error:
        raise running.VerbError(f"{error.reason}: nothing was killed") from None
    return Sending(publisher, record, count, duration), record


class _Run:
    def __init__(
        self,
        supervisor: Running,
        account: Account,
        sending: tuple[Sending, Record] | None,
        duration: float,
        every: float,
    ) -> None:
        self._supervisor = supervisor
        self._account = account
        self._sending = sending
        self._duration = duration
        self._every = every
        self._seconds = 0.0
        self._trouble = ""

    def through(self, patience: float) -> int:
        """Kill, then wait for what follows, `patience` seconds at most. Returns the exit code; 0: see the account."""
        try:
            try:
                self._kill()
            except KeyboardInterrupt:
                self.end_line()
                click.echo("workq: no more kills; waiting for what was begun (Ctrl-C: not)", err=True)
            self._settle(patience)
        except KeyboardInterrupt:
            return codes.INTERRUPTED
        except running.NoAnswer as error:
            self._trouble = error.message
            return codes.UNAVAILABLE
        return 0

    def document(self) -> dict[str, Any]:
        return self._account.document(self._seconds, self._every, self._marked())

    def troubles(self) -> list[str]:
        sent = self._sending[0].trouble if self._sending else ""
        return [plain(each) for each in (self._trouble, sent and f"not all tasks were published: {sent}") if each]

    def _kill(self) -> None:
        began = due = now()
        while (elapsed := now() - began) < self._duration:
            self._seconds = elapsed
            if self._sending is not None:
                self._sending[0].send(elapsed)
            self._account.look(document := self._supervisor.status())
            self._kill_one(document)
            self._tell(elapsed)
            due = max(due + self._every, now())
            time.sleep(max(0.0, min(due, began + self._duration) - now()))
        self._seconds = self._duration
        if self._sending is not None:
            self._sending[0].send(self._duration)

    def _kill_one(self, document: dict[str, Any]) -> None:
        slots = [worker["slot"] for worker in document["workers"] if worker["pid"] and worker["state"] in _LIVE]
        if not slots:
            return
        wish = {"target": str(secrets.choice(slots)), "kind": "slot", "at_once": True, "command": "chaos"}
        answer = self._supervisor.wish("/kill", wish)
        if answer["ok"]:
            self._account.kill(answer["worker"])
        else:
            self._account.refused += 1

    def _settle(self, patience: float) -> None:
        until, quiet_since = now() + patience, now()
        while now() < until:
            self._account.look(self._supervisor.status())
            self._tell(self._seconds)
            if not self._account.is_idle:
                quiet_since = now()
            if self._account.is_settled and (self._are_all_done() or now() - quiet_since >= _QUIET):
                return
            time.sleep(_LOOK_EVERY)

    def _are_all_done(self) -> bool:
        marked = self._marked()
        return marked is None or (marked.is_noted and not marked.missing)

    def _marked(self) -> Marked | None:
        if self._sending is None:
            return None
        sending, record = self._sending
        letters = self._account.latest["dead_letters"]["recent"]
        return record.read(sending.confirmed, frozenset(letter["message_id"] for letter in letters))

    def end_line(self) -> None:
        """Of the progress."""
        if sys.stderr.isatty():
            click.echo(err=True)

    def _tell(self, elapsed: float) -> None:
        if sys.stderr.isatty():
            killed, back = len(self._account.killed), len(self._account.recoveries)
            click.echo(f"\r{elapsed:.0f} s: {killed} killed, {back} recovered ", nl=False, err=True)
