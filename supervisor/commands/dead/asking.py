"""Asks before much is done, or anything is deleted, and shows what is meant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

import supervisor.commands.dead.render as render
import supervisor.commands.dead.sweep as sweep
import supervisor.commands.dead.table as table
from supervisor.commands import codes
from supervisor.commands.dead.choice import Choice
from supervisor.commands.dead.letter import Letter
from supervisor.commands.dead.queue import DeadQueue
from supervisor.commands.plain import plain
from supervisor.endpoint import Endpoint

_SHOWN: Final = 10

Question = Callable[[str], str]
"""Is given what there is: how much, where."""


def agreed(name: str, endpoints: Sequence[Endpoint], queue: str, choice: Choice, question: Question) -> Choice | None:
    """The choice, once it is agreed to; None when there is nothing to choose from. Exits if it is not agreed to.

    Asks on a connection that is closed before the answer: nobody knows how long that takes. With conditions, what they
    apply to is shown, and what comes to be in the queue afterwards is not meant.
    """
    if choice.conditions:
        return _shown(name, endpoints, queue, choice, question)
    with DeadQueue(endpoints, queue) as letters:
        count = letters.count
    if count:
        everything = f"{render.so_many(count)} in {plain(letters.name)} on {letters.endpoint}"
        _on_terminal(f"--all means {everything}")
        some = f"{', '.join(map(plain, sorted(choice.identities)))} of " if choice.identities else ""
        click.confirm(question(some + everything), abort=True)
    return choice


def _shown(name: str, endpoints: Sequence[Endpoint], queue: str, choice: Choice, question: Question) -> Choice | None:
    rows: list[dict[str, Any]] = []
    meant: set[int] = set()

    def look(letter: Letter) -> None:
        meant.add(letter.fingerprint)
        if len(rows) < _SHOWN:
            rows.append(render.row(letter))

    with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
        count = sweep.see(letters, choice, stop, look)
    render.warn(name, letters)
    render.tell_undated(name, choice.undated)
    if stop:
        sys.exit(codes.INTERRUPTED)
    where = f"{render.so_many(letters.count or 0)} in {plain(letters.name)} on {letters.endpoint}"
    if not count:
        click.echo(f"none of {where} is meant: nothing to do" if letters.count else f"{where}: nothing to do")
        return None
    these = f"{count:,} of {where}"
    _on_terminal(f"this means {these}")
    for line in table.of_letters(lambda: rows, table.screen_width()):
        click.echo(line)
    if count > len(rows):
        click.echo(f"... and {count - len(rows):,} more")
    click.confirm(question(these), abort=True)
    return choice.among(meant)


def _on_terminal(what: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: confirm with --yes, since there is no terminal to ask on.")
