"""From what a handler did to what the broker is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import queues
from supervisor.policy.settle import (
    EVIDENCE_MAX,
    TRACEBACK_MAX,
    Acknowledge,
    Condemned,
    DeadLetter,
    Outcome,
    Raised,
    Rejected,
    Returned,
    TooLarge,
    clip_end,
    clip_start,
    settle,
)
from supervisor.vocabulary import Counts, Verdict

_VERDICT = Verdict("k", run=False, crashes=3, cause="SIGSEGV", evidence="Fatal Python error")


def test_what_returned_is_acknowledged() -> None:
    assert settle(Returned()) == Acknowledge("succeeded", "task.succeeded")


@pytest.mark.parametrize(
    ("outcome", "reason", "counter", "event"),
    [
        (Raised("ValueError: no", "Traceback ..."), "exception", "dead_lettered", "task.dead_lettered"),
        (Rejected("no such image"), "rejected", "dead_lettered", "task.dead_lettered"),
        (TooLarge(17, 16), "too_large", "dead_lettered", "task.dead_lettered"),
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
