"""The scoreboard under SIGKILL: what it holds afterwards is what the dead worker did."""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.clock import now
from supervisor.scoreboard import SLOTS, Scoreboard
from supervisor.vocabulary import BOUNDS, LOG_SPACE, Counts, InHand, Phase, Reading

ROOT = Path(__file__).parents[2]


def forked(child: Callable[[], None]) -> int:
    """Run this in a forked process that ends with it."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    return pid


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_killed_worker_had_in_hand_is_read_after_its_death() -> None:
    board = Scoreboard.create()
    reader, writer = os.pipe()

    def work() -> None:
        pen = board.pen(3)
        pen.open(os.getpid())
        pen.take(b"invoice-7", True, 42, 2, True)
        os.write(writer, b"x")
        signal.pause()

    pid = forked(work)
    os.read(reader, 1)
    killed(pid)
    reading = board.read(3)
    assert reading.pid == pid
    assert reading.phase is Phase.BUSY
    hand = reading.hand
    assert hand is not None
    assert (hand.key, hand.message_id, hand.delivery_tag, hand.attempt, hand.redelivered) == (
        "invoice-7",
        "invoice-7",
        42,
        2,
        True,
    )
    assert not hand.settling
    board.vacate(3)
    assert board.read(3).hand is None
    os.close(reader)
    os.close(writer)


def test_a_worker_killed_at_any_instant_leaves_a_whole_note_and_totals_that_never_go_back() -> None:
    board = Scoreboard.create()
    dice = random.Random(7)
    seen = 0
    busy = 0
    for _ in range(60):
        reader, writer = os.pipe()

        def work(writer: int = writer) -> None:
            pen = board.pen(0)
            pen.open(os.getpid())
            tag = 0
            while True:
                tag += 1
                letter = b"abcdefgh"[tag % 8 : tag % 8 + 1]
                pen.take(letter * (1 + tag % 200), True, tag, 1, False)
                if tag == 100:
                    os.write(writer, b"x")
                pen.returned()
                pen.settled("succeeded", 0.001)

        pid = forked(work)
        os.read(reader, 1)
        for _ in range(dice.randrange(2000)):
            pass
        killed(pid)
        os.close(reader)
        os.close(writer)
        reading = board.read(0)
        if reading.hand is not None:
            busy += 1
            tag = reading.hand.delivery_tag
            assert reading.hand.key == "abcdefgh"[tag % 8] * (1 + tag % 200)
        assert reading.counts.succeeded >= seen + 99
        assert 0 <= reading.counts.succeeded - sum(reading.counts.buckets) <= 60
        seen = reading.counts.succeeded
    assert busy, "no worker was ever killed with a message in hand: this tested nothing"


def test_a_message_without_an_id_is_known_by_its_key_only() -> None:
    board = Scoreboard.create()
    board.pen(0).take(b"digest:0123", False, 1, 1, False)
    hand = board.read(0).hand
    assert hand is not None
    assert (hand.key, hand.message_id) == ("digest:0123", None)


def test_f120_who_is_blamed_is_the_id_with_the_checksum_and_who_is_shown_is_the_id() -> None:
    board = Scoreboard.create()
    named, unnamed = (
        InHand("a b 0000abcd", "a b", 1, 1, False, 0.0),
        InHand("digest:01 0000abcd", None, 1, 1, False, 0.0),
    )
    for slot, hand in enumerate((named, unnamed)):
        pen = board.pen(slot)
        since = pen.take(hand.name.encode(), hand is named, 1, 1, False, "", 0xABCD)
        assert board.read(slot).hand == replace(hand, since=since)
    assert (named.name, unnamed.name) == ("a b", "digest:01")


@pytest.mark.parametrize("key", [b"x" * 255, b"x" * 4000, "schöne-Grüße".encode(), b"\xff\xfe", b""])
def test_any_key_fits_and_spoils_nothing_beside_it(key: bytes) -> None:
    board = Scoreboard.create()
    pen = board.pen(1)
    pen.settled("succeeded", 0.5)
    pen.take(key, True, 1, 1, False)
    reading = board.read(1)
    assert reading.hand is not None
    assert reading.hand.key == key[:255].decode("utf-8", "replace")
    assert reading.counts.succeeded == 1
    assert board.read(0).counts == board.read(2).counts == board.read(SLOTS - 1).counts


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (3600.0, len(BOUNDS) - 1), (1e6, len(BOUNDS))]
)
def test_a_duration_is_counted_in_the_bucket_whose_bound_it_does_not_exceed(seconds: float, bucket: int) -> None:
    board = Scoreboard.create()
    board.pen(0).count("failed")
    board.pen(0).settled("dead_lettered", seconds)
    counts = board.read(0).counts
    assert [i for i, count in enumerate(counts.buckets) if count] == [bucket]
    assert (counts.failed, counts.dead_lettered, counts.busy_seconds) == (1, 1, seconds)


def test_a_call_is_seen_by_the_worker_and_gone_with_it() -> None:
    board = Scoreboard.create()
    pen = board.pen(0)
    assert not pen.is_called()
    board.call(0)
    assert pen.is_called()
    board.vacate(0)
    assert not pen.is_called()


def test_f96_its_size_is_sealed() -> None:
    board = Scoreboard.create()
    size = os.fstat(board.fd).st_size
    for length in (0, 4096, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fd, length)
    with pytest.raises(PermissionError):
        fcntl.fcntl(board.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(board.fd).st_size == size


def test_f96_a_worker_maps_its_own_page_and_no_other() -> None:
    board = Scoreboard.create()
    board.read(0)  # the parent maps it all
    program = f"""
