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
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.messages import Depth
from supervisor.policy import scaling
from supervisor.policy.scaling import DRAIN_WITHIN, GAP, HOLD, LOOK_EVERY, MANUAL, Decision, Scaling
from supervisor.settings import Span
from supervisor.vocabulary import Counts, InHand, Phase, Reading

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
        return sum(1 for one, other in pairwise(directions) if one != other)


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


# ------------------------------------------------------------------------------------------------- rule by rule


class Looks:
    """A scaling that is shown one look after the other, each with a sample of its own."""

    def __init__(self, least: int, most: int, wanted: int | None = None, now: float = 1000.0) -> None:
        self.scaling = Scaling(Span(least, most))
        self.now = now
        self.wanted = wanted or least
        self.said: list[str] = []
        self._finished: dict[int, int] = {}
        self._work: dict[int, float] = {}
        if self.wanted != least:
            # The number is told like an operator's; that it stands for a while is a rule of its own.
            self.look(finished=0, busy=0)
            self.now += MANUAL
            self.look(finished=0, busy=0)

    def look(
        self,
        ready: int = 0,
        *,
        finished: int = 0,
        busy: int | None = None,
        present: int | None = None,
        consumers: int | None = None,
        after: float = LOOK_EVERY,
    ) -> int | None:
        """`busy` workers have something in hand all the time, and each finished so many tasks since the last look."""
        self.now += after
        present = self.wanted if present is None else present
        busy = present if busy is None else busy
        readings = []
        for slot in range(present):
            is_busy = slot < busy
            self._finished[slot] = self._finished.get(slot, 0) + (finished if is_busy else 0)
            self._work[slot] = self._work.get(slot, 0.0) + (after if is_busy else 0.0)
            hand = InHand("key", "key", 1, 1, False, self.now) if is_busy else None
            counts = Counts(succeeded=self._finished[slot], busy_seconds=self._work[slot])
            phase = Phase.BUSY if is_busy else Phase.IDLE
            readings.append(Reading(slot, 100 + slot, phase, hand, self.now, counts))
        self.scaling.sampled(tuple(readings), self.now)
        depth = Depth(ready, present if consumers is None else consumers)
        decision = self.scaling.look(depth, self.wanted, self.now)
        if decision is None:
            return None
        self.wanted = decision.wanted
        self.said.append(decision.because)
        return decision.wanted

    def idle(self, seconds: float) -> list[int]:
        """What is decided while nobody has anything to do."""
        decided = [self.look(busy=0) for _ in range(math.ceil(seconds / LOOK_EVERY))]
        return [wanted for wanted in decided if wanted is not None]


def test_a_backlog_is_answered_when_it_is_seen_twice_and_in_words() -> None:
    looks = Looks(1, 64)
    assert looks.look(1000, finished=20) is None
    assert looks.look(1000, finished=20) == 2
    assert looks.said == ["backlog 1,000 ready, 1 worker finishes 10/s and 10/s arrive: it does not shrink"]


def test_a_backlog_that_is_gone_in_between_is_not_answered() -> None:
    looks = Looks(1, 64)
    for _ in range(10):
        assert looks.look(1000, finished=20) is None
        assert looks.look(0, finished=20) is None


def test_growth_is_to_as_many_as_drain_the_backlog_in_time() -> None:
    looks = Looks(20, 64)
    looks.look(2300, finished=20)
    # Each of the 20 finishes 10/s, none arrive, 1,900 are left: 19 would do, and 20 are there.
    assert looks.look(1900, finished=20) is None
    looks = Looks(20, 64)
    looks.look(2900, finished=20)
    assert looks.look(2500, finished=20) == 25
    assert looks.said == ["backlog 2,500 ready, 20 workers finish 200/s and 0/s arrive: would take 12 s"]


def test_what_arrives_meanwhile_is_provided_for_but_not_what_chance_may_bring() -> None:
    looks = Looks(20, 64)
    looks.look(1000, finished=20)
    # 400 arrived in 2 s, 380 of them for certain: 19 workers, and 10 more for the backlog.
    assert looks.look(1000, finished=20) == 29


