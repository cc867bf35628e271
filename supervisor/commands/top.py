"""`workq top`: a running supervisor, full screen by rich's `Live`, with keys to control it."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from supervisor.clock import now
from supervisor.commands import picture, running
from supervisor.commands.plain import plain

EVERY: Final = 1.0
ANSWER_WITHIN: Final = 1.0
"""Seconds; keys wait for it too."""
RATE_OVER: Final = 10.0
"""Seconds over which the rate is averaged."""
TREND_OVER: Final = 30
"""Measurements of the queue's depth in the sparkline."""
SAID_FOR: Final = 6.0
"""Seconds for which the answer to a key is shown."""
_DECISIONS: Final = 6
_BARS: Final = "▁▂▃▄▅▆▇█"
_KEYS: Final = {
    "\x1b[A": "up", "\x1bOA": "up", "k": "up", "\x1b[B": "down", "\x1bOB": "down", "j": "down", "\x1b[5~": "page up",
    "\x1b[6~": "page down", " ": "page down", "+": "grow", "=": "grow", "-": "shrink", "r": "reload", "d": "drain",
    "q": "quit", "Q": "quit",
}  # fmt: skip
_WISHES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "grow": ("/scale", {"change": 1}), "shrink": ("/scale", {"change": -1}), "reload": ("/reload", {}),
}  # fmt: skip
_HELP: Final = "+ - workers   r reload   d drain   arrows, page keys scroll   q quit"


