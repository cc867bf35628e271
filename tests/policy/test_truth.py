"""The broker's truth about who consumes, look by look."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.messages import Depth
from supervisor.policy.truth import LOOKS, Belief, Doubt, Truth


def idle(slot: int, taken: int = 0, pid: int | None = None) -> Belief:
    return Belief(slot, 100 + slot if pid is None else pid, True, taken)


def busy(slot: int, taken: int = 0) -> Belief:
    return Belief(slot, 100 + slot, False, taken)


def last(truth: Truth, depth: Depth, beliefs: list[Belief], looks: int = LOOKS) -> Doubt | None:
    found = None
    for _ in range(looks):
        found = truth.look(depth, beliefs)
    return found


def test_one_look_proves_nothing() -> None:
    truth = Truth()
    assert last(truth, Depth(9, 0), [idle(0)], LOOKS - 1) is None


def test_the_idle_one_beside_a_backlog_is_named_and_the_busy_one_is_not() -> None:
    found = last(Truth(), Depth(9, 2), [busy(0), idle(1)])
    assert found is not None and found.replace == 1


def test_who_settles_something_between_looks_consumes() -> None:
    truth = Truth()
    for taken in range(10):
        assert truth.look(Depth(9, 1), [idle(0, taken)]) is None


def test_an_idle_pool_beside_an_empty_queue_is_well() -> None:
    assert last(Truth(), Depth(0, 2), [idle(0), idle(1)], 50) is None


def test_a_backlog_that_comes_and_goes_is_no_proof() -> None:
    truth = Truth()
    for ready in (5, 0) * 20:
        assert truth.look(Depth(ready, 1), [idle(0)]) is None


def test_fewer_consumers_than_workers_and_an_idle_one_is_replaced() -> None:
    found = last(Truth(), Depth(0, 1), [busy(0), idle(1)])
    assert found is not None and found.replace == 1 and "counts 1 consumers" in found.because


def test_where_only_a_count_is_wrong_each_idle_worker_is_replaced_in_turn() -> None:
    truth, pids = Truth(), iter(range(1000, 10_000))
    beliefs = [idle(slot, pid=next(pids)) for slot in range(3)]
    replaced = []
    for _ in range(20):
        found = truth.look(Depth(0, 2), beliefs)
        if found is not None and found.replace is not None:
            replaced.append(found.replace)
            beliefs[found.replace] = idle(found.replace, pid=next(pids))
    assert sorted(replaced[:3]) == [0, 1, 2]


def test_consumers_of_others_are_no_trouble() -> None:
    assert last(Truth(), Depth(0, 40), [idle(0), idle(1)], 20) is None


def test_workers_that_have_just_come_are_not_missed() -> None:
    truth = Truth()
    for pid in range(20):
        assert truth.look(Depth(3, 0), [idle(0, pid=1000 + pid)]) is None


def test_where_replacing_does_not_help_it_is_said_once_and_nobody_is_replaced_any_more() -> None:
    truth, pids, news = Truth(), iter(range(1000, 10_000)), []
    beliefs = [idle(0, pid=next(pids)), idle(1, pid=next(pids))]
    replaced = 0
    for _ in range(60):
        found = truth.look(Depth(7, 1), beliefs)
        if found is not None and found.replace is not None:
            replaced += 1
            beliefs[found.replace] = idle(found.replace, pid=next(pids))
        elif found is not None and found.is_news:
            news.append(found.because)
    assert replaced == 3
    assert len(news) == 1 and "single active consumer" in news[0]


def test_a_backlog_that_comes_again_and_again_makes_nobody_forget_that_replacing_does_not_help() -> None:
    truth, pids = Truth(), iter(range(1000, 10_000))
    beliefs = [idle(0, pid=next(pids)), idle(1, pid=next(pids))]
    replaced, said = 0, 0
    for _ in range(20):
        for ready in (7, 7, 7, 7, 7, 7, 0, 0, 0):
            found = truth.look(Depth(ready, 3), beliefs)
            if found is not None and found.replace is not None:
                replaced += 1
                beliefs[found.replace] = idle(found.replace, pid=next(pids))
            elif found is not None and found.is_news:
                said += 1
    assert (replaced, said) == (3, 1)


def test_once_a_new_worker_is_served_the_next_doubt_is_acted_on_again() -> None:
    truth, pid = Truth(), 1000
    for taken in range(20):
        found = last(truth, Depth(7, 1), [idle(0, taken, pid)])
        assert found is not None and found.replace == 0
        pid += 1
        truth.look(Depth(0, 1), [idle(0, taken + 1, pid)])


def single_active(truth: Truth, workers: int, lives: int, is_told: bool) -> tuple[int, int]:
    """A queue whose single active consumer is one of ours, which works for some looks, and dies; again and again.
    Returns how many were replaced, and how often it was said that this does not help."""
    if is_told:
        truth.is_single = True
    pids, taken, active = iter(range(1000, 10_000)), [0] * workers, 0
    slots = [next(pids) for _ in range(workers)]
    order, replaced, said = list(slots), 0, 0
    for _ in range(lives):
        for _ in range(8):
            active = slots.index(order[0])  # the broker's order: who has subscribed first
            taken[active] += 3
            beliefs = [idle(slot, taken[slot], pid) for slot, pid in enumerate(slots)]
            found = truth.look(Depth(50, workers), beliefs)
            if found is not None and found.replace is None:
                said += found.is_news
            if found is not None and found.replace is not None:
                replaced += 1
                order.remove(slots[found.replace])
                slots[found.replace] = next(pids)
                order.append(slots[found.replace])
        order.remove(slots[active])
        slots[active] = next(pids)
        order.append(slots[active])
    return replaced, said


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_f124_who_stands_by_behind_a_single_active_consumer_is_not_doubted(workers: int) -> None:
    assert single_active(Truth(), workers, 20, is_told=True) == (0, 0)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_f124_where_the_broker_does_not_tell_it_is_learnt_once_and_not_at_each_death(workers: int) -> None:
    replaced, said = single_active(Truth(), workers, 20, is_told=False)
    assert (replaced, said) == (workers + 1, 1)


@pytest.mark.parametrize("is_told", [True, False])
def test_f124_an_active_consumer_that_is_given_nothing_any_more_is_replaced(is_told: bool) -> None:
    truth = Truth()
    single_active(truth, 2, 20, is_told)
    truth.look(Depth(9, 2), [idle(0, 100, 1), idle(1, 100, 2)])
    truth.look(Depth(9, 2), [idle(0, 101, 1), idle(1, 100, 2)])
    found = last(truth, Depth(9, 2), [idle(0, 101, 1), idle(1, 100, 2)], LOOKS - 1)
    assert found is not None and found.replace == 0
    found = last(truth, Depth(9, 2), [idle(0, 101, 3), idle(1, 100, 2)], 20)
    assert found is None or found.replace is None, "and the next one has never been active"


def test_f124_two_that_are_served_at_once_are_no_single_active_consumer() -> None:
    truth, pid = Truth(), 1000
    for _ in range(40):
        found = truth.look(Depth(7, 2), [idle(0, 0, pid), idle(1, 0, pid + 1)])
        pid += 2 * bool(found and found.replace is not None)
    found = last(truth, Depth(7, 2), [idle(0, 0, 1), idle(1, 0, 2)], 20)
    assert truth.standby and (found is None or found.replace is None)
    truth.look(Depth(7, 2), [idle(0, 5, 1), idle(1, 5, 2)])
    assert truth.standby is None
    found = last(truth, Depth(7, 2), [idle(0, 5, 1), idle(1, 5, 3)])
    assert found is not None and found.replace is not None


def test_f124_the_broker_is_asked_once_when_somebody_is_idle_beside_messages() -> None:
    truth = Truth()
    asked = []
    for ready in (0, 0, 5, 5, 5, 5, 0, 5, 5, 5):
        truth.look(Depth(ready, 1), [idle(0)])
        asked.append(truth.wonders())
    assert asked.count(True) == 1 and asked.index(True) in (2, 3)
    truth.forget_queue()
    last(truth, Depth(5, 1), [idle(0)])
    assert truth.wonders()


def test_all_starved_is_told_apart_from_one_starved() -> None:
    truth = Truth()
    last(truth, Depth(7, 2), [idle(0), busy(1)])
    assert not truth.is_starved
    last(truth, Depth(7, 2), [idle(0), idle(1)])
    assert truth.is_starved
    truth.look(Depth(0, 2), [idle(0), idle(1)])
    assert not truth.is_starved and truth.doubt is None


@pytest.mark.parametrize("ready", [0, 50])
@given(counts=st.lists(st.integers(1, 3), min_size=1, max_size=30))
def test_workers_that_are_served_are_never_doubted(ready: int, counts: list[int]) -> None:
    truth, taken = Truth(), 0
    for count in counts:
        taken += count
        assert truth.look(Depth(ready, 3), [idle(0, taken), busy(1), idle(2, taken)]) is None