def test_growth_at_most_doubles_and_never_beyond_the_most() -> None:
    looks = Looks(3, 20)
    looks.look(10**6, finished=1)
    assert looks.look(10**6, finished=1) == 6
    looks = Looks(3, 5)
    looks.look(10**6, finished=1)
    assert looks.look(10**6, finished=1) == 5


def test_short_tasks_that_wait_for_a_moment_are_no_backlog() -> None:
    looks = Looks(1, 8)
    for _ in range(20):
        assert looks.look(199, finished=200) is None


def test_each_long_task_that_waits_gets_a_worker_and_no_more() -> None:
    looks = Looks(4, 64)
    looks.look(3)
    assert looks.look(3) == 7
    assert looks.said == ["backlog 3 ready, all 4 workers busy, and no task finished in 2 s"]


def test_there_is_no_growth_before_the_last_one_has_arrived() -> None:
    looks = Looks(4, 64)
    looks.look(1000, finished=1)
    assert looks.look(1000, finished=1) == 8
    for _ in range(10):
        assert looks.look(1000, finished=1, present=4) is None
    assert looks.look(1000, finished=1) is None
    assert looks.look(1000, finished=1) == 16


def test_of_many_workers_a_few_may_be_missing() -> None:
    looks = Looks(16, 64)
    looks.look(1000, finished=1, present=14)
    assert looks.look(1000, finished=1, present=14) == 32
    looks = Looks(16, 64)
    looks.look(1000, finished=1, present=13)
    assert looks.look(1000, finished=1, present=13) is None


def test_a_worker_that_was_away_between_two_looks_makes_the_first_of_them_void() -> None:
    looks = Looks(2, 64)
    looks.look(1000, finished=1)
    looks.scaling.sampled((Reading(0, 100, Phase.IDLE, None, 0.0, Counts()),), looks.now + 1)
    assert looks.look(1000, finished=1) is None
    assert looks.look(1000, finished=1) == 4


def test_a_backlog_beside_idle_workers_is_not_answered() -> None:
    """As with a single active consumer: the broker gives the messages to one only, however many there are."""
    looks = Looks(1, 64, wanted=4)
    for _ in range(100):
        assert looks.look(1000, finished=20, busy=1) is None


def test_workers_that_are_only_ever_seen_between_two_tasks_are_at_work() -> None:
    looks = Looks(2, 64)
    for finished in (1000, 2000):
        counts = Counts(succeeded=finished, busy_seconds=finished * 1e-6)
        readings = tuple(Reading(slot, 100 + slot, Phase.IDLE, None, 0.0, counts) for slot in range(2))
        looks.now += LOOK_EVERY
        looks.scaling.sampled(readings, looks.now)
        decision = looks.scaling.look(Depth(50_000, 2), 2, looks.now)
    assert decision is not None
    assert decision.wanted == 4


def test_a_backlog_is_shared_with_the_others_that_consume_from_the_queue() -> None:
    looks = Looks(10, 64)
    looks.look(1700, finished=20)
    # 1,500 would need 15 workers, and 300 of them, which is the share of 10 consumers of 50, need 3.
    assert looks.look(1500, finished=20, consumers=50) is None
    assert looks.look(1300, finished=20, consumers=10) == 13


def test_a_pause_ends_what_was_seen() -> None:
    looks = Looks(1, 64)
    looks.look(1000, finished=20)
    assert looks.look(1000, finished=20, after=GAP + 0.1) is None
    assert looks.look(1000, finished=20) == 2

    looks = Looks(1, 8, wanted=8)
    looks.look(busy=0, after=10 * scaling.WINDOW)
    assert looks.idle(scaling.WINDOW - LOOK_EVERY) == []
    assert looks.idle(LOOK_EVERY) == [6]


def test_an_operators_number_stands_for_a_while_both_ways() -> None:
    looks = Looks(1, 64)
    looks.look(1000, finished=20)
    looks.wanted = 3
    looks.look(1000, finished=20)
    began = looks.now
    while looks.look(1000, finished=20) is None:
        pass
    assert looks.now - began >= MANUAL
    assert looks.wanted == 6

    looks = Looks(1, 64)
    looks.idle(60)
    looks.wanted = 3
    began = looks.now
    while looks.look(busy=0) is None:
        pass
    assert looks.now - began >= MANUAL
    assert looks.wanted == 2