@click.command()
@running.options(changing=False)
def top(find: running.Finder) -> None:
    """Watch a running supervisor, full screen.

    Keys: + and - add and remove a worker, r reloads, d drains after a prompt, arrows and page keys scroll, q quits.
    With --health it is read-only.
    """
    console = Console(highlight=False)
    if not (sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
        raise click.UsageError("workq top needs a terminal; workq status does not.")
    screen = Screen(find())
    with (
        _dying_by_signals(),
        _single_keys(sys.stdin.fileno()),
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        try:
            _watch(screen, live)
        except KeyboardInterrupt:
            pass


def _watch(screen: Screen, live: Live) -> None:
    keys = sys.stdin.fileno()
    look_at = 0.0
    while not screen.is_over:
        if now() >= look_at:
            screen.look()
            look_at = now() + EVERY
        live.update(screen.draw(live.console.width, live.console.height), refresh=True)
        if select.select([keys], [], [], max(0.0, look_at - now()))[0]:
            typed = os.read(keys, 1024).decode("utf-8", "replace")
            if not typed:
                return
            for key in _split(typed):
                screen.press(key)
            look_at = min(look_at, now() + 0.2)


# ------------------------------------------------------------------------------------------------------ the screen


@dataclass(slots=True)
class Screen:
    supervisor: running.Running
    document: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""
    """Why there is nothing newer than `document`."""
    gone_since: float = 0.0
    is_over: bool = False
    is_asking: bool = False
    """Whether to drain."""
    said: Text = field(default_factory=Text)
    said_at: float = 0.0
    first: int = 0
    """Index of the topmost worker shown."""
    page: int = 1
    _done: deque[tuple[float, int]] = field(default_factory=deque)
    _depths: deque[int] = field(default_factory=lambda: deque(maxlen=TREND_OVER))

    def look(self) -> None:
        try:
            document = self.supervisor.status(ANSWER_WITHIN)
        except running.VerbError as trouble:
            self.gone_since = self.gone_since if self.trouble else now()
            self.trouble = trouble.message
            self._done.clear()
            return
        self.document, self.trouble = document, ""
        done = document["totals"]["succeeded"] + document["totals"]["failed"]
        if self._done and done < self._done[-1][1]:
            self._done.clear()  # another supervisor now
        self._done.append((now(), done))
        while self._done[-1][0] - self._done[0][0] > RATE_OVER:
            self._done.popleft()
        if document["queue"]["ready"] is not None:
            self._depths.append(document["queue"]["ready"])

    def press(self, key: str) -> None:
        does = _KEYS.get(key, "")
        if self.is_asking:
            self.is_asking = False
            if key in ("y", "Y"):
                self._wish("/drain", {})
            else:
                self._say("not drained")
        elif does == "quit":
            self.is_over = True
        elif does == "drain":
            self.is_asking = self._can_change()
        elif does in _WISHES:
            self._wish(*_WISHES[does])
        elif does:
            step = {"up": -1, "down": 1, "page up": -self.page, "page down": self.page}[does]
            self.first = max(0, self.first + step)

    def _can_change(self) -> bool:
        if not self.supervisor.can_change:
            self._say("the health port is read-only: workq top --control PATH", "yellow")
        return self.supervisor.can_change

    def _wish(self, path: str, body: dict[str, Any]) -> None:
        if not self._can_change():
            return
        try:
            answer = self.supervisor.wish(path, body)
            event = f"{answer['said'][-1]['event']}: " if answer["said"] else ""
            self._say(event + answer["because"], "green" if answer["ok"] else "red")
        except running.VerbError as trouble:
            self._say(trouble.message, "red")

    def _say(self, text: str, style: str = "") -> None:
        self.said, self.said_at = Text(plain(text), style), now()

    # -------------------------------------------------------------------------------------------------- drawing

    def draw(self, width: int, height: int) -> RenderableType:
        """The screen for this size: head, workers, decisions, and a line of keys at the bottom."""
        if not self.document:
            return Group(*_cropped([Text(self._lost())]))
        head = [*([Text(self._lost(), "bold red")] if self.trouble else []), *picture.head(self.document)]
        head.append(self._pace(width))
        every = len(self.document["workers"])
        room = height - len(head) - 2  # but the workers' header and the keys
        # Workers first; the rest of the screen, or half of it, shows the latest decisions.
        count = max(0, min(_DECISIONS, max(room - every, room // 3)))
        decisions = self.document["recent"][-count:] if count else []
        self.page = max(1, room - len(decisions))
        self.first = max(0, min(self.first, every - self.page))
        lines: list[RenderableType] = _cropped(head)
        lines.append(picture.workers(self.document, self.first, self.page))
        lines += [Text("")] * (room - len(decisions) - min(self.page, every - self.first))
        lines += _cropped([picture.decision(entry) for entry in decisions])
        return Group(*lines, *_cropped([self._keys(every)]))

    def _lost(self) -> str:
        return f"gone for {picture.duration(now() - self.gone_since)}, looked for each second: {plain(self.trouble)}"

    def _pace(self, width: int) -> Text:
        rate = self._rate()
        text = Text.assemble((f"{'pace':<9}", "dim"), "measuring" if rate is None else f"{rate:,.1f} tasks/s")
        if len(self._depths) > 1:
            change = self._depths[-1] - self._depths[0]
            text.append(f"   backlog {change:+,} in {len(self._depths) - 1} s " if change else "   backlog steady ")
            text.append(_curve(self._depths), "cyan")
        return text

    def _rate(self) -> float | None:
        """Tasks a second."""
        if len(self._done) < 2 or (seconds := self._done[-1][0] - self._done[0][0]) <= 0:
            return None
        return (self._done[-1][1] - self._done[0][1]) / seconds

    def _keys(self, every: int) -> Text:
        if self.is_asking:
            return Text(" drain: finish the tasks in flight and stop?  y / n ", "bold yellow reverse")
        if now() - self.said_at < SAID_FOR and self.said.plain:
            return self.said
        last = min(every, self.first + self.page)
        shown = f"workers {self.first + 1}-{last} of {every}   " if every > self.page else ""
        return Text(f" {shown}{_HELP} ", "reverse")


def _cropped(lines: list[Text]) -> list[RenderableType]:
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return [*lines]


def _curve(values: deque[int]) -> str:
    most = max(max(values), 1)
    return "".join(_BARS[min(len(_BARS) - 1, value * len(_BARS) // (most + 1))] for value in values)


def _split(typed: str) -> Iterator[str]:
    """The keys in a terminal's input; an escape sequence is one key."""
    while typed:
        sequence = next((each for each in _KEYS if each.startswith("\x1b") and typed.startswith(each)), typed[0])
        yield sequence
        typed = typed[len(sequence) :]


# ---------------------------------------------------------------------------------------------------- the terminal


@contextmanager
def _single_keys(fd: int) -> Iterator[None]:
    """Read keys one by one, without echo; Ctrl-C still interrupts, Ctrl-Z does not stop."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd, termios.TCSADRAIN)
    raw = termios.tcgetattr(fd)
    raw[6][termios.VSUSP] = b"\0"  # a stop would leave our screen and settings to the shell
    termios.tcsetattr(fd, termios.TCSADRAIN, raw)
    try:
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        except termios.error:
            pass  # the terminal is gone


@contextmanager
def _dying_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that the terminal is restored."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