import os
from supervisor.scoreboard import Scoreboard
pen = Scoreboard({board.fd}).pen(5)
pen.open(7)
[line] = [line for line in open("/proc/self/maps") if "workq-scoreboard" in line]
start, end = (int(number, 16) for number in line.split()[0].split("-"))
print(end - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], pass_fds=[board.fd], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) == mmap.PAGESIZE
    assert board.read(5).pid == 7


GARBAGE = {
    "zeroes": bytes(4096),
    "ones": b"\xff" * 4096,
    "nan": struct.pack("<d", math.nan) * 512,
    "infinity": struct.pack("<d", math.inf) * 512,
    "minus infinity": struct.pack("<d", -math.inf) * 512,
    "negative": struct.pack("<d", -1e300) * 512,
    "busy": struct.pack("<BBHId", 4, 1, 0, 1, 1e308) + b"\xff" * 4080,
}


@pytest.mark.parametrize("page", GARBAGE.values(), ids=GARBAGE.keys())
def test_f96_totals_survive_what_is_written_over_them_and_go_on_from_there(page: bytes) -> None:
    board = Scoreboard.create()
    pen = board.pen(2)
    pen.open(os.getpid())
    for _ in range(3):
        pen.settled("succeeded", 0.25)
    before = board.read(2).counts
    write(board, 2, page)
    assert sane(board.read(2)).counts == replace(before, due=0.0)
    pen.settled("succeeded", 0.25)
    after = sane(board.read(2)).counts  # without the last one, where the number had no room for it
    pen.settled("succeeded", 0.25)
    counts = sane(board.read(2)).counts
    assert counts.succeeded == after.succeeded + 1 >= 4
    assert sum(counts.buckets) == sum(after.buckets) + 1
    write(board, 2, GARBAGE["zeroes"])
    assert board.read(2).counts == counts


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=1200) | st.sampled_from([*GARBAGE.values()]), min_size=1, max_size=5))
def test_f96_whatever_is_written_on_a_page_reads_as_something_that_can_be_and_never_goes_back(
    pages: list[bytes],
) -> None:
    board = BOARD
    before = board.read(3).counts
    for page in pages:
        write(board, 3, page)
        reading = sane(board.read(3))
        assert all(new >= old for new, old in zip(totals(reading.counts), totals(before), strict=True))
        before = reading.counts


BOARD = Scoreboard.create()


def write(board: Scoreboard, slot: int, content: bytes) -> None:
    """By the descriptor, as any worker can."""
    os.pwrite(board.fd, content, LOG_SPACE + 4096 * slot)


def totals(counts: Counts) -> list[float]:
    return [*counts.buckets, *(v for name, v in asdict(counts).items() if name not in ("buckets", "due"))]


def sane(reading: Reading) -> Reading:
    """Fails for a reading that no worker can have."""
    assert reading.phase in Phase
    assert 0 <= reading.beat <= now()
    assert all(math.isfinite(number) and number >= 0 for number in totals(reading.counts))
    assert 0 <= reading.counts.due < now() + 400 * 86400
    if reading.hand is not None:
        assert len(reading.hand.key) < 300
        assert 0 <= reading.hand.since <= now()
        json.dumps(asdict(reading.hand), allow_nan=False).encode()
    return reading