def test_a_fixed_number_is_never_changed_or_remarked_on() -> None:
    looks = Looks(4, 4)
    for _ in range(100):
        assert looks.look(10**6, finished=1) is None
    assert looks.idle(600) == []


def test_that_the_most_is_not_enough_is_said_once_in_a_while() -> None:
    looks = Looks(1, 2)
    for _ in range(math.ceil(3 * scaling.REMARK_EVERY / LOOK_EVERY)):
        looks.look(10**6, finished=1)
    assert looks.wanted == 2
    assert len(looks.said) == 4
    assert set(looks.said[1:]) == {
        "backlog 1,000,000 ready, 2 workers finish 1/s and 1/s arrive: it does not shrink, "
        "and --workers 1..2 allows no more"
    }


def test_idle_workers_are_let_go_a_quarter_at_a_time_down_to_the_least() -> None:
    looks = Looks(2, 64, wanted=16)
    assert looks.idle(200) == [12, 9, 7, 6, 5, 4, 3, 2]
    assert looks.said[0] == "no backlog, and 0 of 16 workers were busy on average for 30 s"


def test_as_many_stay_as_the_load_needs() -> None:
    looks = Looks(2, 64, wanted=16)
    for _ in range(300):
        looks.look(finished=100, busy=7)
    assert looks.wanted == 11, "7 of 11 is less than LOAD, 7 of 10 would be as much, and chance may bring a little more"


def test_workers_busy_with_long_tasks_are_not_let_go() -> None:
    looks = Looks(1, 8, wanted=8)
    for _ in range(900):
        assert looks.look() is None


def test_between_two_shrinks_there_is_time_to_see_what_came_of_it() -> None:
    looks = Looks(1, 64, wanted=64)
    times = [looks.now for _ in range(100) if looks.look(busy=0) is not None]
    assert len(times) > 5
    assert all(later - sooner >= scaling.STEP_EVERY for sooner, later in pairwise(times))


def test_each_shrink_that_was_a_mistake_makes_the_next_one_wait_longer() -> None:
    looks = Looks(1, 2)
    waits = []
    for _ in range(8):
        looks.look(1000, finished=20)
        assert looks.look(1000, finished=20) == 2
        began = looks.now
        while looks.wanted == 2:
            looks.look(busy=0)
        waits.append(looks.now - began)
    assert waits == [30, 60, 120, 240, 480, 960, 960, 960]
    looks.idle(600)
    looks.look(1000, finished=20)
    looks.look(1000, finished=20)
    assert looks.idle(30) == [1], "a backlog long after the last shrink is nobody's mistake"


def test_a_growth_that_brings_nothing_is_the_last_for_a_while_and_says_so() -> None:
    looks = Looks(4, 64)
    looks.look(5000, finished=20)
    assert looks.look(5000, finished=20) == 8
    looks.look(5000, finished=10)
    assert looks.look(5000, finished=10) == 8
    assert looks.said[1] == (
        "backlog 5,000 ready, but 8 workers finish 40/s where 4 finished 40/s: the limit is elsewhere (the broker, a "
        "database, the CPUs); no more workers for 2 min"
    )
    began = looks.now
    while looks.look(5000, finished=10) is None:
        pass
    assert looks.now - began == HOLD
    assert looks.wanted == 12, "an attempt, smaller than the one that brought nothing"
    looks.look(5000, finished=7)
    looks.look(5000, finished=7)
    assert "no more workers for 8 min" in looks.said[-1]


def test_a_growth_that_helps_is_followed_by_the_next() -> None:
    looks = Looks(4, 64)
    for wanted in (8, 16, 32, 64):
        looks.look(50_000, finished=20)
        assert looks.look(50_000, finished=20) == wanted


def test_too_few_tasks_are_no_proof_that_growth_is_futile() -> None:
    looks = Looks(4, 64)
    looks.look(5000, finished=20)
    assert looks.look(5000, finished=20) == 8
    looks.look(5000)
    assert looks.look(5000) == 16


