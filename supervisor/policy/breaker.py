"""`--breaker RATIO/COUNT`: stop consuming while what the handler needs is down, instead of failing every message.

closed      tasks are counted. When at least COUNT have ended in the last minute and RATIO of them failed, it opens
open        no worker consumes, for `--breaker-reset`
half-open   one worker takes one task. If that succeeds it closes; if it fails it opens again, for twice as long
closed      the others follow in steps (see `ramp`), each when a task of the former step has succeeded, or there is none

A task has failed if its handler raised, whatever becomes of the message, or if it killed its worker: a crash, the OOM
killer, `--task-timeout`. Messages that were not run do not count.

It sees the scoreboard's totals, once a second, and exits: nothing is done per task. Once it has opened, tasks that were
in flight then do not count: only those of workers that try.

A task that tries may take hours, and others would succeed at once. So another worker tries as well whenever every
former one has been at its task for `--breaker-reset`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from supervisor.policy import ramp
from supervisor.policy.actions import Say
from supervisor.policy.slot import Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import Phase, Reading, Trouble

WINDOW: Final = 60.0
"""Seconds over which tasks are counted."""
RESET_MOST: Final = 300.0
"""Seconds after which a worker tries at the latest, unless `--breaker-reset` itself is longer."""
RESET_LEAST: Final = 1.0
"""Seconds between two samples."""


class State(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Tally:
    """Totals at one time; only differences matter."""

    at: float
    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class BreakerView:
    """What /status shows."""

    state: State
    because: str
    since: float
    until: float | None
    """When a worker tries, while it is open."""


class Breaker:
    """Closed, and without effect, until it is `sampled` with settings that have `--breaker`."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.state = State.CLOSED
        self.allowed: float = math.inf
        """How many workers may consume while it is closed."""
        self._because = ""
        self._since = 0.0
        self._until = 0.0
        """While it is open: when a worker tries."""
        self._wait = 0.0
        """The last time it was open for, seconds."""
        self._openings = 0
        """How often in a row."""
        self._is_on = False
        self._is_late = False
        """Tasks have been run while it was off."""
        self._seen: dict[int, tuple[int, int]] = {}
        """By page: tasks succeeded and failed, as last sampled."""
        self._now = Tally(0.0)
        self._history = deque([self._now])
        self._stepped = Tally(0.0)
        """When more workers were allowed."""
        self._trouble: Trouble | None = None
        """The latest failure known."""
        self._trying: dict[int, int] = {}
        """By slot: the pid of its worker, which tries."""
        self._before: dict[int, tuple[int, int]] = {}
        """By page of those, and of their predecessors: as `_seen` when they began."""

    # ------------------------------------------------------------------------------------------------ queries

    @property
    def is_restricting(self) -> bool:
        return self.state is not State.CLOSED or self.allowed < math.inf

    def tries(self, slot: Slot) -> bool:
        """Whether its worker may take one task, while it is half-open."""
        return slot.number in self._trying

    def view(self) -> BreakerView | None:
        """None: it is off."""
        if not self._is_on:
            return None
        until = self._until if self.state is State.OPEN else None
        return BreakerView(self.state, self._because, self._since, until)

    def story(self, now: float) -> str:
        """In words, for /readyz; call only while it is restricting."""
        match self.state:
            case State.OPEN if now < self._until:
                return f"breaker open: {self._because}; one worker tries a task in {self._until - now:.0f} s"
            case State.OPEN:
                return f"breaker open: {self._because}; one worker tries a task once it is idle"
            case State.HALF_OPEN:
                return f"breaker half-open: one worker tries a task; {self._because}"
        return f"breaker closed: {self._because}"

    # ------------------------------------------------------------------------------------------------- events

    def died(self, page: int, cause: str, settings: Settings, now: float) -> Iterator[Say]:
        """A message has killed the worker of this page."""
        if settings.breaker is None:
            return
        self._now = Tally(self._now.at, self._now.succeeded, self._now.failed + 1)
        self._trouble = Trouble(now, cause, None)
        if self.state is State.HALF_OPEN and page in self._before:
            yield self._open_again(settings, now)

    def reloaded(self, now: float) -> None:
        """New code or settings may have ended the trouble: have a worker try."""
        self._until = min(self._until, now)

    def sampled(self, readings: tuple[Reading, ...], settings: Settings, *, may_try: bool, now: float) -> list[Say]:
        """Once a second. `may_try`: workers are not paused."""
        if settings.breaker is None:
            self._is_late = True
            return self._turn_off(now)
        if not self._is_on:
            self._is_on = True
            before = self._history[0]
            self._history[0] = Tally(now, before.succeeded, before.failed)
        self._count(readings, now)
        pages = {reading.page: reading for reading in readings}
        match self.state:
            case State.CLOSED:
                return [*self._watch(settings, pages, now)]
            case State.OPEN:
                return [*self._try(settings, pages, now)] if may_try and now >= self._until else []
            case State.HALF_OPEN:
                return [*self._judge(settings, pages, now, may_try=may_try)]

    def _turn_off(self, now: float) -> list[Say]:
        if not self._is_on:
            return []
        was_restricting = self.is_restricting
        self._is_on, self._openings = False, 0
        self._seen.clear()
        self._enter(State.CLOSED, "", now)
        return [Say("breaker.closed", "info", "--breaker is off: every worker consumes")] if was_restricting else []

    # ----------------------------------------------------------------------------------------------- counting

    def _count(self, readings: tuple[Reading, ...], now: float) -> None:
        succeeded, failed = self._now.succeeded, self._now.failed
        for reading in readings:
            latest = _ended(reading)
            before = self._seen.get(reading.page, latest if self._is_late else (0, 0))
            self._seen[reading.page] = latest
            succeeded += max(0, latest[0] - before[0])
            failed += max(0, latest[1] - before[1])
            if reading.trouble is not None and (self._trouble is None or reading.trouble.at > self._trouble.at):
                self._trouble = reading.trouble
        self._now = Tally(now, succeeded, failed)
        self._history.append(self._now)
        while len(self._history) > 1 and self._history[1].at <= now - WINDOW:
            self._history.popleft()

    def _watch(self, settings: Settings, pages: Mapping[int, Reading], now: float) -> Iterator[Say]:
        assert settings.breaker is not None
        ratio, count = settings.breaker.ratio, settings.breaker.count
        first = self._history[0]
        failed = self._now.failed - first.failed
        ended = failed + self._now.succeeded - first.succeeded
        if ended >= count and failed >= ratio * ended:
            within = min(WINDOW, max(1.0, now - first.at))
            because = f"{failed} of {ended} tasks failed within {within:.0f} s"
            yield self._open(f"{because} (--breaker {settings.breaker}){self._latest(first.at)}", settings, now)
        elif self.allowed < math.inf:
            self._follow(pages)
        elif self._openings and now - self._since >= max(WINDOW, self._wait):
            self._openings = 0

    def _follow(self, pages: Mapping[int, Reading]) -> None:
        """Allow the next step if a task of this one has succeeded, or there is none."""
        at_work = [slot for slot in self._slots.taking() if not _is_idle(pages.get(slot.page))]
        if at_work and self._now.succeeded <= self._stepped.succeeded:
            return
        self._stepped = self._now
        self.allowed += ramp.room(int(self.allowed))
        if self.allowed >= self._slots.wanted:
            self.allowed = math.inf

    def _latest(self, since: float) -> str:
        """The latest failure since then, in words."""
        return f", the latest by {self._trouble.what}" if self._trouble and self._trouble.at >= since else ""

    # ------------------------------------------------------------------------------------------------- states

    def _open(self, because: str, settings: Settings, now: float) -> Say:
        is_new = self._openings == 0
        first = settings.breaker_reset
        if self._trouble is not None and self._trouble.retry_after is not None:
            first = min(self._trouble.retry_after, RESET_MOST)
        first = max(first, RESET_LEAST)
        self._wait = min(first * 2.0 ** min(self._openings, 30), max(RESET_MOST, first))
        self._openings += 1
        self._enter(State.OPEN, because, now)
        self._until = now + self._wait
        follows = f"{because}; no worker consumes, one tries a task in {self._wait:g} s"
        return Say("breaker.opened", "error" if is_new else "warning", follows, {"seconds": self._wait})

    def _open_again(self, settings: Settings, now: float) -> Say:
        what = self._trouble.what if self._trouble is not None else "an exception"
        return self._open(f"the task that a worker tried failed by {what}", settings, now)

    def _enter(self, state: State, because: str, now: float) -> None:
        self.state, self._because, self._since = state, because, now
        self.allowed = math.inf
        self._trying, self._before = {}, {}
        self._history.clear()
        self._history.append(self._now)

    def _try(self, settings: Settings, pages: Mapping[int, Reading], now: float) -> Iterator[Say]:
        """Have one worker that is idle take one task."""
        idle = (each for each in self._slots.in_use() if each.number not in self._trying and _may_try(each, pages))
        slot = next(idle, None)
        if slot is None or slot.pid is None:
            return
        if self.state is State.OPEN:
            self._enter(State.HALF_OPEN, self._because, now)
        self._trying[slot.number] = slot.pid
        self._before[slot.page] = self._seen[slot.page]
        others = ", too: the former is still at its task" if len(self._trying) > 1 else ""
        because = f"worker {slot.number} tries one task{others}"
        yield Say("breaker.half_open", "info", because, {"slot": slot.number})

    def _judge(self, settings: Settings, pages: Mapping[int, Reading], now: float, *, may_try: bool) -> Iterator[Say]:
        """What has become of the tasks of those that try?"""
        ended = [(self._seen[page], before) for page, before in self._before.items()]
        if any(latest[0] > before[0] for latest, before in ended):
            yield self._close(now)
            return
        if any(latest[1] > before[1] for latest, before in ended):
            yield self._open_again(settings, now)
            return
        # Who has been replaced since may have succeeded before, which is seen with its successor: `_before` stays.
        self._trying = {number: pid for number, pid in self._trying.items() if _is_consuming(self._slots[number], pid)}
        hands = [reading.hand for number in self._trying if (reading := pages.get(self._slots[number].page))]
        are_long = all(hand is not None and now - hand.since >= settings.breaker_reset for hand in hands)
        if may_try and (not hands or are_long):
            yield from self._try(settings, pages, now)

    def _close(self, now: float) -> Say:
        tried = max(1, len(self._trying))
        follows = ramp.room(tried)
        self._enter(State.CLOSED, f"a task has succeeded: {follows} more workers may consume, then the others", now)
        self.allowed = tried + follows
        self._stepped = self._now
        if self.allowed >= self._slots.wanted:
            self.allowed = math.inf
        return Say("breaker.closed", "info", self._because)


def _ended(reading: Reading) -> tuple[int, int]:
    """Tasks of this page that succeeded, and that failed."""
    return reading.counts.succeeded, reading.counts.failed + reading.counts.deferred


def _is_idle(reading: Reading | None) -> bool:
    return reading is None or reading.phase is Phase.IDLE


def _is_consuming(slot: Slot, pid: int) -> bool:
    return slot.state is SlotState.READY and slot.pid == pid


def _may_try(slot: Slot, pages: Mapping[int, Reading]) -> bool:
    reading = pages.get(slot.page)
    is_known = reading is not None and reading.pid == slot.pid and reading.phase is Phase.IDLE
    return is_known and slot.state is SlotState.READY
