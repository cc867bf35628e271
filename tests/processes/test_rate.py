"""`--rate`: the bucket in shared memory, by the workers' own code, in a time of its own."""

from __future__ import annotations

import heapq
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.bucket import Bucket
from supervisor.policy.rate import BURST
from supervisor.scoreboard import Scoreboard
from supervisor.worker import pace
from supervisor.worker.pace import LOOK_EVERY, Pace

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-6


@dataclass
class Simulation:
    """Workers that never lack a message, each of which takes `busy` seconds. Who waits wakes up to `late` seconds too
    late; of a hundred who wait, `deadly` die instead, and are replaced and reaped some time later."""

    interval: float
    workers: int
    busy: float = 0.0
    late: float = 0.0
    deadly: int = 0
    seed: int = 0
    now: float = 0.0
    began: list[tuple[float, int]] = field(default_factory=list)

    def run(self, tasks: int) -> list[float]:
        board, dice = Scoreboard.create(), random.Random(self.seed)
        self.now = board._made
        paces = [Pace(board.bucket(page), self.interval) for page in range(self.workers)]
        turns = [(self.now, page) for page in range(self.workers)]
        while len(self.began) < tasks:
            self.now, page = heapq.heappop(turns)
            if page < 0:  # the supervisor has seen the death
                page = -page - 1
                board.vacate(page)
                heapq.heappush(turns, (self.now + 0.02, page))
                continue
            wait = paces[page].take()
            assert wait <= LOOK_EVERY
            if not wait:
                self.began.append((self.now, page))
                heapq.heappush(turns, (self.now + self.busy, page))
            elif dice.randrange(100) < self.deadly:
                heapq.heappush(turns, (self.now + dice.random() * 0.01, -page - 1))
            else:
                heapq.heappush(turns, (self.now + wait + dice.random() * self.late, page))
        os.close(board.fd)
        return [instant for instant, _ in self.began]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is the simulation's."""
    monkeypatch.setattr(pace, "now", lambda: _current.now)


_current = Simulation(1.0, 1)


def simulate(**given: float) -> Simulation:
    global _current
    _current = Simulation(**given)  # type: ignore[arg-type]
    return _current


INTERVALS = st.sampled_from([0.0001, 0.002, 0.05, 0.2, 3.6])


@settings(max_examples=25, deadline=None)
@given(
    interval=INTERVALS,
    workers=st.integers(1, 12),
    busy=st.sampled_from([0.0, 0.01, 5.0]),
    late=st.sampled_from([0.0, 0.003, 0.5]),
    deadly=st.sampled_from([0, 3, 30]),
    seed=st.integers(0, 9),
)
def test_whatever_happens_to_workers_no_more_tasks_begin_in_any_time_than_the_rate_and_the_burst_allow(
    interval: float, workers: int, busy: float, late: float, deadly: int, seed: int
) -> None:
    began = simulate(interval=interval, workers=workers, busy=busy, late=late, deadly=deadly, seed=seed).run(80)
    # In any t seconds at most 1 + (t + BURST) / interval: the k-th after one begins k intervals later, less the burst.
    ahead = [number * interval - instant for number, instant in enumerate(began)]
    least = math.inf
    for each in ahead:
        least = min(least, each)
        assert each <= least + BURST + ROUNDING * (1 + abs(least))


@settings(max_examples=25, deadline=None)
@given(interval=INTERVALS, workers=st.integers(2, 12), late=st.sampled_from([0.0, 0.003, 0.09]), seed=st.integers(0, 9))
def test_under_load_the_rate_is_exact_however_late_workers_wake_up(
    interval: float, workers: int, late: float, seed: int
) -> None:
    began = simulate(interval=interval, workers=workers, late=min(late, interval), seed=seed).run(80)
    ideal = 79 * interval
    assert ideal - BURST - ROUNDING * ideal <= began[-1] - began[0] <= ideal + 0.1 + ROUNDING * ideal


@settings(max_examples=25, deadline=None)
@given(interval=INTERVALS, workers=st.integers(2, 12), seed=st.integers(0, 9))
def test_under_load_every_worker_has_its_turn(interval: float, workers: int, seed: int) -> None:
    simulation = simulate(interval=interval, workers=workers, seed=seed)
    tasks = 20 * workers + 1 + math.ceil(BURST / interval)
    simulation.run(tasks)
    begun = Counter(page for _, page in simulation.began[-20 * workers :])
    assert max(begun.values()) - min(begun[page] for page in range(workers)) <= 2


