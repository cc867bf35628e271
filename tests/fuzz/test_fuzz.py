"""The fuzzers, for some seconds: `scripts/test fuzz` runs them for as long as one likes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.edges import EDGES, throw
from tests.fuzz.pool import fuzzed


@pytest.mark.parametrize("edge", EDGES)
def test_f94_f95_f96_f97_nothing_thrown_at_an_edge_is_raised_kept_or_waited_for(edge: str) -> None:
    @settings(derandomize=True, deadline=None, database=None, max_examples=200)
    @given(st.integers(0, 2**32 - 1))
    def thrown(seed: int) -> None:
        throw(edge, seed)

    thrown()


def test_f94_f95_f96_f97_a_supervisor_among_hostile_tasks_and_clients_goes_on(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with fuzzed(broker_url, queue, tmp_path, seed, is_timed=False) as fuzz:
        fuzz.round(8)
        print(fuzz)
