"""May a worker consume? Who is told what, whatever happens meanwhile."""

from __future__ import annotations

from supervisor.messages import Admit
from supervisor.policy.actions import Say, Tell
from supervisor.policy.events import Asked, Wish
from supervisor.policy.status import readiness
from supervisor.settings import Span
from supervisor.vocabulary import Intake
from tests.policy.world import Message, World, settings


def _up(**options: object) -> World:
    world = World(settings(**options))
    world.live(30.0, until_well=True)
    return world


def _told(world: World) -> list[str]:
    return [action.order.intake for action in world.log if isinstance(action, Tell) and isinstance(action.order, Admit)]


def _said(world: World, event: str) -> list[Say]:
    return [action for action in world.log if isinstance(action, Say) and action.event == event]


def test_without_a_pause_no_worker_is_told_anything() -> None:
    world = _up()
    world.ask(Wish.RELOAD)
    world.live(30.0, until_well=True)
    assert not _told(world)


def test_a_task_in_flight_is_finished_and_nothing_else_is_told_to_its_worker() -> None:
    world = _up(workers=1)
    (worker,) = world.workers.values()
    world.queue.append(Message("k"))
    world.deliver(worker, world.queue[0])
    world.ask(Wish.PAUSE)
    assert _told(world) == [Intake.NONE] and worker.order is None and not worker.signals
    world.finish_task(worker)
    world.live(60.0)
    assert _told(world) == [Intake.NONE] and world.is_well
    world.ask(Wish.RESUME)
    assert _told(world) == [Intake.NONE, Intake.ALL]


def test_a_worker_that_was_on_its_way_is_told_too() -> None:
    world = World(settings(workers=1))
    world.nursery_loads()
    world.ask(Wish.PAUSE)  # one is being forked, which was to take everything
    worker = world.fork(0)
    assert worker.intake is Intake.NONE and _told(world) == [Intake.NONE]
    world.connect(worker)
    world.ask(Wish.RESUME)
    world.ask(Wish.PAUSE)
    world.become_ready(worker)
    assert worker.intake is Intake.NONE


def test_idle_workers_with_messages_waiting_are_not_doubted_while_paused_nor_just_after() -> None:
    world = _up(workers=2)
    world.ask(Wish.PAUSE)
    world.queue += [Message("k"), Message("l")]
    for _ in range(120):
        world.live(1.0)
        for worker in list(world.workers.values()):
            if worker.is_measuring:
                world.answer(worker)
    world.ask(Wish.RESUME)
    world.live(6.0)
    assert not _said(world, "worker.not_consuming") and not world.deaths


def test_a_pool_that_scales_keeps_its_size_while_paused() -> None:
    world = _up(workers=Span(1, 4))
    world.ask(Wish.GROW)
    world.live(30.0, until_well=True)
    world.ask(Wish.PAUSE)
    for _ in range(600):
        world.live(1.0)
    assert world.wanted == 2, "an operator's number is kept for five minutes, and the queue is empty"
    world.ask(Wish.RESUME)
    for _ in range(600):
        world.live(1.0)
    assert world.wanted == 1


def test_readiness_says_who_has_paused_it_and_for_how_long() -> None:
    world = _up()
    world.is_paused = True
    world.tell(Asked(Wish.PAUSE, "workq pause (anna)", seconds=90.0))
    world.advance(30.0)
    assert readiness(world.pool.view(world.now)) == (False, "paused by workq pause (anna), for another 60 s")
    world.tell(Asked(Wish.PAUSE, "workq pause (bert)"))
    assert readiness(world.pool.view(world.now)) == (False, "paused by workq pause (bert), until workq resume")
    assert "still paused, now until workq resume" in _said(world, "pool.paused")[-1].because
    world.advance(3600.0)
    assert not _said(world, "pool.resumed")


def test_it_ends_by_itself_at_its_time_and_not_before() -> None:
    world = _up()
    world.is_paused = True
    world.tell(Asked(Wish.PAUSE, "workq pause", seconds=90.0))
    assert world.pool.deadline is not None and world.pool.deadline <= world.now + 90.0
    world.advance(89.9)
    assert not _said(world, "pool.resumed")
    world.is_paused = False
    world.now += 0.1
    world.turn()
    assert _said(world, "pool.resumed")[0].because == ("workq pause: its --for has passed: workers take tasks again")
    assert readiness(world.pool.view(world.now))[0]


def test_a_pool_that_stops_is_not_paused() -> None:
    world = _up()
    world.ask(Wish.DRAIN)
    world.ask(Wish.PAUSE)
    (said,) = _said(world, "pool.paused")
    assert said.level == "warning" and "ignored: the supervisor is stopping" in said.because
    assert world.pool.view(world.now).pause is None
    world.ask(Wish.RESUME)
    (said,) = _said(world, "pool.resumed")
    assert said.level == "warning" and "ignored: the supervisor is stopping" in said.because


def test_a_pause_does_not_end_while_the_pool_stops() -> None:
    world = _up()
    world.is_paused = True
    world.tell(Asked(Wish.PAUSE, "workq pause", seconds=90.0))
    world.ask(Wish.DRAIN)
    world.advance(100.0)
    assert not _said(world, "pool.resumed")