@settings(max_examples=25, deadline=None)
@given(interval=INTERVALS, workers=st.integers(2, 12), deadly=st.sampled_from([5, 30]), seed=st.integers(0, 9))
def test_workers_that_die_while_they_wait_take_little_of_the_rate_with_them(
    interval: float, workers: int, deadly: int, seed: int
) -> None:
    began = simulate(interval=interval, workers=workers, deadly=deadly, seed=seed).run(60)
    assert began[-1] - began[0] <= 3 * (60 * interval + LOOK_EVERY)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_what_a_handler_writes_into_the_bucket_holds_up_nobody_for_long(garbage: float) -> None:
    simulation = simulate(interval=0.5, workers=1)
    board = Scoreboard.create()
    simulation.now = board._made
    bucket = board.bucket(0)
    bucket.full_at = garbage
    bucket._integers[1] = 2**64 - 1
    mine = Pace(board.bucket(1), 0.5)
    simulation.now += mine.take()
    assert bucket.full_at <= simulation.now + 1.0
    assert mine.take() <= 0.6
    os.close(board.fd)


def test_after_a_reload_to_a_higher_rate_nobody_waits_for_the_former_one() -> None:
    simulation = simulate(interval=3600.0, workers=1)
    board = Scoreboard.create()
    simulation.now = board._made
    assert Pace(board.bucket(0), 3600.0).take() == 0.0
    faster = Pace(board.bucket(1), 0.01)
    simulation.now += faster.take()
    assert faster.take() == 0.0
    os.close(board.fd)


TAKES = """
import sys
from supervisor.scoreboard import Scoreboard
from supervisor.worker.pace import Pace

pace = Pace(Scoreboard(int(sys.argv[1])).bucket(int(sys.argv[2])), 1e-6)
print("begins", flush=True)
while True:
    pace.take()
"""


def _taker(board: Scoreboard, page: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", TAKES, str(board.fd), str(page)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        pass_fds=[board.fd],
    )


def test_a_worker_that_is_killed_or_stopped_anywhere_leaves_the_bucket_to_the_others() -> None:
    board = Scoreboard.create()
    for _ in range(3):
        takers = [_taker(board, page) for page in range(3)]
        for taker in takers:
            assert taker.stdout is not None and taker.stdout.readline()
        for taker in takers:
            taker.kill()
            taker.wait()
            assert taker.stdout is not None
            taker.stdout.close()
        bucket = board.bucket(9)
        with bucket.locked() as is_ours:
            assert is_ours
        before = bucket.full_at
        assert 0 < before < math.inf
    os.close(board.fd)


def test_while_another_process_has_the_lock_nobody_is_blocked_and_its_end_releases_it() -> None:
    code = (
        "import sys\nfrom supervisor.scoreboard import Scoreboard\nbucket = Scoreboard(int(sys.argv[1])).bucket(0)\n"
        "with bucket.locked(): print('has it', flush=True); sys.stdin.read()\n"
    )
    board = Scoreboard.create()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(board.fd)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[board.fd],
    )
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    mine = Pace(board.bucket(1), 1.0)
    waits = [mine.take() for _ in range(20)]
    assert all(0 < wait <= 0.05 for wait in waits) and waits == sorted(waits)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert mine.take() == 0.0
    holder.stdin.close()
    holder.stdout.close()
    os.close(board.fd)


def test_a_bucket_knows_who_has_waited_for_longer_until_the_supervisor_has_seen_its_end() -> None:
    board = Scoreboard.create()
    first, second, third = (board.bucket(page) for page in (2000, 3, 700))
    first.queue(1.0)
    second.queue(2.0)
    second.queue(9.0)
    assert (first.ahead(), second.ahead(), third.ahead()) == (0, 1, 2)
    board.vacate(2000)
    assert (second.ahead(), third.ahead()) == (0, 1)
    second.leave()
    assert third.ahead() == 0
    assert isinstance(third, Bucket)
    os.close(board.fd)
