"""Processes dead letters window by window, until done or interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final

import click

import supervisor.commands.dead.render as render
from supervisor.clock import now
from supervisor.commands import codes
from supervisor.commands.dead.choice import Choice
from supervisor.commands.dead.groups import Groups
from supervisor.commands.dead.letter import Letter, original
from supervisor.commands.dead.pace import Spread
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
    size = ACTING

    def __init__(self, letters: DeadQueue, choice: Choice, stop: Stop) -> None:
        self.done: Counter[str] = Counter()
        """How many, by the queue they went to."""
        self.problems: list[str] = []
        self.letters = letters
        self.stop = stop
        self._choice = choice

    def act(self, chosen: list[Letter]) -> list[Letter]:
        """Do it, count it in `done`, and return those with which it cannot be done, or not yet."""
        raise NotImplementedError

    def run(self) -> None:
        """Leaves with an exit code unless everything is done."""
        try:
            for window in windows(self.letters, self.stop, self.name, size=self.size):
                chosen = [letter for letter in window if self._choice.has(letter)]
                staying = self.act(chosen)
                meant = {letter.tag for letter in chosen}
                self.letters.keep([*staying, *(letter for letter in window if letter.tag not in meant)])
        finally:
            self._sum_up()
        self._finish()

    def _sum_up(self) -> None:
        total = self.done.total()
        among = f" of {self.letters.count or 0:,}" if not self._choice.identities else ""
        click.echo(f"{self.done_word} {total:,}{among} from {plain(self.letters.name)} on {self.letters.endpoint}")
        for identity, count in self._choice.found.items():
            if count > 1:
                click.echo(f"  {count} dead letters have the id {plain(identity)}")

    def _finish(self) -> None:
        render.warn(self.name, self.letters)
        render.tell_undated(self.name, self._choice.undated)
        for problem in self.problems[:PROBLEMS]:
            render.complain(self.name, problem)
        if len(self.problems) > PROBLEMS:
            render.complain(self.name, f"and {len(self.problems) - PROBLEMS:,} more like these")
        if self.stop:
            render.complain(self.name, "interrupted; the others are untouched")
            sys.exit(codes.INTERRUPTED)
        for identity in self._choice.missing:
            render.complain(self.name, absence(self.letters, identity))
        if self._choice.missing or self.problems:
            sys.exit(codes.INCOMPLETE)


class Requeueing(Sweep):
    name = "requeue"
    done_word = "requeued"

    def __init__(self, letters: DeadQueue, choice: Choice, stop: Stop, to: str, pace: Spread | None = None) -> None:
        super().__init__(letters, choice, stop)
        self._to = to
        self._pace = pace
        if pace is not None:
            self.size = pace.window(ACTING)

    def act(self, chosen: list[Letter]) -> list[Letter]:
        waiting = [(letter, target) for letter in chosen if (target := self._aimed(letter)) is not None]
        gone: set[int] = set()
        while waiting:
            share = len(waiting) if self._pace is None else self._pace.share(len(waiting))
            aimed, waiting = waiting[:share], waiting[share:]
            if self._pace is not None:
                self.letters.rest(self._pace.due, self.stop)
                if self.stop:
                    break
                self._pace.went(len(aimed), now())
            homeless = self.letters.publish(aimed, self.done)
            for letter in homeless:
                self.problems.append(f"{plain(letter.id)} stays: there is no queue {plain(self._to)} to take it")
            gone |= {letter.tag for letter, _ in aimed} - {letter.tag for letter in homeless}
        return [letter for letter in chosen if letter.tag not in gone]

    def _aimed(self, letter: Letter) -> Target | None:
        try:
            return self.target(letter)
        except ValueError as error:
            self.problems.append(f"{plain(letter.id)} stays: {error}; `workq dead drop` deletes it")
            return None

    def target(self, letter: Letter) -> Target:
        """Raises ValueError when it cannot be requeued."""
        return Target(self._to, original(letter, self.letters.endpoint.user))


class Dropping(Sweep):
    name = "drop"
    done_word = "dropped"

    def act(self, chosen: list[Letter]) -> list[Letter]:
        self.letters.acknowledge(chosen)
        self.done[self.letters.name] += len(chosen)
        return []


def absence(letters: DeadQueue, identity: str) -> str:
    if letters.count is None:
        return f"there is no dead letter {plain(identity)}: there is no queue {plain(letters.name)}"
    return f"there is no dead letter {plain(identity)} in {plain(letters.name)}, or another process holds it"


def find(letters: DeadQueue, identity: str, stop: Stop) -> list[Letter]:
    """Those that this id means, all of them handed back."""
    found: list[Letter] = []
    see(letters, Choice([identity]), stop, found.append)
    return found


def note(letters: DeadQueue, choice: Choice, spool: IO[bytes], limit: int | None, stop: Stop) -> int:
    """Write a line of JSON for each dead letter into the spool. Returns how many, and hands them back."""
    return see(letters, choice, stop, lambda letter: _write(render.row(letter), spool), limit)


def count(letters: DeadQueue, choice: Choice, spool: IO[bytes], limit: int | None, stop: Stop) -> int:
    """The same for each group of them. Returns how many dead letters there are in all groups."""
    groups = Groups()
    seen = see(letters, choice, stop, groups.add, limit)
    for row in groups.rows():
        _write(row, spool)
    return seen


def _write(row: Mapping[str, Any], spool: IO[bytes]) -> None:
    spool.write(json.dumps(row).replace("\x7f", "\\u007f").encode() + b"\n")


def see(
    letters: DeadQueue, choice: Choice, stop: Stop, look: Callable[[Letter], object], limit: int | None = None
) -> int:
    """Call `look` with each that is meant, or the oldest `limit` of them, and hand all back. Returns how many."""
    seen = 0
    most = limit if choice.is_everything else None

    def is_enough() -> bool:
        return seen == limit

    for window in windows(letters, stop, "looking", size=LOOKING, most=most, is_enough=is_enough):
        for letter in window:
            if not is_enough() and choice.has(letter):
                look(letter)
                seen += 1
        letters.keep(window)
    return seen


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


def windows(
    letters: DeadQueue,
    stop: Stop,
    what: str,
    *,
    size: int,
    most: int | None = None,
    is_enough: Callable[[], bool] = lambda: False,
) -> Iterator[list[Letter]]:
    """Each window, until all are seen, or enough, or it is interrupted; then the open ones are requeued."""
    with _progress(what, min(letters.count or 0, most or sys.maxsize)) as advance:
        for window in letters.windows(most, size=size):
            yield window
            advance(len(window))
            if stop or is_enough():
                break
    with _progress("handing back", letters.held) as advance:
        letters.hand_back(advance)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    if not total or not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
