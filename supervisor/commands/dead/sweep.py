"""Processes dead letters window by window, until done or interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import supervisor.commands.dead.render as render
from supervisor.commands import codes
from supervisor.commands.dead.letter import Letter, original
from supervisor.commands.dead.queue import DeadQueue, Target
from supervisor.commands.plain import plain

LOOKING: Final = 500
"""Dead letters a window."""
ACTING: Final = 200
"""Fewer: as many may be there twice when we are killed between the confirm and the acknowledgement."""
PROBLEMS: Final = 10
"""Problems told one by one."""


class Sweep:
    """Something done to those of the dead letters that are meant, window by window."""

    name: str
    done_word: str

    def __init__(self, letters: DeadQueue, identities: Sequence[str], stop: Stop) -> None:
        """No `identities`: all are meant."""
        self.done: Counter[str] = Counter()
        """How many, by the queue they went to."""
        self.problems: list[str] = []
        self.letters = letters
        self._wanted = set(identities)
        self._found: Counter[str] = Counter()
        self._stop = stop

    def act(self, chosen: list[Letter]) -> list[Letter]:
        """Do it, count it in `done`, and return those with which it cannot be done."""
        raise NotImplementedError

    def run(self) -> None:
        """Leaves with an exit code unless everything is done."""
        try:
            for window in windows(self.letters, self._stop, self.name, size=ACTING):
                chosen = [letter for letter in window if self._is_chosen(letter)]
                staying = self.act(chosen)
                meant = {letter.tag for letter in chosen}
                self.letters.keep([*staying, *(letter for letter in window if letter.tag not in meant)])
        finally:
            self._sum_up()
        self._finish()

    def _is_chosen(self, letter: Letter) -> bool:
        if not self._wanted:
            return True
        meant = named_by(letter, self._wanted)
        if meant is not None:
            self._found[meant] += 1
        return meant is not None

    def _sum_up(self) -> None:
        total = self.done.total()
        among = f" of {self.letters.count or 0:,}" if not self._wanted else ""
        click.echo(f"{self.done_word} {total:,}{among} from {plain(self.letters.name)} on {self.letters.endpoint}")
        for identity, count in self._found.items():
            if count > 1:
                click.echo(f"  {count} dead letters have the id {plain(identity)}")

    def _finish(self) -> None:
        render.warn(self.name, self.letters)
        for problem in self.problems[:PROBLEMS]:
            render.complain(self.name, problem)
        if len(self.problems) > PROBLEMS:
            render.complain(self.name, f"and {len(self.problems) - PROBLEMS:,} more like these")
        if self._stop:
            render.complain(self.name, "interrupted; the others are untouched")
            sys.exit(codes.INTERRUPTED)
        missing = [identity for identity in sorted(self._wanted) if not self._found[identity]]
        for identity in missing:
            render.complain(self.name, absence(self.letters, identity))
        if missing or self.problems:
            sys.exit(codes.INCOMPLETE)


class Requeueing(Sweep):
    name = "requeue"
    done_word = "requeued"

    def __init__(self, letters: DeadQueue, identities: Sequence[str], stop: Stop, to: str) -> None:
        super().__init__(letters, identities, stop)
        self._to = to

    def act(self, chosen: list[Letter]) -> list[Letter]:
        aimed = [(letter, target) for letter in chosen if (target := self._target(letter)) is not None]
        homeless = self.letters.publish(aimed, self.done)
        for letter in homeless:
            self.problems.append(f"{plain(letter.id)} stays: there is no queue {plain(self._to)} to take it")
        going = {letter.tag for letter, _ in aimed} - {letter.tag for letter in homeless}
        return [letter for letter in chosen if letter.tag not in going]

    def _target(self, letter: Letter) -> Target | None:
        try:
            return Target(self._to, original(letter, self.letters.endpoint.user))
        except ValueError as error:
            self.problems.append(f"{plain(letter.id)} stays: {error}; `workq dead drop` deletes it")
            return None


class Dropping(Sweep):
    name = "drop"
    done_word = "dropped"

    def act(self, chosen: list[Letter]) -> list[Letter]:
        self.letters.acknowledge(chosen)
        self.done[self.letters.name] += len(chosen)
        return []


def named_by(letter: Letter, wanted: set[str]) -> str | None:
    """By which of the wanted ids this one is meant: its own, or that as `list` shows it."""
    return next((name for name in (letter.id, plain(letter.id)) if name in wanted), None)


def absence(letters: DeadQueue, identity: str) -> str:
    if letters.count is None:
        return f"there is no dead letter {plain(identity)}: there is no queue {plain(letters.name)}"
    return f"there is no dead letter {plain(identity)} in {plain(letters.name)}, or another process holds it"


def find(letters: DeadQueue, identity: str, stop: Stop) -> list[Letter]:
    """Those that this id means, all of them handed back."""
    found: list[Letter] = []
    for window in windows(letters, stop, "looking", size=LOOKING):
        found += [letter for letter in window if named_by(letter, {identity})]
        letters.keep(window)
    return found


def note(letters: DeadQueue, spool: IO[bytes], limit: int | None, stop: Stop) -> int:
    """Write a line of JSON for each dead letter into the spool. Returns how many, and hands them back."""
    noted = 0
    for window in windows(letters, stop, "list", size=LOOKING, most=limit):
        for letter in window:
            spool.write(json.dumps(render.row(letter)).replace("\x7f", "\\u007f").encode() + b"\n")
        noted += len(window)
        letters.keep(window)
    return noted


class Stop:
    """Asked to stop? True from the first Ctrl-C or SIGTERM on."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def ask(self, _number: int, _frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not click.echo: what is interrupted may be in the middle of printing.
        os.write(sys.stderr.fileno(), b"\nstopping after the current message; again to stop now\n")


@contextmanager
def stoppable() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM waits for the end of a window: then not even a duplicate is made."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def windows(letters: DeadQueue, stop: Stop, what: str, *, size: int, most: int | None = None) -> Iterator[list[Letter]]:
    """Each window, until all are seen or it is interrupted; then the open ones are requeued."""
    for window in _progress(letters.windows(most, size=size), min(letters.count or 0, most or sys.maxsize), what):
        yield window
        if stop:
            break
    letters.hand_back()


def _progress(windows: Iterable[list[Letter]], total: int, what: str) -> Iterator[list[Letter]]:
    if not sys.stderr.isatty():
        yield from windows
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for window in windows:
            yield window
            bar.advance(task, len(window))