def test_enough_tasks_are_waited_for_before_a_growth_is_judged() -> None:
    looks = Looks(4, 64)
    looks.look(5000, finished=5)
    assert looks.look(5000, finished=5) == 8
    for _ in range(4):
        assert looks.look(5000, finished=2) is None
    assert looks.look(5000, finished=2) == 8
    assert "8 workers finish 8/s where 4 finished 10/s" in looks.said[-1]


def test_when_it_has_been_calm_a_new_backlog_is_not_held_against_the_last_one() -> None:
    looks = Looks(4, 64)
    looks.look(5000, finished=20)
    looks.look(5000, finished=20)
    looks.look(5000, finished=10)
    looks.look(5000, finished=10)
    assert "no more workers for 2 min" in looks.said[-1]
    looks.idle(30)
    assert looks.wanted == 6
    looks.look(5000, finished=20)
    assert looks.look(5000, finished=20) == 12


def test_a_rate_is_what_it_was_lately() -> None:
    looks = Looks(1, 64)
    for _ in range(100):
        assert looks.look(150, finished=200) is None
    assert [looks.look(150) for _ in range(2)] == [None, 2]


def test_what_a_killed_worker_had_begun_and_what_a_new_one_finds_do_not_upset_the_totals() -> None:
    looks = Looks(1, 4, wanted=4)
    for turn in range(200):
        looks.now += LOOK_EVERY
        counts = Counts(succeeded=10 * turn, busy_seconds=2.0 * turn)
        hand = InHand("key", "key", 1, 1, False, looks.now - 50.0 * (turn % 5))
        readings = [Reading(slot, 1, Phase.BUSY, hand, looks.now, counts) for slot in range(4)]
        looks.scaling.sampled(tuple(readings[: 3 + turn % 2]), looks.now)
        assert looks.scaling.look(Depth(0, 4), 4, looks.now) is None


# ----------------------------------------------------------------------------------------------- in simulated time


def test_a_burst_of_short_tasks_gets_enough_workers_within_a_few_looks_and_ends_with_the_least() -> None:
    factory = Factory(Span(1, 64), burst(10_000), lambda: 0.1).run(400)
    assert factory.done == 10_000
    growth = [at for at, before, to in factory.changes() if to > before]
    # Two looks to see it, and then for each doubling one to see everybody there and one to measure.
    assert factory.staff[round((5 + 2 * LOOK_EVERY + 6 * 2 * LOOK_EVERY) / LOOK_EVERY)] == 64
    assert len(growth) == 6
    assert factory.turns() == 1, "up, then down, and not up again"
    assert factory.wanted == 1


def test_a_huge_burst_of_long_tasks_is_worked_off_by_the_most_and_nobody_is_let_go_before_it_ends() -> None:
    factory = Factory(Span(2, 32), burst(600), lambda: 45.0).run(1500)
    assert factory.done == 600
    assert factory.turns() == 1
    first_shrink = next(at for at, before, to in factory.changes() if to < before)
    empty = LOOK_EVERY * (1 + max(number for number, ready in enumerate(factory.backlog) if ready))
    assert max(factory.staff) == 32
    assert first_shrink >= empty
    assert factory.wanted == 2


