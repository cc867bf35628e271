"""What of our headers and of the sender's goes into one frame."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import data
from pika.frame import Header

from supervisor import queues
from supervisor.amqp.properties import NAMES, NUMBERS, Field, fields
from supervisor.worker.labels import fit, labelled

ESSENTIAL = {queues.ATTEMPT: 3, queues.REASON: "exception", queues.QUEUE: "jobs"}
ENDS = (queues.TRACEBACK, queues.EVIDENCE)
CUT = (queues.ERROR, queues.PROPERTIES, *ENDS)
ROOMIEST = 128 * 1024
SHORT = [name for name in NAMES if name != "headers" and name not in NUMBERS]


def size(headers: dict[str, Any]) -> int:
    return int(data.encode_table([], headers)) - 4


def total(entries: list[Field]) -> int:
    return sum(len(entry.encoded) for entry in entries)


def encoded(headers: dict[str, Any]) -> list[Field]:
    pieces: list[bytes] = []
    data.encode_table(pieces, headers)
    return list(fields(b"".join(pieces)))


def text(length: int) -> str:
    """Of so many characters, of one to four bytes each, no two parts alike."""
    return "".join("aé€😀"[at % 4] + str(at) for at in range(length))[:length]


def headers_of(most: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.text("abcdefgh", min_size=1, max_size=8), st.integers(0, most).map(text), max_size=6)


ours = st.fixed_dictionaries(
    {},
    optional={
        queues.ERROR: st.integers(0, 1000).map(text),
        queues.TRACEBACK: st.integers(0, 6000).map(text),
        queues.EVIDENCE: st.integers(0, 9000).map(text),
        queues.PROPERTIES: st.integers(0, 90_000).map(bytes),
        queues.CRASHES: st.integers(0, 100),
        queues.CAUSE: st.just("SIGSEGV"),
        queues.HOST: st.just("a-host"),
    },
).map(lambda more: ESSENTIAL | more)


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(ours=ours, theirs=headers_of(6000).map(encoded), room=st.integers(800, 4096) | st.integers(800, ROOMIEST))
def test_f119_what_is_chosen_fits_and_nothing_is_given_up_without_need(
    ours: dict[str, Any], theirs: list[Field], room: int
) -> None:
    chosen, kept = fit(ours, theirs, room)
    assert size(chosen) + total(kept) <= room
    small = {name: value for name, value in ours.items() if name not in CUT}
    assert small.items() <= chosen.items()
    assert [entry for entry in theirs if entry in kept] == kept
    for name in ours.keys() & chosen.keys():
        if chosen[name] != ours[name]:
            assert len(chosen[name]) < len(ours[name])
            assert ours[name].endswith(chosen[name]) if name in ENDS else ours[name].startswith(chosen[name])
    if size(ours) + total(theirs) <= room:
        assert (chosen, kept) == (ours, theirs)
    if queues.PROPERTIES not in ours and size(small) + 160 + total(theirs) <= room:
        assert kept == theirs  # the sender's headers are part of the work, and ours go first
    gone = [entry for entry in theirs if entry not in kept]
    assert bool(gone) == (queues.DROPPED in chosen)
    assert max((len(entry.encoded) for entry in kept), default=0) <= min(
        (len(entry.encoded) for entry in gone), default=ROOMIEST
    )
    if queues.ERROR in ours:
        assert len(chosen[queues.ERROR].encode()) >= min(len(ours[queues.ERROR].encode()), 125)
    if queues.EVIDENCE in ours.keys() & chosen.keys():
        assert chosen.get(queues.TRACEBACK) == ours.get(queues.TRACEBACK)  # it is the last to get any room


@settings(derandomize=True, deadline=None, database=None, max_examples=80)
@given(
    ours=ours,
    theirs=headers_of(3000),
    short=st.dictionaries(st.sampled_from(SHORT), st.integers(1, 255).map(lambda length: "x" * length)),
    frame_max=st.sampled_from([4096, 8192, ROOMIEST]),
)
def test_f119_the_content_header_is_no_longer_than_the_frame_agreed_upon(
    ours: dict[str, Any], theirs: dict[str, str], short: dict[str, Any], frame_max: int
) -> None:
    raw = b"".join(pika.BasicProperties(headers=theirs or None, **short).encode())
    properties: Any = pika.BasicProperties().decode(raw)
    properties.raw = raw
    made: Any = labelled(properties, ours, frame_max, expiration="3600000")  # as a delay has it
    assert len(Header(1, 5, made).marshal()) <= frame_max
    again: Any = pika.BasicProperties().decode(b"".join(made.encode()))
    assert ESSENTIAL.items() <= again.headers.items()
    assert all(getattr(again, name) == value for name, value in short.items() if name not in ("expiration", "user_id"))


@pytest.mark.parametrize("room", [300, 700, 3000])
def test_f119_the_small_ones_go_before_the_traceback_and_the_traceback_before_the_evidence(room: int) -> None:
    texts = {queues.EVIDENCE: "e" * 9000, queues.TRACEBACK: "t" * 8000 + "the end", queues.ERROR: "KeyError: 7"}
    chosen, _ = fit(ESSENTIAL | texts, [], room)
    assert chosen[queues.ERROR] == "KeyError: 7"
    assert chosen[queues.TRACEBACK].endswith("the end")
    assert queues.EVIDENCE not in chosen
