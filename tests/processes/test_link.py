"""Links: whole messages, descriptors, and the end of the file."""

from __future__ import annotations

import os
import signal

import pytest

from supervisor.link import MAX_BYTES, Link
from supervisor.messages import Drain, Fork, Leaving, Record, Verdict


def test_a_message_arrives_as_it_was_sent() -> None:
    one, other = Link.pair()
    for message in (Drain(finish=True), Leaving("broker", "it is away: “no”"), Verdict("k", run=False, crashes=3)):
        assert one.send(message)
        assert other.receive() == (message, [])


def test_descriptors_arrive_with_their_message_and_work() -> None:
    one, other = Link.pair()
    reader, writer = os.pipe()
    one.send(Fork(9), (writer,))
    os.close(writer)
    received = other.receive()
    assert received is not None
    message, [fd] = received
    assert message == Fork(9)
    assert not os.get_inheritable(fd)
    os.write(fd, b"hello")
    assert os.read(reader, 5) == b"hello"
    os.close(fd)
    os.close(reader)


def test_the_other_sides_death_is_the_end_of_the_file_and_its_last_words_come_first() -> None:
    one, other = Link.pair()
    pid = os.fork()
    if pid == 0:
        other.send(Leaving("broker", "last words"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    other.close()
    assert one.receive(wait=False) == (Leaving("broker", "last words"), [])
    assert one.receive(wait=False) is None
    assert one.send(Drain()) is False


def test_a_reader_that_does_not_read_never_blocks_a_sender_that_does_not_wait() -> None:
    one, other = Link.pair()
    line = Record("x" * 30_000)
    sent = 0
    while one.send(line, wait=False):
        sent += 1
        assert sent < 10_000
    assert sent >= 3
    assert all(other.receive(wait=False) == (line, []) for _ in range(sent))
    with pytest.raises(BlockingIOError):
        other.receive(wait=False)


def test_a_message_that_is_too_long_is_an_error_of_the_sender() -> None:
    one, _ = Link.pair()
    with pytest.raises(ValueError, match="too long"):
        one.send(Record("x" * (MAX_BYTES + 1)))


def test_last_words_are_heard_also_from_one_who_leaves_without_reading_what_it_was_told() -> None:
    one, other = Link.pair()
    assert one.send(Drain())
    assert other.send(Leaving("max_tasks", "--max-tasks 4 reached"))
    other.close()
    received = one.receive(wait=False)
    assert received is not None
    assert received[0] == Leaving("max_tasks", "--max-tasks 4 reached")
    assert one.receive(wait=False) is None
