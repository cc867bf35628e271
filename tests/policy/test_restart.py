"""When an empty slot gets a new worker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.policy.restart import INTENSITY_WINDOW, LULL, Backoff, Fault, decide, roll, too_intense


@pytest.mark.parametrize(
    ("fault", "streak", "was_ready", "seconds"),
    [
        (Fault.PLANNED, 1, True, 0.0),
        (Fault.PLANNED, 1000, True, 0.0),
        (Fault.MESSAGE, 1, True, 0.0),
        (Fault.MESSAGE, 10, True, 0.0),
        (Fault.MESSAGE, 11, True, 0.1),
        (Fault.MESSAGE, 12, True, 0.2),
        (Fault.MESSAGE, 100, True, 5.0),
        (Fault.BROKER, 1, True, LULL),
        (Fault.BROKER, 2, True, 0.4),
        (Fault.BROKER, 1, False, 0.2),
        (Fault.BROKER, 2, False, 0.4),
        (Fault.BROKER, 100, False, 5.0),
        (Fault.REFUSED, 1, True, 5.0),
        (Fault.REFUSED, 100, False, 30.0),
        (Fault.CONFIG, 1, True, 5.0),
        (Fault.CONFIG, 100, True, 30.0),
        (Fault.LOCAL, 1, True, 0.25),
        (Fault.LOCAL, 2, False, 0.5),
        (Fault.LOCAL, 100, True, 30.0),
        (Fault.UNEXPLAINED, 1, True, 0.0),
        (Fault.UNEXPLAINED, 2, True, 0.25),
        (Fault.UNEXPLAINED, 3, True, 0.5),
        (Fault.UNEXPLAINED, 100, True, 30.0),
    ],
)
def test_each_fault_has_its_own_backoff(fault: Fault, streak: int, was_ready: bool, seconds: float) -> None:
    again = decide(fault, streak=streak, was_ready=was_ready, now=1000.0, roll=0.0)
    assert again.at == pytest.approx(1000.0 + seconds)
    assert again.because


@settings(derandomize=True, deadline=None, database=None)
@given(
    free=st.integers(0, 20),
    first=st.floats(0.01, 10.0),
    most=st.floats(10.0, 100.0),
    streak=st.integers(1, 10_000),
    chance=st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_backoff_grows_up_to_its_cap_and_jitter_takes_off_at_most_half(
    free: int, first: float, most: float, streak: int, chance: float
) -> None:
    backoff = Backoff(free, first, most)
    full = backoff.delay(streak, 0.0)
    assert full <= backoff.delay(streak + 1, 0.0) <= most
    assert full / 2 <= backoff.delay(streak, chance) <= full
    assert (full == 0.0) == (streak <= free)


def test_two_supervisors_and_two_seats_roll_differently() -> None:
    rolls = {roll(seed, slot, number) for seed in (1, 2) for slot in range(10) for number in range(10)}
    assert len(rolls) == 200
    assert 0.0 <= min(rolls) < 0.1
    assert 0.9 < max(rolls) < 1.0


def test_a_roll_can_be_repeated() -> None:
    assert roll(7, 3, 1) == roll(7, 3, 1)


@pytest.mark.parametrize(
    ("deaths", "workers", "expected"),
    [(5, 1, False), (6, 1, True), (9, 3, False), (10, 3, True), (60, 20, False), (61, 20, True)],
)
def test_over_three_deaths_a_worker_and_over_five_in_all_are_too_many(
    deaths: int, workers: int, expected: bool
) -> None:
    assert too_intense([1000.0] * deaths, workers, 1000.0) is expected


def test_deaths_before_the_window_do_not_count() -> None:
    deaths = [1000.0] * 6
    assert too_intense(deaths, 1, 999.0 + INTENSITY_WINDOW)
    assert not too_intense(deaths, 1, 1000.0 + INTENSITY_WINDOW)
