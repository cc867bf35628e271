"""Nothing of a password is left in a text, wherever the text is cut."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import frames
from supervisor import messages as m
from supervisor.policy.settle import EVIDENCE_MAX, Condemned, DeadLetter, Raised, settle
from supervisor.redaction import clip_end, clip_start, redact

PASSWORDS = st.text(st.sampled_from("QXZ0-@/: %é"), min_size=4, max_size=40).filter(lambda text: "://" not in text)
"""Of letters that are nowhere else in the texts here."""
NOISE = st.text(st.sampled_from("bcd \n\t.,amqps:/"), max_size=60)


def leaked(password: str, text: str) -> list[str]:
    """What of it is still there: four characters that belong together, one of them its own."""
    pieces = {password[at : at + 4] for at in range(len(password) - 3)}
    return sorted(piece for piece in pieces if piece in text and not piece.isspace() and set(piece) & set("QXZ0é"))


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, str]:
    """A password, and a text with a URL that has it; perhaps with another URL beside it."""
    password = draw(PASSWORDS)
    scheme = draw(st.sampled_from(["amqp://", "amqps://", "AMQP://"]))
    other = draw(st.sampled_from(["", "amqp://localhost/ ", "https://b.c/d "]))
    return password, f"{draw(NOISE)}{other}{scheme}bcd:{password}@host/%2F{draw(NOISE)}"


@given(texts(), st.integers(0, 200))
def test_f98_a_cut_at_any_place_leaves_nothing_of_a_password(given_text: tuple[str, str], limit: int) -> None:
    password, text = given_text
    assert leaked(password, clip_start(text, limit)) == []
    assert leaked(password, clip_end(text, limit)) == []


@given(texts(), st.integers(0, 200))
def test_f98_what_was_cut_before_anybody_could_look_is_redacted_when_that_is_known(
    given_text: tuple[str, str], at: int
) -> None:
    password, text = given_text
    # Of a part that holds neither scheme nor `@` nobody can tell: it has to be cut at one end only.
    assert leaked(password, redact(text[at:], begins_torn=True)) == []
    assert leaked(password, redact(text[:at], ends_torn=True)) == []


@given(NOISE, st.integers(0, 80))
def test_f98_a_text_without_a_url_is_cut_and_not_changed(text: str, limit: int) -> None:
    if "://" not in text:
        assert clip_start(text, limit) == text[:limit]
        assert clip_end(text, limit) == (text[-limit:] if limit else "")


def test_f98_a_url_behind_the_cut_is_looked_at_and_costs_no_more_than_itself() -> None:
    text = "x" * 90 + " amqp://bcd:secret@host refused"
    assert clip_start(text, 105) == "x" * 90 + " amqp://***@hos"
    assert clip_end("amqp://bcd:secret@host refused" + "x" * 10, 26) == "***@host refused" + "x" * 10


@pytest.mark.parametrize("cut", range(1, 40))
def test_f98_the_headers_of_a_dead_letter_are_cut_without_severing_a_password(cut: int) -> None:
    url = "amqp://bcd:QXZ0QXZ0@host"
    # So that the traceback's start, and the error's end, are cut at each place within the URL.
    traceback = url + "x" * (8 * 1024 - len(url) + cut)
    error = "x" * (1024 - cut) + url
    settlement = settle(Raised(error, traceback))
    assert isinstance(settlement, DeadLetter)
    assert leaked("QXZ0QXZ0", str(settlement.headers)) == []
    verdict = m.Verdict(3, "SIGSEGV", evidence=url + "x" * (EVIDENCE_MAX - len(url) + cut))
    assert leaked("QXZ0QXZ0", str(settle(Condemned(verdict)))) == []


def test_f98_a_report_that_is_too_long_is_cut_without_severing_a_password() -> None:
    kinds = frames.kinds_of(m.WorkerReport)
    hint: Any = get_type_hints(m.Parked, include_extras=True)["because"]
    [most] = hint.__metadata__
    for cut in range(1, 24):
        because = "x" * (most - cut) + "amqp://bcd:QXZ0QXZ0@host"
        report = frames.read(frames.write(m.Parked("one", "rejected", because, 1, "now")), kinds)
        assert leaked("QXZ0QXZ0", report.because) == []
