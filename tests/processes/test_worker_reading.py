"""How often the supervisor looks at a worker: always, unless it idles, has not grown and nothing was written on its
page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from supervisor.parent import worker as looking
from supervisor.parent.worker import Worker
from supervisor.scoreboard import Pen, Scoreboard
from supervisor.vocabulary import Phase, Reading
from tests.supervision import eventually

GROWING = (
    "import sys; kept = []; print(flush=True)\nfor _ in sys.stdin: kept.append(b'1' * 10_000_000); print(flush=True)"
)
PAGE = 0
STILL = 15.0


class Looked:
    """A process whose page says what the test wants, at a time that the test sets."""

    def __init__(self, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.board = Scoreboard.create()
        self.pen: Pen = self.board.pen(PAGE)
        self.pen.beat()
        self.at = self.board.read(PAGE).beat
        monkeypatch.setattr(looking, "now", lambda: self.at)
        nobody: Any = None
        self.process = process
        self.status = psutil.Process(process.pid).status
        self.worker = Worker(process.pid, -1, nobody, nobody, nobody, PAGE, 1, STILL, 0)

    def grow(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def look(self, after: float = 1.0) -> Reading:
        self.at += after
        return self.worker.read(self.board)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looked]:
    command = sys.executable, "-c", GROWING
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield Looked(process, monkeypatch)
        process.kill()


def test_an_idle_worker_that_writes_nothing_is_looked_at_every_few_seconds(looked: Looked) -> None:
    looked.pen.phase(Phase.IDLE)
    looked.look()
    first = looked.look()
    assert first.pid == looked.process.pid and first.rss > 0
    assert all(looked.look() is first for _ in range(4))
    assert looked.look() is not first


def test_one_that_grows_while_it_idles_is_looked_at_each_time(looked: Looked) -> None:
    looked.pen.phase(Phase.IDLE)
    sizes = [looked.look().rss]
    for _ in range(3):
        looked.grow()
        sizes.append(looked.look().rss)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("write", [Pen.beat, Pen.returned, lambda pen: pen.count("succeeded")])
def test_it_is_looked_at_as_soon_as_it_has_written(looked: Looked, write: Any) -> None:
    looked.pen.phase(Phase.IDLE)
    looked.look()
    first = looked.look()
    write(looked.pen)
    assert looked.look(0.0) is not first


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.IDLE}))
def test_one_that_is_not_idle_is_looked_at_each_time_for_its_memory_may_grow(looked: Looked, phase: Phase) -> None:
    looked.pen.phase(phase)
    looked.look()
    first = looked.look()
    assert looked.look() is not first


def test_one_whose_loop_stands_still_is_asked_each_time_whether_it_is_stopped(looked: Looked) -> None:
    looked.pen.phase(Phase.IDLE)
    os.kill(looked.process.pid, signal.SIGSTOP)
    eventually(lambda: looked.status() == psutil.STATUS_STOPPED)
    assert not looked.look(STILL - 1).is_stopped
    assert looked.look(1.1).is_stopped
    os.kill(looked.process.pid, signal.SIGCONT)
    eventually(lambda: looked.status() != psutil.STATUS_STOPPED)
    assert not looked.look().is_stopped
