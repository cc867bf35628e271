"""What the silences before their ends say about lost connections."""

from __future__ import annotations

import pytest

from supervisor.policy.silence import HOLDS, OCCASIONS, Silences
from supervisor.vocabulary import Kind


def ends(*told: tuple[float, float], kind: Kind = Kind.LOST) -> Silences:
    """After ends at these times, each after so many seconds of silence."""
    silences = Silences()
    for at, silence in told:
        silences.ended(kind, silence, at)
    return silences


def test_f125_the_same_silence_again_and_again_is_named_with_both_ways_out() -> None:
    silences = ends((10, 5.02), (15.2, 5.0))
    assert silences.because(15.0, 15.2) is None, "two may be chance"
    silences.ended(Kind.LOST, 4.98, 20.4)
    because = silences.because(15.0, 20.4) or ""
    assert "something between us and the broker closes idle connections after 5 s" in because
    assert "lower --heartbeat below 2.5 s, or raise that timeout above 15 s" in because


def test_f125_below_a_heartbeat_of_two_seconds_there_is_one_way_out() -> None:
    because = ends((10, 1.5), (12, 1.5), (14, 1.5)).because(15.0, 14.0) or ""
    assert "after 1.5 s: raise that timeout above 15 s" in because and "lower" not in because


@pytest.mark.parametrize(
    "told",
    [
        [(10, 5.0), (10.1, 5.0), (10.2, 5.0), (10.3, 5.0)],  # all at once: a broker that was killed
        [(10, 5.0), (10.1, 3.0), (20, 5.0), (20.1, 3.0), (30, 5.0), (30.1, 3.0)],  # and again and again
        [(10, 5.0), (20, 2.0), (30, 7.0), (40, 5.0), (50, 1.0), (60, 5.0)],
        [(10, 0.0), (20, 0.0), (30, 0.0)],  # had been silent for longer, or had just been heard
        [(10, 0.2), (20, 0.2), (30, 0.2)],
        [(10, 5.0), (15, 5.0), (16, 0.0), (21, 5.0), (26, 5.0)],
        [(10, 5.0), (15, 5.0), (16 + HOLDS, 5.0)],
    ],
)
def test_f125_other_ends_prove_nothing(told: list[tuple[float, float]]) -> None:
    assert ends(*told).limit is None


@pytest.mark.parametrize("kind", [Kind.OPERATOR, Kind.HEARTBEAT, Kind.CANCELLED, Kind.ACK_TIMEOUT])
def test_f125_a_broker_that_says_why_is_believed(kind: Kind) -> None:
    assert ends((10, 5.0), (15, 5.0), (20, 5.0), kind=kind).limit is None


def test_f125_a_broker_that_cannot_be_reached_in_between_is_what_is_wrong() -> None:
    silences = Silences()
    for at in range(10, 100, 5):
        silences.ended(Kind.LOST, 5.0, at)
        silences.missed()
    assert silences.limit is None


def test_f125_what_is_known_is_expected_and_holds_until_it_is_old() -> None:
    silences = ends(*((5.0 * n, 5.0) for n in range(OCCASIONS)))
    assert silences.expects(Kind.LOST, 5.1)
    assert not silences.expects(Kind.LOST, 9.0) and not silences.expects(Kind.OPERATOR, 5.0)
    silences.ended(Kind.LOST, 9.0, 50)
    silences.missed()
    assert silences.because(15.0, 51) is not None
    silences.ended(Kind.LOST, 5.0, 400)
    assert silences.because(15.0, 400 + HOLDS) is not None
    assert silences.because(15.0, 401 + HOLDS) is None
    silences.ended(Kind.LOST, 5.0, 402 + HOLDS)
    assert not silences.expects(Kind.LOST, 5.0), "it must show itself anew"
