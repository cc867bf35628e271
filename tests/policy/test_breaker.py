"""The circuit breaker: when it opens, who tries, when it closes, and that it neither flaps nor stays open."""

from __future__ import annotations

import math

import pytest

from supervisor.policy.actions import Say
from supervisor.policy.breaker import RESET_MOST, WINDOW, Breaker, State
from supervisor.policy.events import Wish
from supervisor.policy.slot import SlotState
from supervisor.policy.slots import Slots
from supervisor.policy.status import readiness
from supervisor.settings import Settings
from supervisor.settings.parsers import Threshold
from supervisor.vocabulary import Counts, InHand, Intake, Phase, Reading, Trouble
from tests.policy.world import Message, World, settings

LIMITS = settings(breaker=Threshold(0.5, 20), breaker_reset=30.0)


class Bench:
    """A breaker with workers that consume, and what their pages show."""

    def __init__(self, workers: int = 4, limits: Settings = LIMITS) -> None:
        self.now = 1000.0
        self.limits = limits
        self.slots = Slots(workers, 0)
        for slot in self.slots:
            slot.pid = 100 + slot.number
            slot.enter(SlotState.READY)
        self.breaker = Breaker(self.slots)
        self.counts = dict.fromkeys(range(workers), Counts())
        self.hands: dict[int, float] = {}
        """By page: since when its worker is at a task."""
        self.trouble: Trouble | None = None
        self.sample()

    def sample(self, seconds: float = 1.0, *, may_try: bool = True) -> list[Say]:
        self.now += seconds
        readings = tuple(
            Reading(
                slot.page,
                slot.pid or 0,
                Phase.BUSY if slot.page in self.hands else Phase.IDLE,
                InHand("k", "k", 1, 1, False, self.hands[slot.page]) if slot.page in self.hands else None,
                self.now,
                self.counts[slot.page],
                trouble=self.trouble,
            )
            for slot in self.slots
            if slot.state is SlotState.READY
        )
        return self.breaker.sampled(readings, self.limits, may_try=may_try, now=self.now)

    def end(self, page: int = 0, *, succeeded: int = 0, failed: int = 0, deferred: int = 0) -> None:
        was = self.counts[page]
        self.counts[page] = Counts(was.succeeded + succeeded, was.failed + failed, deferred=was.deferred + deferred)

    def open(self) -> Say:
        self.end(failed=20)
        (said,) = self.sample()
        assert said.event == "breaker.opened" and self.breaker.state is State.OPEN
        return said

    def half_open(self) -> int:
        """The slot that tries."""
        (said,) = self.sample(self.wait + 1.0)
        assert said.event == "breaker.half_open"
        return int(said.fields["slot"])

    @property
    def wait(self) -> float:
        view = self.breaker.view()
        assert view is not None and view.until is not None
        return view.until - view.since


@pytest.mark.parametrize(
    ("succeeded", "failed", "opens"),
    [(0, 19, False), (0, 20, True), (10, 10, True), (11, 10, False), (0, 0, False), (1000, 0, False)],
)
def test_it_opens_when_enough_have_ended_and_the_share_has_failed(succeeded: int, failed: int, opens: bool) -> None:
    bench = Bench()
    bench.end(0, succeeded=succeeded)
    bench.end(1, failed=failed)
    assert bool(bench.sample()) is opens
    assert (bench.breaker.state is State.OPEN) is opens


def test_only_the_last_minute_counts() -> None:
    bench = Bench()
    bench.end(failed=19)
    bench.sample()
    for _ in range(int(WINDOW)):
        bench.sample()
    bench.end(failed=1)
    assert not bench.sample()
    bench.end(failed=18)
    assert not bench.sample()
    bench.end(failed=1)
    assert bench.sample()


def test_it_says_how_many_failed_by_what_and_when_it_tries() -> None:
    bench = Bench()
    bench.trouble = Trouble(bench.now, "psycopg.OperationalError", None)
    for _ in range(9):
        bench.sample()
    said = bench.open()
    assert said.level == "error" and said.fields == {"seconds": 30.0}
    assert said.because == (
        "20 of 20 tasks failed within 10 s (--breaker 50%/20), the latest by psycopg.OperationalError; no worker "
        "consumes, one tries a task in 30 s"
    )


def test_a_pool_that_is_younger_than_the_window_says_so() -> None:
    bench = Bench()
    assert "20 of 20 tasks failed within 1 s" in bench.open().because


def test_what_its_slots_did_before_it_was_on_does_not_count() -> None:
    bench = Bench(limits=settings(breaker=None))
    bench.end(failed=1000)
    bench.sample()
    bench.limits = LIMITS
    assert not bench.sample()
    bench.open()


