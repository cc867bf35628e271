"""From what a handler did to what the broker is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import queues
from supervisor.messages import Verdict
from supervisor.policy.settle import (
    EVIDENCE_MAX,
    TRACEBACK_MAX,
    Acknowledge,
    Condemned,
    DeadLetter,
    Later,
    Outcome,
    Patience,
    Raised,
    Rejected,
    RetryAsked,
    Returned,
    TooLarge,
    Undecodable,
    clip_end,
    clip_start,
    settle,
)
from supervisor.vocabulary import Counts

_VERDICT = Verdict("k", run=False, crashes=3, cause="SIGSEGV", evidence="Fatal Python error")


def test_what_returned_is_acknowledged() -> None:
    assert settle(Returned()) == Acknowledge("succeeded", "task.succeeded")


@pytest.mark.parametrize(
    ("outcome", "reason", "counter", "event"),
    [
        (Raised("ValueError: no", "Traceback ..."), "exception", "dead_lettered", "task.dead_lettered"),
        (Rejected("no such image"), "rejected", "dead_lettered", "task.dead_lettered"),
        (TooLarge(17, 16), "too_large", "dead_lettered", "task.dead_lettered"),
        (Undecodable("OSError: no such year", b"raw"), "undecodable", "dead_lettered", "task.dead_lettered"),
        (Condemned(_VERDICT), "crash", "quarantined", "task.quarantined"),
    ],
)
def test_everything_else_is_dead_lettered_with_its_reason(
    outcome: Outcome, reason: str, counter: str, event: str
) -> None:
    settlement = settle(outcome)
    assert isinstance(settlement, DeadLetter)
    assert (settlement.reason, settlement.counter, settlement.event) == (reason, counter, event)
    assert settlement.because
    assert set(settlement.headers) <= set(queues.HEADERS)
    assert counter in Counts.__dataclass_fields__


def _headers(outcome: Outcome) -> dict[str, str | int]:
    settlement = settle(outcome)
    assert isinstance(settlement, DeadLetter)
    return settlement.headers


def test_an_exception_leaves_its_message_and_the_end_of_its_traceback() -> None:
    headers = _headers(Raised("E" * 5000, "T" * 10_000 + "the last line"))
    assert headers[queues.ERROR] == "E" * 1024
    traceback = headers[queues.TRACEBACK]
    assert isinstance(traceback, str)
    assert len(traceback) == TRACEBACK_MAX
    assert traceback.endswith("the last line")


def test_a_quarantined_message_carries_the_evidence() -> None:
    assert _headers(Condemned(_VERDICT)) == {
        queues.CRASHES: 3,
        queues.CAUSE: "SIGSEGV",
        queues.EVIDENCE: "Fatal Python error",
    }


def test_evidence_is_bounded_and_left_out_when_there_is_none() -> None:
    long = Verdict("k", run=False, crashes=3, cause="SIGSEGV", evidence="x" * 100_000)
    assert len(str(_headers(Condemned(long))[queues.EVIDENCE])) == EVIDENCE_MAX
    assert queues.EVIDENCE not in _headers(Condemned(Verdict("k", run=False, crashes=3, cause="SIGKILL")))


def test_a_body_that_is_too_large_says_how_large() -> None:
    assert "17 bytes" in str(_headers(TooLarge(17, 16))[queues.ERROR])


@settings(derandomize=True, deadline=None, database=None)
@given(text=st.text(alphabet=st.characters(codec=None)), limit=st.integers(1, 50))
def test_clipping_keeps_within_the_bytes_and_cuts_no_character_in_two(text: str, limit: int) -> None:
    whole = text.encode("utf-8", "replace").decode()
    for clipped, keeps in ((clip_start(text, limit), whole.startswith), (clip_end(text, limit), whole.endswith)):
        assert len(clipped.encode()) <= limit
        assert keeps(clipped)
        assert len(clipped.encode()) > limit - 4 or clipped == whole


def test_a_failure_is_tried_again_as_often_as_patience_lasts_and_each_time_later() -> None:
    patience = Patience(retries=2, delay=1.0)
    raised = Raised("ValueError: no", "Traceback")
    first, second, third = (settle(raised, attempt, patience) for attempt in (1, 2, 3))
    assert isinstance(first, Later) and isinstance(second, Later) and isinstance(third, DeadLetter)
    assert (first.ms, first.attempt, second.ms, second.attempt) == (1000, 2, 5000, 3)
    assert first.because == "ValueError: no; try 2 of 3 in 1 s"


def test_retry_chooses_its_delay_and_counts_as_a_try() -> None:
    patience = Patience(retries=1, delay=1.0)
    first = settle(RetryAsked(0.3, "busy"), 1, patience)
    assert isinstance(first, Later) and first.ms == 500
    unchosen = settle(RetryAsked(None, "busy"), 1, patience)
    assert isinstance(unchosen, Later) and unchosen.ms == 1000
    last = settle(RetryAsked(0.3, "busy"), 2, patience)
    assert isinstance(last, DeadLetter) and last.reason == "exception"


@pytest.mark.parametrize("outcome", [Rejected("mute", "Traceback ..."), RetryAsked(None, "mute", "Traceback ...")])
def test_f63_what_went_wrong_while_it_was_asked_why_is_evidence(outcome: Outcome) -> None:
    assert _headers(outcome)[queues.TRACEBACK] == "Traceback ..."
