"""Messages that an operator has had their worker killed for, and that are to be dead-lettered."""

from __future__ import annotations

import pytest

from supervisor.policy.events import Exited
from supervisor.policy.sentences import HOLDS, Sentences
from supervisor.policy.slot import Killing
from supervisor.vocabulary import InHand

NOW = 1000.0
PAGE, OTHER = 3, 4


def had(key: str, tag: int = 7, step: int = 1) -> InHand:
    return InHand(key, key, tag, 1, False, NOW, step=step)


def carry(wanted: InHand | None, found: InHand | None, room: int = 10) -> tuple[Sentences, str]:
    sentences = Sentences(room)
    died = Exited(PAGE, 100, "SIGABRT", found, None, 0, "a stack")
    return sentences, sentences.carry(Killing("workq kill by root", wanted), died, NOW)


def test_the_message_is_claimed_once_with_who_asked_and_the_evidence() -> None:
    sentences, said = carry(had("k"), had("k"))
    assert "dead-lettered by the next worker" in said
    claimed = sentences.claim(PAGE, "k", 1, NOW)
    assert claimed is not None and (claimed.by, claimed.evidence) == ("workq kill by root", "a stack")
    assert sentences.claim(OTHER, "k", 1, NOW) is None


@pytest.mark.parametrize(("key", "step"), [("k", 2), ("other", 1)])
def test_every_other_message_runs(key: str, step: int) -> None:
    sentences, _ = carry(had("k"), had("k"))
    assert sentences.claim(PAGE, key, step, NOW) is None


@pytest.mark.parametrize("found", [had("other"), had("k", tag=8)])
def test_a_message_that_was_finished_before_its_worker_died_ends_nobody_else(found: InHand) -> None:
    sentences, said = carry(had("k"), found)
    assert "finished first" in said and len(sentences) == 0


@pytest.mark.parametrize("found", [had("k"), None])
def test_unless_it_was_asked_for_nothing_is_dead_lettered(found: InHand | None) -> None:
    sentences, said = carry(None, found)
    assert len(sentences) == 0 and ("redelivered" in said) == (found is not None)


def test_a_sentence_holds_for_a_while_only() -> None:
    assert carry(had("k"), had("k"))[0].claim(PAGE, "k", 1, NOW + HOLDS) is not None
    assert carry(had("k"), had("k"))[0].claim(PAGE, "k", 1, NOW + HOLDS + 0.1) is None


@pytest.mark.parametrize("is_parked", [True, False])
def test_what_a_worker_was_told_and_died_before_is_left_to_the_next(is_parked: bool) -> None:
    sentences, _ = carry(had("k"), had("k"))
    sentences.claim(PAGE, "k", 1, NOW)
    if is_parked:
        sentences.carried_out(PAGE)
    sentences.died(PAGE)
    assert (sentences.claim(OTHER, "k", 1, NOW) is None) is is_parked


def test_another_worker_s_death_and_dead_letter_change_nothing() -> None:
    sentences, _ = carry(had("k"), had("k"))
    sentences.claim(PAGE, "k", 1, NOW)
    sentences.carried_out(OTHER)
    sentences.died(OTHER)
    assert sentences.claim(OTHER, "k", 1, NOW) is None
    sentences.died(PAGE)
    assert sentences.claim(OTHER, "k", 1, NOW) is not None


def test_it_is_bounded_and_forgets_the_oldest() -> None:
    sentences = Sentences(room=2)
    for key in "abc":
        sentences.carry(Killing("root", had(key)), Exited(PAGE, 100, "SIGABRT", had(key), None, 0), NOW)
    assert [sentences.claim(PAGE, key, 1, NOW) is not None for key in "abc"] == [False, True, True]
