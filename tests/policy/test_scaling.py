"""`--workers MIN..MAX`: the rules one by one, and then a queue with workers in simulated time.

The simulation keeps the contracts of the real thing: pages are sampled once a second and the queue looked at every two,
workers take a while to come, one that is not wanted any more finishes what it has in hand, and the totals of its page
stay for the next one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.policy.scaling import DRAIN_WITHIN, GAP, HOLD, LOOK_EVERY, MANUAL, REMARK_EVERY, WINDOW, Decision, Scaling
from supervisor.settings import Span
from supervisor.vocabulary import Counts, Depth, InHand, Phase, Reading

# --------------------------------------------------------------------------------------------------- simulation


class Seat:
    """A slot: its worker, if there is one, and its page's totals."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.phase = Phase.VACANT
        self.since = 0.0
        self.finished = 0
        self.busy_seconds = 0.0

    def read(self) -> Reading:
        hand = InHand("key", "key", 1, 1, False, self.since) if self.phase is Phase.BUSY else None
        counts = Counts(succeeded=self.finished, busy_seconds=self.busy_seconds)
        return Reading(self.number, 100 + self.number, self.phase, hand, 0.0, counts)


class Factory:
    """A queue, its workers and their scaling. `arrivals` are times in ascending order, `duration` makes a task's."""

    def __init__(
        self,
        span: Span,
        arrivals: Iterator[float],
        duration: Callable[[], float],
        *,
        overhead: float = 0.0005,
        boot: float = 0.3,
        shared: float = 0.0,
    ) -> None:
        self.span = span
        self.scaling = Scaling(span)
        self.wanted = span.least
        self.now = 0.0
        self.decisions: list[tuple[float, int, Decision]] = []
        """When, how many were wanted before, and what was decided."""
        self.backlog: list[int] = []
        """At each look."""
        self.staff: list[int] = []
        """Wanted, after each look."""
        self.done = 0
        self._arrivals = arrivals
        self._arrival = next(arrivals, math.inf)
        self._duration = duration
        self._overhead = overhead
        self._boot = boot
        self._shared = shared
        """Seconds for which each task needs what there is only one of."""
        self._shared_until = 0.0
        self._queue = 0
        self._seats: list[Seat] = []
        self._idle: deque[Seat] = deque()
        self._events: list[tuple[float, int, int]] = []
        self._order = iter(range(10**9))
        self._calls: dict[int, Callable[[], None]] = {}
        self._staff()

    # What happens.

    def _at(self, time: float, call: Callable[[], None]) -> None:
        number = next(self._order)
        self._calls[number] = call
        heapq.heappush(self._events, (time, number, number))

    def _staff(self) -> None:
        while len(self._seats) < self.wanted:
            self._seats.append(Seat(len(self._seats)))
        for seat in self._seats:
            if seat.number < self.wanted and seat.phase is Phase.VACANT:
                seat.phase = Phase.CONNECTING
                self._at(self.now + self._boot, lambda seat=seat: self._free(seat))  # type: ignore[misc]
            elif seat.number >= self.wanted and seat.phase is Phase.IDLE:
                self._leave(seat)
        self._idle = deque(seat for seat in self._idle if seat.phase is Phase.IDLE)

    def _leave(self, seat: Seat) -> None:
        seat.phase = Phase.VACANT

    def _free(self, seat: Seat) -> None:
        if seat.number >= self.wanted:
            self._leave(seat)
            return
        seat.phase = Phase.IDLE
        if self._queue:
            self._queue -= 1
            self._begin(seat)
        else:
            self._idle.append(seat)

    def _begin(self, seat: Seat) -> None:
        seat.phase, seat.since = Phase.BUSY, self.now
        ends = self.now + self._duration()
        if self._shared:
            self._shared_until = max(self._shared_until, self.now) + self._shared
            ends = max(ends, self._shared_until)
        self._at(ends, lambda: self._end(seat))

    def _end(self, seat: Seat) -> None:
        seat.finished += 1
        seat.busy_seconds += self.now - seat.since
        self.done += 1
        # Between two tasks a worker is not seen to do anything.
        seat.phase = Phase.SETTLING
        self._at(self.now + self._overhead, lambda: self._free(seat))

    def _arrive(self) -> None:
        if self._idle:
            self._begin(self._idle.popleft())
        else:
            self._queue += 1
        self._arrival = next(self._arrivals, math.inf)

    def _until(self, time: float) -> None:
        while (event := min(self._arrival, self._events[0][0] if self._events else math.inf)) <= time:
            self.now = event
            if event == self._arrival:
                self._arrive()
            else:
                self._calls.pop(heapq.heappop(self._events)[1])()
        self.now = time

    # What is looked at.

    def run(self, seconds: float) -> Factory:
        end = self.now + seconds
        while self.now < end:
            self._until(self.now + 1)
            readings = tuple(seat.read() for seat in self._seats if seat.phase is not Phase.VACANT)
            self.scaling.sampled(readings, self.now)
            if self.now % LOOK_EVERY == 0:
                self._look()
        return self

    def _look(self) -> None:
        consumers = sum(1 for seat in self._seats if seat.phase in (Phase.IDLE, Phase.BUSY, Phase.SETTLING))
        decision = self.scaling.look(Depth(self._queue, consumers), self.wanted, self.now)
        if decision is not None:
            assert self.span.least <= decision.wanted <= self.span.most
            assert decision.because
            self.decisions.append((self.now, self.wanted, decision))
            self.wanted = decision.wanted
            self._staff()
        self.backlog.append(self._queue)
        self.staff.append(self.wanted)

    # What came of it.

    def changes(self, since: float = 0.0) -> list[tuple[float, int, int]]:
        """When, from how many, to how many."""
        return [(at, before, to.wanted) for at, before, to in self.decisions if at > since and to.wanted != before]

    def turns(self, since: float = 0.0) -> int:
        """How often growing became shrinking, or the reverse."""
        directions = [to > before for _, before, to in self.changes(since)]
        return sum(1 for one, next_one in zip(directions, directions[1:], strict=False) if one != next_one)


def poisson(rate: Callable[[float], float], most: float, dice: random.Random) -> Iterator[float]:
    """Arrivals at `rate(time)` a second, which is never above `most` (thinning)."""
    time = 0.0
    while True:
        time += dice.expovariate(most)
        if dice.random() * most <= rate(time):
            yield time


def steady(rate: float, seed: int, until: float = math.inf) -> Iterator[float]:
    for time in poisson(lambda _: rate, rate, random.Random(seed)):
        if time > until:
            return
        yield time


def burst(tasks: int, at: float = 5.0) -> Iterator[float]:
    return iter([at] * tasks)


def exponential(mean: float, seed: int) -> Callable[[], float]:
    dice = random.Random(-1 - seed)
    return lambda: dice.expovariate(1 / mean)
