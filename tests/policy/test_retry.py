"""The ladder of delays."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.policy.retry import LONGEST_BACKOFF, backoff, checked, steps
from supervisor.queues import LADDER, step


def test_the_ladder_is_that_of_the_public_interface() -> None:
    seconds, minutes, hours = 1000, 60_000, 3_600_000
    assert (
        *(100, 200, 500),
        *(n * seconds for n in (1, 2, 5, 10, 20, 30)),
        *(n * minutes for n in (1, 2, 5, 10, 15, 30)),
        *(n * hours for n in (1, 2, 6, 12, 24)),
    ) == LADDER


@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0, 100), (0.1, 100), (0.11, 200), (1, 1000), (1.001, 2000), (4, 5000), (64, 120_000), (1e9, LADDER[-1])],
)
def test_a_delay_is_rounded_up_to_the_next_step(seconds: float, ms: int) -> None:
    assert step(seconds) == ms


def test_each_wait_is_four_times_the_one_before_up_to_a_quarter_of_an_hour() -> None:
    assert [backoff(attempt, 1.0) for attempt in range(1, 8)] == [1, 4, 16, 64, 256, 900, 900]


@pytest.mark.parametrize(
    ("retries", "delay", "ms"),
    [(0, 1.0, []), (3, 1.0, [1000, 5000, 20_000]), (3, 900.0, [900_000]), (1000, 60.0, [60_000, 300_000, 900_000])],
)
def test_f108_the_steps_that_failed_tasks_will_want_are_known_beforehand(
    retries: int, delay: float, ms: list[int]
) -> None:
    assert steps(retries, delay) == ms


@given(st.integers(1, 2**63), st.floats(0.001, 1e6))
def test_no_attempt_and_no_delay_leads_beyond_the_limit(attempt: int, first: float) -> None:
    assert 0 < backoff(attempt, first) <= LONGEST_BACKOFF
    assert step(backoff(attempt, first)) in LADDER


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(None, None), (0, 0), (0.5, 0.5), (Decimal("2.5"), 2.5), (1e9, 86_400), (math.inf, 86_400), (10**400, 86_400)],
)
def test_f63_a_delay_that_is_a_number_from_0_is_taken_and_is_a_day_at_most(
    asked: object, seconds: float | None
) -> None:
    assert checked(asked) == seconds


@pytest.mark.parametrize(
    "asked", ["soon", "5", b"5", True, math.nan, -math.inf, -0.001, -(10**400), object(), [], timedelta(seconds=5)]
)
def test_f63_a_delay_that_is_no_number_from_0_is_refused(asked: object) -> None:
    assert refusal(asked).startswith("a delay is a number of seconds from 0: got ")


def refusal(asked: object) -> str:
    try:
        return f"taken as {checked(asked)}"
    except ValueError as error:
        return str(error)
