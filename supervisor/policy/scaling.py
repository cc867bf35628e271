"""How many workers does the backlog call for? (`--workers MIN..MAX`)

Up fast, down slowly. The pool reports every sample, and asks at every look at the queue's depth:

| seen | decision |
|---|---|
| at two looks in a row a backlog worth `WAIT` seconds, while all consume and are at work | enough workers for the
  arrivals, and to drain the rest within `DRAIN_WITHIN`, at the rate just measured; at most twice as many as now, and
  one more for each message |
| the same, but the last growth hardly raised the rate | none for `HOLD`, longer each time: the limit is elsewhere |
| no backlog for a while, and fewer would be busy for less than `LOAD` of their time | a quarter fewer, one at least |
| an operator has changed the number | no change for `MANUAL` |

A growth soon after a shrink means that the shrink was a mistake: the next one waits twice as long, so a load between
two numbers causes ever fewer changes. Figures from few tasks are trusted less (by a standard deviation, as if arrivals
were Poisson-distributed).

The time between two tasks (acknowledging, waiting for the next) counts too: for tasks of a millisecond it is most of
the time. It is measured during a backlog, when no worker waits for messages.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from supervisor.messages import Depth
from supervisor.settings import Span
from supervisor.values import dataclass
from supervisor.vocabulary import Phase, Reading

LOOK_EVERY: Final = 2.0
"""Seconds between two looks at the queue's depth when scaling."""
GAP: Final = 4 * LOOK_EVERY
"""Seconds without a look after which earlier ones are ignored."""
WAIT: Final = LOOK_EVERY
"""Seconds for which a message may wait. A smaller backlog is chance, or normal for short tasks."""
DRAIN_WITHIN: Final = 10.0
"""Seconds in which to drain a backlog; also the longest time over which a rate is measured."""
LOAD: Final = 0.7
"""The share of their time for which workers may be busy after a shrink."""
WINDOW: Final = 30.0
"""Seconds over which the load is averaged, at least."""
WINDOW_MOST: Final = 300.0
TASKS_IN_WINDOW: Final = 5
"""The window is at least as long as this many tasks."""
PATIENCE: Final = 30.0
"""Seconds from the last pressure or growth to the first shrink; doubled by each mistaken shrink."""
PATIENCE_MOST: Final = 960.0
REGRET: Final = 300.0
"""Seconds after a shrink within which a growth shows that it was a mistake."""
STEP_EVERY: Final = 10.0
"""Seconds between two shrinks."""
MANUAL: Final = 300.0
"""Seconds for which an operator's number is kept."""
FEW: Final = 20
"""Tasks; a rate from fewer means nothing."""
ENOUGH: Final = 50
"""Tasks to wait for, up to `DRAIN_WITHIN`, before judging a growth by the new rate."""
FUTILE: Final = 0.2
"""A growth is futile when it brings less than this share of the expected: twice the workers, twice the rate."""
JUDGED: Final = 1.5
"""A growth by less than this factor is not judged, because of chance."""
HOLD: Final = 120.0
"""Seconds without growth after a futile one; four times as long each time."""
HOLD_MOST: Final = 3600.0
REMARK_EVERY: Final = 600.0
"""Seconds before it is logged again that the maximum is not enough."""
_OVERHEAD_MOST: Final = 0.05
"""Seconds; more between two tasks is a backlog that came and went between two looks."""
_CONSUMING: Final = frozenset(Phase) - {Phase.VACANT, Phase.BOOTING, Phase.CONNECTING, Phase.LEAVING}


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of workers wanted; if unchanged, only a remark for the operator."""

    wanted: int
    because: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """The totals at one look; only differences matter."""

    at: float
    """When the workers were sampled."""
    finished: int
    work: float
    """Seconds with a task in flight, summed over the workers."""
    ready: int


@dataclass(frozen=True, slots=True)
class _Rate:
    """What the pool finished while no worker waited for messages."""

    workers: int
    tasks: int
    seconds: float
    arrivals: float
    """Messages a second."""

    @property
    def total(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    def __str__(self) -> str:
        return f"{self.workers} worker{'s finish' if self.workers > 1 else ' finishes'} {_number(self.total)}/s"


class Scaling:
    """Not asked while the number of workers must not change: degraded, draining, reloading."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._wanted = span.least
        self._seen: dict[int, tuple[int, float]] = {}
        """By page, the last totals. An empty slot is not sampled, but its totals continue."""
        self._finished = 0
        self._work = 0.0
        self._in_hand = 0
        self._sampled_at = -math.inf
        self._consuming: set[int] = set()
        self._at_work: set[int] = set()
        """Pages with a task in flight, or a finished one, since the last look."""
        self._looked_at = -math.inf
        self._history: deque[_Mark] = deque()
        self._pressure: deque[_Mark] = deque()
        """The looks in a row with a backlog and all workers at work."""
        self._pressed_at = -math.inf
        self._shrunk_at = -math.inf
        self._may_regret = False
        self._patience = PATIENCE
        self._manual_until = -math.inf
        self._before_growth: _Rate | None = None
        self._held_until = -math.inf
        self._holds = 0
        self._remarked_at = -math.inf
        self._overhead = 0.0

    # --------------------------------------------------------------------------------------------- to be told

    def sampled(self, readings: tuple[Reading, ...], now: float) -> None:
        """Every worker's page, about once a second."""
        self._sampled_at = now
        self._in_hand = sum(1 for reading in readings if reading.hand is not None)
        self._consuming = {reading.page for reading in readings if reading.phase in _CONSUMING}
        for reading in readings:
            finished = reading.counts.finished + reading.counts.quarantined
            work = reading.counts.busy_seconds + (now - reading.hand.since if reading.hand is not None else 0.0)
            finished_before, work_before = self._seen.get(reading.page, (0, 0.0))
            self._seen[reading.page] = finished, work
            self._finished += max(0, finished - finished_before)
            # Less than before if a worker was killed, whose last task is not counted.
            self._work += max(0.0, work - work_before)
            if reading.hand is not None or finished > finished_before:
                self._at_work.add(reading.page)
        if not self._is_full():
            self._pressure.clear()

    def look(self, depth: Depth, wanted: int, now: float) -> Decision | None:
        """The decision after this look at the queue; `wanted`: the current number."""
        if self._span.is_fixed or (self._history and self._sampled_at <= self._history[-1].at):
            return None  # nothing to decide, or nothing new to decide by
        if now - self._looked_at > GAP:
            self._begin_anew(now)
        self._looked_at = now
        if wanted != self._wanted:
            self._wanted = wanted
            self._manual_until = now + MANUAL
            self._begin_anew(now)
        self._note(_Mark(self._sampled_at, self._finished, self._work, depth.ready), now)
        decision = None
        if now >= self._manual_until:
            rate = self._measure() if len(self._pressure) > 1 else None
            if rate is not None and depth.ready > WAIT * rate.total:
                self._pressed_at = now
                decision = self._up(depth, rate, now)
            elif not depth.ready:
                decision = self._down(now)
        if decision is not None:
            self._wanted = decision.wanted
        return decision

    # ------------------------------------------------------------------------------------------ what was seen

    def _begin_anew(self, now: float) -> None:
        self._history.clear()
        self._pressure.clear()
        self._before_growth = None
        self._pressed_at = now

    def _note(self, mark: _Mark, now: float) -> None:
        self._history.append(mark)
        while len(self._history) > 1 and self._history[1].at <= now - WINDOW_MOST:
            self._history.popleft()
        busy = len(self._at_work & self._seated())
        self._at_work.clear()
        if not mark.ready:
            self._before_growth = None
        if not mark.ready or not self._is_full() or busy < _nearly(len(self._seated())):
            self._pressure.clear()
            return
        self._pressure.append(mark)
        while self._pressure[-1].at - self._pressure[0].at > DRAIN_WITHIN:
            self._pressure.popleft()
        if len(self._pressure) > 1 and (rate := self._measure()).tasks >= FEW:
            worked = self._pressure[-1].work - self._pressure[0].work
            overhead = (rate.workers * rate.seconds - worked) / rate.tasks
            self._overhead = min(_OVERHEAD_MOST, max(0.0, overhead))

    def _seated(self) -> set[int]:
        return {slot for slot in self._consuming if slot < self._wanted}

    def _is_full(self) -> bool:
        """Whether all wanted workers consume. Until then, growth would be requested again and again."""
        return len(self._seated()) >= _nearly(self._wanted)

    def _measure(self) -> _Rate:
        first, last = self._pressure[0], self._pressure[-1]
        seconds = last.at - first.at
        tasks = last.finished - first.finished
        came = max(0, tasks + last.ready - first.ready)
        return _Rate(len(self._seated()), tasks, seconds, came / seconds)

    # ------------------------------------------------------------------------------------------------ upwards

    def _up(self, depth: Depth, rate: _Rate, now: float) -> Decision | None:
        wanted, most = self._wanted, self._span.most
        needed = min(self._needed(depth, rate), wanted + depth.ready)
        if needed <= wanted or now < self._held_until:
            return None
        if self._before_growth is not None:
            if 0 < rate.tasks < ENOUGH and rate.seconds < DRAIN_WITHIN - LOOK_EVERY:
                return None
            if remark := self._judge(self._before_growth, rate, depth, now):
                return Decision(wanted, remark)
        backlog = _backlog(depth, rate)
        if wanted >= most:
            if now - self._remarked_at < REMARK_EVERY:
                return None
            self._remarked_at = now
            return Decision(wanted, f"{backlog}, and --workers {self._span} allows no more")
        # After a futile growth, try a smaller one.
        needed = min(needed, most, math.ceil(wanted * (JUDGED if self._holds else 2)))
        is_to_judge = rate.tasks >= FEW and needed >= JUDGED * rate.workers
        self._before_growth = rate if is_to_judge else None
        if self._may_regret:
            self._may_regret = False
            is_regret = now - self._shrunk_at <= REGRET
            self._patience = min(2 * self._patience, PATIENCE_MOST) if is_regret else PATIENCE
        self._pressure.clear()
        return Decision(needed, backlog)

    def _needed(self, depth: Depth, rate: _Rate) -> int:
        if not rate.tasks:
            return 2 * self._wanted
        # Other supervisors of this queue see the same backlog; each provides for its share.
        share = depth.ready * rate.workers / max(rate.workers, depth.consumers)
        came = rate.arrivals * rate.seconds
        arrivals = (came - math.sqrt(came)) / rate.seconds
        return math.ceil((arrivals + share / DRAIN_WITHIN) * rate.workers / rate.total)

    def _judge(self, before: _Rate, rate: _Rate, depth: Depth, now: float) -> str | None:
        """Whether the last growth was futile, in words."""
        self._before_growth = None
        if rate.tasks < FEW:
            return None
        hoped = before.total * (rate.workers / before.workers - 1)
        if rate.total - before.total >= FUTILE * hoped:
            self._holds = 0
            return None
        hold = min(HOLD * 4.0 ** min(self._holds, 10), HOLD_MOST)
        self._holds += 1
        self._held_until = now + hold
        return (
            f"backlog {depth.ready:,} ready, but {rate} where {before.workers} finished {_number(before.total)}/s: the "
            f"limit is elsewhere (the broker, a database, the CPUs); no more workers for {_time(hold)}"
        )

    # ---------------------------------------------------------------------------------------------- downwards

    def _down(self, now: float) -> Decision | None:
        wanted = self._wanted
        calm = now - self._pressed_at
        if wanted <= self._span.least or calm < self._patience or now - self._shrunk_at < STEP_EVERY:
            return None
        since = next((mark for mark in reversed(self._history) if mark.at <= now - self._window()), None)
        if since is None:
            return None
        load, tasks = self._load(since)
        enough = math.ceil(load * (1 + 1 / math.sqrt(max(1, tasks))) / LOAD)
        enough = max(self._span.least, enough, wanted - max(1, wanted // 4))
        if enough >= wanted:
            return None
        self._shrunk_at = now
        self._may_regret = True
        self._holds, self._held_until = 0, -math.inf
        window = _time(self._window())
        return Decision(enough, f"no backlog, and {load:.2g} of {wanted} workers were busy on average for {window}")

    def _load(self, since: _Mark) -> tuple[float, int]:
        """How many workers were kept busy on average, and by how many tasks."""
        last = self._history[-1]
        finished = last.finished - since.finished
        worked = last.work - since.work + self._overhead * finished
        return worked / (last.at - since.at), finished + self._in_hand

    def _window(self) -> float:
        first, last = self._history[0], self._history[-1]
        tasks = max(1, last.finished - first.finished)
        return min(max(WINDOW, TASKS_IN_WINDOW * (last.work - first.work) / tasks), WINDOW_MOST)


def _nearly(workers: int) -> int:
    """All, or a few less of many: one that is being replaced must not block hundreds."""
    return workers - workers // 8


def _backlog(depth: Depth, rate: _Rate) -> str:
    text = f"backlog {depth.ready:,} ready, "
    if not rate.tasks:
        who = f"all {rate.workers} workers" if rate.workers > 1 else "the one worker"
        return f"{text}{who} busy, and no task finished in {_time(rate.seconds)}"
    drained = rate.total - rate.arrivals
    text += f"{rate} and {_number(rate.arrivals)}/s arrive"
    return f"{text}: it does not shrink" if drained <= 0 else f"{text}: would take {_time(depth.ready / drained)}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"
