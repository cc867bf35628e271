"""A handler, run in the foreground on one task: with the terminal attached, without a broker, by the worker's code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from supervisor import logs
from supervisor.clock import now
from supervisor.commands import codes
from supervisor.policy.settle import Acknowledge, Outcome, Patience, Returned, settle
from supervisor.settings import parsers
from supervisor.vocabulary import EXIT_CONFIG
from supervisor.worker import handler
from supervisor.worker.handler import CannotLoad, Handler
from supervisor.worker.task import Reject, Retry, Task, Unavailable

__all__ = ["run"]


def run(target: str, settings: Mapping[str, Any], make: Callable[[], Task], times: int, *, pdb: bool) -> None:
    """Run a handler so often, each time on a new task, and tell how it went. Leaves with exit code 1 unless it returned
    each time, and with 78, as a supervisor does, when it cannot be loaded.

    `settings` are those of `attempts.SETTINGS`. What the handler logs is shown. What Ctrl-C raises is not caught, and
    ends the command.
    """
    try:
        parsers.handler(target)
    except ValueError as error:
        hint = f": it names no function, write {target}:FUNCTION" if target.isidentifier() else ""
        raise _Refused(f"nothing was run. The handler is {target!r}{hint}; expected {error}") from None
    queue, patience = settings["queue"], Patience(settings["retries"], settings["retry_delay"])
    logs.configure(role="worker", queue=queue, fd=2, lock_fd=logs.open_lock(), format="console", level="debug")
    try:
        loaded = Handler(target, handler.find(target, settings["app_dir"]), _post_mortem if pdb else _ended)
        loaded.set_up()
    except CannotLoad as error:
        click.echo(error.traceback, err=True, nl=False)
        raise _Refused(f"{target} cannot be loaded: {error}") from None
    try:
        returned = _run(loaded.runner(settings["soft_timeout"]), make, times, patience)
    finally:
        if (failed := loaded.tear_down()) is not None:
            click.echo(f"{failed.traceback}the tear-down raised {failed.error}", err=True)
    if returned < times:
        sys.exit(codes.INCOMPLETE)


def _run(call: Callable[[Task], Outcome], make: Callable[[], Task], times: int, patience: Patience) -> int:
    """How often it returned."""
    returned, spent = 0, 0.0
    for number in range(1, times + 1):
        task = make()
        begun = now()
        outcome = call(task)
        seconds = now() - begun
        spent += seconds
        returned += isinstance(outcome, Returned)
        click.echo(getattr(outcome, "traceback", ""), err=True, nl=False)
        click.echo(
            f"{f'{number} of {times}: ' if times > 1 else ''}{_words(outcome, task, patience)} ({seconds:.3f} s)"
        )
    if times > 1:
        click.echo(f"{returned} of {times} succeeded, {spent / times:.3f} s each on average")
    return returned


def _words(outcome: Outcome, task: Task, patience: Patience) -> str:
    """What it did, and what a supervisor would do."""
    settlement = settle(outcome, task.attempt, patience)
    if isinstance(settlement, Acknowledge):
        return "succeeded: it would be acknowledged"
    return f"{settlement.event.removeprefix('task.').replace('_', '-')}: {settlement.because}"


class _Refused(click.ClickException):
    exit_code = EXIT_CONFIG


def _ended(error: BaseException) -> Outcome:
    if isinstance(error, KeyboardInterrupt):
        raise error
    return handler.ended(error)


def _post_mortem(error: BaseException) -> Outcome:
    if not isinstance(error, KeyboardInterrupt | Reject | Retry | Unavailable):
        import pdb

        pdb.post_mortem(error.__traceback__)
    return _ended(error)
