"""What was parked and is not known to be acknowledged."""

from __future__ import annotations

import pytest

from supervisor.policy.parkings import HOLDS, Parkings
from supervisor.vocabulary import InHand, Moved

NOW = 1000.0


def parkings(*moved: Moved, prefetch: int = 1, room: int = 10) -> Parkings:
    known = Parkings(room)
    known.ended(moved, prefetch, NOW)
    return known


def had(key: str, step: int = 1, *, redelivered: bool = False) -> InHand:
    return InHand(key, key, 9, 1, redelivered, NOW, step=step)


def test_f109_what_was_parked_is_not_run_when_it_comes_back_once() -> None:
    known = parkings(Moved("k", 1, later=0))
    assert known.claim(1, "k", 1, NOW)
    assert not known.claim(1, "k", 1, NOW)
    assert len(known) == 0


def test_f109_what_was_parked_twice_comes_back_twice() -> None:
    known = parkings(Moved("k", 1, later=0))
    known.ended([Moved("k", 1, later=0)], 1, NOW)
    assert known.claim(1, "k", 1, NOW) and known.claim(1, "k", 1, NOW)
    assert not known.claim(1, "k", 1, NOW)


@pytest.mark.parametrize(("key", "step"), [("k", 2), ("other", 1)])
def test_f109_the_copy_and_every_other_message_run(key: str, step: int) -> None:
    assert not parkings(Moved("k", 1, later=0)).claim(1, key, step, NOW)


@pytest.mark.parametrize(("later", "prefetch", "is_known"), [(0, 1, False), (1, 1, True), (4, 5, False), (5, 5, True)])
def test_f109_what_the_broker_has_heard_of_is_not_remembered(later: int, prefetch: int, is_known: bool) -> None:
    assert parkings(Moved("k", 1, later), prefetch=prefetch).claim(1, "k", 1, NOW) is not is_known


def test_f109_it_is_remembered_for_a_while_only() -> None:
    assert parkings(Moved("k", 1, later=0)).claim(1, "k", 1, NOW + HOLDS)
    assert not parkings(Moved("k", 1, later=0)).claim(1, "k", 1, NOW + HOLDS + 0.1)


def test_f109_a_new_delivery_of_the_same_message_ends_it() -> None:
    """The acknowledgement had arrived after all, and somebody has published the message again."""
    known = parkings(Moved("k", 1, later=0))
    known.died(2, [], had("k"))
    assert not known.claim(1, "k", 1, NOW)


def test_a_new_delivery_ends_the_parking_of_its_own_step_only() -> None:
    """Deferred, a message keeps its attempt: it is known by its step."""
    known = parkings(Moved("k", 2, later=0))
    known.died(2, [], had("k", 1))
    assert known.claim(1, "k", 2, NOW)
    known.ended([Moved("k", 2, later=0)], 1, NOW)
    known.died(2, [], had("k", 2))
    assert not known.claim(1, "k", 2, NOW)


def test_f109_the_worker_that_has_parked_it_does_not_end_it_by_its_own_death() -> None:
    known = parkings(Moved("k", 1, later=0))
    known.died(2, [Moved("k", 1, later=0)], had("k"))
    assert known.claim(1, "k", 1, NOW)


def test_f109_a_redelivery_does_not_end_it() -> None:
    known = parkings(Moved("k", 1, later=0))
    known.died(2, [], had("k", redelivered=True))
    assert known.claim(1, "k", 1, NOW)


def test_what_a_worker_was_told_and_did_not_do_is_left_to_the_next_one() -> None:
    known = parkings(Moved("k", 1, later=0))
    assert known.claim(1, "k", 1, NOW)
    known.died(1, [], had("k", redelivered=True))
    assert known.claim(2, "k", 1, NOW)
    assert not known.claim(3, "k", 1, NOW)


def test_what_it_was_told_holds_no_longer_than_before() -> None:
    known = parkings(Moved("k", 1, later=0))
    assert known.claim(1, "k", 1, NOW + HOLDS - 1)
    known.died(1, [], had("k", redelivered=True))
    assert not known.claim(2, "k", 1, NOW + HOLDS + 1)


@pytest.mark.parametrize(
    ("moved", "last"),
    [
        ([Moved("k", 1, later=0)], had("k", redelivered=True)),
        ([], had("other", redelivered=True)),
        ([], had("k", 2, redelivered=True)),
        ([], None),
    ],
    ids=["it noted that it acknowledges", "it has had another message since", "it has had the copy since", "nothing"],
)
def test_what_a_worker_was_told_and_did_is_not_told_to_the_next_one(moved: list[Moved], last: InHand | None) -> None:
    known = parkings(Moved("k", 1, later=0))
    assert known.claim(1, "k", 1, NOW)
    known.died(1, moved, last)
    assert not known.claim(2, "k", 1, NOW)


def test_what_a_worker_was_told_first_is_done_when_it_asks_again() -> None:
    known = parkings(Moved("k", 1, later=0))
    assert known.claim(1, "k", 1, NOW)
    assert not known.claim(1, "k", 1, NOW)
    known.died(1, [], had("k", redelivered=True))
    assert not known.claim(2, "k", 1, NOW)


def test_f109_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    known = parkings(*(Moved(f"k{number}", 1, later=0) for number in range(20)), prefetch=100, room=10)
    assert len(known) == 10
    assert not known.claim(1, "k9", 1, NOW)
    assert known.claim(1, "k10", 1, NOW)
