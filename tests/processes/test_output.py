"""What a child prints: tagged, limited, and its end kept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import supervisor
from supervisor.parent.dumps import LEFT_OUT
from supervisor.parent.output import (
    BYTES_PER_SECOND,
    LINE_MAX,
    LINES_PER_SECOND,
    TAIL,
    TEXT_PER_SECOND,
    UNMARKED,
    Output,
)
from supervisor.scoreboard import Pen, Scoreboard


class Heard:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.suppressed = 0

    def bind(self, **_: object) -> Heard:
        return self

    def info(self, _: str, line: str) -> None:
        self.lines.append(line)

    def warning(self, _: str, suppressed_lines: int, **__: Any) -> None:
        self.suppressed += suppressed_lines


def output(data: bytes) -> tuple[Output, Heard]:
    """An Output whose writer wrote this (what a pipe can hold) and went."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    heard = Heard()
    return Output(reader, heard, slot=0), heard


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"no newline at the end", ["no newline at the end"]),
        (b"\n\nblank\r\n\n", ["blank"]),
        (b"\xff\x00binary\n", ["�\x00binary"]),
        (b"", []),
    ],
)
def test_each_line_is_an_event(data: bytes, lines: list[str]) -> None:
    out, heard = output(data)
    out.drain()
    assert heard.lines == lines
    out.close()


def test_a_long_line_is_cut_into_pieces_and_none_is_longer_than_the_limit() -> None:
    out, heard = output(b"x" * 50_000 + b"\nafter\n")
    out.drain()
    assert all(len(line) <= LINE_MAX + 20 for line in heard.lines)
    assert heard.lines[-1] == "after"
    out.close()


def test_too_many_lines_are_counted_instead_of_logged() -> None:
    out, heard = output(b"x\n" * (LINES_PER_SECOND + 500))
    out.drain()
    assert len(heard.lines) == LINES_PER_SECOND
    assert heard.suppressed == 500
    out.close()


def test_the_tail_is_kept_as_evidence() -> None:
    out, _ = output(b"begin" + b"." * 60_000 + b"the end")
    out.drain()
    assert len(out.tail) == TAIL
    assert out.tail.endswith("the end")
    out.close()


def test_a_child_that_writes_without_end_runs_out_of_budget_until_the_next_second() -> None:
    reader, writer = os.pipe()
    out = Output(reader, Heard(), slot=0)
    written = 0
    while not out.is_over_budget:
        written += os.write(writer, b"y" * 32_768)
        assert out.read()
        assert written <= BYTES_PER_SECOND + 65_536
    out.refill()
    assert not out.is_over_budget
    os.close(writer)
    out.close()


def test_f97_what_is_too_much_is_counted_without_being_looked_at_line_by_line() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    heard = Heard()
    out = Output(reader, heard, slot=0)
    for _ in range(20):
        os.write(writer, b"z" * 1023 + b"\n" * (65_536 - 1023))
        out.read()
    assert out.refill() == heard.suppressed > 1_000_000
    assert sum(map(len, heard.lines)) < 2 * TEXT_PER_SECOND
    os.write(writer, b"\nthe next second\n")
    out.read()
    assert heard.lines[-1] == "the next second"
    os.close(writer)
    out.close()


def test_f97_long_lines_are_limited_by_their_bytes_and_the_end_is_kept_as_evidence() -> None:
    reader, writer = os.pipe()
    heard = Heard()
    out = Output(reader, heard, slot=0)
    for _ in range(64):
        os.write(writer, b"\xff" * 60_000)
        out.read()
    assert sum(map(len, heard.lines)) <= TEXT_PER_SECOND + LINE_MAX
    os.write(writer, b"Fatal Python error\n")
    os.close(writer)
    assert out.drain() > 0
    assert out.tail.endswith("Fatal Python error\n")
    out.close()


