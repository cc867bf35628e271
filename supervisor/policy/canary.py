"""A canary: a share of the workers runs the new code for a while, and is compared with the rest.

Both take tasks from one queue at the same time, and RabbitMQ deals them out in turn: what is not due to the code meets
both alike. They are counted from the scoreboard, by differences: each worker is of one generation.
"""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Final

from supervisor.values import dataclass
from supervisor.vocabulary import BOUNDS, Counts

EARLY: Final = 0.0001
"""Probability below which a difference ends a canary at once: it is looked at once a second, so often enough by chance
alone."""
LATE: Final = 0.01
"""The same at its end, where it is looked at once."""
MARGIN: Final = 0.01
"""Less of a difference does not count, however certain it is."""
ENOUGH: Final = 20
"""Tries of each side without which nothing is said for the new code."""
CRASHES: Final = 3
"""In a row, without a finished task in between."""
SLOWER: Final = 1.5
"""Times the mean of the old code."""
ABSENT_FOR: Final = 60.0
"""Seconds at the end for which one of its workers is awaited."""

_EMPTY: Final = (0,) * (len(BOUNDS) + 1)


@dataclass(frozen=True, slots=True)
class Canary:
    """A request for one."""

    percent: int
    """Of the workers, 1 to 99."""
    seconds: float

    def size(self, workers: int) -> int:
        """Of so many workers (two or more): rounded down, at least one, never all."""
        return min(max(1, workers * self.percent // 100), workers - 1)


@dataclass(frozen=True, slots=True)
class Score:
    """What the workers of one side have done so far."""

    succeeded: int = 0
    failed: int = 0
    """Tries that raised, `Unavailable` included."""
    crashes: int = 0
    """Workers whose exit is blamed on a message, or unexplained."""
    busy_seconds: float = 0.0
    buckets: tuple[int, ...] = _EMPTY
    """As in `Counts`."""

    @property
    def tries(self) -> int:
        return self.succeeded + self.failed + self.crashes

    @property
    def mean(self) -> float | None:
        """Seconds a task."""
        return self.busy_seconds / count if (count := sum(self.buckets)) else None

    @property
    def p95(self) -> float | None:
        """Seconds: the least bound of the histogram that 95 % of the tasks stay within; infinite above the last one."""
        count, within = sum(self.buckets), 0
        for bound, bucket in zip((*BOUNDS, math.inf), self.buckets, strict=True):
            within += bucket
            if count and within >= 0.95 * count:
                return bound
        return None

    def longer_than(self, bound: float) -> int:
        """Tasks; `bound`: one of the histogram's."""
        return sum(bucket for upper, bucket in zip((*BOUNDS, math.inf), self.buckets, strict=True) if upper > bound)

    def plus(self, was: Counts, now: Counts) -> Score:
        return replace(
            self,
            succeeded=self.succeeded + now.succeeded - was.succeeded,
            failed=self.failed + now.failed + now.deferred - was.failed - was.deferred,
            busy_seconds=self.busy_seconds + now.busy_seconds - was.busy_seconds,
            buckets=tuple(
                count + new - old
                for count, old, new in zip(self.buckets, was.buckets or _EMPTY, now.buckets or _EMPTY, strict=True)
            ),
        )

    def __add__(self, other: Score) -> Score:
        return Score(
            self.succeeded + other.succeeded,
            self.failed + other.failed,
            self.crashes + other.crashes,
            self.busy_seconds + other.busy_seconds,
            tuple(map(sum, zip(self.buckets, other.buckets, strict=True))),
        )

    def __str__(self) -> str:
        mean = "" if self.mean is None else f", {_seconds(self.mean)} a task"
        crashes = "crash" if self.crashes == 1 else "crashes"
        return f"{self.tries} tries, {self.failed} failed, {self.crashes} {crashes}{mean}"


@dataclass(frozen=True, slots=True)
class Progress:
    """What /status shows of a canary."""

    workers: int
    """That run the new code."""
    until: float
    """Monotonic seconds."""
    new: Score
    old: Score


@dataclass(frozen=True, slots=True)
class Verdict:
    is_good: bool
    because: str


def judge(new: Score, old: Score, *, crashed: int = 0, is_over: bool) -> Verdict | None:
    """Whether the new code takes over; None: that is not decided yet. `crashed`: its workers that crashed since one of
    them finished a task.

    The new code is worse when

    - `CRASHES` of its workers crash in a row and none finishes a task in between, whatever the old code does;
    - a higher share of its tries ends in a crash;
    - a higher share of its tries fails;
    - at the end only, since a new worker's first tasks may be slow: a higher share of its tasks takes longer than the
      95th percentile of the old code, rounded up to a bound of the histogram, and the mean is `SLOWER` times as long.

    A share is higher when the difference exceeds `MARGIN` and, by Fisher's exact test, code that is no worse would show
    it with a probability below `EARLY`; at the end below `LATE`.

    At the end the new code takes over if it is not worse, and both sides have made `ENOUGH` tries. With fewer nothing
    is known of it, and the old code stays.
    """
    worse = _crashes(new, old, crashed, is_over) or _fails(new, old, is_over) or (is_over and _is_slower(new, old))
    if worse:
        return Verdict(False, worse)
    if not is_over:
        return None
    said = f"new code: {new}; old code: {old}"
    if min(new.tries, old.tries) < ENOUGH:
        return Verdict(
            False,
            f"too few tasks to tell: each side needs {ENOUGH} tries; {said}; "
            "repeat it when there is more to do or with a longer --for, or reload without --canary",
        )
    return Verdict(True, f"the new code is no worse: {said}")


def chance(hits: int, of: int, others: int, of_others: int) -> float:
    """Fisher's exact test, one-sided: the probability of at least so many `hits` on this side, given all hits, if both
    sides were the same. 1 unless the share of hits is higher here than among the others."""
    if hits * of_others <= others * of:
        return 1.0
    every, marked = of + of_others, hits + others
    term = math.exp(_ln(marked, hits) + _ln(every - marked, of - hits) - _ln(every, of))
    probability = 0.0
    for k in range(hits, min(of, marked) + 1):
        probability += term
        term *= (marked - k) * (of - k) / ((k + 1) * (every - marked - of + k + 1))
        if term <= 1e-9 * probability:
            break  # terms only decrease: hits are more than their mean
    return min(1.0, probability)


def _ln(of: int, count: int) -> float:
    """The logarithm of the binomial coefficient."""
    return math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)


def _is_higher(hits: int, of: int, others: int, of_others: int, is_over: bool) -> bool:
    if not of or not of_others or hits / of - others / of_others <= MARGIN:
        return False
    return chance(hits, of, others, of_others) < (LATE if is_over else EARLY)


def _crashes(new: Score, old: Score, crashed: int, is_over: bool) -> str:
    if crashed >= CRASHES:
        return f"its workers crash: {crashed} in a row, and no task was finished in between"
    if _is_higher(new.crashes, new.tries, old.crashes, old.tries, is_over):
        return f"its workers crash more often: {_shares(new.crashes, new.tries, old.crashes, old.tries, 'tries')}"
    return ""


def _fails(new: Score, old: Score, is_over: bool) -> str:
    if _is_higher(new.failed, new.tries, old.failed, old.tries, is_over):
        return f"its tasks fail more often: {_shares(new.failed, new.tries, old.failed, old.tries, 'tries')}"
    return ""


def _is_slower(new: Score, old: Score) -> str:
    bound = old.p95
    if bound is None or new.mean is None or old.mean is None or new.mean <= SLOWER * old.mean:
        return ""
    slow = new.longer_than(bound), sum(new.buckets), old.longer_than(bound), sum(old.buckets)
    if not _is_higher(*slow, is_over=True):
        return ""
    means = f"{_seconds(new.mean)} a task against {_seconds(old.mean)}"
    return f"its tasks take longer: {means}; longer than {bound:g} s took {_shares(*slow, 'tasks')}"


def _shares(hits: int, of: int, others: int, of_others: int, what: str) -> str:
    return (
        f"{hits} of {of} {what} ({hits / of:.1%}), with the old code {others} of {of_others} ({others / of_others:.1%})"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


@dataclass(slots=True)
class Watch:
    """Counts both sides while a canary runs."""

    canary: Canary
    began: float | None = None
    """When its first worker consumed; until then nothing is counted, only noted where counting begins."""
    new: Score = field(default_factory=Score)
    old: Score = field(default_factory=Score)
    crashed: int = 0
    """As in `judge`."""
    _decided_at: float = 0.0
    _seen: dict[int, Counts] = field(default_factory=dict)
    """By page: what it held when it was last looked at."""

    def begin(self, now: float) -> None:
        self.began = self._decided_at = now

    @property
    def until(self) -> float:
        """When it is judged, monotonic seconds."""
        return math.inf if self.began is None else self.began + self.canary.seconds

    def look(self, page: int, counts: Counts, *, is_new: bool) -> None:
        """What a page holds now; `is_new`: its worker runs the new code."""
        was = self._seen.get(page, counts)
        self._seen[page] = counts
        if self.began is None:
            return
        if not is_new:
            self.old = self.old.plus(was, counts)
            return
        before, self.new = self.new, self.new.plus(was, counts)
        if self.new.succeeded + self.new.failed > before.succeeded + before.failed:
            self.crashed = 0

    def crash(self, *, is_new: bool) -> None:
        """A worker has crashed; `look` comes first."""
        if self.began is None:
            return
        if not is_new:
            self.old = replace(self.old, crashes=self.old.crashes + 1)
            return
        self.new = replace(self.new, crashes=self.new.crashes + 1)
        self.crashed += 1

    def judge(self, *, is_over: bool = False) -> Verdict | None:
        return judge(self.new, self.old, crashed=self.crashed, is_over=is_over)

    def decide(self, now: float, *, consumes: bool, is_idle: bool) -> Verdict | None:
        """Once a second: `judge`, in time. `consumes`: one of its workers does; `is_idle`: nobody can have tasks now,
        so its time stands still."""
        if self.began is not None and is_idle:
            self.began += now - self._decided_at
        self._decided_at = now
        is_over = now >= self.until
        if is_over and not consumes:
            if now < self.until + ABSENT_FOR:
                return self.judge()
            return Verdict(False, f"for {ABSENT_FOR:g} s none of its workers has consumed")
        return self.judge(is_over=is_over)
