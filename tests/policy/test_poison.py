"""Which messages kill their workers."""

from __future__ import annotations

import pytest

from supervisor.messages import Verdict
from supervisor.policy.poison import DEATHS, PUT_BACK_MAX, RETURNS_MAX, Ledger, has_limit, prefetch


def test_an_unknown_message_may_run() -> None:
    assert Ledger(3).verdict("k") == Verdict("k", run=True)


@pytest.mark.parametrize("max_crashes", [1, 2, 3, 10])
def test_a_message_may_run_until_it_has_killed_max_crashes(max_crashes: int) -> None:
    ledger = Ledger(max_crashes)
    for crashes in range(1, max_crashes + 1):
        assert ledger.verdict("k").run
        assert ledger.blame("k", "SIGSEGV") == crashes
        assert ledger.is_condemned(crashes) == (crashes == max_crashes)
    assert not ledger.verdict("k").run


def test_one_message_is_not_blamed_for_another() -> None:
    ledger = Ledger(1)
    ledger.blame("guilty", "SIGKILL")
    assert ledger.verdict("innocent").run


def test_a_verdict_has_the_last_cause_and_the_last_evidence_there_was() -> None:
    ledger = Ledger(3)
    ledger.blame("k", "SIGSEGV", "a stack", at="09:00", who="worker 1")
    ledger.blame("k", "OOM", "", at="09:05", who="worker 2")
    evidence = "a stack\ndeath 1: 09:00 worker 1: SIGSEGV\ndeath 2: 09:05 worker 2: OOM"
    assert ledger.verdict("k") == Verdict("k", True, 2, "OOM", evidence, first_seen="09:00")


def test_what_is_kept_of_one_message_is_bounded() -> None:
    ledger = Ledger(1000)
    for _ in range(500):
        ledger.blame("k", "SIGKILL", at="09:00")
    lines = ledger.verdict("k").evidence.splitlines()
    assert len(lines) == DEATHS
    assert lines[-1].startswith("death 500:")


def test_the_ledger_is_bounded_and_forgets_first_what_killed_longest_ago() -> None:
    ledger = Ledger(3, room=2)
    ledger.blame("a", "SIGKILL")
    ledger.blame("b", "SIGKILL")
    ledger.blame("a", "SIGKILL")
    ledger.blame("c", "SIGKILL")
    assert len(ledger) == 2
    assert [ledger.verdict(key).crashes for key in "abc"] == [2, 0, 1]


# ------------------------------------------------------------------------------------ what the broker counts


def limited(max_crashes: int = 3) -> Ledger:
    ledger = Ledger(max_crashes)
    ledger.has_limit = True
    return ledger


def test_f111_a_message_that_came_back_often_and_killed_nobody_is_put_back_fresh() -> None:
    ledger = limited()
    assert ledger.verdict("k", RETURNS_MAX - 1) == Verdict("k", run=True)
    assert ledger.verdict("k", RETURNS_MAX) == Verdict("k", False, cause="returned 10 times", fresh=True)


def test_f111_where_no_limit_is_known_returns_decide_nothing() -> None:
    assert Ledger(3).verdict("k", 10_000, PUT_BACK_MAX).run


def test_one_that_has_killed_and_comes_back_often_is_quarantined_however_patient_max_crashes_is() -> None:
    ledger = limited(1000)
    ledger.blame("k", "SIGKILL", at="09:00")
    assert ledger.verdict("k", RETURNS_MAX - 1).run
    verdict = ledger.verdict("k", RETURNS_MAX)
    assert (verdict.run, verdict.fresh, verdict.crashes, verdict.cause) == (False, False, 1, "returned 10 times")
    assert (verdict.first_seen, verdict.evidence) == ("09:00", "death 1: 09:00 a worker: SIGKILL")


def test_one_that_takes_ledgers_with_it_is_put_back_so_often_and_then_quarantined() -> None:
    for times in range(PUT_BACK_MAX):
        assert limited().verdict("k", RETURNS_MAX, times).fresh
    last = limited().verdict("k", RETURNS_MAX, PUT_BACK_MAX)
    assert (last.run, last.fresh, last.cause) == (False, False, f"returned {RETURNS_MAX * (PUT_BACK_MAX + 1)} times")


def test_one_that_is_condemned_is_not_put_back() -> None:
    ledger = limited(1)
    ledger.blame("k", "SIGSEGV")
    verdict = ledger.verdict("k", RETURNS_MAX)
    assert (verdict.run, verdict.fresh, verdict.cause) == (False, False, "SIGSEGV")


@pytest.mark.parametrize(
    ("version", "queue_type", "given"),
    [
        ("3.10.8", "quorum", 50), ("3.13.7", "", 50), ("", "", 50), ("4.0.5", "classic", 50),
        ("4.0.5", "quorum", 1), ("4.0.5", "", 1), ("4.3.6", "quorum", 1), ("10.0.1", "quorum", 1),
    ],
)  # fmt: skip
def test_f115_a_worker_has_one_message_at_a_time_where_the_broker_drops_what_returns_often(
    version: str, queue_type: str, given: int
) -> None:
    assert prefetch(50, version, queue_type) == given
    assert has_limit(version) is version.startswith(("4.", "10."))