def test_f97_a_child_that_takes_back_what_it_has_written_is_still_read_from() -> None:
    reader, writer = os.pipe()
    out = Output(reader, heard := Heard(), slot=0)
    assert out.read()  # there is nothing, and it is not over
    os.write(writer, b"at last\n")
    os.close(writer)
    assert out.read()
    assert heard.lines == ["at last"]
    assert not out.read()
    out.close()


PASSWORD = "hunter2-0815"


def leaks(*texts: str) -> list[str]:
    pieces = {PASSWORD[at : at + 4] for at in range(len(PASSWORD) - 3)}
    return [piece for piece in sorted(pieces) if any(piece in text for text in texts)]


@pytest.mark.parametrize("ending", ["\n", "", " refused, see bob@example.org\n", "x" * LINE_MAX + "\n"])
@pytest.mark.parametrize("scheme", ["amqp://", "AMQPS://"])
def test_f98_a_url_that_a_cut_severs_is_redacted_in_the_log_and_in_the_evidence(scheme: str, ending: str) -> None:
    url = f"{scheme}carol:{PASSWORD}@elsewhere/%2F"
    for place in (LINE_MAX, TAIL):
        for cut in range(len(url) + 1):
            reader, writer = os.pipe()
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 18)
            heard = Heard()
            out = Output(reader, heard, slot=0)
            # The line's first part is cut where the line is, and its last part where the evidence begins.
            os.write(writer, ("." * (place - cut) + url + ending).encode())
            assert out.read()
            os.write(writer, ("." * (TAIL - len(ending) - cut) + "\n").encode())
            os.close(writer)
            out.drain()
            assert leaks(*heard.lines, out.tail) == [], (place, cut)
            assert all(len(line) <= LINE_MAX + 20 for line in heard.lines)
            out.close()


def test_f98_a_url_that_its_writers_death_has_torn_is_dropped() -> None:
    for end in range(len(PASSWORD) + 1):
        out, heard = output(b"refused: amqp://carol:" + PASSWORD[:end].encode())
        out.drain()
        assert heard.lines == ["refused: amqp://***"]
        assert out.tail == "refused: amqp://***"
        out.close()


def test_f98_of_what_is_only_counted_the_end_is_not_taken_for_a_whole_line() -> None:
    for cut in range(40):
        reader, writer = os.pipe()
        out = Output(reader, heard := Heard(), slot=0)
        os.write(writer, b"x\n" * (LINES_PER_SECOND + 1))
        assert out.read()
        url = f"amqp://carol:{PASSWORD}@elsewhere"
        os.write(writer, (url + "." * (LINE_MAX - len(url) + cut)).encode())
        assert out.read()
        out.refill()
        os.write(writer, b"\n")
        assert out.read()
        assert len(heard.lines[-1]) > 4000 and leaks(*heard.lines, out.tail) == []
        os.close(writer)
        out.close()


def test_f98_a_password_that_goes_on_in_the_next_piece_is_dropped_from_both() -> None:
    out, heard = output(b"." * 100 + f"amqp://carol:{PASSWORD * 800}@elsewhere".encode())
    out.drain()
    assert heard.lines == ["." * 100, "amqp://***", "***@elsewhere"]
    out.close()


def test_f98_a_long_line_with_a_url_keeps_what_surrounds_it() -> None:
    url = f"amqp://carol:{PASSWORD}@elsewhere"
    out, heard = output(b"x" * (LINE_MAX - 10) + url.encode() + b" refused")
    out.drain()
    # Dropped from the scheme on: nobody can tell whether this is all of it.
    assert heard.lines == ["x" * (LINE_MAX - 10), "amqp://***"]
    out.close()
    out, heard = output(b"x" * (LINE_MAX - 80) + url.encode() + b" refused" + b"." * 20 + b"\n")
    out.drain()
    assert heard.lines == ["x" * (LINE_MAX - 80) + "amqp://***@elsewhere refused" + "." * 20]
    out.close()
    out, heard = output(b"x" * (LINE_MAX - 2) + b"am" + b"y" * 40_000 + url.encode())
    out.drain()
    assert leaks(*heard.lines) == [] and sum(map(len, heard.lines)) > 48_000
    out.close()


