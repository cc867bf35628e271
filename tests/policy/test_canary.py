"""A canary: the rule that compares two codes, and what the pool does about it, scene by scene."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import queues
from supervisor.policy.actions import Say, Spawn, StartNursery, Tell
from supervisor.policy.canary import ABSENT_FOR, CRASHES, ENOUGH, Canary, Score, Watch, chance, judge
from supervisor.policy.events import Asked, Wish
from supervisor.policy.reload import Reload, Stage
from supervisor.settings import Span
from supervisor.vocabulary import BOUNDS, Cause, Counts, Kind
from tests.policy.world import Message, Worker, World, settings

# ------------------------------------------------------------------------------------------------------ the share


@pytest.mark.parametrize(
    ("percent", "workers", "size"),
    [
        (20, 5, 1),
        (20, 9, 1),
        (20, 10, 2),
        (1, 2, 1),
        (1, 1000, 10),
        (50, 3, 1),
        (99, 2, 1),
        (99, 100, 99),
        (29, 100, 29),
    ],
)
def test_the_share_is_rounded_down_at_least_one_worker_and_never_all(percent: int, workers: int, size: int) -> None:
    assert Canary(percent, 1.0).size(workers) == size


# ------------------------------------------------------------------------------------------------------- the test


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_the_chance_is_that_of_fishers_exact_test(hits: int, misses: int, others: int, missed: int) -> None:
    of, of_others = hits + misses, others + missed
    marked, every = hits + others, of + of_others
    ways = sum(
        math.comb(marked, k) * math.comb(every - marked, of - k)
        for k in range(hits, min(of, marked) + 1)
        if of - k <= every - marked
    )
    exact = float(Fraction(ways, math.comb(every, of)))
    is_higher = hits * of_others > others * of
    assert chance(hits, of, others, of_others) == pytest.approx(exact if is_higher else 1.0, rel=1e-6)


def test_the_chance_of_millions_of_tasks_is_found_at_once() -> None:
    assert chance(60_000, 1_000_000, 200_000, 4_000_000) < 1e-9
    assert chance(50_100, 1_000_000, 200_000, 4_000_000) == pytest.approx(0.34, abs=0.1)
    assert chance(1_000_000, 1_000_000, 0, 4_000_000) == 0.0


# ------------------------------------------------------------------------------------------------------- the rule


def _buckets(**tasks: int) -> tuple[int, ...]:
    """So many tasks up to each of these bounds: `_0_1=5`."""
    counts = {float(bound[1:].replace("_", ".")): count for bound, count in tasks.items()}
    return tuple(counts.get(bound, 0) for bound in (*BOUNDS, math.inf))


def _score(succeeded: int = 0, failed: int = 0, crashes: int = 0) -> Score:
    return Score(succeeded, failed, crashes)


FEW = "too few tasks to tell"


@pytest.mark.parametrize(
    ("new", "old", "early", "late"),
    [
        # Nothing, or no difference.
        (_score(), _score(), None, FEW),
        (_score(100), _score(400), None, "no worse"),
        (_score(95, 5), _score(380, 20), None, "no worse"),
        (_score(100), _score(200, 200), None, "no worse"),
        # The less there is, the greater the difference must be.
        (_score(0, 1), _score(50), None, FEW),
        (_score(0, 3), _score(100), "3 of 3 tries (100.0%), with the old code 0 of 100 (0.0%)", "fail more often"),
        (_score(17, 3), _score(80), None, "fail more often"),
        (_score(18, 2), _score(80), None, "no worse"),
        (_score(90, 10), _score(400), "fail more often", "fail more often"),
        # However certain, less than a hundredth is no difference; and it may be rare.
        (_score(99_200, 800), _score(400_000), None, "no worse"),
        (_score(98_500, 1500), _score(400_000), "fail more often", "fail more often"),
        (_score(0, 100), _score(0, 400), None, "no worse"),
        # Crashes.
        (_score(17, 0, 3), _score(80), None, "its workers crash more often: 3 of 20 tries (15.0%)"),
        (_score(20, 0, 10), _score(80, 0, 1), "crash more often", "crash more often"),
        (_score(20, 0, 10), _score(80, 0, 40), None, "no worse"),
        # Each side needs enough.
        (_score(ENOUGH - 1), _score(400), None, FEW),
        (_score(400), _score(ENOUGH - 1), None, FEW),
        (_score(ENOUGH), _score(ENOUGH), None, "no worse"),
    ],
)
def test_the_new_code_is_compared(new: Score, old: Score, early: str | None, late: str) -> None:
    while_it_runs, at_the_end = judge(new, old, is_over=False), judge(new, old, is_over=True)
    assert (while_it_runs is None) == (early is None), while_it_runs
    assert while_it_runs is None or (early in while_it_runs.because and not while_it_runs.is_good)
    assert at_the_end is not None and late in at_the_end.because
    assert at_the_end.is_good == ("no worse" in late)


def test_crashes_in_a_row_need_no_comparison() -> None:
    both = _score(0, 0, CRASHES)
    assert judge(both, both, crashed=CRASHES - 1, is_over=False) is None
    verdict = judge(both, both, crashed=CRASHES, is_over=False)
    assert verdict is not None and not verdict.is_good
    assert verdict.because == "its workers crash: 3 in a row, and no task was finished in between"


@pytest.mark.parametrize(
    ("buckets", "seconds", "is_slower"),
    [
        (_buckets(_0_1=100), 9.0, False),
        # The mean alone: one task of an hour.
        (_buckets(_0_1=99, _3600=1), 3000.0, False),
        # The histogram alone: just above a bound.
        (_buckets(_0_25=100), 10.1, False),
        (_buckets(_0_25=100), 20.0, True),
        # One in five is slow.
        (_buckets(_0_1=80, _0_5=20), 7.2 + 20 * 0.4, True),
        (_buckets(_0_1=95, _0_5=5), 8.6 + 5 * 0.4, False),
    ],
)
def test_what_takes_longer_is_told_at_the_end(buckets: tuple[int, ...], seconds: float, is_slower: bool) -> None:
    old = Score(400, busy_seconds=36.0, buckets=_buckets(_0_1=396, _5=4))
    new = Score(100, busy_seconds=seconds, buckets=buckets)
    assert judge(new, old, is_over=False) is None
    verdict = judge(new, old, is_over=True)
    assert verdict is not None and verdict.is_good is not is_slower, verdict
    assert not is_slower or "its tasks take longer: 0.1" in verdict.because or "0.2 s a task" in verdict.because


def test_the_percentile_is_the_bound_that_holds_it() -> None:
    assert Score().p95 is None and Score().mean is None
    assert Score(buckets=_buckets(_0_1=95, _1_0=5)).p95 == 0.1
    assert Score(buckets=_buckets(_0_1=94, _1_0=6)).p95 == 1.0
    assert Score(buckets=(*[0] * len(BOUNDS), 1)).p95 == math.inf


def test_a_page_is_counted_for_whoever_runs_there_and_from_the_beginning_on() -> None:
    watch = Watch(Canary(50, 60.0))

    def look(page: int, succeeded: int, failed: int, deferred: int, *, is_new: bool) -> None:
        watch.look(page, Counts(succeeded, failed, deferred=deferred), is_new=is_new)

    look(0, 10, 1, 0, is_new=False)
    watch.crash(is_new=True)
    look(0, 20, 1, 0, is_new=False)
    watch.began = 0.0
    look(1, 500, 5, 0, is_new=False)  # seen for the first time: who knows since when
    look(0, 22, 2, 1, is_new=True)
    look(1, 503, 6, 1, is_new=False)
    watch.crash(is_new=True)
    watch.crash(is_new=False)
    assert (watch.new, watch.old) == (_score(2, 2, 1), _score(3, 2, 1))
    assert watch.crashed == 1
    look(0, 22, 2, 1, is_new=True)
    assert watch.crashed == 1
    look(0, 23, 2, 1, is_new=True)
    assert watch.crashed == 0


# ----------------------------------------------------------------------------------------------------- the scenes


def _up(**changes: object) -> World:
    """A world in which every worker consumes."""
    world = World(settings(**changes))
    world.live(30.0, until_well=True)
    world.log.clear()
    return world


def _events(world: World) -> list[str]:
    return [said.event for said in world.log if isinstance(said, Say) and said.event.startswith("reload.")]


def _because(world: World, event: str) -> str:
    said = [said.because for said in world.log if isinstance(said, Say) and said.event == event]
    assert said, f"{event} was not logged"
    return said[-1]


def _reload(world: World) -> Reload:
    assert world.reload is not None
    return world.reload


def _new(world: World) -> list[Worker]:
    assert world.incoming is not None
    return [w for w in world.workers.values() if w.generation == world.incoming.generation]


def _generations(world: World) -> set[int]:
    return {worker.generation for worker in world.workers.values()}


def _running(canary: Canary, **changes: object) -> World:
    """A world in which it runs, in all of its share."""
    world = _up(**changes)
    world.ask(Wish.RELOAD, canary)
    world.live(10.0)
    assert world.canary is canary
    assert len(_new(world)) == canary.size(world.wanted)
    return world


def _go_on(world: World, seconds: int, tries: int = 5, failing: int = 0) -> None:
    for _ in range(seconds):
        world.work(tries, failing)
        world.live(1.0)


def test_a_good_one_takes_over_when_its_time_is_up() -> None:
    world = _running(Canary(40, 60.0), workers=5)
    assert _events(world) == ["reload.started", "reload.canary"]
    assert "generation 2 runs in 2 of 5 workers for 60 s" in _because(world, "reload.canary")
    assert world.pool.view(world.now).generation == 1
    assert not world.pool.view(world.now).is_reloading, "systemd does not wait for it"
    _go_on(world, 30)
    assert world.canary is not None and len(_new(world)) == 2, "not before"
    _go_on(world, 30)
    world.live(60.0, until_well=True)
    assert _generations(world) == {2} and _reload(world).stage is Stage.FINISHED
    assert _events(world) == ["reload.started", "reload.canary", "reload.passed", "reload.finished"]
    passed = _because(world, "reload.passed")
    assert passed.startswith("the new code is no worse: new code: ") and "0 failed" in passed
    progress = _reload(world).progress
    assert progress is not None and progress.new.succeeded >= 500 and progress.old.succeeded >= 750
    assert str(progress.new) in _because(world, "reload.finished")


def test_one_that_fails_more_often_is_rolled_back_at_once_and_without_an_import() -> None:
    world = _running(Canary(50, 3600.0), workers=4)
    others = {worker.pid for worker in world.workers.values() if worker.generation == 1}
    _go_on(world, 3, tries=10, failing=5)
    assert _reload(world).stage is Stage.FAILED
    because = _because(world, "reload.failed")
    assert "the canary is rolled back: its tasks fail more often: " in because and "generation 1 stays" in because
    world.live(30.0, until_well=True)
    assert _generations(world) == {1} and others < {worker.pid for worker in world.workers.values()}
    assert len([each for each in world.log if isinstance(each, StartNursery)]) == 1, "the canary's own"
    assert _events(world) == ["reload.started", "reload.canary", "reload.failed"]


def test_its_workers_finish_their_tasks_when_it_is_rolled_back() -> None:
    world = _running(Canary(50, 3600.0), workers=4)
    busy, idle = _new(world)
    world.queue.append(message := Message("long"))
    world.deliver(busy, message)
    world.work(10, 10)
    world.sample()
    assert world.canary is None and busy.order and idle.order, "both are asked at once"
    assert not busy.signals and busy.message is message


def test_one_that_crashes_again_and_again_is_rolled_back() -> None:
    world = _running(Canary(50, 3600.0), workers=2)
    for number in range(CRASHES):
        assert world.canary is not None
        [worker] = _new(world)
        world.queue.append(message := Message(f"t{number}"))
        world.deliver(worker, message)
        world.die(worker, "SIGSEGV")
        world.live(1.0)
    assert "its workers crash: 3 in a row" in _because(world, "reload.failed")
    assert "the canary is rolled back" in str(_because(world, "reload.failed"))
    world.live(30.0, until_well=True)
    assert _generations(world) == {1}
    obituary = [said for said in world.log if isinstance(said, Say) and said.event == "worker.exited"][-1]
    assert obituary.fields["next"].startswith("the canary is rolled back; a worker of generation 1 follows")


def test_one_that_had_too_little_to_do_is_rolled_back_at_the_end_and_says_so() -> None:
    world = _running(Canary(50, 20.0), workers=2)
    _go_on(world, 19, tries=0)
    assert world.canary is not None or "too few" in _because(world, "reload.failed")
    _go_on(world, 5, tries=0)
    assert "too few tasks to tell: each side needs 20 tries" in _because(world, "reload.failed")
    assert "longer --for" in _because(world, "reload.failed")
    world.live(30.0, until_well=True)
    assert _generations(world) == {1}


def test_one_worker_is_no_pool_for_a_canary() -> None:
    world = _up(workers=1)
    world.ask(Wish.RELOAD, Canary(50, 60.0))
    assert "this pool has only one" in _because(world, "reload.failed")
    assert world.incoming is None and world.reload is None
    world.ask(Wish.RELOAD)
    assert world.incoming is not None


def test_the_first_worker_must_consume_as_in_any_reload() -> None:
    world = _up(workers=3)
    world.ask(Wish.RELOAD, Canary(50, 60.0))
    world.reload_loads()
    [old] = [worker for worker in world.workers.values() if worker.order]
    world.leave(old, Cause.DRAINED)
    world.be_gone(old)
    world.die(world.fork(old.slot), "SIGSEGV")
    assert "its first worker does not consume" in _because(world, "reload.failed")
    world.live(30.0, until_well=True)
    assert _generations(world) == {1}


@pytest.mark.parametrize("end", ["nursery", "fork", "import"])
def test_one_whose_workers_cannot_be_started_any_more_is_rolled_back(end: str) -> None:
    world = _running(Canary(50, 3600.0), workers=4, preload=end != "import")
    assert world.incoming is not None
    if end == "nursery":
        world.reload_fails(dies=True)
    else:
        world.incoming.is_stuck = True
        world.die(_new(world)[0], "SIGKILL")
        assert len(world.incoming.births) == 1
        if end == "fork":
            world.advance(10.1)
        else:
            world.cannot_load(world.fork(world.incoming.births[0]))
    assert "the canary is rolled back: " in _because(world, "reload.failed")
    world.live(30.0, until_well=True)
    assert _generations(world) == {1}


def test_the_machine_s_refusal_of_a_worker_says_nothing_of_the_code() -> None:
    world = _running(Canary(50, 3600.0), workers=4)
    assert world.incoming is not None
    world.incoming.is_stuck = True
    world.die(_new(world)[0], "SIGKILL")
    world.fail_to_fork(world.incoming.births[0])
    world.incoming.is_stuck = False
    world.live(10.0)
    assert world.canary is not None and len(_new(world)) == 2


def test_another_reload_replaces_it() -> None:
    world = _running(Canary(50, 3600.0), workers=4)
    world.ask(Wish.RELOAD)
    assert "SIGTERM; the canary of generation 2 is rolled back" in _because(world, "reload.started")
    world.live(60.0, until_well=True)
    assert _generations(world) == {3} and _reload(world).stage is Stage.FINISHED


def test_another_canary_replaces_it() -> None:
    world = _running(Canary(50, 3600.0), workers=4)
    _go_on(world, 5)
    world.ask(Wish.RELOAD, again := Canary(50, 30.0))
    world.live(10.0)
    assert world.canary is again and sorted(w.generation for w in world.workers.values()) == [1, 1, 3, 3]
    assert _reload(world).progress is not None and _reload(world).progress.new.tries == 0, "counted anew"


def test_its_share_follows_the_number_of_workers() -> None:
    world = _running(Canary(50, 3600.0), workers=2)
    world.tell(Asked(Wish.SCALE, "workq scale", 6))
    world.live(30.0)
    assert len(_new(world)) == 3
    world.tell(Asked(Wish.SCALE, "workq scale", 3))
    world.live(30.0)
    assert len(_new(world)) == 1 and len(world.workers) == 3 and world.canary is not None
    world.tell(Asked(Wish.SCALE, "workq scale", 2))
    world.tell(Asked(Wish.SCALE, "workq scale", 1))
    assert world.wanted == 2
    assert "a canary needs two workers" in _because(world, "supervisor.scaling")
    world.live(30.0)
    assert len(_new(world)) == 1 and len(world.workers) == 2


def test_a_stop_ends_it_and_says_what_the_next_start_loads() -> None:
    world = _running(Canary(50, 3600.0), workers=4)
    world.ask(Wish.STOP)
    assert world.incoming is None and _reload(world).stage is Stage.FAILED
    assert "the next start loads the code that is there then" in _because(world, "reload.failed")
    world.live(10.0)
    assert world.left is not None and world.left.code == 0


def test_a_broker_that_is_down_at_the_end_is_waited_for() -> None:
    world = _running(Canary(50, 60.0), workers=2)
    _go_on(world, 30)
    for worker in list(world.workers.values()):
        world.leave(worker, Cause.BROKER, "connection reset", Kind.LOST)
        world.be_gone(worker)
    for _ in range(int(ABSENT_FOR) + 60):
        for nursery in (world.nursery, world.incoming):
            for page in list(nursery.births) if nursery else []:
                world.connect(probe := world.fork(page))
                world.leave(probe, Cause.BROKER, "it is refused", Kind.REFUSED)
                world.be_gone(probe)
        world.advance(1.0)
        world.sample()
    assert world.canary is not None, _because(world, "reload.failed")
    world.live(60.0, until_well=True)
    assert _generations(world) == {2} and _reload(world).stage is Stage.FINISHED


def test_its_time_stands_still_while_the_pool_is_paused() -> None:
    world = _running(Canary(50, 60.0), workers=2)
    _go_on(world, 40)
    world.ask(Wish.PAUSE)
    world.live(600.0)
    assert world.canary is not None
    world.ask(Wish.RESUME)
    _go_on(world, 5)
    assert world.canary is not None, "a quarter of a minute was left"
    _go_on(world, 15)
    assert _reload(world).stage is not Stage.FAILED and world.canary is None


@pytest.mark.parametrize("canary", [None, Canary(50, 3600.0)])
def test_a_pool_without_work_shrinks_but_not_to_one_worker_while_it_runs(canary: Canary | None) -> None:
    world = _up(workers=Span(1, 4))
    world.tell(Asked(Wish.SCALE, "workq scale", 3))
    world.live(10.0)
    if canary is not None:
        world.ask(Wish.RELOAD, canary)
    world.live(1200.0)
    assert world.wanted == (1 if canary is None else 2)
    assert world.canary is canary


def test_one_whose_workers_are_missing_at_the_end_is_rolled_back() -> None:
    world = _running(Canary(50, 60.0), workers=2)
    _go_on(world, 30)
    [worker] = _new(world)
    for _ in range(60 + int(ABSENT_FOR)):
        if worker in world.workers.values():
            world.leave(worker, Cause.BROKER, "access refused", Kind.AUTHENTICATION)
            world.be_gone(worker)
        world.advance(1.0)
        world.sample()
        if world.canary and world.births:
            worker = world.fork(world.incoming.births[0]) if world.incoming and world.incoming.births else worker
            world.connect(worker)
    assert "for 60 s none of its workers has consumed" in _because(world, "reload.failed")


def test_its_workers_have_its_limits_and_the_others_theirs() -> None:
    world = _up(workers=2)
    stricter = replace(world.settings, task_timeout=5.0, max_crashes=1)
    world.tell(Asked(Wish.RELOAD, "SIGHUP", settings=stricter, canary=Canary(50, 60.0)))
    world.live(10.0)
    assert world.pool.settings is world.settings, "until it has passed"
    for number, worker in enumerate(list(world.workers.values())):
        world.queue.append(message := Message(f"t{number}"))
        world.deliver(worker, message)
    world.advance(6.0)
    world.sample()
    assert [bool(worker.signals) for worker in world.workers.values() if worker.generation == 2] == [True]
    assert [bool(worker.signals) for worker in world.workers.values() if worker.generation == 1] == [False]


def test_settings_apply_to_all_when_it_has_passed() -> None:
    world = _up(workers=2)
    more = replace(world.settings, workers=Span(3, 3), max_crashes=1)
    world.tell(Asked(Wish.RELOAD, "SIGHUP", settings=more, canary=Canary(50, 20.0)))
    world.live(10.0)
    assert world.wanted == 2
    _go_on(world, 20)
    world.live(30.0, until_well=True)
    assert world.wanted == 3 and world.pool.settings is more


def test_the_queues_its_settings_need_are_not_taken_for_those_of_the_others() -> None:
    world = _running(Canary(50, 3600.0), workers=2, boot_timeout=60.0)
    for worker in list(world.workers.values()):
        world.leave(worker, Cause.BROKER, "connection reset", Kind.LOST)
        world.be_gone(worker)
    world.nursery_dies()
    while not (world.incoming and world.incoming.births):
        world.advance(0.1)
    first = world.fork(world.incoming.births[0])
    world.connect(first)
    world.become_ready(first)
    world.advance(queues.SETTLES_IN + 1.0)
    world.log.clear()
    world.nursery_loads()
    assert [each.has_queues for each in world.log if isinstance(each, Spawn)] == [False]


def test_what_its_worker_did_since_the_last_sample_counts_when_it_exits() -> None:
    world = _running(Canary(50, 3600.0), workers=2)
    world.work(7, 1)
    world.die(_new(world)[0], "SIGKILL")
    world.sample()
    progress = _reload(world).progress
    assert progress is not None and progress.new == _score(6, 1, 1)


def test_while_it_runs_nobody_else_is_replaced() -> None:
    world = _running(Canary(20, 3600.0), workers=5)
    world.log.clear()
    _go_on(world, 60)
    assert not [each for each in world.log if isinstance(each, Tell) and "reload" in each.because]