def test_what_happened_before_the_first_sample_of_a_worker_counts() -> None:
    bench = Bench(workers=1)
    bench.slots.resize(2)
    bench.slots[1].pid = 101
    bench.slots[1].enter(SlotState.READY)
    bench.counts[1] = Counts()
    bench.end(1, failed=20)
    assert bench.sample()[0].event == "breaker.opened"


def test_a_death_by_a_message_counts_and_names_its_cause() -> None:
    bench = Bench()
    bench.end(failed=19)
    assert not [*bench.breaker.died(1, "timeout", LIMITS, bench.now)]
    (said,) = bench.sample()
    assert "the latest by timeout" in said.because


def test_unavailable_counts_and_opens_it_for_its_retry_after() -> None:
    bench = Bench()
    bench.trouble = Trouble(bench.now, "Unavailable: database", 10.0)
    bench.end(deferred=20)
    (said,) = bench.sample()
    assert said.fields == {"seconds": 10.0} and "Unavailable: database" in said.because
    bench.trouble = Trouble(bench.now, "Unavailable: database", 86400.0)
    number = bench.half_open()
    bench.end(number, deferred=1)
    (said,) = bench.sample()
    assert said.fields == {"seconds": RESET_MOST}


def test_one_worker_tries_one_task_and_success_lets_the_others_follow_in_steps_of_three() -> None:
    bench = Bench(workers=30)
    bench.open()
    assert not bench.sample(29.0) and bench.breaker.state is State.OPEN
    (said,) = bench.sample(1.0)
    number = int(said.fields["slot"])
    assert [slot.number for slot in bench.slots if bench.breaker.tries(slot)] == [number]
    bench.hands[number] = bench.now
    assert not bench.sample()
    del bench.hands[number]
    bench.end(number, succeeded=1)
    (said,) = bench.sample()
    assert said.event == "breaker.closed" and bench.breaker.allowed == 4
    for slot in bench.slots:
        slot.intake = Intake.ALL if slot.number < 4 else Intake.NONE
    bench.hands = dict.fromkeys(range(4), bench.now)
    bench.sample()
    assert bench.breaker.allowed == 4, "none of them has succeeded"
    bench.end(0, failed=1)
    bench.sample()
    assert bench.breaker.allowed == 4
    bench.end(0, succeeded=1)
    bench.sample()
    assert bench.breaker.allowed == 13
    bench.hands.clear()
    bench.sample()
    assert bench.breaker.allowed == math.inf, "there are no tasks to wait for"
    assert not bench.breaker.is_restricting


def test_failure_opens_it_again_for_twice_as_long_up_to_a_limit() -> None:
    bench = Bench()
    bench.open()
    waits = []
    for _ in range(6):
        number = bench.half_open()
        bench.end(number, failed=1)
        (said,) = bench.sample()
        assert said.event == "breaker.opened" and said.level == "warning"
        waits.append(said.fields["seconds"])
    assert waits == [60.0, 120.0, 240.0, 300.0, 300.0, 300.0]


def test_it_does_not_flap_a_success_between_two_outages_keeps_the_longer_wait() -> None:
    bench = Bench(workers=1)
    bench.open()
    bench.end(bench.half_open(), succeeded=1)
    bench.sample()
    assert bench.breaker.state is State.CLOSED
    bench.sample()
    bench.sample()
    assert bench.open().fields == {"seconds": 60.0}
    bench.end(bench.half_open(), succeeded=1)
    bench.sample()
    for _ in range(61):
        bench.sample()
    assert bench.open().fields == {"seconds": 30.0}, "it has been closed for long"


def test_what_others_had_in_flight_does_not_decide() -> None:
    bench = Bench()
    bench.hands[0] = bench.now
    bench.open()
    number = bench.half_open()
    assert number != 0, "it is at a task of before"
    del bench.hands[0]
    bench.end(0, failed=1)
    bench.end(0, succeeded=1)
    assert not bench.sample() and bench.breaker.state is State.HALF_OPEN


def test_while_all_are_at_tasks_of_before_it_stays_open_until_one_is_idle() -> None:
    bench = Bench(workers=1)
    bench.hands[0] = bench.now
    bench.open()
    assert not bench.sample(1000.0)
    del bench.hands[0]
    assert bench.sample()[0].event == "breaker.half_open"


def test_an_empty_queue_keeps_it_half_open_until_a_task_comes() -> None:
    bench = Bench()
    bench.open()
    number = bench.half_open()
    for _ in range(1000):
        assert not bench.sample()
    bench.end(number, succeeded=1)
    assert bench.sample()[0].event == "breaker.closed"


def test_a_task_that_takes_long_does_not_keep_it_from_trying_another() -> None:
    bench = Bench(workers=2)
    bench.open()
    first = bench.half_open()
    bench.hands[first] = bench.now
    assert not bench.sample(29.0)
    (said,) = bench.sample(1.0)
    second = int(said.fields["slot"])
    assert said.event == "breaker.half_open" and second != first
    assert not bench.sample(3600.0), "there is no third"
    bench.end(second, succeeded=1)
    assert bench.sample()[0].event == "breaker.closed"


