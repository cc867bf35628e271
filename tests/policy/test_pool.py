"""The pool, scene by scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from supervisor import queues
from supervisor.endpoint import Endpoint
from supervisor.messages import (
    DeadDepth,
    Depth,
    Drain,
    Leaving,
    LoadFailed,
    Measure,
    Nature,
    Parked,
    ParkingBlocked,
    Ready,
    Verdict,
)
from supervisor.policy import reload, status
from supervisor.policy.actions import Action, Leave, Say, Signal, Spawn, StartNursery, StopNursery, Tell
from supervisor.policy.broker import PROBE_FOR
from supervisor.policy.condition import State
from supervisor.policy.events import Asked, Exited, Garbled, NurserySaid, Wish, WorkerSaid
from supervisor.policy.looks import DEAD_HOLDS, PARKED_SHOWN
from supervisor.policy.poison import RETURNS_URGENT
from supervisor.policy.restart import LULL
from supervisor.policy.slot import ABORT_TIMEOUT, CONNECT_TIMEOUT, FORK_TIMEOUT, LEAVE_TIMEOUT, SlotState
from supervisor.settings import Span
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG, EXIT_DONE, EXIT_KILLED, Away, Cause, InHand, Kind
from tests.policy.world import MB, Message, Stage, Worker, World, settings


def _up(version: str = "", **changes: object) -> World:
    """A world in which every worker consumes."""
    world = World(settings(**changes))
    world.version = version or world.version
    world.live(30.0, until_well=True)
    world.log.clear()
    return world


def _of(world: World, kind: type[Action]) -> list[Action]:
    return [action for action in world.log if isinstance(action, kind)]


def _slots(world: World) -> list[SlotState]:
    return [slot.state for slot in world.pool.view(world.now).slots]


def _obituaries(world: World) -> list[Say]:
    return [action for action in world.log if isinstance(action, Say) and action.event == "worker.exited"]


def _working(world: World, slot: int = 0, key: str = "k", *, has_id: bool = True) -> Worker:
    """The worker of the slot, with a message in hand."""
    message = Message(key, has_id=has_id)
    world.queue.append(message)
    world.deliver(world.workers[slot], message)
    return world.workers[slot]


# --------------------------------------------------------------------------------------------------------- the start


def test_workers_are_forked_once_the_handler_is_loaded() -> None:
    world = World(settings(workers=3))
    assert [type(action) for action in world.log] == [StartNursery]
    world.advance(1.0)
    assert not _of(world, Spawn)
    world.nursery_loads()
    assert [action.page for action in _of(world, Spawn)] == [0, 1, 2]


def test_it_is_running_when_every_worker_consumes() -> None:
    world = World(settings(workers=2))
    world.nursery_loads()
    for slot in (0, 1):
        assert world.pool.view(world.now).state is State.STARTING
        worker = world.fork(slot)
        world.connect(worker)
        world.become_ready(worker)
    assert world.pool.view(world.now).state is State.RUNNING
    assert [action.event for action in _of(world, Say)].count("supervisor.ready") == 1


def test_it_is_running_when_those_that_are_still_wanted_consume() -> None:
    world = World(settings(workers=2))
    world.nursery_loads()
    worker = world.fork(0)
    world.connect(worker)
    world.become_ready(worker)
    world.ask(Wish.SHRINK)
    world.sample()
    assert world.pool.view(world.now).state is State.RUNNING


def test_a_handler_that_leaves_threads_is_imported_by_each_worker() -> None:
    world = World(settings())
    world.nursery_finds_threads()
    assert [type(a) for a in world.log if not isinstance(a, Say)] == [StartNursery, StopNursery, StartNursery]
    assert [action.preload for action in _of(world, StartNursery)] == [True, False]
    world.live(30.0, until_well=True)
    assert world.is_well


@pytest.mark.parametrize("preload", [True, False])
def test_a_handler_that_cannot_be_loaded_ends_it_with_78(preload: bool) -> None:
    world = World(settings(preload=preload))
    if preload:
        world.nursery_cannot_load()
    else:
        world.nursery_loads()
        world.cannot_load(world.fork(0))
        world.live(30.0)
    assert world.left is not None
    assert world.left.code == EXIT_CONFIG
    assert "cannot be loaded" in world.left.because


def test_an_import_that_does_not_end_is_given_up_with_its_stack() -> None:
    world = World(settings(boot_timeout=5.0))
    world.advance(4.9)
    assert world.left is None
    world.advance(0.2)
    assert _of(world, StopNursery)[0].stack
    assert world.left is not None
    assert world.left.code == EXIT_CONFIG


def _import_failures(world: World) -> list[Say]:
    return [said for said in _of(world, Say) if said.event == "handler.import_failed"]


@pytest.mark.parametrize("has_option", [True, False])
def test_f73_an_import_that_fails_for_a_passing_reason_is_tried_again_where_that_is_wanted(has_option: bool) -> None:
    world = World(settings(boot_retry=has_option, boot_timeout=60.0))
    for number in range(1, 11):
        world.nursery_cannot_load(is_passing=True)
        assert len(_import_failures(world)) == number
        if not has_option:
            assert world.left is not None and world.left.code == EXIT_CONFIG
            assert "--boot-retry" in _import_failures(world)[0].fields["next"]
            return
        assert "Refused" in (world.pool.view(world.now).not_imported or "")
        world.advance(10.1)
        assert world.nursery is not None, "it is not tried again"
    said = _import_failures(world)
    assert {each.level for each in said} == {"warning"}
    assert ["exception" in each.fields for each in said] == [True, *[False] * 9]
    assert "retried in " in said[0].fields["next"]
    world.nursery_loads()
    assert world.pool.view(world.now).not_imported is None, "it has succeeded"
    world.live(30.0, until_well=True)
    assert world.is_well and world.pool.view(world.now).not_imported is None


def test_f73_another_reason_is_told_with_its_traceback_and_an_error_of_the_code_ends_it() -> None:
    world = World(settings(boot_retry=True))
    world.nursery_cannot_load(is_passing=True)
    world.advance(1.0)
    world.advance(5.1)  # the import hangs
    assert [action.stack for action in _of(world, StopNursery)] == [True]
    assert "--boot-timeout" in (world.pool.view(world.now).not_imported or "") and world.left is None
    world.advance(1.0)
    world.nursery_cannot_load(is_passing=True)
    assert ["exception" in said.fields for said in _import_failures(world)] == [True, False, True]
    world.advance(2.0)
    world.nursery_cannot_load()
    assert world.left is not None and world.left.code == EXIT_CONFIG


def test_f73_the_delay_of_an_import_grows_to_ten_seconds() -> None:
    world = World(settings(boot_retry=True))
    delays = []
    for _ in range(8):
        world.nursery_cannot_load(is_passing=True)
        begun = world.now
        assert world.pool.deadline is not None
        world.now = world.pool.deadline
        world.turn()
        delays.append(world.now - begun)
    assert 0.25 <= delays[0] <= 0.5 and 5.0 <= max(delays[-2:]) <= 10.0


def test_f73_where_workers_import_for_themselves_one_tries_and_the_others_follow_when_it_has_succeeded() -> None:
    world = World(settings(workers=3, boot_retry=True))
    world.nursery_finds_threads()
    world.nursery_loads()
    first = [world.fork(number) for number in range(3)]
    for worker in first:
        world.cannot_load(worker, is_passing=True)
    assert world.nursery is not None and not world.nursery.births
    assert len(_import_failures(world)) == 1, "each of them says it"
    assert {said.level for said in _of(world, Say) if said.event == "worker.exited"} == {"info"}
    for number in range(2, 5):
        world.advance(10.1)
        [page] = world.nursery.births
        world.cannot_load(world.fork(page), is_passing=True)
        assert len(_import_failures(world)) == number
    world.advance(10.1)
    [page] = world.nursery.births
    worker = world.fork(page)
    world.advance(3.0)
    assert not world.nursery.births, "two import at once"
    world.connect(worker)
    assert len(world.nursery.births) == 2
    world.live(30.0, until_well=True)
    assert world.is_well and not world.pool.view(world.now).not_imported


def test_f73_a_worker_whose_import_hangs_waits_like_one_whose_import_fails() -> None:
    world = World(settings(workers=2, boot_retry=True, preload=False))
    world.nursery_loads()
    workers = [world.fork(0), world.fork(1)]
    world.advance(5.0)
    for worker in workers:
        world.die(worker, worker.signals[-1])
    assert "--boot-timeout" in (world.pool.view(world.now).not_imported or "")
    assert [said.level for said in _import_failures(world)] == ["warning"]
    world.live(30.0, until_well=True)
    assert world.is_well


def test_f73_it_leaves_at_once_with_0_when_asked_to_while_an_import_is_awaited() -> None:
    world = World(settings(boot_retry=True))
    world.nursery_cannot_load(is_passing=True)
    world.ask(Wish.STOP)
    assert world.left is not None and world.left.code == EXIT_DONE


@pytest.mark.parametrize("preload", [True, False])
def test_f73_a_burst_leaves_with_75_when_an_import_is_awaited_for_longer_than_it_waits(preload: bool) -> None:
    world = World(settings(workers=1, boot_retry=True, burst=True, burst_wait=20.0, preload=preload))
    begun = world.now
    while world.left is None and world.now < begun + 60.0:
        if world.nursery is not None and preload:
            world.nursery_cannot_load(is_passing=True)
        elif world.nursery is not None and not world.nursery.is_ready:
            world.nursery_loads()
        elif world.nursery is not None and world.nursery.births:
            world.cannot_load(world.fork(0), is_passing=True)
        world.advance(1.0)
        world.sample()
    assert world.left is not None and world.left.code == EXIT_BROKER
    assert 20.0 <= world.now - begun <= 25.0
    assert "--burst-wait" in world.left.because and "ConnectionRefusedError" in world.left.because


def test_f73_a_reload_whose_import_fails_for_a_passing_reason_fails_and_the_old_generation_stays() -> None:
    for preload in (True, False):
        world = _up(workers=2, boot_retry=True, preload=preload)
        world.ask(Wish.RELOAD)
        assert world.incoming is not None
        if preload:
            generation, world.incoming = world.incoming.generation, None
            world.tell(NurserySaid(generation, LoadFailed("refused", "Traceback", is_passing=True)))
        else:
            world.reload_loads()
            world.sample()
            [leaving] = [worker for worker in world.workers.values() if worker.order]
            world.leave(leaving, Cause.DRAINED)
            world.be_gone(leaving)
            assert world.incoming is not None
            world.cannot_load(world.fork(world.incoming.births[0]), is_passing=True)
        assert [said.event for said in _of(world, Say)].count("reload.failed") == 1
        assert not _import_failures(world) and world.pool.view(world.now).not_imported is None
        world.live(30.0, until_well=True)
        assert world.is_well and world.pool.view(world.now).generation == 1


def test_f73_a_reload_may_mend_what_each_worker_fails_to_import() -> None:
    world = World(settings(workers=2, boot_retry=True, preload=False))
    world.nursery_loads()
    for page in (0, 1):
        world.cannot_load(world.fork(page), is_passing=True)
    world.ask(Wish.RELOAD)
    world.live(30.0, until_well=True)
    assert world.is_well and world.pool.view(world.now).generation == 2


def test_an_import_that_kills_its_process_three_times_ends_it_with_78() -> None:
    world = World(settings())
    for _ in range(3):
        assert world.left is None
        world.advance(2.0)
        world.nursery_dies("SIGSEGV")
    assert world.left is not None
    assert world.left.code == EXIT_CONFIG


@pytest.mark.parametrize("detail", ["", "the queue has another type"])
def test_settings_that_the_broker_refuses_end_it_with_78_and_a_reason(detail: str) -> None:
    world = World(settings())
    world.nursery_loads()
    worker = world.fork(0)
    world.connect(worker)
    world.leave(worker, Cause.CONFIG, detail)
    world.be_gone(worker)
    world.live(30.0)
    assert world.left is not None
    assert world.left.code == EXIT_CONFIG
    assert detail in world.left.because


def test_a_pool_that_has_worked_does_not_give_up() -> None:
    world = _up(workers=1)
    world.nursery_dies()
    world.nursery_cannot_load()
    world.advance(10.0)
    assert world.left is None
    world.live(60.0, until_well=True)
    assert world.is_well


def test_a_worker_that_does_not_boot_is_aborted_then_killed() -> None:
    world = World(settings(workers=1, boot_timeout=5.0))
    world.nursery_loads()
    worker = world.fork(0)
    world.advance(5.0)
    assert worker.signals == ["SIGABRT"]
    world.advance(ABORT_TIMEOUT)
    assert worker.signals == ["SIGABRT", "SIGKILL"]
    world.die(worker, "SIGKILL")
    assert world.pool.view(world.now).exits == {Cause.BOOT: 1}


def test_a_worker_that_does_not_connect_is_aborted() -> None:
    world = World(settings(workers=1))
    world.nursery_loads()
    worker = world.fork(0)
    world.connect(worker)
    world.advance(CONNECT_TIMEOUT - 1.0)
    assert not worker.signals
    world.advance(1.0)
    assert worker.signals == ["SIGABRT"]


# -------------------------------------------------------------------------------------------------------- the deaths


def test_a_first_death_is_followed_by_a_fork_at_once() -> None:
    world = _up()
    world.die(world.workers[0], "SIGKILL")
    assert [action.page for action in _of(world, Spawn)] == [0]


def test_a_message_that_kills_is_quarantined_after_max_crashes() -> None:
    world = _up(workers=1, max_crashes=3)
    message = Message("poison")
    world.queue.append(message)
    for _ in range(3):
        world.live(30.0, until_well=True)
        world.deliver(world.workers[0], message)
        world.die(world.workers[0], "SIGSEGV")
    assert [say.fields["next"] for say in _obituaries(world)] == [
        "restart immediately; the message has killed 1 of at most 3 workers",
        "restart immediately; the message has killed 2 of at most 3 workers",
        "restart immediately; the message has killed 3 of at most 3 workers and will be quarantined",
    ]
    world.live(30.0, until_well=True)
    world.deliver(world.workers[0], message)
    assert world.quarantined == [message]
    assert message.kills == 3


def test_an_obituary_says_what_was_in_hand_and_since_when() -> None:
    world = _up()
    worker = _working(world, key="job-7")
    world.advance(2.5)
    world.die(worker, "SIGKILL")
    (obituary,) = _obituaries(world)
    assert obituary.fields["message_id"] == "job-7"
    assert obituary.fields["busy_seconds"] == 2.5
    assert obituary.fields["cause"] == "SIGKILL"
    assert obituary.fields["pid"] == worker.pid


@pytest.mark.parametrize(
    ("said", "status", "cause"),
    [
        (Cause.MAX_TASKS, "exit 0", "max_tasks"),
        (Cause.BROKER, "exit 75", "broker"),
        (Cause.MAX_TASKS, "SIGSEGV", "SIGSEGV"),  # killed while it left
        (None, "exit 3", "exit 3"),
        (None, "OOM", "OOM"),
    ],
)
def test_last_words_name_the_cause_only_with_the_exit_that_goes_with_them(
    said: Cause | None, status: str, cause: str
) -> None:
    world = _up()
    worker = world.workers[0]
    if said:
        world.leave(worker, said)
    world.die(worker, status)
    assert world.pool.view(world.now).exits == {cause: 1}


def test_f94_last_words_said_with_a_message_in_hand_are_the_handlers_and_excuse_nothing() -> None:
    world = _up()
    worker = _working(world)
    worker.said = Leaving(Cause.DRAINED)
    world.die(worker, "exit 0")
    (obituary,) = _obituaries(world)
    assert obituary.fields["cause"] == "exit 0"
    assert "has killed 1" in obituary.fields["next"]


@pytest.mark.parametrize("status", ["SIGABRT", "exit 0"])
def test_f94_a_worker_that_sends_garbage_is_aborted_and_its_message_blamed_however_it_ends(status: str) -> None:
    world = _up()
    worker = _working(world)
    world.tell(Garbled(worker.slot, "it is not JSON"))
    world.tell(Garbled(worker.slot, "it is not JSON"))
    assert [action.signal for action in _of(world, Signal)] == ["SIGABRT"]
    assert [say.fields["pid"] for say in _of(world, Say) if say.event == "worker.garbled"] == [worker.pid]
    world.die(worker, status)
    (obituary,) = _obituaries(world)
    assert obituary.fields["cause"] == Cause.PROTOCOL
    assert "has killed 1" in obituary.fields["next"]


def test_f94_a_worker_that_sends_garbage_and_ignores_sigabrt_is_killed() -> None:
    world = _up()
    world.tell(Garbled(0, "it is not JSON"))
    world.advance(ABORT_TIMEOUT)
    assert [action.signal for action in _of(world, Signal)] == ["SIGABRT", "SIGKILL"]


def test_a_broker_that_is_away_blames_nobody_and_ends_nothing() -> None:
    world = _up(workers=2)
    for _ in range(100):
        world.advance(5.0)
        for slot in list(world.nursery.births if world.nursery else []):
            world.fork(slot)
        for worker in list(world.workers.values()):
            if worker.stage is Stage.BOOTING:
                world.connect(worker)
            world.leave(worker, Cause.BROKER, "connection refused")
            world.be_gone(worker)
    view = world.pool.view(world.now)
    assert view.state is State.RUNNING
    assert view.trouble == "connection refused"
    world.live(30.0, until_well=True)
    assert world.is_well
    assert world.pool.view(world.now).trouble is None


def _lose_the_broker(world: World) -> None:
    for worker in list(world.workers.values()):
        world.leave(worker, Cause.BROKER, "connection reset", Kind.LOST)
        world.be_gone(worker)


def _idle_out(world: World, worker: Worker, silence: float = 5.0) -> None:
    world.advance(silence)
    world.leave(worker, Cause.BROKER, "the connection is gone", Kind.LOST, silence)
    world.be_gone(worker)


def test_f125_idle_connections_that_are_closed_again_and_again_are_named_once_and_cost_no_backoff() -> None:
    world = _up(workers=1, heartbeat=15.0)
    for number in range(8):
        _idle_out(world, next(iter(world.workers.values())))
        if number >= 3:
            [waiting] = world.pool.view(world.now).slots
            assert waiting.state is SlotState.WAITING
            assert (world.pool.deadline or world.now) - world.now <= LULL + 0.001, "the broker is well"
        world.live(30.0, until_well=True)
    every = [say for say in _of(world, Say) if say.event == "broker.idle_timeout"]
    assert len(every) == 1
    named = every[0]
    assert named.level == "error" and "closes idle connections after 5 s" in named.because
    view = world.pool.view(world.now)
    assert status.readiness(view)[0] and "lower --heartbeat below 2.5 s" in status.readiness(view)[1]
    levels = [say.level for say in _obituaries(world)]
    assert levels == ["warning"] * 3 + ["info"] * 5
    lost = [say.level for say in _of(world, Say) if say.event == "broker.lost"]
    assert lost == ["error"] * 3 + ["info"] * 5


def test_f125_a_broker_that_goes_away_later_is_what_readiness_names() -> None:
    world = _up(workers=1)
    for _ in range(4):
        _idle_out(world, next(iter(world.workers.values())))
        world.live(30.0, until_well=True)
    _lose_the_broker(world)
    _is_refused(world)
    assert "idle connections" not in (world.pool.view(world.now).trouble or "")


def test_f125_tasks_that_lose_their_connections_in_the_middle_count_as_well_and_once() -> None:
    world = _up(workers=1)
    for number in range(3):
        [worker] = world.workers.values()
        message = Message(f"k{number}")
        world.queue.append(message)
        world.deliver(worker, message)
        world.advance(5.0)
        world.cut_off(worker)
        world.notice(worker, silence=5.0)
        assert ("broker.idle_timeout" in {say.event for say in _of(world, Say)}) is (number == 2)
        world.queue.clear()
        world.leave(worker, Cause.BROKER, "the connection is gone", Kind.LOST, 5.0)
        world.be_gone(worker)
        world.live(30.0, until_well=True)


def test_f125_a_reload_with_another_heartbeat_begins_anew() -> None:
    world = _up(workers=1)
    for _ in range(4):
        _idle_out(world, next(iter(world.workers.values())))
        world.live(30.0, until_well=True)
    assert world.pool.view(world.now).trouble
    world.tell(Asked(Wish.RELOAD, "SIGHUP", settings=settings(workers=1, heartbeat=2.0)))
    world.live(30.0, until_well=True)
    assert world.pool.view(world.now).generation == 2
    assert world.pool.view(world.now).trouble is None


def _probe(world: World) -> Worker:
    """The one worker that is on its way to the broker."""
    nursery = world.nursery
    assert nursery is not None
    while not nursery.births:
        world.advance(0.1)
    assert len(nursery.births) == 1, "others are on their way as well"
    worker = world.fork(nursery.births[0])
    world.connect(worker)
    return worker


def _is_refused(world: World, kind: Kind = Kind.REFUSED) -> None:
    worker = _probe(world)
    world.leave(worker, Cause.BROKER, f"it is {kind}", kind)
    world.be_gone(worker)


def test_one_worker_probes_a_broker_that_is_away_and_the_others_follow() -> None:
    world = _up(workers=7)
    _lose_the_broker(world)
    for _ in range(10):
        _is_refused(world)
    assert world.nursery is not None and not world.nursery.births
    world.become_ready(_probe(world))
    assert len(world.nursery.births) == 3
    for slot in list(world.nursery.births):
        worker = world.fork(slot)
        world.connect(worker)
        world.become_ready(worker)
    assert sum(slot is SlotState.READY for slot in _slots(world)) == 4
    assert len(world.nursery.births) == 3
    world.live(1.0, until_well=True)
    assert world.is_well


def test_a_broker_that_is_away_is_said_once_and_its_return_too() -> None:
    world = _up(workers=3)
    _lose_the_broker(world)
    for _ in range(20):
        _is_refused(world)
    assert world.pool.view(world.now).trouble == "it is refused"
    world.live(10.0, until_well=True)
    said = [a for a in _of(world, Say) if a.event.startswith("broker.")]
    assert [action.event for action in said] == ["broker.lost", "broker.refused", "broker.connected"]
    assert said[2].fields["seconds"] > 10.0
    loud = [a for a in _obituaries(world) if a.level == "warning"]
    assert len(loud) == 4, "the three that were lost, and the first refusal"


@pytest.mark.parametrize("kind", [Kind.AUTHENTICATION, Kind.VHOST, Kind.PERMISSION, Kind.TLS, Kind.LIMIT])
def test_what_a_person_must_mend_is_tried_slowly_and_for_ever(kind: Kind) -> None:
    world = _up(workers=3)
    _lose_the_broker(world)
    begun = world.now
    for _ in range(20):
        _is_refused(world, kind)
    assert 200.0 < world.now - begun < 620.0
    world.live(40.0, until_well=True)
    assert world.is_well


def test_a_worker_that_is_killed_waits_for_no_probe_while_others_consume() -> None:
    world = _up(workers=4)
    world.leave(world.workers[3], Cause.BROKER, "no more connections", Kind.LIMIT)
    world.be_gone(world.workers[3])
    world.live(1.0)
    world.die(world.workers[0], "SIGKILL")
    assert world.nursery is not None and 0 in world.nursery.births


def test_a_probe_that_hangs_does_not_hold_the_others_for_long() -> None:
    world = _up(workers=3)
    _lose_the_broker(world)
    _probe(world)
    world.advance(PROBE_FOR + 0.1)
    assert world.nursery is not None and len(world.nursery.births) == 1


def test_who_is_cut_off_in_the_middle_of_a_task_does_not_consume_and_the_broker_is_said_to_be_lost() -> None:
    world = _up(workers=2)
    for slot in (0, 1):
        world.cut_off(_working(world, slot, f"k{slot}"))
        world.notice(world.workers[slot])
    view = world.pool.view(world.now)
    assert view.ready == 0 and view.trouble == "connection reset"
    assert [action.event for action in _of(world, Say)] == ["worker.orphaned", "worker.orphaned", "broker.lost"]
    world.live(30.0, until_well=True)
    assert world.is_well and world.pool.view(world.now).trouble is None


def test_a_worker_that_is_refused_while_another_consumes_is_said_once_and_shown_until_it_comes() -> None:
    world = _up(workers=2)
    world.die(world.workers[0], "SIGKILL")
    for _ in range(5):
        _is_refused(world, Kind.AUTHENTICATION)
    refused = [action for action in _of(world, Say) if action.event == "broker.refused"]
    assert len(refused) == 1 and "1 worker consumes" in refused[0].fields["next"]
    assert [action.level for action in _obituaries(world)[1:]] == ["warning", "info", "info", "info", "info"]
    assert world.pool.view(world.now).trouble == "it is authentication"
    world.become_ready(_probe(world))
    assert world.pool.view(world.now).trouble is None


def test_who_is_kept_out_waits_out_its_backoff_whoever_else_comes_and_is_still_shown() -> None:
    world = _up(workers=3)
    world.die(world.workers[0], "SIGKILL")
    _is_refused(world, Kind.LIMIT)
    for _ in range(3):
        world.leave(world.workers[1], Cause.MAX_TASKS)
        world.be_gone(world.workers[1])
        world.become_ready(_probe(world))
    assert _slots(world)[0] is SlotState.WAITING
    assert world.pool.view(world.now).trouble == "it is limit"


@pytest.mark.parametrize("kind", [Kind.STREAM, Kind.MISMATCH])
def test_a_queue_that_turns_into_another_under_a_pool_that_works_is_tried_slowly_by_one(kind: Kind) -> None:
    world = _up(workers=3)
    _lose_the_broker(world)
    begun = world.now
    for _ in range(10):
        worker = _probe(world)
        world.leave(worker, Cause.CONFIG, f"it is {kind}", kind)
        world.be_gone(worker)
    assert world.now - begun > 80.0
    assert world.pool.view(world.now).trouble == f"it is {kind}"
    world.live(40.0, until_well=True)
    assert world.is_well


@pytest.mark.parametrize(("has_declared", "event"), [(True, "declared"), (False, "taken"), (None, "taken")])
def test_what_is_known_of_the_queue_is_said_once(has_declared: bool | None, event: str) -> None:
    world = World(settings(workers=2))
    world.nursery_loads()
    for slot in (0, 1):
        worker = world.fork(slot)
        world.connect(worker)
        worker.stage = Stage.CONSUMING
        world.tell(WorkerSaid(slot, Ready("127.0.0.1:5672", has_declared=has_declared)))
    said = [action for action in _of(world, Say) if action.event.startswith("queue.")]
    assert [(action.event, action.level) for action in said] == [(f"queue.{event}", "info")]


def test_a_queue_that_was_deleted_and_is_declared_anew_is_a_warning() -> None:
    world = _up(workers=1)
    world.leave(world.workers[0], Cause.BROKER, "cancelled", Kind.CANCELLED)
    world.be_gone(world.workers[0])
    worker = _probe(world)
    worker.stage = Stage.CONSUMING
    world.tell(WorkerSaid(0, Ready("127.0.0.1:5672", has_declared=True)))
    [said] = [action for action in _of(world, Say) if action.event == "queue.declared"]
    assert said.level == "warning" and "deleted with its messages" in said.because


def test_a_worker_knows_the_brokers_that_workers_before_it_have_met_and_their_versions_of_now() -> None:
    world = World(settings(workers=1))
    world.nursery_loads()
    for broker, version in (("one:5672", "4.2.0"), ("two:5672", ""), ("one:5672", "4.3.0")):
        worker = world.fork(0)
        world.connect(worker)
        worker.stage = Stage.CONSUMING
        world.tell(WorkerSaid(0, Ready(broker, version)))
        world.leave(worker, Cause.MAX_TASKS)
        world.be_gone(worker)
    met = [action.met for action in world.log if isinstance(action, Spawn)]
    assert met == [
        {},
        {"one:5672": "4.2.0"},
        {"one:5672": "4.2.0", "two:5672": ""},
        {"one:5672": "4.3.0", "two:5672": ""},
    ]


def _spawned(world: World) -> list[bool]:
    """Of the workers since the last look, whether each may take our queues for declared."""
    spawned = [action.has_queues for action in world.log if isinstance(action, Spawn)]
    world.log.clear()
    return spawned


def test_f108_workers_declare_our_queues_until_one_of_them_has_and_they_have_settled() -> None:
    world = World(settings(workers=2, max_tasks=1))
    world.nursery_loads()
    assert _spawned(world) == [False, False]
    for slot in (0, 1):
        worker = world.fork(slot)
        world.connect(worker)
        world.become_ready(worker)
    world.leave(world.workers[0], Cause.MAX_TASKS)
    world.be_gone(world.workers[0])
    assert _spawned(world) == [False], "the queues are younger than what a killed broker remembers"
    world.advance(queues.SETTLES_IN)
    world.leave(world.workers[1], Cause.MAX_TASKS)
    world.be_gone(world.workers[1])
    assert _spawned(world) == [True]


def test_f108_a_broker_that_comes_back_may_have_none_of_our_queues() -> None:
    world = _up(workers=2)
    world.advance(queues.SETTLES_IN)
    _lose_the_broker(world)
    world.live(60.0, until_well=True)
    assert _spawned(world) == [False, False]


def test_f108_the_workers_of_a_reload_declare_what_its_settings_need() -> None:
    world = _up(workers=1)
    world.advance(queues.SETTLES_IN)
    world.ask(Wish.RELOAD)
    world.live(60.0, until_well=True)
    assert _spawned(world) == [False]


def test_f108_a_queue_of_ours_that_may_not_be_declared_is_said_once() -> None:
    world = World(settings(workers=2))
    world.nursery_loads()
    for slot in (0, 1):
        worker = world.fork(slot)
        world.connect(worker)
        worker.stage = Stage.CONSUMING
        world.tell(WorkerSaid(slot, Ready("127.0.0.1:5672", refused=f"q.delay.{slot + 1}000 cannot be declared: no")))
    [said] = [action for action in _of(world, Say) if action.event == "queue.not_declared"]
    assert said.level == "warning" and "q.delay.1000" in said.because and "unacked" in said.because


# ------------------------------------------------------------------------------------------- the broker's truth


def _look(world: World, ready: int, consumers: int) -> list[Action]:
    """A sample, and a look at the queue."""
    world.advance(5.0)
    world.sample()
    before = len(world.log)
    world.tell(WorkerSaid(0, Depth(ready, consumers)))
    return world.log[before:]


def test_a_worker_that_is_idle_beside_a_backlog_is_replaced_and_said() -> None:
    world = _up(workers=2)
    assert not _look(world, 5, 2)
    world.workers[1].finished += 1
    [asked] = _look(world, 5, 2)
    assert isinstance(asked, Tell) and asked.order == Measure(nature=True)
    world.tell(WorkerSaid(0, Nature(False)))
    world.workers[1].finished += 1
    said, told = _look(world, 5, 2)
    assert isinstance(said, Say) and (said.event, said.fields["slot"]) == ("worker.not_consuming", 0)
    assert "5 messages wait" in said.because
    assert isinstance(told, Tell) and told.order == Drain(cause=Cause.NOT_CONSUMING)
    world.live(30.0, until_well=True)
    assert world.is_well


def test_readiness_is_false_while_every_worker_is_idle_beside_a_backlog() -> None:
    world = _up(workers=2, ready_when="subscribed")
    for _ in range(3):
        _look(world, 5, 2)
    view = world.pool.view(world.now)
    assert view.is_starved and view.trouble
    assert not status.readiness(view)[0], "the queue has no single active consumer, as far as one knows"


@pytest.mark.parametrize("ready_when", ["consuming", "subscribed"])
def test_f124_the_workers_of_a_standby_host_are_not_replaced_and_ready_as_the_operator_says(ready_when: str) -> None:
    world = _up(workers=2, ready_when=ready_when)
    _look(world, 5, 3)
    _look(world, 5, 3)
    [said] = _tell(world, Nature(True))
    assert isinstance(said, Say) and (said.event, said.level) == ("queue.single_active_consumer", "info")
    for _ in range(20):
        assert not _look(world, 5, 3)
    assert not _tell(world, Nature(True))
    ready, because = status.readiness(world.pool.view(world.now))
    assert ready is (ready_when == "subscribed") and "on standby" in because
    assert ("--ready-when subscribed" in because) is not ready
    assert world.pool.view(world.now).trouble is None
    _look(world, 0, 3)
    assert status.readiness(world.pool.view(world.now)) == (True, "2 of 2 workers consume")


def test_f124_a_queue_that_may_be_another_one_is_asked_about_again_and_news_is_not_repeated() -> None:
    world = _up(workers=1)
    for number in range(3):
        asked = [action for _ in range(2) for action in _look(world, 5, 3) if isinstance(action, Tell)]
        assert [action.order for action in asked] == [Measure(nature=True)]
        assert len(_tell(world, Nature(True))) == (number == 0)
        _lose_the_broker(world)
        world.live(30.0, until_well=True)


def _tell(world: World, nature: Nature) -> list[Action]:
    before = len(world.log)
    world.tell(WorkerSaid(0, nature))
    return world.log[before:]


def test_blocked_parking_is_said_once_and_its_end_too() -> None:
    world = _up(workers=2)
    for slot in (0, 1):
        _working(world, slot, f"k{slot}")
        world.tell(WorkerSaid(slot, ParkingBlocked(True)))
    assert "2 messages wait" in (world.pool.view(world.now).trouble or "")
    world.tell(WorkerSaid(0, ParkingBlocked(False)))
    world.die(world.workers[1], "SIGKILL")
    events = [a.event for a in _of(world, Say)]
    assert events == ["broker.blocked", "worker.exited", "broker.unblocked"]
    assert world.pool.view(world.now).trouble is None


def test_too_many_unexplained_deaths_and_one_worker_comes_at_a_time() -> None:
    world = _up(workers=3)
    while world.pool.view(world.now).state is not State.DEGRADED:
        world.live(1.0)
        for worker in list(world.workers.values()):
            world.die(worker, "exit 1")
    assert world.now < 1120.0
    nursery = world.nursery
    assert nursery is not None
    while not nursery.births:
        world.advance(1.0)
    assert len(nursery.births) == 1
    worker = world.fork(nursery.births[0])
    world.connect(worker)
    world.advance(50.0)
    assert not nursery.births
    world.become_ready(worker)
    assert len(nursery.births) == 1


def test_f78_what_the_machine_has_not_got_blames_no_message_and_is_tried_with_backoff() -> None:
    """Each of these workers finishes a task, whose failure it then cannot park."""
    world = _up(workers=1, max_crashes=1)
    message = Message("innocent")
    world.queue.append(message)
    waits = []
    for _ in range(6):
        [worker] = world.workers.values()
        assert message in world.queue, "it is not run again"
        world.deliver(worker, message)
        worker.finished += 1
        world.leave(worker, Cause.LOCAL, "parking failed: Too many open files", Kind.LOCAL)
        world.die(worker, "exit 75")
        assert world.pool.view(world.now).exits == {"local": len(waits) + 1}
        gone_at = world.now
        world.live(60.0, until_well=True)
        waits.append(world.now - gone_at)
    assert waits[-1] > 8 * waits[0] > 0
    verdicts = [a.order for a in world.log if isinstance(a, Tell) and isinstance(a.order, Verdict)]
    assert len(verdicts) == 5
    assert all(verdict.run for verdict in verdicts)


def test_f122_a_pool_whose_workers_all_wait_to_park_a_message_is_not_ready_and_says_why() -> None:
    world = _up(workers=2)

    def blocked(slot: int, because: str | None) -> None:
        world.tell(WorkerSaid(slot, ParkingBlocked(because is not None, because or "")))

    def readiness() -> tuple[bool, str]:
        return status.readiness(world.pool.view(world.now))

    began = world.now
    blocked(0, "no queue takes messages for jobs.dead")
    world.advance(10.0)
    ready, says = readiness()
    assert ready and "no queue takes messages" in says  # the other one takes tasks
    blocked(1, "")
    ready, says = readiness()
    assert not ready and says.startswith("no worker accepts tasks: ") and "no queue takes messages" in says
    assert world.pool.view(world.now).blocked_since == began
    blocked(0, "the queue is full")
    assert world.pool.view(world.now).blocked_since == began, "it has waited all the time"
    blocked(0, None)
    ready, says = readiness()
    assert ready and "alarm" in says
    assert world.pool.view(world.now).blocked_since == began + 10.0
    blocked(1, None)
    assert readiness() == (True, "2 of 2 workers consume")
    assert world.pool.view(world.now).blocked_since is None
    said = [action.event for action in world.log if isinstance(action, Say) and "blocked" in action.event]
    assert said == ["parking.blocked", "broker.blocked", "parking.unblocked", "broker.unblocked"]


def test_f122_a_stand_in_that_waits_to_park_a_message_counts_though_its_page_is_the_slot_s_other() -> None:
    world, _, _ = _lost()
    for page in (_stand_in(world).page, 1):
        assert status.readiness(world.pool.view(world.now))[0]
        world.tell(WorkerSaid(page, ParkingBlocked(True, "the queue is full")))
    ready, says = status.readiness(world.pool.view(world.now))
    assert not ready and says.startswith("no worker accepts tasks: 2 messages")


def test_f122_a_worker_that_is_gone_waits_no_more() -> None:
    world = _up(workers=1)
    world.tell(WorkerSaid(0, ParkingBlocked(True, "the queue is full")))
    assert not status.readiness(world.pool.view(world.now))[0]
    world.die(world.workers[0], "SIGKILL")
    assert world.pool.view(world.now).blocked_since is None
    world.live(10.0, until_well=True)
    assert status.readiness(world.pool.view(world.now))[0]


def test_it_recovers_from_degraded() -> None:
    world = _up(workers=3)
    for _ in range(40):
        world.live(1.0)
        for worker in list(world.workers.values()):
            world.die(worker, "exit 1")
    assert world.pool.view(world.now).state is State.DEGRADED
    world.live(120.0, until_well=True)
    assert world.is_well


# ------------------------------------------------------------------- brakes: nothing works, and still nothing spins


def _dies_at_boot(world: World, worker: Worker) -> None:
    world.die(worker, "SIGSEGV")


def _cannot_load(world: World, worker: Worker) -> None:
    world.cannot_load(worker)


def _says(cause: Cause, *, when_ready: bool) -> Callable[[World, Worker], None]:
    def say(world: World, worker: Worker) -> None:
        world.connect(worker)
        if when_ready:
            world.become_ready(worker)
        world.leave(worker, cause)
        world.be_gone(worker)

    return say


def _dies_when_ready(world: World, worker: Worker) -> None:
    world.connect(worker)
    world.become_ready(worker)
    world.die(worker, "exit 1")


def _dies_of_a_new_message(world: World, worker: Worker) -> None:
    world.connect(worker)
    world.become_ready(worker)
    world.queue.clear()
    _working(world, worker.page, key=f"key-{worker.pid}")
    world.die(worker, "SIGSEGV")


@pytest.mark.parametrize(
    ("end", "most"),
    [
        (_dies_at_boot, 20),
        (_dies_when_ready, 20),
        (_cannot_load, 20),
        (_says(Cause.CONFIG, when_ready=False), 20),
        (_says(Cause.BROKER, when_ready=False), 60),
        (_says(Cause.BROKER, when_ready=True), 60),
        (_dies_of_a_new_message, 60),
    ],
    ids=["boot", "ready", "load", "config", "broker-away", "broker-kicks", "message"],
)
def test_workers_that_die_at_once_are_not_forked_without_a_brake(
    end: Callable[[World, Worker], None], most: int
) -> None:
    world = _up(workers=1)
    world.die(world.workers[0], "SIGKILL")
    until = world.now + 120.0
    spawned = []
    while world.now < until:
        assert world.nursery is not None
        if world.nursery.births:
            spawned.append(world.now)
            assert len(spawned) <= 2 * most, "a busy loop"
            end(world, world.fork(0))
            world.turn()
        else:
            assert world.pool.deadline is not None
            world.now = world.pool.deadline
            world.turn()
    assert len(spawned) >= 4, "it does not try again"
    assert max(later - earlier for earlier, later in pairwise(spawned)) <= 30.0


def test_forks_that_fail_are_not_tried_without_a_brake() -> None:
    world = _up(workers=1)
    world.die(world.workers[0], "SIGKILL")
    until, tries = world.now + 120.0, 0
    while world.now < until:
        assert world.nursery is not None
        if world.nursery.births:
            tries += 1
            world.fail_to_fork(0)
            assert tries <= 20, "a busy loop"
        assert world.pool.deadline is not None
        world.now = world.pool.deadline
        world.turn()
    assert tries >= 4


@pytest.mark.parametrize("stage", ["importing", "forking"])
def test_a_nursery_that_dies_each_time_is_not_started_without_a_brake(stage: str) -> None:
    world = _up(workers=1)
    world.die(world.workers[0], "SIGKILL")
    until = world.now + 120.0
    while world.now < until:
        if world.nursery is None:
            assert world.pool.deadline is not None
            world.now = world.pool.deadline
            world.turn()
            continue
        if stage == "forking" and not world.nursery.is_ready:
            world.nursery_loads()
        world.nursery_dies()
        world.turn()
        assert len(_of(world, StartNursery)) <= 20, "a busy loop"
    assert len(_of(world, StartNursery)) >= 4
    world.live(60.0, until_well=True)
    assert world.is_well


def test_a_nursery_that_is_killed_now_and_then_is_back_at_once() -> None:
    world = _up(workers=1)
    for _ in range(20):
        world.nursery_dies()
        assert world.nursery is not None
        world.nursery_loads()
        world.advance(11.0)


# ------------------------------------------------------------------------------------------------------- the nursery


def test_workers_live_on_when_the_nursery_dies() -> None:
    world = _up(workers=2)
    world.nursery_dies()
    assert len(world.workers) == 2
    assert [type(a) for a in world.log if not isinstance(a, Say)] == [StartNursery]


def test_what_a_dead_nursery_was_asked_for_is_asked_of_the_next() -> None:
    world = _up(workers=2)
    world.die(world.workers[1], "SIGKILL")
    world.nursery_dies()
    world.nursery_loads()
    assert world.nursery is not None
    assert world.nursery.births == [1]


def test_a_seat_that_is_not_wanted_any_more_is_not_forked_again() -> None:
    world = _up(workers=2)
    world.die(world.workers[1], "SIGKILL")
    world.ask(Wish.SHRINK)
    world.nursery_dies()
    world.nursery_loads()
    assert world.nursery is not None
    assert world.nursery.births == []
    assert _slots(world) == [SlotState.READY, SlotState.EMPTY]


def test_a_nursery_that_does_not_fork_is_replaced() -> None:
    world = _up(workers=1)
    world.die(world.workers[0], "SIGKILL")
    world.advance(FORK_TIMEOUT)
    assert [type(action) for action in world.log if not isinstance(action, Say)] == [Spawn, StopNursery, StartNursery]


# --------------------------------------------------------------------------------------------------------- the limits


def test_a_task_over_its_limit_is_aborted_and_blamed() -> None:
    world = _up(workers=1, task_timeout=20.0)
    worker = _working(world)
    for _ in range(20):
        world.advance(1.0)
        world.sample()
        assert not worker.signals
    world.advance(1.0)
    world.sample()
    assert worker.signals == ["SIGABRT"]
    world.die(worker, "SIGABRT")
    assert world.pool.view(world.now).exits == {Cause.TIMEOUT: 1}
    assert "the message has killed 1 of at most 3 workers" in _obituaries(world)[0].fields["next"]


@pytest.mark.parametrize("is_idle", [False, True], ids=["another one was", "none was"])
def test_a_message_that_the_signal_does_not_mean_is_not_blamed(is_idle: bool) -> None:
    """What the worker is aborted for ends, and the next task begins, before the signal arrives."""
    world = _up(workers=1, task_timeout=20.0)
    worker = _working(world)
    if not is_idle:
        world.advance(21.0)
    else:
        world.finish_task(worker)
        world.stick(worker)
        world.advance(40.0)
    world.sample()
    assert worker.signals == ["SIGABRT"]
    bystander = InHand("bystander", "bystander", worker.tag + 1, 1, False, world.now)
    died = Exited(worker.page, worker.pid, "SIGABRT", bystander, None, finished=1)
    obituary = next(say for say in world.pool.handle(died, world.now) if isinstance(say, Say))
    assert "is redelivered and not blamed" in obituary.because and "has killed" not in str(obituary.fields["next"])
    assert obituary.fields["planned"] and world.pool.view(world.now).crashes == 0


def test_an_idle_loop_that_stands_still_is_hung() -> None:
    world = _up(workers=1, heartbeat=6.0)
    worker = world.workers[0]
    world.stick(worker)
    for _ in range(6):
        world.advance(1.0)
        world.sample()
        assert not worker.signals
    world.advance(1.0)
    world.sample()
    assert worker.signals == ["SIGABRT"]


def test_nobody_is_called_hung_after_the_supervisor_itself_was_held_up() -> None:
    world = _up(workers=1, heartbeat=6.0)
    worker = world.workers[0]
    world.sample()
    world.stick(worker)
    world.stall(60.0)
    world.sample()
    assert not worker.signals
    world.advance(1.0)
    world.sample()
    assert worker.signals == ["SIGABRT"]


@pytest.mark.parametrize(
    ("megabytes", "is_busy", "order", "signals"),
    [
        (100, False, None, []),
        (101, False, Drain(cause=Cause.MEMORY), []),
        (101, True, None, []),
        (201, True, None, ["SIGABRT"]),
    ],
)
def test_memory_is_recycled_between_tasks_and_in_a_task_only_above_twice_the_limit(
    megabytes: int, is_busy: bool, order: Drain | None, signals: list[str]
) -> None:
    world = _up(workers=1, max_memory=100 * MB)
    worker = _working(world) if is_busy else world.workers[0]
    worker.rss = megabytes * MB
    world.sample()
    assert (worker.order, worker.signals) == (order, signals)


def _large(size: int, **options: object) -> World:
    """A pool whose workers take so many MB before their first task; the limit is 100."""
    world = World(settings(workers=2, max_memory=100 * MB, **options))
    world.size = size * MB
    world.live(5.0, until_well=True)
    return world


@pytest.mark.parametrize(
    ("size", "grown_to", "is_busy", "order", "signals"),
    [
        (101, 101, False, None, []),
        (250, 250, True, None, []),
        (250, 350, False, None, []),
        (250, 351, False, Drain(cause=Cause.MEMORY), []),
        (250, 700, True, None, []),
        (250, 701, True, None, ["SIGABRT"]),
    ],
)
def test_f76_a_limit_below_what_a_worker_begins_with_counts_on_top_of_that(
    size: int, grown_to: int, is_busy: bool, order: Drain | None, signals: list[str]
) -> None:
    world = _large(size)
    worker = _working(world) if is_busy else world.workers[0]
    worker.rss = grown_to * MB
    world.sample()
    assert (worker.order, worker.signals) == (order, signals)


def test_f76_a_limit_that_is_too_small_is_said_once_a_generation_with_both_sizes_and_what_to_set() -> None:
    world = _large(150)
    [said] = [each for each in _of(world, Say) if each.event == "worker.memory_limit_too_small"]
    assert said.level == "error"
    assert "--max-memory 100M" in said.because and "150 MiB" in said.because and "225M or more" in said.because
    world.ask(Wish.RELOAD)
    world.live(60.0, until_well=True)
    assert len([each for each in _of(world, Say) if each.event == "worker.memory_limit_too_small"]) == 2
    assert not [each for each in _of(_large(100), Say) if each.event == "worker.memory_limit_too_small"]


@pytest.mark.parametrize(
    ("condemn", "status", "is_busy", "crashes"),
    [
        (201, "SIGABRT", True, 1),
        (101, "exit 0", False, 0),
        (10, "SIGSEGV", True, 1),
        (10, "SIGKILL", False, 1),
    ],
)
def test_f82_a_crash_is_counted_exactly_when_a_message_is_blamed_or_nothing_explains_the_exit(
    condemn: int, status: str, is_busy: bool, crashes: int
) -> None:
    world = _up(workers=1, max_memory=100 * MB)
    worker = _working(world) if is_busy else world.workers[0]
    worker.rss = condemn * MB
    world.sample()
    if status == "exit 0":
        world.leave(worker, Cause.MEMORY)
    world.die(worker, status)
    [said] = [each for each in _of(world, Say) if each.event == "worker.exited"]
    assert ("has killed 1 of" in said.fields["next"]) is is_busy
    assert world.pool.view(world.now).crashes == crashes


@pytest.mark.parametrize(("megabytes", "status", "is_planned"), [(101, "exit 0", True), (201, "SIGABRT", False)])
def test_f82_whoever_shows_an_exit_goes_by_the_one_judgement_of_it(
    megabytes: int, status: str, is_planned: bool
) -> None:
    """It was `memory` both times, and `workq top` took both for planned."""
    world = _up(workers=1, max_memory=100 * MB)
    worker = world.workers[0] if is_planned else _working(world)
    worker.rss = megabytes * MB
    world.sample()
    if is_planned:
        world.leave(worker, Cause.MEMORY)
    world.die(worker, status)
    [said] = _obituaries(world)
    [slot] = world.pool.view(world.now).slots
    assert said.fields["cause"] == "memory"
    assert slot.last_exit is not None
    assert said.fields["planned"] is slot.last_exit.is_planned is is_planned


def test_f82_to_outstay_the_grace_is_not_planned() -> None:
    world = _up(workers=1)
    worker = _working(world)
    world.ask(Wish.STOP)
    world.advance(world.settings.grace)
    world.die(worker, "SIGKILL")
    [said] = _obituaries(world)
    assert (said.fields["cause"], said.fields["planned"]) == ("grace", False)


@pytest.mark.parametrize("at_once", [True, False])
def test_whose_worker_an_operator_has_killed_is_not_blamed_and_the_next_one_starts_at_once(at_once: bool) -> None:
    world = _up(workers=1, max_crashes=1)
    for _ in range(5):
        worker = _working(world)
        world.kill(worker, at_once=at_once)
        assert worker.signals == (["SIGKILL"] if at_once else ["SIGABRT"])
        world.die(worker, worker.signals[0])
        [said] = _obituaries(world)
        assert (said.fields["cause"], said.fields["planned"], said.fields["by"]) == ("operator", True, "workq kill")
        assert said.fields["next"] == "restart immediately; the message is redelivered, and not blamed"
        world.live(30.0, until_well=True)
        world.deliver(world.workers[0], world.queue[0])
        assert world.workers[0].is_running, "it may not run"
        world.finish_task(world.workers[0])
        world.log.clear()


def test_a_message_that_an_operator_wants_dead_lettered_does_not_run_again() -> None:
    world = _up(workers=2)
    worker = _working(world)
    world.kill(worker, dead_letter=True)
    world.die(worker, "SIGABRT")
    world.deliver(world.workers[1], world.queue[0])
    assert world.workers[1].is_idle and world.sentenced.total() == 0
    assert world.pool.view(world.now).parked[-1].reason == "operator"


@pytest.mark.parametrize("is_carried_out", [True, False])
def test_a_supervisor_that_stops_names_each_message_that_was_to_be_dead_lettered_and_is_not(
    is_carried_out: bool,
) -> None:
    world = _up(workers=2)
    worker = _working(world)
    world.kill(worker, dead_letter=True)
    world.die(worker, "SIGABRT")
    if is_carried_out:
        world.deliver(world.workers[1], world.queue[0])
    world.ask(Wish.STOP)
    world.live(30.0)
    assert world.left is not None
    said = [say for say in _of(world, Say) if say.event == "worker.kill" and say.level == "warning"]
    assert [say.fields["message_id"] for say in said] == ([] if is_carried_out else ["k"])
    assert all("it runs again" in say.because for say in said)


def test_the_depth_is_asked_of_one_worker_every_five_seconds() -> None:
    world = _up(workers=2)
    for _ in range(60):
        world.advance(1.0)
        world.sample()
    asked = [action for action in _of(world, Tell) if isinstance(action.order, Measure)]
    assert 10 <= len(asked) <= 13
    world.answer(world.workers[asked[0].page], ready=17)
    depth = world.pool.view(world.now).depth
    assert depth is not None
    assert depth.ready == 17


def _looks_at_the_dead(world: World, seconds: int) -> int:
    """How often a worker is asked for the depth of the dead-letter queue in this time."""
    before = len(_of(world, Tell))
    for _ in range(seconds):
        world.advance(1.0)
        world.sample()
    return sum(isinstance(action.order, Measure) and action.order.dead for action in _of(world, Tell)[before:])


def test_a_dead_letter_queue_is_looked_at_often_only_while_there_are_dead_letters() -> None:
    world = _up(workers=1)
    world.tell(WorkerSaid(0, DeadDepth(0)))
    assert 2 <= _looks_at_the_dead(world, 150) <= 3
    world.tell(WorkerSaid(0, DeadDepth(0)))
    world.tell(WorkerSaid(0, Parked("job-7", "rejected", "no such customer", 1, "")))
    assert world.pool.view(world.now).dead == DeadDepth(1)
    assert 1 <= _looks_at_the_dead(world, 6) <= 2
    world.tell(WorkerSaid(0, DeadDepth(1)))
    assert 10 <= _looks_at_the_dead(world, 60) <= 13


def test_the_number_of_dead_letters_is_forgotten_when_nobody_can_be_asked() -> None:
    world = _up(workers=1)
    world.tell(WorkerSaid(0, DeadDepth(3)))
    assert world.pool.view(world.now).dead == DeadDepth(3)
    assert world.pool.view(world.now + DEAD_HOLDS + 1).dead is None


def test_the_last_dead_letters_are_remembered_and_no_more() -> None:
    world = _up(workers=1)
    for number in range(PARKED_SHOWN + 5):
        world.tell(WorkerSaid(0, Parked(f"job-{number}", "rejected", "no such customer", 1, "")))
    shown = [parked.message_id for parked in world.pool.view(world.now).parked]
    assert shown == [f"job-{number}" for number in range(5, PARKED_SHOWN + 5)]


# ------------------------------------------------------------------------------------------------------------- sizes


def test_one_worker_more_and_one_fewer() -> None:
    world = _up(workers=1)
    world.ask(Wish.GROW)
    world.live(30.0, until_well=True)
    assert sorted(world.workers) == [0, 1]
    world.ask(Wish.SHRINK)
    assert world.workers[1].order == Drain()
    world.live(10.0)
    assert sorted(world.workers) == [0]
    assert _slots(world) == [SlotState.READY, SlotState.EMPTY]


def test_the_last_worker_stays() -> None:
    world = _up(workers=1)
    world.ask(Wish.SHRINK)
    assert world.wanted == 1
    assert world.workers[0].order is None


def test_a_worker_that_is_not_wanted_may_finish_its_task_however_long() -> None:
    world = _up(workers=2)
    worker = _working(world, 1)
    world.ask(Wish.SHRINK)
    world.advance(3600.0)
    assert not worker.signals


@pytest.mark.parametrize("stage", ["connecting", "leaving"])
def test_a_worker_that_is_not_wanted_and_hangs_with_nothing_in_hand_is_killed(stage: str) -> None:
    world = _up(workers=1)
    world.ask(Wish.GROW)
    worker = world.fork(1)
    world.connect(worker)
    if stage == "leaving":
        world.become_ready(worker)
    world.ask(Wish.SHRINK)
    if stage == "leaving":
        world.leave(worker, Cause.DRAINED)
    world.advance(CONNECT_TIMEOUT)
    assert worker.signals == ["SIGKILL"]


def test_a_worker_told_to_leave_while_it_connects_keeps_a_task_that_it_got_before_it_heard() -> None:
    world = _up(workers=1)
    world.ask(Wish.GROW)
    worker = world.fork(1)
    world.connect(worker)
    world.ask(Wish.SHRINK)
    world.become_ready(worker)
    _working(world, 1)
    world.advance(3600.0)
    assert not worker.signals


def test_a_worker_that_leaves_of_its_own_will_has_time_to_do_so_without_any_grace() -> None:
    world = _up(workers=1, grace=0.0)
    worker = world.workers[0]
    world.leave(worker, Cause.BROKER, "connection reset")
    world.advance(LEAVE_TIMEOUT / 2)
    assert not worker.signals
    world.be_gone(worker)
    assert world.pool.view(world.now).exits == {Cause.BROKER: 1}


# ---------------------------------------------------------------------------------------------------------- the stop


def test_the_grace_also_ends_who_was_to_leave_before() -> None:
    world = _up(workers=1, grace=10.0)
    world.ask(Wish.GROW)
    worker = world.fork(1)
    world.connect(worker)
    world.ask(Wish.SHRINK)
    world.ask(Wish.STOP)
    world.advance(10.0)
    assert worker.signals == ["SIGKILL"]


def test_a_stop_drains_and_leaves_with_0() -> None:
    world = _up(workers=2)
    busy = _working(world)
    world.ask(Wish.STOP)
    assert all(worker.order == Drain() for worker in world.workers.values())
    world.advance(5.0)
    world.finish_task(busy)
    world.live(1.0)
    assert world.left == Leave(EXIT_DONE, "everything is settled")


def test_after_the_grace_whoever_is_left_is_killed_and_the_code_is_1() -> None:
    world = _up(workers=2, grace=10.0)
    worker = _working(world)
    world.ask(Wish.STOP)
    world.advance(9.9)
    assert not worker.signals
    world.advance(0.1)
    assert worker.signals == ["SIGKILL"]
    world.live(1.0)
    assert world.left is not None
    assert world.left.code == EXIT_KILLED


def test_an_exit_code_of_1_has_as_its_reason_whoever_was_killed_or_left_a_message() -> None:
    world = _up(workers=2, grace=10.0)
    _working(world, 0, "m0")
    crashing = _working(world, 1, "m1")
    world.ask(Wish.STOP)
    world.die(crashing, "SIGSEGV")
    world.advance(10.0)
    world.live(1.0)
    assert world.left is not None
    assert world.left.because == "SIGTERM; worker 1 exited: SIGSEGV; its message m1 is redelivered; and 1 more"

    world = _up(workers=1, grace=10.0)
    _working(world, 0, "m0")
    world.ask(Wish.STOP)
    world.advance(10.0)
    world.live(1.0)
    killed = "SIGTERM; worker 0 was killed: still running after --grace (10 s); its message m0 is redelivered"
    assert world.left == Leave(EXIT_KILLED, killed)


def test_a_second_stop_kills_at_once() -> None:
    world = _up(workers=2)
    world.ask(Wish.STOP)
    world.ask(Wish.STOP)
    assert [action.signal for action in _of(world, Signal)] == ["SIGKILL", "SIGKILL"]


def test_a_worker_that_crashes_with_a_message_while_it_drains_makes_the_code_1() -> None:
    world = _up(workers=1)
    worker = _working(world)
    world.ask(Wish.STOP)
    world.die(worker, "SIGSEGV")
    assert world.left is not None
    assert world.left.code == EXIT_KILLED


def test_a_task_over_its_limit_while_it_drains_makes_the_code_1() -> None:
    world = _up(workers=1, task_timeout=2.0, grace=10.0)
    _working(world)
    world.ask(Wish.STOP)
    world.advance(3.0)
    world.sample()
    world.die(world.workers[0], "SIGABRT")
    assert world.left is not None
    assert world.left.code == EXIT_KILLED


def test_somebody_killed_long_before_the_stop_does_not_count() -> None:
    world = _up(workers=1)
    worker = world.workers[0]
    world.leave(worker, Cause.MAX_TASKS)
    world.advance(10.0)
    world.die(worker, worker.signals[-1])
    world.live(30.0, until_well=True)
    world.ask(Wish.STOP)
    world.live(1.0)
    assert world.left is not None
    assert world.left.code == EXIT_DONE


def test_a_worker_that_comes_while_stopping_is_sent_away() -> None:
    world = _up(workers=1)
    world.die(world.workers[0], "SIGKILL")
    world.ask(Wish.STOP)
    assert world.left is None
    worker = world.fork(0)
    assert worker.signals == ["SIGKILL"]
    world.live(1.0)
    assert world.left is not None
    assert world.left.code == EXIT_DONE, "it had not begun anything"


def test_a_stop_before_anything_is_loaded_leaves_at_once() -> None:
    world = World(settings())
    world.ask(Wish.STOP)
    assert world.left is not None
    assert world.left.code == EXIT_DONE


# --------------------------------------------------------------------------------------------------------------- burst


def test_burst_leaves_with_0_when_the_queue_is_empty_and_everybody_idle() -> None:
    world = _up(workers=2, burst=True)
    world.advance(1.0)
    world.sample()
    (worker,) = (worker for worker in world.workers.values() if worker.is_measuring)
    world.answer(worker, ready=0)
    assert all(worker.order == Drain(finish=True) for worker in world.workers.values())
    world.live(1.0)
    assert world.left is not None
    assert world.left.code == EXIT_DONE


def _tries_in_vain(world: World, seconds: float) -> None:
    """Nobody reaches the broker for so long; whoever tries is refused."""
    until = world.now + seconds
    while world.now < until and world.left is None:
        world.live(0.0)
        for worker in list(world.workers.values()):
            if worker.stage is Stage.CONNECTING:
                world.leave(worker, Cause.BROKER, "connection refused", Kind.REFUSED)
                world.be_gone(worker)
            elif worker.stage is Stage.BOOTING:
                world.connect(worker)
        for slot in list(world.births):
            world.fork(slot)
        world.sample()
        world.advance(0.5)


@pytest.mark.parametrize("has_worked", [False, True], ids=["never", "no more"])
def test_f93_a_burst_leaves_with_75_when_the_broker_is_away_for_longer_than_it_waits(has_worked: bool) -> None:
    world = _up(workers=2, burst=True, burst_wait=20.0) if has_worked else World(settings(burst=True, burst_wait=20.0))
    if has_worked:
        _lose_the_broker(world)
    else:
        world.nursery_loads()
    begun = world.now
    _tries_in_vain(world, 60.0)
    assert world.left is not None and world.left.code == EXIT_BROKER
    assert 20.0 <= world.now - begun <= 25.0
    assert "--burst-wait" in world.left.because and "connection refused" in world.left.because


def test_f93_a_burst_that_reaches_the_broker_in_time_leaves_with_0() -> None:
    world = World(settings(workers=2, burst=True, burst_wait=20.0))
    world.nursery_loads()
    for _ in range(3):
        _tries_in_vain(world, 15.0)
        world.live(40.0, until_well=True)
        assert world.left is None
        _lose_the_broker(world)
    world.live(120.0)
    assert world.left is not None and world.left.code == EXIT_DONE


def test_a_burst_does_not_blame_a_slow_boot_once_its_successor_has_booted_and_only_the_broker_is_missing() -> None:
    world = World(settings(workers=1, burst=True, burst_wait=20.0, boot_timeout=5.0))
    world.nursery_loads()
    worker = world.fork(0)
    world.advance(5.0)
    world.die(worker, "SIGABRT")
    world.connect(world.fork(0))
    for _ in range(25):
        world.advance(1.0)
        world.sample()
    [stops] = [said for said in _of(world, Say) if isinstance(said, Say) and said.event == "supervisor.stopping"]
    assert "the broker does not answer" in stops.because and "--boot-timeout" not in stops.because


def test_f93_without_burst_the_broker_is_awaited_for_ever() -> None:
    world = World(settings(workers=2, burst_wait=1.0))
    world.nursery_loads()
    _tries_in_vain(world, 300.0)
    assert world.left is None


def test_burst_does_not_ask_while_somebody_is_busy() -> None:
    world = _up(workers=2, burst=True)
    for worker in world.workers.values():
        worker.is_measuring = False
    _working(world)
    world.sample()
    assert not any(worker.is_measuring for worker in world.workers.values())


def test_burst_stays_when_the_queue_is_not_empty() -> None:
    world = _up(workers=1, burst=True)
    world.sample()
    world.answer(world.workers[0], ready=3)
    assert world.workers[0].order is None


def test_burst_does_not_believe_an_answer_that_a_death_has_overtaken() -> None:
    world = _up(workers=2, burst=True)
    world.sample()
    (asked,) = (worker for worker in world.workers.values() if worker.is_measuring)
    other = world.workers[1 - asked.page]
    _working(world, other.page)
    world.die(other, "SIGKILL")
    world.answer(asked, ready=0)
    assert asked.order is None, "the message of the dead is back in the queue"


@pytest.mark.parametrize("cause", [Cause.BROKER, Cause.MAX_TASKS])
def test_burst_goes_on_when_a_worker_may_have_left_something_behind(cause: Cause) -> None:
    world = _up(workers=1, burst=True)
    world.sample()
    worker = world.workers[0]
    world.answer(worker, ready=0)
    world.leave(worker, cause)
    world.be_gone(worker)
    world.advance(LULL)
    assert world.left is None
    assert [action.page for action in _of(world, Spawn)] == [0]


def test_burst_leaves_although_a_worker_hangs_after_its_last_words() -> None:
    world = _up(workers=1, burst=True, grace=10.0)
    world.sample()
    worker = world.workers[0]
    world.answer(worker, ready=0)
    world.leave(worker, Cause.DRAINED)
    world.advance(10.0)
    assert worker.signals == ["SIGKILL"]
    world.die(worker, "SIGKILL")
    assert world.left is not None
    assert world.left.code == EXIT_DONE, "the queue is empty, and every task is settled"


def _burst_looks(world: World, looks: int, delayed: int | None = 0, consumers: int = 1) -> None:
    """So many seconds, in each of which the queue is found empty."""
    for _ in range(looks):
        world.advance(1.0)
        world.sample()
        world.tell(WorkerSaid(0, Depth(0, consumers, delayed)))
        if world.pool.view(world.now).state is State.DRAINING or world.workers[0].order:
            return


def _waits(world: World) -> list[str]:
    return [say.because for say in _of(world, Say) if say.event == "burst.waiting"]


def test_f126_a_burst_waits_for_what_lies_in_the_delay_queues_and_says_so_once() -> None:
    world = _up(workers=1, burst=True)
    _burst_looks(world, 500, delayed=2)
    assert len(_waits(world)) == 1 and "2 tasks wait in the delay queues" in _waits(world)[0]
    assert world.workers[0].order is None
    _burst_looks(world, 1)
    assert world.workers[0].order is None, "it may have been on its way between two looks"
    _burst_looks(world, 1)
    assert world.workers[0].order == Drain(finish=True)


def test_f126_a_look_that_did_not_ask_for_the_delay_queues_ends_no_burst() -> None:
    world = _up(workers=1, burst=True)
    _burst_looks(world, 10, delayed=None)
    assert world.workers[0].order is None


def test_f126_a_burst_waits_for_a_task_that_should_be_back_and_leaves_with_75_when_it_does_not_come() -> None:
    world = _up(workers=1, burst=True)
    world.away = Away(1, due=world.now + 5.0)
    begun = world.now
    _burst_looks(world, 500)
    assert 200.0 <= world.now - begun <= 210.0, "as long as the broker takes to try again"
    assert len(_waits(world)) == 1 and "was the queue full" in _waits(world)[0]
    world.leave(world.workers[0], Cause.DRAINED)
    world.be_gone(world.workers[0])
    assert world.left is not None and world.left.code == EXIT_BROKER
    assert "1 delayed and not settled here" in world.left.because


def test_f126_a_burst_leaves_when_that_task_has_come_back_and_is_settled() -> None:
    world = _up(workers=1, burst=True)
    world.away = Away(1, due=world.now + 5.0)
    _burst_looks(world, 100)
    assert world.workers[0].order is None
    world.away = Away(0, world.away.due)
    _burst_looks(world, 1)
    assert world.workers[0].order == Drain(finish=True)


def test_f126_a_task_that_keeps_workers_busy_in_between_begins_the_wait_anew() -> None:
    world = _up(workers=1, burst=True)
    world.away = Away(2, due=world.now)
    _burst_looks(world, 150)
    worker = _working(world)
    world.sample()
    world.finish_task(worker)
    world.away = Away(1, world.now)
    _burst_looks(world, 150)
    assert worker.order is None


def test_f126_where_others_consume_too_a_task_may_be_settled_elsewhere_and_0_is_said_with_that_doubt() -> None:
    world = _up(workers=1, burst=True)
    world.away = Away(1, due=world.now)
    _burst_looks(world, 10, consumers=2)
    assert world.workers[0].order == Drain(finish=True)
    [stopping] = [say for say in _of(world, Say) if say.event == "supervisor.stopping"]
    assert "other consumers may have settled them" in stopping.because


def test_burst_goes_on_with_as_many_workers_as_are_wanted() -> None:
    world = _up(workers=2, burst=True)
    world.ask(Wish.SHRINK)
    world.leave(world.workers[1], Cause.DRAINED)
    world.be_gone(world.workers[1])
    world.sample()
    worker = world.workers[0]
    world.answer(worker, ready=0)
    world.die(worker, "SIGKILL")
    assert [action.page for action in _of(world, Spawn)] == [0]


# ------------------------------------------------------------------------------------------------- messages that kill


def _suspecting(world: World, slot: int, key: str, *, has_id: bool = True) -> Worker:
    """A worker that was given a message of this key, too, and asks about it."""
    worker = world.workers[slot]
    message = Message(key, has_id=has_id)
    world.queue.append(message)
    message.is_redelivered = True
    world.deliver(worker, message)
    return worker


def _verdicts(world: World) -> list[Verdict]:
    return [
        action.order for action in _of(world, Tell) if isinstance(action, Tell) and isinstance(action.order, Verdict)
    ]


def test_a_message_is_judged_after_the_death_of_whoever_still_held_it() -> None:
    world = _up(max_crashes=1)
    holder = _working(world, 0, "k")
    _suspecting(world, 1, "k")
    assert not _verdicts(world)
    world.die(holder, "SIGSEGV")
    [verdict] = _verdicts(world)
    assert (verdict.key, verdict.run, verdict.crashes) == ("k", False, 1)


def test_a_sample_in_the_midst_of_a_death_does_not_let_the_message_run_once_more() -> None:
    world = _up(max_crashes=1)
    holder = _working(world, 0, "k")
    _suspecting(world, 1, "k")
    world.sample()
    assert not _verdicts(world)
    world.die(holder, "SIGSEGV")
    [verdict] = _verdicts(world)
    assert (verdict.run, verdict.crashes) == (False, 1)


@pytest.mark.parametrize("has_id", [True, False])
def test_a_message_waits_for_its_holder_and_not_for_what_the_holder_takes_next(has_id: bool) -> None:
    world = _up(workers=2)
    holder = _working(world, 0, "k", has_id=has_id)
    _suspecting(world, 1, "k", has_id=has_id)
    world.sample()
    world.sample()
    assert not _verdicts(world)
    world.finish_task(holder)
    _working(world, 0, "k", has_id=has_id)
    world.sample()
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def test_one_of_many_messages_that_are_alike_does_not_wait_for_those_that_begin_after_it() -> None:
    world = _up(workers=3)
    holder = _working(world, 0, "k", has_id=False)
    _suspecting(world, 1, "k", has_id=False)
    _working(world, 2, "k", has_id=False)
    world.sample()
    assert not _verdicts(world)
    world.finish_task(holder)
    world.sample()
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def test_what_has_an_id_waits_also_for_who_begins_it_after_the_question() -> None:
    world = _up(workers=3)
    holder = _working(world, 0, "k")
    _suspecting(world, 1, "k")
    late = _working(world, 2, "k")
    world.sample()
    world.finish_task(holder)
    world.sample()
    assert not _verdicts(world)
    world.finish_task(late)
    world.sample()
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def _lost(version: str = "", **changes: object) -> tuple[World, Worker, Message]:
    """Two workers. The first has lost its connection, and its handler runs on."""
    world = _up(version, workers=2, **changes)
    orphan = _working(world, 0, "k")
    message = orphan.message
    assert message is not None
    world.cut_off(orphan)
    world.notice(orphan)
    return world, orphan, message


def _stand_in(world: World) -> Worker:
    world.advance(LULL)
    stand_in = world.fork(_of(world, Spawn)[-1].page)
    world.connect(stand_in)
    world.become_ready(stand_in)
    return stand_in


def test_f110_a_stand_in_takes_the_slot_of_a_worker_that_has_lost_its_connection() -> None:
    world, orphan, _ = _lost()
    stand_in = _stand_in(world)
    assert (stand_in.slot, stand_in.page != orphan.page) == (0, True)
    assert world.pool.view(world.now).ready == 2
    assert not orphan.signals


def test_f110_an_orphan_is_killed_after_its_grace_and_nobody_is_blamed() -> None:
    world, orphan, message = _lost(lost_grace=15.0, max_crashes=1)
    world.advance(14.9)
    assert not orphan.signals
    world.advance(0.1)
    assert orphan.signals == ["SIGKILL"]
    world.die(orphan, "SIGKILL")
    [said] = [action for action in world.log if isinstance(action, Say) and action.event == "worker.exited"]
    assert said.fields["cause"] == "broker"
    assert said.fields["message_id"] == "k"
    assert said.fields["next"] == "none: its slot has been refilled"
    world.deliver(world.workers[1], message)
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def test_f110_a_message_waits_for_the_end_of_its_orphan_and_is_then_run() -> None:
    world, orphan, message = _lost(lost_grace=15.0)
    world.deliver(world.workers[1], message)
    for _ in range(14):
        world.advance(1.0)
        world.sample()
    assert not _verdicts(world)
    world.leave(orphan, Cause.BROKER, "connection reset", Kind.LOST)
    assert not _verdicts(world), "its process may still do something"
    world.be_gone(orphan)
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def test_f111_what_the_broker_may_drop_any_moment_does_not_wait_for_its_orphan_and_its_copy_does() -> None:
    world, orphan, message = _lost("4.0.5", lost_grace=15.0)
    message.returns = RETURNS_URGENT
    world.deliver(world.workers[1], message)
    [verdict] = _verdicts(world)
    assert (verdict.run, verdict.fresh) == (False, True)
    [copy] = world.queue
    world.deliver(world.workers[1], copy)
    assert len(_verdicts(world)) == 1, "two runs at once"
    world.leave(orphan, Cause.BROKER, "connection reset", Kind.LOST)
    world.be_gone(orphan)
    assert [verdict.run for verdict in _verdicts(world)] == [False, True]


def test_f111_what_has_room_for_more_returns_waits_for_its_orphan() -> None:
    world, _, message = _lost("4.0.5", lost_grace=15.0)
    message.returns = RETURNS_URGENT - 1
    world.deliver(world.workers[1], message)
    assert not _verdicts(world)


def test_f77_the_deaths_of_orphans_count_and_no_run_begins_before_they_do() -> None:
    world, orphan, message = _lost(max_crashes=1)
    world.deliver(world.workers[1], message)
    world.die(orphan, "SIGSEGV")
    [verdict] = _verdicts(world)
    assert (verdict.run, verdict.crashes) == (False, 1)


def test_an_orphan_that_exceeds_the_task_timeout_is_its_message_s_fault() -> None:
    world, orphan, message = _lost(task_timeout=5.0, lost_grace=15.0, max_crashes=1)
    world.advance(5.1)
    world.sample()
    assert orphan.signals == ["SIGABRT"]
    world.die(orphan, "SIGABRT")
    world.deliver(world.workers[1], message)
    [verdict] = _verdicts(world)
    assert (verdict.run, verdict.cause) == (False, "timeout")


def test_the_connection_of_a_stand_in_is_lost_too_then_the_older_orphan_is_killed_for_the_next() -> None:
    world, orphan, _ = _lost(lost_grace=15.0)
    _stand_in(world)
    orphan_again = _lose_another(world, 0)
    assert orphan.signals == ["SIGKILL"]
    assert not orphan_again.signals
    world.advance(1.0)
    assert not world.births, "the page is taken"
    world.die(orphan, "SIGKILL")
    world.advance(1.0)
    assert world.births == [0]


def _lose_another(world: World, slot: int) -> Worker:
    worker = world.seated[slot]
    message = Message("other")
    world.queue.append(message)
    world.deliver(worker, message)
    world.cut_off(worker)
    world.notice(worker)
    return worker


def test_a_stop_gives_orphans_no_longer_than_the_grace() -> None:
    world, orphan, _ = _lost(lost_grace=15.0, grace=3.0)
    world.ask(Wish.STOP)
    world.advance(3.0)
    assert orphan.signals == ["SIGKILL"]


def test_of_two_that_wait_for_one_message_the_last_to_ask_is_the_first_to_run() -> None:
    world = _up(workers=3)
    holder = _working(world, 0, "k")
    earlier, later = _suspecting(world, 1, "k"), _suspecting(world, 2, "k")
    world.die(holder, "SIGSEGV")
    assert (earlier.is_asking, later.is_asking) == (True, False)
    world.sample()
    assert earlier.is_asking
    world.finish_task(later)
    world.sample()
    assert not earlier.is_asking


def test_f110_a_message_waits_for_an_orphan_that_was_slow_to_find_out() -> None:
    world = _up(lost_grace=15.0, heartbeat=2)
    holder = _working(world, 0, "k")
    message = holder.message
    assert message is not None
    world.cut_off(holder)
    world.deliver(world.workers[1], message)
    world.advance(10.0)
    world.notice(holder)
    for _ in range(14):
        world.advance(1.0)
        world.sample()
    assert not _verdicts(world)
    world.die(holder, "SIGKILL")
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def test_a_worker_that_leaves_while_it_waits_is_not_answered() -> None:
    world = _up(workers=2)
    holder = _working(world, 0, "k")
    world.leave(_suspecting(world, 1, "k"), Cause.BROKER, "connection reset")
    world.die(holder, "SIGKILL")
    assert not _verdicts(world)


def test_f110_a_message_waits_for_a_holder_that_keeps_its_connection_as_long_as_that_takes() -> None:
    """A node that is cut off from its cluster keeps it, and the cluster gives the message to somebody else."""
    world = _up(lost_grace=15.0, heartbeat=2)
    holder = _working(world, 0, "k")
    _suspecting(world, 1, "k")
    for _ in range(600):
        world.advance(1.0)
        holder.beat = world.now
        world.sample()
    assert not _verdicts(world)
    world.finish_task(holder)
    world.sample()
    assert [verdict.run for verdict in _verdicts(world)] == [True]


def test_a_holder_that_lets_no_heartbeat_be_sent_has_lost_its_connection_and_cannot_tell() -> None:
    world = _up(lost_grace=60.0, heartbeat=2)
    holder = _working(world, 0, "k")
    _suspecting(world, 1, "k")
    world.stick(holder)
    world.advance(5.9)
    world.sample()
    assert not world.pool.view(world.now).orphans
    world.advance(0.2)
    holder.lost_at, holder.is_orphan, holder.is_cut_off = world.now, True, True
    world.sample()
    assert [orphan.pid for orphan in world.pool.view(world.now).orphans] == [holder.pid]


def test_a_suspect_that_dies_while_it_waits_is_not_answered() -> None:
    world = _up(max_crashes=1)
    _working(world, 0, "k")
    world.die(_suspecting(world, 1, "k"), "SIGKILL")
    world.sample()
    world.sample()
    assert not _verdicts(world)


# ------------------------------------------------------------------------------------------------------------- reload


def test_a_reload_replaces_one_worker_at_a_time_once_the_new_code_is_loaded() -> None:
    world = _up(workers=3)
    world.ask(Wish.RELOAD)
    assert not _of(world, Tell)
    world.reload_loads()
    assert len(_of(world, Tell)) == 1
    world.live(60.0, until_well=True)
    assert [worker.generation for worker in world.workers.values()] == [2, 2, 2]
    assert [action.event for action in _of(world, Say) if isinstance(action, Say) and "reload" in action.event] == [
        "reload.started",
        "reload.finished",
    ]


@pytest.mark.parametrize("dies", [True, False])
def test_code_that_cannot_be_loaded_changes_nothing(dies: bool) -> None:
    world = _up()
    pids = [worker.pid for worker in world.workers.values()]
    world.ask(Wish.RELOAD)
    world.reload_fails(dies)
    world.live(60.0)
    assert [worker.pid for worker in world.workers.values()] == pids
    assert "reload.failed" in [action.event for action in _of(world, Say) if isinstance(action, Say)]


def test_a_reload_whose_import_hangs_is_given_up() -> None:
    world = _up()
    world.ask(Wish.RELOAD)
    world.advance(world.settings.boot_timeout + 0.1)
    assert world.incoming is None
    assert world.pool.view(world.now).generation == 1
    world.ask(Wish.RELOAD)
    assert world.incoming is not None


def test_one_reload_at_a_time() -> None:
    world = _up()
    world.ask(Wish.RELOAD)
    world.ask(Wish.RELOAD)
    assert len(_of(world, StartNursery)) == 1


def test_a_stop_ends_the_nursery_that_a_reload_has_started() -> None:
    world = _up()
    world.ask(Wish.RELOAD)
    world.ask(Wish.STOP)
    assert world.incoming is None
    world.live(1.0)
    assert world.left is not None


def _reload_of(world: World) -> tuple[reload.Stage, str]:
    latest = world.pool.view(world.now).reload
    assert latest is not None
    return latest.stage, latest.error


def test_one_worker_tries_the_next_generation_before_anybody_else_is_replaced() -> None:
    world = _up(workers=3)
    world.ask(Wish.RELOAD)
    world.reload_loads()
    assert _reload_of(world)[0] is reload.Stage.TRYING
    [slot] = [worker.slot for worker in world.workers.values() if worker.order]
    world.leave(world.workers[slot], Cause.DRAINED)
    world.be_gone(world.workers[slot])
    trial = world.fork(slot)
    assert trial.generation == 2 and world.pool.view(world.now).generation == 1
    world.connect(trial)
    world.advance(20.0)
    assert not [worker for worker in world.workers.values() if worker.order]
    world.become_ready(trial)
    assert _reload_of(world)[0] is reload.Stage.REPLACING and world.pool.view(world.now).generation == 2
    world.live(60.0, until_well=True)
    assert _reload_of(world) == (reload.Stage.FINISHED, "")


@pytest.mark.parametrize("end", ["wrong password", "import", "crash", "fork", "nursery", "hangs"])
def test_when_the_first_worker_of_a_generation_does_not_consume_the_one_before_stays(end: str) -> None:
    world = _up(workers=2)
    others = {worker.pid for worker in world.workers.values()}
    world.ask(Wish.RELOAD)
    world.reload_loads()
    [old] = [worker for worker in world.workers.values() if worker.order]
    others -= {old.pid}
    world.leave(old, Cause.DRAINED)
    world.be_gone(old)
    if end == "fork":
        world.fail_to_fork(old.slot)
    elif end == "nursery":
        world.reload_fails(dies=True)
    else:
        trial = world.fork(old.slot)
        if end == "import":
            world.cannot_load(trial)
        elif end == "crash":
            world.die(trial, "SIGSEGV")
        elif end == "hangs":
            world.stick(trial)
            world.advance(world.settings.boot_timeout + 0.1)
            world.die(trial, "SIGABRT")
        else:
            world.connect(trial)
            world.leave(trial, Cause.BROKER, "login refused", Kind.AUTHENTICATION)
            world.be_gone(trial)
    stage, error = _reload_of(world)
    assert stage is reload.Stage.FAILED and error
    assert ("login refused" in error) is (end == "wrong password")
    assert world.incoming is None and world.pool.view(world.now).trouble is None
    world.live(60.0, until_well=True)
    assert [worker.generation for worker in world.workers.values()] == [1, 1]
    assert others < {worker.pid for worker in world.workers.values()}
    # The next attempt is not held up by the one that failed.
    world.ask(Wish.RELOAD)
    world.live(60.0, until_well=True)
    assert [worker.generation for worker in world.workers.values()] == [3, 3]


def test_where_nobody_can_log_in_the_next_generation_is_tried_at_once() -> None:
    world = _up(workers=2)
    for worker in list(world.workers.values()):
        world.leave(worker, Cause.BROKER, "login refused", Kind.AUTHENTICATION)
        world.be_gone(worker)
    for _ in range(3):
        while not world.births:
            world.advance(1.0)
        trying = world.fork(world.births[0])
        world.connect(trying)
        world.leave(trying, Cause.BROKER, "login refused", Kind.AUTHENTICATION)
        world.be_gone(trying)
    world.ask(Wish.RELOAD)
    world.reload_loads()
    assert world.incoming is not None and len(world.incoming.births) == 1, "without waiting for any backoff"
    world.live(60.0, until_well=True)
    assert [worker.generation for worker in world.workers.values()] == [2, 2]


def test_a_reload_that_waits_for_somebody_s_task_gives_way_to_the_next_and_no_other_does() -> None:
    world = _up(workers=1)
    world.queue.append(Message("long"))
    world.deliver(world.workers[0], world.queue[0])
    world.ask(Wish.RELOAD)
    world.ask(Wish.RELOAD)
    assert world.incoming is not None and world.incoming.generation == 2, "it is being imported"
    world.reload_loads()
    world.ask(Wish.RELOAD)
    assert world.incoming is not None and world.incoming.generation == 3 and not world.incoming.is_ready
    world.reload_loads()
    world.finish_task(world.workers[0])
    world.leave(world.workers[0], Cause.DRAINED)
    world.be_gone(world.workers[0])
    world.fork(0)
    world.ask(Wish.RELOAD)
    assert world.incoming is not None and world.incoming.generation == 3, "a worker of it is on its way"
    world.live(60.0, until_well=True)
    assert world.workers[0].generation == 3


def test_new_settings_hold_for_new_workers_and_old_limits_for_tasks_that_have_begun() -> None:
    world = _up(workers=2)
    for worker, key in zip(list(world.workers.values()), ("a", "b"), strict=True):
        world.queue.append(message := Message(key))
        world.deliver(worker, message)
    stricter = replace(world.settings, task_timeout=5.0, max_crashes=1, workers=Span(3, 3))
    world.tell(Asked(Wish.RELOAD, "SIGHUP", settings=stricter))
    assert world.pool.settings_of(2) is stricter and world.pool.settings is world.settings
    world.reload_loads()
    [first] = [worker for worker in world.workers.values() if worker.order]
    world.finish_task(first)
    world.leave(first, Cause.DRAINED)
    world.be_gone(first)
    trial = world.fork(first.slot)
    world.connect(trial)
    world.become_ready(trial)
    assert world.pool.settings is stricter and world.wanted == 3
    world.advance(60.0)
    world.sample()
    [old] = [worker for worker in world.workers.values() if worker.generation == 1]
    assert not old.signals, "its task began when there was no limit"
    world.queue.append(message := Message("c"))
    world.deliver(trial, message)
    world.advance(6.0)
    world.sample()
    assert trial.signals and not old.signals


def test_settings_that_cannot_be_used_are_a_failed_reload_and_start_nothing() -> None:
    world = _up()
    world.tell(Asked(Wish.RELOAD, "SIGHUP", problem="workq.toml: heartbeat: got 0"))
    assert _reload_of(world) == (reload.Stage.FAILED, "workq.toml: heartbeat: got 0")
    assert world.incoming is None


def test_drain_asked_again_changes_nothing_and_scale_has_limits() -> None:
    world = _up(workers=Span(2, 4))
    for number in (5, 1):
        world.tell(Asked(Wish.SCALE, "workq scale", number))
        assert world.wanted == 2
    world.tell(Asked(Wish.SCALE, "workq scale", 4))
    assert world.wanted == 4
    world.live(60.0, until_well=True)
    world.ask(Wish.DRAIN)
    world.ask(Wish.DRAIN)
    assert not [worker for worker in world.workers.values() if worker.signals]
    world.live(10.0)
    assert world.left is not None and world.left.code == 0


def _trial_is_refused(world: World) -> None:
    """The first worker of the incoming generation meets a broker that is away."""
    assert world.incoming is not None
    while not world.incoming.births:
        world.advance(0.1)
    trial = world.fork(world.incoming.births[0])
    world.connect(trial)
    world.leave(trial, Cause.BROKER, "it is refused", Kind.REFUSED)
    world.be_gone(trial)


def _reload_while_away(world: World) -> None:
    world.ask(Wish.RELOAD)
    world.reload_loads()
    _trial_is_refused(world)


def test_f113_a_reload_while_the_broker_is_away_waits_and_is_carried_out_when_it_is_back() -> None:
    world = _up(workers=3)
    _lose_the_broker(world)
    _is_refused(world)
    _reload_while_away(world)
    assert _reload_of(world) == (reload.Stage.WAITING, "")
    assert not world.pool.view(world.now).is_reloading, "systemd does not wait for it"
    for _ in range(5):
        _is_refused(world)
    said = [each for each in _of(world, Say) if each.event.startswith("reload.")]
    assert [each.event for each in said] == ["reload.started", "reload.waiting"], "once, however long it takes"
    world.live(60.0, until_well=True)
    assert _reload_of(world) == (reload.Stage.FINISHED, "")
    assert {worker.generation for worker in world.workers.values()} == {2}


def test_f113_a_later_reload_replaces_one_that_waits_for_the_broker() -> None:
    world = _up(workers=2)
    _lose_the_broker(world)
    _is_refused(world)
    _reload_while_away(world)
    _reload_while_away(world)
    assert _reload_of(world) == (reload.Stage.WAITING, "")
    assert world.incoming is not None and world.incoming.generation == 3
    world.live(60.0, until_well=True)
    assert {worker.generation for worker in world.workers.values()} == {3}


def test_f113_a_trial_that_fails_where_the_others_consume_or_with_another_url_is_a_failed_reload() -> None:
    elsewhere = (Endpoint("elsewhere", 5672),)
    for changed in (True, False):
        world = _up(workers=2)
        if changed:
            _lose_the_broker(world)
            _is_refused(world)
        settings = replace(world.settings, url=elsewhere) if changed else world.settings
        world.tell(Asked(Wish.RELOAD, "SIGHUP", settings=settings))
        world.reload_loads()
        if not changed:
            [old] = [worker for worker in world.workers.values() if worker.order]
            world.leave(old, Cause.DRAINED)
            world.be_gone(old)
        _trial_is_refused(world)
        assert _reload_of(world)[0] is reload.Stage.FAILED


def test_f113_a_trial_that_waits_for_its_turn_is_the_next_to_try_the_broker() -> None:
    world = _up(workers=3)
    _lose_the_broker(world)
    probe = _probe(world)
    world.ask(Wish.RELOAD)
    world.reload_loads()
    world.leave(probe, Cause.BROKER, "it is refused", Kind.REFUSED)
    world.be_gone(probe)
    while not world.births:
        world.advance(0.1)
    assert world.incoming is not None and world.incoming.births, "not the slot that was the first before"
