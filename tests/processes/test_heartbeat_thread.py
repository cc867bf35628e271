"""The heartbeat thread takes over from a main thread that is busy, and sleeps beside one that waits."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.worker import heartbeats
from tests.supervision import PATIENCE, eventually


class Watched(heartbeats.Baton):
    """One that tells when the heartbeat thread has looked at it, before this acts on what it has seen."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.looked: Callable[[], None] = lambda: None
        super().__init__(wake)

    @property  # type: ignore[override]
    def free_since(self) -> float | None:
        since: float | None = heartbeats.Baton.free_since.__get__(self)  # type: ignore[attr-defined]
        if threading.current_thread() is not threading.main_thread():
            self.looked()
        return since

    @free_since.setter
    def free_since(self, since: float | None) -> None:
        heartbeats.Baton.free_since.__set__(self, since)  # type: ignore[attr-defined]

    @property
    def is_pumped(self) -> bool:
        """By the heartbeat thread, while a task runs."""
        return self._lock.locked()


class Main:
    """A main thread, its baton, and what the heartbeat thread does meanwhile."""

    def __init__(self) -> None:
        self.pumped = threading.Event()
        self.is_over = False
        self.thread = 0
        self._back = threading.Event()
        self.baton = Watched(self._back.set)
        self.baton.start(self._pump, self._has_ended)

    def _pump(self) -> None:
        self.pumped.set()
        self._back.wait()

    def _has_ended(self) -> bool:
        self.thread = threading.get_native_id()
        return self.is_over

    def begin(self) -> None:
        self._back.clear()
        self.pumped.clear()
        self.baton.__enter__()

    def end(self) -> None:
        self.baton.__exit__()

    def work_long(self) -> None:
        self.begin()
        assert self.pumped.wait(PATIENCE)
        self.end()

    def wakeups(self) -> int:
        """How often the heartbeat thread has gone to sleep so far."""
        lines = Path(f"/proc/self/task/{self.thread}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Main]:
    monkeypatch.setattr(heartbeats, "TAKES_OVER_AFTER", 0.001)
    main = Main()
    eventually(lambda: main.thread)
    yield main
    main.is_over = True

    def is_gone() -> bool:
        main.begin()  # it may be at rest
        main.end()
        return not Path(f"/proc/self/task/{main.thread}").exists()

    eventually(is_gone)


@pytest.mark.parametrize("seed", range(25))
def test_a_long_task_is_taken_over_wherever_its_beginning_falls(main: Main, seed: int) -> None:
    """Tasks begin and end between a look of the heartbeat thread's and what it does about it."""
    chance, looks, steps = random.Random(seed), threading.Semaphore(0), threading.Lock()
    is_busy = False

    def looked() -> None:
        nonlocal is_busy
        with steps:
            for _ in range(chance.randrange(4)):
                if is_busy and main.baton.is_pumped:
                    break
                main.end() if is_busy else main.begin()
                is_busy = not is_busy
        looks.release()

    main.baton.looked = looked
    main.begin()  # it may be at rest already
    main.end()
    for _ in range(20):
        looks.acquire(timeout=0.01)
    with steps:
        main.baton.looked = lambda: None
        if not is_busy:
            main.begin()
    assert main.pumped.wait(PATIENCE)
    main.end()


def test_beside_a_main_thread_that_waits_for_a_message_it_is_not_woken_up(main: Main) -> None:
    def is_at_rest() -> bool:
        before = main.wakeups()
        time.sleep(0.1)  # a hundred times what it sleeps beside a task
        return main.wakeups() == before

    eventually(is_at_rest)
    main.work_long()
    eventually(is_at_rest)
