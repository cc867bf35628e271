"""What the benchmark says of its figures: ratios within a round, and verdicts."""

from __future__ import annotations

import json

import pytest

from scripts.benches.rates import BARE, FORKED, INFO, OURS, Rate, Rates, a_second, a_task, large_rows, no_op_rows
from scripts.benches.row import Row


def measured(**micros: float) -> Rates:
    """A single round in which a second of work was watched: CPU a task, in microseconds, by contender."""
    names = {"bare": BARE, "forked": FORKED, "ours": OURS, "info": INFO}
    return Rates(
        [{names.get(name, name): Rate(1000, 1.0, 1000 * cost / 1e6, 0.0, 0.0) for name, cost in micros.items()}]
    )


def row(rates: Rates, what: str) -> Row:
    return next(each for each in no_op_rows(rates) if what in each.what)


def test_a_ratio_is_within_rounds_so_that_a_slow_minute_is_slow_for_both() -> None:
    def rate(cost: float) -> Rate:
        return Rate(100, 1.0, 100 * cost, 0.0)

    # The second round was three times as slow for everybody, the third for neither.
    rates = Rates([{OURS: rate(ours), BARE: rate(bare)} for ours, bare in ((1.1, 1.0), (3.3, 3.0), (1.2, 1.0))])
    assert rates.ratio(OURS, BARE, a_task) == pytest.approx(1.1)
    assert rates.median(OURS, a_task) == pytest.approx(1.2)


@pytest.mark.parametrize(("cost", "verdict"), [(109, "reached"), (124, "met"), (126, "MISSED")])
def test_the_verdict_on_cpu_follows_the_ratio(cost: float, verdict: str) -> None:
    assert row(measured(bare=100, ours=cost), "CPU per no-op task, 4").verdict == verdict


@pytest.mark.parametrize(("tasks", "verdict"), [(960, "reached"), (860, "met"), (840, "MISSED")])
def test_the_verdict_on_tasks_a_second_follows_the_ratio(tasks: int, verdict: str) -> None:
    rates = Rates([{BARE: Rate(1000, 1.0, 0.1, 0.0), OURS: Rate(tasks, 1.0, 0.1, 0.0, 0.0)}])
    assert rates.ratio(OURS, BARE, a_second) == pytest.approx(tasks / 1000)
    assert row(rates, "tasks a second").verdict == verdict


def test_what_a_peer_does_better_is_named() -> None:
    rates = measured(bare=100, ours=120, info=110, Celery=440, Cheap=90)
    assert row(rates, "CPU per no-op task, 4").better == (BARE, "Cheap")


@pytest.mark.parametrize(("busy", "verdict"), [(0.0102, "reached"), (0.0105, "met"), (0.012, "MISSED")])
def test_a_parents_cpu_is_what_it_uses_beyond_its_rest(busy: float, verdict: str) -> None:
    rates = Rates([{OURS: Rate(1000, 1.0, 0.1, busy, 0.01)}])
    found = row(rates, "parent")
    assert found.verdict == verdict
    assert found.data["a_task"] == pytest.approx((busy - 0.01) / 1000)


@pytest.mark.parametrize(("c", "verdict"), [(40, "reached"), (30, "met"), (25, "MISSED")])
def test_a_task_is_compared_with_the_c_client(c: float, verdict: str) -> None:
    rates = Rates(
        [
            {
                OURS: Rate(1000, 1.0, 0.110, 0.0, 0.0),
                BARE: Rate(1000, 1.0, 0.2, 0.0),
                "C client": Rate(1000, 1.0, c / 1000, 0.0),
            }
        ]
    )
    assert row(rates, "beside C client").verdict == verdict


def test_rows_are_made_of_those_who_were_measured() -> None:
    assert no_op_rows(measured(bare=100)) == []
    assert large_rows(measured(bare=100)) == []
    whole = no_op_rows(measured(bare=100, ours=115, info=150, Dramatiq=400, Celery=420))
    assert [each.verdict for each in whole] == ["met", "met", "MISSED", "reached", "reached", "met"]
    json.dumps([each.to_json() for each in whole])


def test_who_was_not_in_a_round_is_compared_in_those_where_it_was() -> None:
    def rate(cost: float) -> Rate:
        return Rate(100, 1.0, 100 * cost, 0.0)

    rates = Rates([{BARE: rate(1.0), "Celery": rate(4.0)}, {BARE: rate(2.0)}, {BARE: rate(2.0)}])
    assert rates.ratio("Celery", BARE, a_task) == pytest.approx(4.0)
    assert rates.median(BARE, a_task) == pytest.approx(2.0)
    assert rates.names == [BARE, "Celery"]


def test_bare_pika_forked_is_told_of_and_decides_nothing() -> None:
    alone, beside = measured(bare=100, ours=109), measured(bare=100, ours=109, forked=50)
    assert "forked" not in row(alone, "CPU per no-op task, 4").note
    with_it = row(beside, "CPU per no-op task, 4")
    assert "started one by one, 100 us; forked from one" in with_it.note
    assert "the same program costs 50 us" in with_it.note
    assert with_it.peers[FORKED] == "50 us, 0.50x"
    assert [each.verdict for each in no_op_rows(alone)] == [each.verdict for each in no_op_rows(beside)]
    assert FORKED in row(beside, "tasks a second").peers