@pytest.mark.parametrize("erlangs", [0.5, 1.0, 2.0, 3.9, 7.7])
@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_a_constant_load_gets_enough_workers_and_then_few_changes(erlangs: float, seconds: float) -> None:
    arrivals = steady(erlangs / seconds, seed=1)
    factory = Factory(Span(1, 64), arrivals, exponential(seconds, seed=1)).run(1800)
    settled = factory.staff[len(factory.staff) // 6 :]
    assert max(settled) <= max(3, 4 * erlangs)
    waits = sorted(ready / (erlangs / seconds) for ready in factory.backlog[len(factory.backlog) // 6 :])
    assert waits[len(waits) * 9 // 10] < DRAIN_WITHIN / 2, "nine times of ten nobody waits for long"
    # Tasks of a second make a load that differs from one half minute to the next by as much as it is.
    assert factory.turns(since=300) <= (2 if seconds < 1 else 10)
    assert len(factory.changes(since=300)) <= (4 if seconds < 1 else 22)


@pytest.mark.parametrize("erlangs", [1, 4, 20])
def test_a_constant_load_of_long_tasks_is_followed_without_flapping(erlangs: int) -> None:
    hours = 2
    factory = Factory(Span(1, 64), steady(erlangs / 60, seed=1), exponential(60, seed=1)).run(hours * 3600)
    assert factory.turns() <= 10 * hours
    waiting = sum(1 for ready in factory.backlog if ready)
    assert waiting < len(factory.backlog) / 10, "a task that takes a minute does not wait for another to end"


def test_tasks_of_minutes_that_keep_everybody_busy_let_nobody_go() -> None:
    factory = Factory(Span(1, 6), iter([1.0] * 6), lambda: 1200.0).run(1100)
    assert [to > before for _, before, to in factory.changes()] == [True, True, True]
    assert factory.wanted == 6
    factory.run(500)
    assert factory.wanted == 1


def test_workers_that_spend_their_time_between_short_tasks_are_not_idle() -> None:
    """Tasks of 0.1 ms at 2,000/s: by their handlers' time a fifth of a worker would do, by their turnover two."""
    factory = Factory(Span(1, 16), steady(2000, seed=1), lambda: 0.0001, overhead=0.001).run(240)
    assert factory.wanted == 3
    assert [to for _, _, to in factory.changes()] == [2, 3]


def test_a_load_that_comes_and_goes_slowly_is_followed_and_then_held() -> None:
    def rate(time: float) -> float:
        return 50 + 45 * math.sin(time / 300 * 2 * math.pi)

    factory = Factory(Span(1, 64), poisson(rate, 95, random.Random(3)), exponential(0.1, seed=2)).run(3600)
    assert factory.turns() <= 14, "at most two a period, and fewer and fewer"
    assert factory.turns(since=1800) <= 4
    assert max(factory.staff) <= 24
    waits = [ready / 50 for ready in factory.backlog[15:]]
    assert max(waits) < DRAIN_WITHIN


def test_bursts_that_come_again_and_again_find_their_workers_waiting() -> None:
    arrivals = iter(sorted(120 * number + 5.0 for number in range(60) for _ in range(300)))
    factory = Factory(Span(1, 16), arrivals, lambda: 0.1).run(7200)
    assert factory.turns(since=600) == 0
    assert factory.wanted > 1


def test_where_the_limit_is_elsewhere_growth_stops_and_says_so() -> None:
    factory = Factory(Span(1, 64), steady(200, seed=1), exponential(0.05, seed=2), shared=0.01).run(600)
    assert factory.wanted <= 24, "a hundred a second need five workers, and no number of them does more"
    remarks = [to.because for _, before, to in factory.decisions if to.wanted == before]
    assert len(remarks) == 2
    assert all("the limit is elsewhere" in remark for remark in remarks)


@settings(max_examples=12, deadline=None)
@given(
    least=st.integers(1, 6),
    more=st.integers(0, 40),
    load=st.floats(0.1, 12),
    seconds=st.sampled_from([0.02, 0.3, 2.0, 20.0]),
    boot=st.floats(0.05, 20),
    seed=st.integers(0, 1000),
)
def test_whatever_the_load_it_stays_in_its_bounds_does_not_flap_and_ends_with_the_least(
    least: int, more: int, load: float, seconds: float, boot: float, seed: int
) -> None:
    arrivals = steady(load / seconds, seed, until=900.0)
    factory = Factory(Span(least, least + more), arrivals, exponential(seconds, seed), boot=boot).run(900)
    if least + more >= 2 * load + 2:
        # A bound on what waits: what comes in half a minute, the time for a few doublings and boots.
        assert factory.backlog[-1] <= load / seconds * (30 + 8 * boot) + 2
    # A turn takes a mistaken shrink, and each of them makes the next one wait longer, or is 300 s past.
    assert factory.turns() <= 10
    factory.run(6000)
    assert factory.wanted == least
    assert least <= min(factory.staff) <= max(factory.staff) <= least + more
