"""A process that stands still while something is decided about it."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.parent import standstill
from supervisor.parent.child import Child
from supervisor.parent.processes import Processes
from supervisor.vocabulary import Counts, InHand, Phase, Reading
from tests.supervision import eventually

COUNTS = """
import mmap, os, signal, sys
page = mmap.mmap(int(sys.argv[1]), 4096)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(page[8]))
while True:
    page[0:8] = (int.from_bytes(page[0:8], "little") + 1).to_bytes(8, "little")
"""
"""Counts, and ends on SIGUSR1 with the number that it finds there."""


class Counting:
    """What `standstill` needs of a child, and its count."""

    def __init__(self, program: str = COUNTS, *fds: int) -> None:
        fd = os.memfd_create("count", 0)
        os.ftruncate(fd, 4096)
        self.page = mmap.mmap(fd, 4096)
        self.pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program, *map(str, (fd, *fds))], os.environ)
        self.pidfd = os.pidfd_open(self.pid)
        os.close(fd)

    signal = Child.signal

    @property
    def count(self) -> int:
        return int.from_bytes(self.page[0:8], "little")


@contextmanager
def running(program: str = COUNTS, *fds: int) -> Iterator[Counting]:
    counting = Counting(program, *fds)
    try:
        eventually(lambda: counting.count)
        yield counting
    finally:
        try:
            counting.signal(signal.SIGKILL)
            os.waitid(os.P_PIDFD, counting.pidfd, os.WEXITED)
        except OSError:
            pass  # the test has seen its end
        os.close(counting.pidfd)


@pytest.fixture
def child() -> Iterator[Counting]:
    with running() as counting:
        yield counting


THREADS = """
import faulthandler, mmap, sys, threading, time

def beside():
    while True:
        time.sleep(0.0001)

def main():
    page = mmap.mmap(int(sys.argv[1]), 4096)
    for _ in range(8):
        threading.Thread(target=beside, daemon=True).start()
    faulthandler.enable(int(sys.argv[2]))
    while True:
        page[0:8] = (int.from_bytes(page[0:8], "little") + 1).to_bytes(8, "little")

main()
"""
"""Its main thread counts; eight others wake up all the time."""


def test_it_does_nothing_for_the_block_and_goes_on_afterwards(child: Any) -> None:
    with standstill.of([child]):
        before = child.count
        time.sleep(0.05)
        assert child.count == before
    eventually(lambda: child.count > before)


def test_a_signal_sent_meanwhile_is_the_first_thing_that_it_hears(child: Any) -> None:
    with standstill.of([child]):
        child.signal(signal.SIGUSR1)
        child.page[8] = 42
        before = child.count
    ended = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    assert ended is not None and ended.si_status == 42
    assert child.count <= before + 1


def test_sigkill_does_not_wait_for_the_end_of_the_block(child: Any) -> None:
    with standstill.of([child]):
        child.signal(signal.SIGKILL)
        ended = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    assert ended is not None and ended.si_status == signal.SIGKILL


def test_one_that_is_gone_already_is_no_trouble(child: Any) -> None:
    gone: Any = SimpleNamespace(pidfd=child.pidfd, signal=lambda number: os.kill(2**22 + 1, number))
    with standstill.of([gone, child]):
        assert Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2][0] == "T"


def test_an_abort_sent_meanwhile_is_heard_by_the_main_thread_whoever_else_is_first_to_run() -> None:
    for _ in range(10):
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        with open(reader, encoding="utf-8") as output, running(THREADS, writer) as child:
            os.close(writer)
            threaded: Any = child
            with standstill.of([threaded]):
                child.signal(signal.SIGABRT)
            said = output.read()
        current = said.partition("Current thread ")[2].partition("\n\n")[0]
        assert " in main\n" in current, said


def test_whoever_comes_to_have_the_message_while_another_is_stopped_is_stopped_too() -> None:
    """Redelivered in that moment: what is decided then would be about a worker that moves on."""
    with running() as first, running() as second:
        looks = 0

        def read(worker: Any) -> Reading:
            nonlocal looks
            looks += 1
            has_it = worker.page == 0 or looks > 2
            hand = InHand("m", "m", 1, 1, False, 0.0) if has_it else None
            return Reading(worker.page, worker.pid, Phase.BUSY, hand, 0.0, Counts(), 0)

        children = {page: Held(child, page) for page, child in enumerate((first, second))}
        with Processes.still(SimpleNamespace(_workers=children, _read=read), "m") as readings:  # type: ignore[arg-type]
            before = first.count, second.count
            time.sleep(0.05)
            assert (first.count, second.count) == before
        assert [page.hand is not None for page in readings] == [True, True]


class Held:
    """A child, as a worker with a page."""

    def __init__(self, child: Counting, page: int) -> None:
        self.pid, self.pidfd, self.signal, self.page = child.pid, child.pidfd, child.signal, page
