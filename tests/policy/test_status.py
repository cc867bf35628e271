"""What health says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from supervisor.messages import DeadDepth, Parked
from supervisor.policy import status
from supervisor.policy.condition import State
from supervisor.policy.events import Asked, Wish, WorkerSaid
from supervisor.policy.restart import STEADY
from supervisor.policy.slot import SlotState
from supervisor.settings import Span
from supervisor.vocabulary import Counts, InHand, Phase, Reading
from tests.policy.world import Message, World, settings

WALL = datetime(2024, 2, 29, 12, 0, 0, tzinfo=UTC)


def _up(**changes: object) -> World:
    world = World(settings(**changes))
    world.live(30.0, until_well=True)
    return world


def _pages(world: World) -> list[Reading]:
    vacant = [Reading(view.slot, 0, Phase.VACANT, None, 0.0, Counts()) for view in world.pool.view(world.now).slots]
    for slot, worker in world.seated.items():
        vacant[slot] = worker.read(world.now)
    return vacant


def _status(world: World) -> dict[str, object]:
    pages = _pages(world)
    return status.status(world.pool.view(world.now), pages, pages, [], world.settings, world.now, WALL)


def test_a_paused_pool_says_so_and_not_that_every_worker_consumes() -> None:
    world = _up()
    assert _status(world)["because"] == "every worker consumes"
    world.is_paused = True
    world.tell(Asked(Wish.PAUSE, "workq pause (anna)"))
    assert _status(world)["because"] == "paused by workq pause (anna), until workq resume"


# --------------------------------------------------------------------------------------------------------- readiness


def test_not_ready_before_a_worker_consumes() -> None:
    world = World(settings())
    assert status.readiness(world.pool.view(world.now)) == (False, "no worker consumes yet (starting)")


def test_ready_with_the_first_worker() -> None:
    world = World(settings(workers=2))
    world.nursery_loads()
    worker = world.fork(0)
    world.connect(worker)
    world.become_ready(worker)
    assert status.readiness(world.pool.view(world.now)) == (True, "1 of 2 workers consume")


def test_f114_a_pool_that_was_larger_for_a_while_is_ready_with_all_of_its_workers() -> None:
    world = _up(workers=Span(2, 3))
    world.ask(Wish.GROW)
    world.live(30.0, until_well=True)
    assert status.readiness(world.pool.view(world.now)) == (True, "3 of 3 workers consume")
    world.ask(Wish.SHRINK)
    world.live(30.0, until_well=True)
    assert status.readiness(world.pool.view(world.now)) == (True, "2 of 2 workers consume")


def test_not_ready_without_a_broker_and_it_says_so() -> None:
    world = _up(workers=1)
    worker = world.workers[0]
    world.leave(worker, "broker", "connection refused by 127.0.0.1:5672")
    world.be_gone(worker)
    ready, because = status.readiness(world.pool.view(world.now))
    assert not ready
    assert "connection refused by 127.0.0.1:5672" in because


def test_while_workers_come_back_after_an_outage_it_says_that_the_outage_is_over() -> None:
    world = _up(workers=2)
    for worker in list(world.workers.values()):
        world.leave(worker, "broker", "connection refused by 127.0.0.1:5672")
        world.be_gone(worker)
    while not world.nursery.births:  # type: ignore[union-attr]
        world.advance(0.1)
    probe = world.fork(world.nursery.births[0])  # type: ignore[union-attr]
    world.connect(probe)
    world.become_ready(probe)
    said = "1 of 2 workers consume; the other workers follow, now that this is over: connection refused by "
    assert status.readiness(world.pool.view(world.now)) == (True, f"{said}127.0.0.1:5672")
    world.live(30.0, until_well=True)
    assert status.readiness(world.pool.view(world.now)) == (True, "2 of 2 workers consume")


def test_not_ready_while_draining_though_workers_consume() -> None:
    world = _up()
    world.ask(Wish.STOP)
    ready, because = status.readiness(world.pool.view(world.now))
    assert not ready
    assert "SIGTERM" in because


def test_degraded_is_ready_only_when_a_worker_has_held_for_a_while() -> None:
    world = _up(workers=2)
    view = replace(world.pool.view(world.now), state=State.DEGRADED, because="deaths")
    assert status.readiness(view) == (False, "degraded: deaths")
    world.advance(STEADY)
    view = replace(world.pool.view(world.now), state=State.DEGRADED, because="deaths")
    assert status.readiness(view)[0]


# ------------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("state", SlotState)
def test_every_slot_state_has_a_public_name(state: SlotState) -> None:
    world = _up(workers=1)
    view = replace(world.pool.view(world.now).slots[0], state=state)
    assert status.state_of(view, _pages(world)[0]) in status.STATES


@pytest.mark.parametrize(("phase", "state"), [(Phase.IDLE, "idle"), (Phase.BUSY, "busy"), (Phase.SETTLING, "busy")])
def test_who_consumes_is_idle_or_busy(phase: Phase, state: str) -> None:
    world = _up(workers=1)
    page = replace(_pages(world)[0], phase=phase)
    assert status.state_of(world.pool.view(world.now).slots[0], page) == state


# ----------------------------------------------------------------------------------------------------------- document


def test_the_document_has_the_public_keys_and_is_json() -> None:
    document = _status(_up())
    assert set(document) >= {
        "now", "state", "since", "version", "queue", "generation", "workers", "totals", "recent", "trouble",
        "dead_letters",
    }  # fmt: skip
    assert set(document["queue"]) == {"name", "type", "ready", "consumers"}  # type: ignore[call-overload]
    assert set(document["workers"][0]) == {  # type: ignore[index]
        "slot", "pid", "state", "message_id", "busy_seconds", "rss_bytes", "restarts", "succeeded", "failed",
        "last_exit", "generation",
    }  # fmt: skip
    assert set(document["totals"]) == {  # type: ignore[call-overload]
        "succeeded", "failed", "retried", "deferred", "dead_lettered", "quarantined", "redelivered", "unsettled",
        "worker_exits",
    }  # fmt: skip
    json.dumps(document)


def test_dead_letters_are_told_with_their_story_and_how_many_there_are() -> None:
    world = _up()
    assert _status(world)["dead_letters"] == {"queue": "task_queue.dead", "ready": None, "recent": []}
    parked = Parked("job-7", "crash", "it has killed 3 workers", 1, "2024-02-29T12:00:00Z", "SIGSEGV", 3, "a stack")
    world.tell(WorkerSaid(0, parked))
    world.tell(WorkerSaid(0, DeadDepth(4)))
    document = _status(world)
    letter = {
        "message_id": "job-7", "reason": "crash", "because": "it has killed 3 workers", "attempt": 1,
        "at": "2024-02-29T12:00:00Z", "cause": "SIGSEGV", "crashes": 3, "evidence": "a stack",
    }  # fmt: skip
    assert document["dead_letters"] == {"queue": "task_queue.dead", "ready": 4, "recent": [letter]}
    del letter["evidence"]
    assert status.without_evidence(document)["dead_letters"] == document["dead_letters"] | {"recent": [letter]}  # type: ignore[operator]


def test_since_is_the_wall_clock_at_the_time_of_the_change() -> None:
    world = _up()
    world.advance(90.0)
    assert _status(world)["since"] == "2024-02-29T11:58:30.000Z"


def test_a_busy_worker_shows_its_message_and_for_how_long() -> None:
    world = _up(workers=1)
    message = Message("job-7")
    world.queue.append(message)
    world.deliver(world.workers[0], message)
    world.advance(2.5)
    (worker,) = _status(world)["workers"]  # type: ignore[misc]
    assert (worker["state"], worker["message_id"], worker["busy_seconds"]) == ("busy", "job-7", 2.5)


def test_a_dead_workers_page_is_not_shown_as_the_next_ones() -> None:
    world = _up(workers=1)
    stale = replace(
        _pages(world)[0], pid=1, phase=Phase.BUSY, hand=InHand("old", "old", 1, 1, False, world.now), rss=99
    )
    (worker,) = status.status(world.pool.view(world.now), [stale], [stale], [], world.settings, world.now, WALL)[
        "workers"
    ]
    assert (worker["message_id"], worker["busy_seconds"], worker["rss_bytes"]) == (None, None, 0)


def test_the_last_exit_is_told_and_counted() -> None:
    world = _up(workers=1)
    message = Message("job-7")
    world.queue.append(message)
    world.deliver(world.workers[0], message)
    world.die(world.workers[0], "SIGSEGV")
    world.advance(1.0)
    document = _status(world)
    (worker,) = document["workers"]  # type: ignore[misc]
    assert worker["last_exit"] == {
        "cause": "SIGSEGV",
        "message_id": "job-7",
        "at": "2024-02-29T11:59:59.000Z",
        "planned": False,
    }
    assert worker["restarts"] == 1
    assert document["totals"]["worker_exits"] == 1  # type: ignore[index]


def test_totals_are_the_sum_of_all_pages_the_vacant_ones_included() -> None:
    one = Counts(1, 2, 3, 4, 5, 6, 7, 8, 8.5, 9, (1, 0))
    other = Counts(10, 20, 30, 40, 50, 60, 70, 80, 80.5, 90, (0, 2))
    pages = [Reading(n, 0, Phase.VACANT, None, 0.0, counts) for n, counts in enumerate((one, other))]
    assert status.totals(pages) == Counts(11, 22, 33, 44, 55, 66, 77, 88, 89.0, 99, (1, 2))
