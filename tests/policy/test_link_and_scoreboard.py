"""What goes over a link, and what stands on the scoreboard: that it comes out as it went in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import messages as m
from supervisor import vocabulary as v
from supervisor.link import MAX_BYTES, Link
from supervisor.scoreboard import SLOTS, Scoreboard

MESSAGES = [
    m.Loaded(0.25, preloaded=True),
    m.Threaded(["pool-1", "grpc_global_tim"]),
    m.LoadFailed("ImportError: no module", "Traceback ..."),
    m.Forked(17, 4711),
    m.ForkFailed(17, "fork: Resource temporarily unavailable"),
    m.Connecting(),
    m.Ready("127.0.0.1:5672", "quorum"),
    m.Suspect("key \N{SNOWMAN} \N{PILE OF POO}", 2),
    m.Depth(10, 2),
    m.DeadDepth(3),
    m.Parked("k", "crash", "it has killed 3 workers", 1, "2024-02-29T12:00:00Z", "SIGSEGV", 3, "Fatal Python error"),
    m.Leaving(v.Cause.BROKER, "connection reset"),
    m.Record('{"event": "x"}'),
    m.Load({"handler": "tasks:handle", "workers": 2}, preload=False, parent=1, generation=1),
    m.Fork(17),
    m.Begin(3),
    m.Drain(finish=True),
    m.Measure(),
    m.Verdict("k", run=False, crashes=3, cause="SIGSEGV", evidence="Fatal Python error"),
]


@pytest.fixture
def pair() -> Iterator[tuple[Link, Link]]:
    ends = Link.pair()
    yield ends
    for end in ends:
        end.close()


@pytest.fixture(scope="module")
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    os.close(board.fd)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_report_and_order_arrives_as_it_was_sent(pair: tuple[Link, Link], message: object) -> None:
    here, there = pair
    assert here.send(message)
    assert there.receive() == (message, [])


def test_messages_arrive_one_by_one_in_order(pair: tuple[Link, Link]) -> None:
    here, there = pair
    for message in MESSAGES:
        here.send(message)
    received = [there.receive(wait=False) for _ in MESSAGES]
    assert [each[0] for each in received if each] == MESSAGES
    with pytest.raises(BlockingIOError):
        there.receive(wait=False)


def test_descriptors_travel_along_and_are_not_inherited(pair: tuple[Link, Link]) -> None:
    here, there = pair
    reader, writer = os.pipe()
    here.send(m.Fork(1), (writer,))
    os.close(writer)
    received = there.receive()
    assert received is not None
    message, (copy,) = received
    assert message == m.Fork(1)
    assert not os.get_inheritable(copy)
    os.write(copy, b"x")
    assert os.read(reader, 1) == b"x"
    os.close(copy)
    os.close(reader)


def test_the_end_of_one_side_is_told_to_the_other(pair: tuple[Link, Link]) -> None:
    here, there = pair
    here.send(m.Leaving("drained"))
    here.close()
    assert there.receive() == (m.Leaving("drained"), [])
    assert there.receive() is None
    assert there.send(m.Begin(3)) is False


def test_a_full_link_does_not_block_who_will_not_wait(pair: tuple[Link, Link]) -> None:
    here, _ = pair
    assert not all(here.send(m.Begin(3), wait=False) for _ in range(100_000))


def test_a_message_that_is_too_long_is_refused(pair: tuple[Link, Link]) -> None:
    with pytest.raises(ValueError, match=r"Record of .* bytes is too long"):
        pair[0].send(m.Record("x" * MAX_BYTES))


def test_a_new_page_is_vacant(board: Scoreboard) -> None:
    reading = board.read(SLOTS - 1)
    assert (reading.pid, reading.phase, reading.hand) == (0, v.Phase.VACANT, None)
    assert reading.counts == v.Counts(buckets=(0,) * (len(v.BOUNDS) + 1))


@settings(derandomize=True, deadline=None, database=None)
@given(
    key=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60),
    is_id=st.booleans(),
    tag=st.integers(0, 2**64 - 1),
    attempt=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 1),
    redelivered=st.booleans(),
)
def test_what_is_in_hand_reads_as_it_was_written(
    board: Scoreboard, key: str, is_id: bool, tag: int, attempt: int, step: int, redelivered: bool
) -> None:
    pen = board.pen(5)
    pen.open(4711)
    since = pen.take(key.encode(), is_id, tag, attempt, redelivered, step=step)
    expected = v.InHand(key, key if is_id else None, tag, attempt, redelivered, since, step=step)
    reading = board.read(5)
    assert (reading.pid, reading.phase, reading.hand) == (4711, v.Phase.BUSY, expected)


def test_a_key_is_cut_at_255_bytes(board: Scoreboard) -> None:
    pen = board.pen(6)
    pen.take(b"k" * 300, True, 1, 1, False)
    hand = board.read(6).hand
    assert hand is not None
    assert hand.key == "k" * 255


def test_a_message_stays_in_hand_until_it_is_settled(board: Scoreboard) -> None:
    pen = board.pen(7)
    pen.take(b"k", True, 1, 1, False)
    pen.returned()
    hand = board.read(7).hand
    assert hand is not None
    assert hand.settling
    pen.settled("succeeded", 0.003)
    assert board.read(7).hand is None


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (3600.0, len(v.BOUNDS) - 1), (3601.0, len(v.BOUNDS))]
)
def test_a_duration_is_counted_once_under_the_first_bound_that_holds_it(
    board: Scoreboard, seconds: float, bucket: int
) -> None:
    pen = board.pen(8)
    before = board.read(8).counts
    pen.count("failed")
    pen.settled("dead_lettered", seconds)
    after = board.read(8).counts
    assert [b - a for a, b in zip(before.buckets, after.buckets, strict=True)] == [
        int(number == bucket) for number in range(len(v.BOUNDS) + 1)
    ]
    assert (after.dead_lettered, after.failed) == (before.dead_lettered + 1, before.failed + 1)
    assert after.busy_seconds == pytest.approx(before.busy_seconds + seconds)


def test_each_counter_has_a_place_of_its_own(board: Scoreboard) -> None:
    names = [name for name in v.Counts.__dataclass_fields__ if name not in ("busy_seconds", "buckets", "due")]
    pen = board.pen(9)
    for number, name in enumerate(names, 1):
        pen.count(name, number)
    counts = board.read(9).counts
    assert [getattr(counts, name) for name in names] == list(range(1, len(names) + 1))


def test_neighbours_do_not_touch(board: Scoreboard) -> None:
    def neighbours() -> list[v.Reading]:
        # Of a page that nobody has opened the beat is now.
        return [replace(board.read(slot), beat=0.0) for slot in (10, 12)]

    before = neighbours()
    pen = board.pen(11)
    pen.open(1)
    pen.take(b"k" * 255, True, 2**64 - 1, 2**32 - 1, True)
    pen.settled("succeeded", 1e9)
    assert neighbours() == before


def test_vacating_a_page_keeps_its_totals(board: Scoreboard) -> None:
    pen = board.pen(13)
    pen.open(4711)
    pen.settled("succeeded", 1.0)
    pen.take(b"k", True, 1, 1, False)
    board.call(13)
    assert pen.is_called()
    board.vacate(13)
    reading = board.read(13)
    assert (reading.pid, reading.phase, reading.hand, reading.counts.succeeded) == (0, v.Phase.VACANT, None, 1)
    assert not pen.is_called()