def test_the_death_of_the_one_that_tries_opens_it_if_its_task_is_to_blame_else_another_tries() -> None:
    bench = Bench()
    bench.open()
    number = bench.half_open()
    bench.slots[number].enter(SlotState.WAITING)
    (said,) = bench.sample()
    assert said.event == "breaker.half_open" and said.fields["slot"] != number
    (said,) = bench.breaker.died(int(said.fields["slot"]), "SIGSEGV", LIMITS, bench.now)
    assert said.event == "breaker.opened" and "SIGSEGV" in said.because


def test_a_success_just_before_the_worker_was_replaced_is_seen_afterwards() -> None:
    """`--max-tasks 1`, and an import that takes longer than a second."""
    bench = Bench(workers=1)
    bench.open()
    number = bench.half_open()
    bench.slots[number].enter(SlotState.BOOTING)
    bench.end(number, succeeded=1)
    bench.sample()
    bench.slots[number].enter(SlotState.READY)
    bench.slots[number].pid = 999
    assert bench.sample()[0].event == "breaker.closed"


def test_nobody_tries_during_a_pause() -> None:
    bench = Bench()
    bench.open()
    assert not bench.sample(1000.0, may_try=False)
    assert bench.sample()[0].event == "breaker.half_open"


def test_a_reload_has_a_worker_try_at_once_and_may_turn_it_off() -> None:
    bench = Bench()
    bench.open()
    bench.breaker.reloaded(bench.now)
    assert bench.sample()[0].event == "breaker.half_open"
    bench.limits = settings(breaker=None)
    (said,) = bench.sample()
    assert said.event == "breaker.closed" and "off" in said.because
    assert bench.breaker.view() is None and not bench.breaker.is_restricting


# ------------------------------------------------------------------------------------------------- in the pool


def _outage(**options: object) -> World:
    """A pool whose breaker has just opened."""
    world = World(settings(breaker=Threshold(0.5, 2), breaker_reset=5.0, **options))
    world.live(30.0, until_well=True)
    world.sample()
    worker = world.workers[0]
    for number in range(2):
        world.queue.append(message := Message(f"failing-{number}"))
        world.deliver(worker, message)
        world.finish_task(worker, fails=True)
    world.now += 1.0
    world.sample()
    return world


def test_readiness_says_why_tasks_wait() -> None:
    world = _outage()
    ready, said = readiness(world.pool.view(world.now))
    assert not ready
    assert said == "breaker open: 2 of 2 tasks failed within 1 s (--breaker 50%/2); one worker tries a task in 5 s"
    world.live(6.0)
    assert world.pool.view(world.now).taking == 1
    (trying,) = [worker for worker in world.workers.values() if worker.takes]
    world.answer(trying, ready=1)
    assert not readiness(world.pool.view(world.now))[0]
    world.answer(trying, ready=0)
    ready, said = readiness(world.pool.view(world.now))
    assert ready and "breaker half-open: one worker tries a task" in said, "with an empty queue nothing waits"


def test_it_outlasts_reloads_deaths_and_scaling_and_a_drain_does_not_care() -> None:
    world = _outage(workers=2)
    world.ask(Wish.GROW)
    world.die(world.workers[0], "SIGKILL")
    world.live(3.0)
    assert len(world.workers) == 3
    assert {worker.intake for worker in world.workers.values()} == {Intake.NONE}
    world.ask(Wish.DRAIN)
    world.live(10.0)
    assert world.left is not None and world.left.code == 0


def test_messages_that_kill_workers_open_it_and_one_death_of_the_one_that_tries_opens_it_again() -> None:
    world = World(settings(breaker=Threshold(0.5, 3), breaker_reset=5.0, workers=2))
    world.live(30.0, until_well=True)
    for number in range(3):
        worker = next(worker for worker in world.workers.values() if worker.takes)
        world.queue.append(message := Message(f"deadly-{number}"))
        world.deliver(worker, message)
        world.die(worker, "SIGSEGV")
        world.queue.clear()
        world.live(1.0, until_well=True)
    world.sample()
    opened = [action for action in world.log if isinstance(action, Say) and action.event == "breaker.opened"]
    assert len(opened) == 1
    said = opened[0]
    assert "3 of 3 tasks failed" in said.because and "the latest by SIGSEGV" in said.because
    world.live(7.0)
    (trying,) = [worker for worker in world.workers.values() if worker.takes]
    world.queue.append(message := Message("deadly-4"))
    world.deliver(trying, message)
    world.die(trying, "OOM")
    said = [action for action in world.log if isinstance(action, Say) and action.event == "breaker.opened"][-1]
    assert "failed by OOM" in said.because and said.fields == {"seconds": 10.0}