PAGE = 3


@pytest.fixture
def marked() -> Iterator[tuple[Scoreboard, Pen, int, Output]]:
    """A worker's page on a scoreboard, the writing end of its output, and who reads that and notes how much."""
    board = Scoreboard.create()
    reader, writer = os.pipe()
    out = Output(reader, Heard(), partial(board.note_read, PAGE))
    yield board, board.pen(PAGE), writer, out
    out.close()
    os.close(board.fd)


def test_evidence_of_a_task_begins_where_the_task_does(marked: tuple[Scoreboard, Pen, int, Output]) -> None:
    board, pen, writer, out = marked
    os.write(writer, b"set-up\n")
    assert out.read()
    os.write(writer, b"the task before\n")
    pen.mark(writer)  # half of what came before is read, half is still in the pipe
    os.write(writer, b"the task\n")
    os.close(writer)
    out.drain()
    assert out.since(board.mark(PAGE)) == "the task\n"
    assert out.tail == "set-up\nthe task before\nthe task\n"


@pytest.mark.parametrize("mark", [0, 5, 30_000, 60_012])
def test_evidence_of_a_task_that_wrote_a_lot_or_nothing_is_the_end_of_its_own(mark: int) -> None:
    out, _ = output(b"begin" + b"." * 60_000 + b"the end")
    out.drain()
    assert out.since(mark) == (out.tail if mark < 60_012 else "")
    out.close()


def test_evidence_says_when_it_is_not_known_where_the_task_begins(marked: tuple[Scoreboard, Pen, int, Output]) -> None:
    board, pen, writer, out = marked
    os.write(writer, b"whose?\n")
    board.note_read(PAGE, 0, is_reading=True)  # a supervisor that has no processor while it reads
    pen.mark(writer)
    assert out.read()
    assert out.since(board.mark(PAGE)) == f"{UNMARKED}\nwhose?\n"
    assert out.since(1_000) == f"{UNMARKED}\nwhose?\n"  # a handler has written over it
    board.note_read(PAGE, 7)
    pen.mark(writer)
    assert board.mark(PAGE) == 7
    os.close(writer)  # as a handler may do
    pen.mark(writer)
    assert board.mark(PAGE) is None


OURS = f'  File "{os.path.dirname(supervisor.__file__)}/worker/handler.py", line 12 in run'
PYTHONS = f'  File "{os.__file__}", line 12 in wait'
THEIRS = '  File "/srv/tasks.py", line 12 in work'
INSTALLED = f'  File "{os.path.dirname(os.__file__)}/site-packages/theirs.py", line 12 in work'


@pytest.mark.parametrize(
    ("dump", "shown"),
    [
        ([THEIRS, OURS, PYTHONS, OURS], [THEIRS, LEFT_OUT]),
        ([OURS, PYTHONS, THEIRS, PYTHONS, OURS, OURS], [OURS, PYTHONS, THEIRS, PYTHONS, LEFT_OUT]),
        ([INSTALLED, OURS], [INSTALLED, LEFT_OUT]),
        ([PYTHONS, OURS, OURS], [PYTHONS, OURS, OURS]),
        ([THEIRS, PYTHONS], [THEIRS, PYTHONS]),
        ([THEIRS, OURS, "", "Thread 2:", OURS, OURS], [THEIRS, LEFT_OUT, "", "Thread 2:", OURS, OURS]),
        ([THEIRS, "", OURS], [THEIRS, "", OURS]),
        ([line.replace(" in ", ", in ") for line in (THEIRS, OURS)],) * 2,
    ],
)
def test_of_a_stack_the_frames_that_called_the_handler_are_left_out_and_no_others(
    dump: list[str], shown: list[str]
) -> None:
    out, heard = output("".join(f"{line}\n" for line in dump).encode())
    out.drain()
    assert heard.lines == [line for line in shown if line]
    assert out.tail == "".join(f"{line}\n" for line in shown)
    out.close()
