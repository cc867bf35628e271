"""A worker that waits for the rate is neither stuck nor at work."""

from __future__ import annotations

import pytest

from supervisor.policy import hung
from supervisor.vocabulary import Counts, Phase, Reading
from tests.policy.world import settings

NOW = 1000.0
LIMITS = settings(task_timeout=1.0, heartbeat=15.0)


def waiting(beat: float) -> Reading:
    return Reading(0, 100, Phase.WAITING, None, beat, Counts())


def test_a_worker_may_wait_for_the_rate_for_any_time() -> None:
    """No task has begun, so that no limit of one applies; its loop turns every second at least."""
    assert hung.examine(waiting(NOW - 1.0), LIMITS, is_ready=True, held_up=False, now=NOW) is None


@pytest.mark.parametrize(("seconds", "is_hung"), [(14.0, False), (16.0, True)])
def test_one_whose_loop_stands_still_while_it_waits_is_hung(seconds: float, is_hung: bool) -> None:
    found = hung.examine(waiting(NOW - seconds), LIMITS, is_ready=True, held_up=False, now=NOW)
    assert (found is not None and found.is_hung) is is_hung
