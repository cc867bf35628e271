"""What the parent lets through of what comes on a link: reports of that sender, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import frames
from supervisor import messages as m
from supervisor import vocabulary as v
from supervisor.frames import BadFrame, kinds_of
from tests.garbage import garbage

WORKER, NURSERY = kinds_of(m.WorkerReport), kinds_of(m.NurseryReport)
ENDS_WITH_THE_LINK = {"nothing", "larger than a frame"}
"""What `Link.hear` refuses, before anything is read."""
IS_A_LINES_BUSINESS = {"a lone surrogate in a line", "no line", "two lines", "no end of the line"}
"""What `logs.is_line` refuses."""
GARBAGE = {name: frame for name, frame in garbage() if name not in ENDS_WITH_THE_LINK | IS_A_LINES_BUSINESS}
SAMPLES = [
    m.Connecting(), m.Ready("amqp://h", "3.10.8", None), m.Ready("amqp://h", "", True), m.Suspect("k", 3),
    m.Depth(0, 1), m.DeadDepth(2), m.Nature(True), m.ParkingBlocked(True),
    m.Lost("reset", v.Kind.LOST, silence=5.1), m.Lost("why not", ""),
    m.Leaving(v.Cause.DRAINED),
    m.Leaving(v.Cause.BROKER, "\N{SNOWMAN}", v.Kind.TLS, True), m.LoadFailed("E", "T"), m.Record("{}\n"),
    m.Parked("k", "crash", "why", 1, "2024-02-29T12:00:00Z", "SIGSEGV", 3, "\N{PILE OF POO}"),
    m.Loaded(0.25, False), m.Threaded(["a", "b"]), m.Forked(1, 2), m.ForkFailed(1, "no"),
]  # fmt: skip


@pytest.mark.parametrize("frame", GARBAGE.values(), ids=GARBAGE.keys())
def test_f94_what_no_worker_sends_is_refused(frame: str) -> None:
    with pytest.raises(BadFrame) as refused:
        frames.read(frame.encode("latin-1"), WORKER)
    assert 0 < len(str(refused.value)) < 120


@pytest.mark.parametrize("message", SAMPLES, ids=repr)
def test_f94_every_report_is_let_through_from_its_own_sender_and_from_no_other(message: Any) -> None:
    for kinds in (WORKER, NURSERY):
        if type(message) in kinds:
            assert frames.read(frames.write(message), kinds) == message
        else:
            with pytest.raises(BadFrame, match="not allowed from it"):
                frames.read(frames.write(message), kinds)


def test_f94_the_samples_are_of_every_kind_of_report() -> None:
    assert {type(message) for message in SAMPLES} == WORKER | NURSERY


@pytest.mark.parametrize("order", get_args(m.Order), ids=lambda kind: kind.__name__)
def test_f94_no_order_is_let_through(order: type[Any]) -> None:
    frame = json.dumps([order.__name__, {field.name: 0 for field in dataclasses.fields(order)}]).encode()
    for kinds in (WORKER, NURSERY):
        with pytest.raises(BadFrame):
            frames.read(frame, kinds)


def test_f94_what_is_kept_is_cut_to_its_bound() -> None:
    long = m.Parked("k" * 9000, "r" * 9000, "b" * 9000, 1, "a" * 9000, "c" * 9000, 1, "e" * 9000)
    kept = frames.read(frames.write(long), WORKER)
    assert sum(len(value) for value in dataclasses.astuple(kept) if isinstance(value, str)) < 8 * 1024
    threads = frames.read(frames.write(m.Threaded(["t"] * 5000)), NURSERY).threads
    assert len(threads) == 1000


def test_f94_an_innocent_lone_surrogate_is_escaped_by_who_sends_it() -> None:
    sent = m.LoadFailed("no module in /srv/\udcff", "\N{PILE OF POO} \udcff")
    assert frames.read(frames.write(sent), NURSERY) == m.LoadFailed(
        "no module in /srv/\\udcff", "\N{PILE OF POO} \\udcff"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KINDS = [*get_args(m.WorkerReport), *get_args(m.NurseryReport), *get_args(m.Order)]


@st.composite
def almost_frames(draw: st.DrawFn) -> bytes:
    """The right names, and anything in the fields."""
    kind = draw(st.sampled_from(KINDS))
    names = [field.name for field in dataclasses.fields(kind)]
    fields = {name: draw(JSON | st.sampled_from([0, "", "k", True, 1.5, "drained", "lost"])) for name in names}
    return json.dumps([kind.__name__, fields]).encode()


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.binary() | JSON.map(lambda document: json.dumps(document).encode()) | almost_frames())
def test_f94_whatever_comes_is_a_report_that_can_be_logged_or_is_refused(data: bytes) -> None:
    try:
        report = frames.read(data, WORKER | NURSERY)
    except BadFrame:
        return
    assert type(report) in WORKER | NURSERY
    text = json.dumps(dataclasses.asdict(report), allow_nan=False, ensure_ascii=False)
    assert len(text.encode()) < frames.MAX_BYTES * 2
    for name, value in dataclasses.asdict(report).items():
        assert not isinstance(value, int) or 0 <= value < 2**63, name
