"""A handler, run in the foreground on one task: with the terminal attached, without a broker, by the worker's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from supervisor import logs
from supervisor.clock import now
from supervisor.policy.settle import Acknowledge, Outcome, Patience, Raised, RetryAsked, Returned, settle
from supervisor.vocabulary import EXIT_CONFIG
from supervisor.worker import handler
from supervisor.worker.handler import CannotLoad, Handler
from supervisor.worker.task import Reject, Retry, Task

__all__ = ["load", "run"]


def load(target: str, app_dir: str, queue: str, *, pdb: bool) -> Handler:
    """The handler; what it logs is for whoever watches, and with `pdb` what it raises can be debugged. Raises
    click.ClickException when it cannot be loaded: exit code 78, as a supervisor's."""
    logs.configure(role="worker", queue=queue, fd=2, lock_fd=logs.open_lock(), format="console", level="debug")
    with _refused(target):
        return Handler(target, handler.find(target, app_dir), _post_mortem if pdb else _ended)


def run(handler: Handler, make: Callable[[], Task], times: int, patience: Patience, soft_timeout: float | None) -> bool:
    """Run it so often, each time on a new task, and tell how it went. Whether it returned each time.

    What Ctrl-C raises is not caught: it ends the command.
    """
    with _refused(handler.name):
        handler.set_up()
    try:
        return _run(handler.runner(soft_timeout), make, times, patience)
    finally:
        if (failed := handler.tear_down()) is not None:
            click.echo(f"{failed.traceback}the tear-down raised {failed.error}", err=True)


def _run(call: Callable[[Task], Outcome], make: Callable[[], Task], times: int, patience: Patience) -> bool:
    returned, spent = 0, 0.0
    for number in range(1, times + 1):
        task = make()
        begun = now()
        outcome = call(task)
        seconds = now() - begun
        spent += seconds
        returned += isinstance(outcome, Returned)
        if isinstance(outcome, Raised | RetryAsked) and outcome.traceback:
            click.echo(outcome.traceback.rstrip("\n"), err=True)
        click.echo(
            f"{f'{number} of {times}: ' if times > 1 else ''}{_words(outcome, task, patience)} ({seconds:.3f} s)"
        )
    if times > 1:
        click.echo(f"{returned} of {times} succeeded, {spent / times:.3f} s each on average")
    return returned == times


def _words(outcome: Outcome, task: Task, patience: Patience) -> str:
    """What it did, and what a supervisor would do."""
    settlement = settle(outcome, task.attempt, patience)
    if isinstance(settlement, Acknowledge):
        return "succeeded: it would be acknowledged"
    return f"{settlement.event.removeprefix('task.').replace('_', '-')}: {settlement.because}"


class _Refused(click.ClickException):
    exit_code = EXIT_CONFIG


@contextmanager
def _refused(target: str) -> Iterator[None]:
    try:
        yield
    except CannotLoad as error:
        if error.traceback:
            click.echo(error.traceback.rstrip("\n"), err=True)
        raise _Refused(f"{target} cannot be loaded: {error}") from None


def _ended(error: BaseException) -> Outcome:
    if isinstance(error, KeyboardInterrupt):
        raise error
    return handler.ended(error)


def _post_mortem(error: BaseException) -> Outcome:
    if not isinstance(error, KeyboardInterrupt | Reject | Retry):
        import pdb

        pdb.post_mortem(error.__traceback__)
    return _ended(error)
