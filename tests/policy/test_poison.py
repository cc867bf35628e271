"""Which messages kill their workers."""

from __future__ import annotations

import pytest

from supervisor.policy.poison import DEATHS, Ledger
from supervisor.vocabulary import Verdict


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
