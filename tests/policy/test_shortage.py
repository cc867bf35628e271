"""The machine refuses workers: one slot asks for all of them."""

from __future__ import annotations

from supervisor.policy.actions import Say, Spawn, StartNursery
from supervisor.policy.events import Asked, Wish
from supervisor.vocabulary import EXIT_KILLED
from tests.policy.world import World, settings


def started(world: World) -> int:
    return sum(isinstance(action, Spawn) for action in world.log)


def said(world: World, event: str) -> list[Say]:
    return [action for action in world.log if isinstance(action, Say) and action.event == event]


def refused_pool(workers: int) -> World:
    """Every worker of it has been asked for at once, and refused."""
    world = World(settings(workers=workers))
    world.nursery_loads()
    for slot in range(workers):
        world.fail_to_fork(slot)
    return world


def asked_again_within(world: World, seconds: float) -> None:
    until = world.now + seconds
    asked = len([action for action in world.log if isinstance(action, Spawn | StartNursery)])
    while len([action for action in world.log if isinstance(action, Spawn | StartNursery)]) == asked:
        assert world.now < until
        world.advance(0.1)


def test_f74_forty_refusals_at_once_are_one_line_and_one_seat_asks_again() -> None:
    world = refused_pool(40)
    assert len(said(world, "worker.start_failed")) == 1
    assert started(world) == 40
    world.advance(0.3)
    assert len(world.births) == 1
    for _ in range(8):
        world.fail_to_fork(world.births[0])
        assert not world.births
        asked_again_within(world, 30.0)
        assert len(world.births) == 1


def test_f74_when_one_has_its_worker_the_others_follow_one_at_a_time_and_nothing_is_told_any_more() -> None:
    world = refused_pool(5)
    assert world.pool.view(world.now).shortage
    world.advance(1.0)
    for left in range(5, 0, -1):
        assert len(world.births) == 1
        assert world.pool.view(world.now).shortage
        world.fork(world.births[0])
        world.turn()
        assert len(world.workers) == 6 - left
    assert world.pool.view(world.now).shortage is None
    world.live(30.0, until_well=True)
    assert world.is_well


def test_f74_a_seat_that_is_not_wanted_any_more_holds_up_nobody() -> None:
    world = World(settings(workers=2))
    world.live(30.0, until_well=True)
    world.tell(Asked(Wish.SCALE, "test", 4))
    world.fail_to_fork(2)
    world.fail_to_fork(3)
    assert world.pool.view(world.now).shortage
    world.tell(Asked(Wish.SCALE, "test", 2))
    assert world.pool.view(world.now).shortage is None


def test_f75_a_nursery_that_is_refused_three_times_ends_a_pool_that_never_worked() -> None:
    world = World(settings(workers=1))
    for _ in range(3):
        assert world.left is None
        world.nursery_is_refused()
        world.advance(1.0)
    assert world.left is not None and world.left.code == EXIT_KILLED
    assert "Resource temporarily unavailable" in world.left.because


def test_f75_a_pool_that_has_worked_goes_on_to_try_and_tells() -> None:
    world = World(settings(workers=1))
    world.live(30.0, until_well=True)
    world.nursery_dies()
    for _ in range(10):
        world.nursery_is_refused()
        assert world.pool.view(world.now).shortage
        asked_again_within(world, 30.0)
    assert world.left is None
    assert sum(isinstance(action, StartNursery) for action in world.log) == 12
    world.nursery_loads()
    assert world.pool.view(world.now).shortage is None
