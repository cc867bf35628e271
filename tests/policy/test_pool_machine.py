"""The pool against a world in which anything may happen, in any order.

What must hold is asserted in `world`, by the world as it goes along; at the end of every run, health must come back
and the pool must leave.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from supervisor.policy.breaker import RESET_MOST
from supervisor.policy.canary import Canary
from supervisor.policy.events import Wish
from supervisor.policy.poison import RETURNS_MAX
from supervisor.settings.parsers import Threshold
from supervisor.vocabulary import Cause, Intake
from tests.policy import world as model
from tests.policy.world import MB, Message, Stage, Worker, World

IS_PLANTED = "WORKQ_TEST_PLANTED" in os.environ
MINUTES = 60.0
CANARIES = [Canary(20, 200.0), Canary(50, 30.0), Canary(90, 2.0)]
WELL_WITHIN = 5 * MINUTES
"""Degraded, with everybody deadlocked: time-outs of a minute, the longest backoff, and one worker at a time."""
GONE_WITHIN = 13.0
"""A fork that does not come (10 s), or the grace (at most 10 s here); and two seconds for SIGABRT."""

ANY = st.integers(0, 7)
SIGNALS = st.sampled_from(["SIGKILL", "SIGSEGV", "SIGABRT", "OOM", "exit 0", "exit 3"])


def _nth(n: int, of: list[Worker]) -> Worker:
    return of[n % len(of)]


class PoolMachine(RuleBasedStateMachine):
    world: World
    ends_stuck: bool
    """At the end nobody hears the request to stop."""
    ends_lost: bool
    """At the end every task has lost its connection, and runs on."""

    @initialize(
        workers=st.integers(1, 3),
        max_crashes=st.integers(1, 3),
        grace=st.sampled_from([0.0, 10.0]),
        task_timeout=st.sampled_from([None, 20.0]),
        lost_grace=st.sampled_from([0.0, 15.0]),
        preload=st.booleans(),
        boot_retry=st.booleans(),
        late=st.integers(0, 3),
        burst=st.sampled_from([False, False, True]),
        is_up=st.sampled_from([True, True, False]),
        breaker=st.sampled_from([None, Threshold(0.5, 2), Threshold(1.0, 4)]),
        version=st.sampled_from(["3.10.8", "4.0.5"]),
        megabytes=st.sampled_from([10, 10, 150, 250]),
        ends_stuck=st.booleans(),
        ends_lost=st.booleans(),
    )
    def begin(
        self, is_up: bool, late: int, version: str, megabytes: int, ends_stuck: bool, ends_lost: bool, **options: object
    ) -> None:
        self.ends_stuck, self.ends_lost = ends_stuck, ends_lost
        self.world = World(model.settings(max_memory=100 * MB, breaker_reset=5.0, **options))
        self.world.version = version
        self.world.size = megabytes * MB
        if options["boot_retry"]:
            for _ in range(late):
                self._fail_to_import()
        if is_up:
            self.world.live(30.0, until_well=True)

    def _fail_to_import(self) -> None:
        """What the import needs is not there yet."""
        world = self.world
        assert world.nursery is not None
        if world.nursery.preload:
            world.nursery_cannot_load(is_passing=True)
        else:
            if not world.nursery.is_ready:
                world.nursery_loads()
            for worker in [world.fork(page) for page in list(world.nursery.births)]:
                world.cannot_load(worker, is_passing=True)
        assert world.pool.deadline is not None, "it is not tried again"
        world.advance(world.pool.deadline - world.now)

    def _workers(self, *stages: Stage, stuck: bool | None = False) -> list[Worker]:
        workers = [self.world.workers[page] for page in sorted(self.world.workers)]
        return [w for w in workers if w.stage in (stages or Stage) and (stuck is None or w.is_stuck is stuck)]

    # ---------------------------------------------------------------------------------------------- the nursery

    @precondition(lambda self: self.world.nursery and not self.world.nursery.is_ready)
    @rule(what=st.sampled_from(["loads", "loads", "loads", "threads", "fails", "passing", "dies", "sticks", "refused"]))
    def nursery_loads(self, what: str) -> None:
        nursery = self.world.nursery
        assert nursery is not None
        if nursery.is_stuck:
            return
        if what == "loads" or (what == "threads" and not nursery.preload):
            self.world.nursery_loads()
        elif what == "threads":
            self.world.nursery_finds_threads()
        elif what == "fails":
            self.world.nursery_cannot_load()
        elif what == "passing":
            self.world.nursery_cannot_load(is_passing=True)
        elif what == "refused":
            self.world.nursery_is_refused()
        elif what == "dies":
            self.world.nursery_dies()
        else:
            nursery.is_stuck = True

    @precondition(lambda self: self.world.nursery and self.world.nursery.is_ready)
    @rule(dies=st.booleans())
    def nursery_ends(self, dies: bool) -> None:
        nursery = self.world.nursery
        assert nursery is not None
        if dies:
            self.world.nursery_dies()
        else:
            nursery.is_stuck = True

    @precondition(lambda self: self.world.nursery and self.world.nursery.births and not self.world.nursery.is_stuck)
    @rule(n=ANY, works=st.sampled_from([True, True, True, False]))
    def nursery_forks(self, n: int, works: bool) -> None:
        nursery = self.world.nursery
        assert nursery is not None
        slot = nursery.births[n % len(nursery.births)]
        if works:
            self.world.fork(slot)
        else:
            self.world.fail_to_fork(slot)

    @precondition(lambda self: self.world.incoming and self.world.incoming.births and not self.world.incoming.is_stuck)
    @rule(works=st.sampled_from([True, True, True, False]))
    def incoming_forks(self, works: bool) -> None:
        assert self.world.incoming is not None
        (self.world.fork if works else self.world.fail_to_fork)(self.world.incoming.births[0])

    @precondition(lambda self: self.world.pool.open)
    @rule(canary=st.sampled_from([None, None, *CANARIES]))
    def reload(self, canary: Canary | None) -> None:
        self.world.ask(Wish.RELOAD, canary)

    @precondition(lambda self: self.world.pool.open and self.world.wanted >= 2)
    @rule(canary=st.sampled_from(CANARIES))
    def canary_runs(self, canary: Canary) -> None:
        """The new code is loaded, and its first worker consumes, if nothing is in the way."""
        self.world.ask(Wish.RELOAD, canary)
        for _ in range(60):
            if self.world.canary is None and self.world.incoming is not None:
                self.world.live(1.0)

    @precondition(lambda self: self.world.canary is not None)
    @rule(tries=st.sampled_from([1, 30]), failing=st.sampled_from([0, 1]), seconds=st.integers(1, 8))
    def work_for_a_canary(self, tries: int, failing: int, seconds: int) -> None:
        for _ in range(seconds):
            if self.world.canary is not None:
                self.world.work(tries, failing * tries)
                self.world.live(1.0)

    @precondition(lambda self: self.world.incoming is not None)
    @rule(what=st.sampled_from(["loads", "loads", "loads", "threads", "fails", "dies", "sticks", "refused"]))
    def reload_loads(self, what: str) -> None:
        world = self.world
        assert world.incoming is not None
        if world.incoming.is_stuck:
            return
        if world.incoming.is_ready:
            if what == "dies":
                world.reload_fails(dies=True)
            elif what == "sticks":
                world.incoming.is_stuck = True
        elif what == "loads" or (what == "threads" and not world.incoming.preload):
            world.reload_loads()
        elif what == "threads":
            world.reload_finds_threads()
        elif what == "sticks":
            world.incoming.is_stuck = True
        else:
            world.reload_fails(dies=what == "dies", is_refused=what == "refused")

    # ---------------------------------------------------------------------------------------------- the workers

    @precondition(lambda self: self._workers(Stage.BOOTING))
    @rule(n=ANY, what=st.sampled_from(["loads", "loads", "loads", "fails", "passing"]))
    def boot(self, n: int, what: str) -> None:
        worker = _nth(n, self._workers(Stage.BOOTING))
        if what == "loads":
            self.world.connect(worker)
        else:
            self.world.cannot_load(worker, is_passing=what == "passing")

    @precondition(lambda self: self._workers(Stage.CONNECTING))
    @rule(n=ANY, why=st.sampled_from(["", "", "", Cause.BROKER, Cause.CONFIG]), detail=st.sampled_from(["", "refused"]))
    def arrive(self, n: int, why: str, detail: str) -> None:
        worker = _nth(n, self._workers(Stage.CONNECTING))
        if why:
            self.world.leave(worker, why, detail)
        elif worker.order is None:
            self.world.become_ready(worker)
        else:
            self.world.leave(worker, Cause.DRAINED)

    @precondition(lambda self: any(w.takes for w in self._workers()))
    @rule(n=ANY, key=st.sampled_from("ab"))
    def take(self, n: int, key: str) -> None:
        worker = _nth(n, [w for w in self._workers() if w.takes])
        held = [w.message.key for w in self._workers(stuck=None) if w.message]
        if key not in held and not any(message.key == key for message in self.world.queue):
            self.world.queue.append(Message(key))
        if self.world.queue:
            self.world.deliver(worker, self.world.queue[0])

    @precondition(lambda self: any(w.takes for w in self._workers()))
    @rule(n=ANY, again=st.integers(0, 3), status=SIGNALS)
    def be_poisoned(self, n: int, again: int, status: str) -> None:
        """A message kills whoever takes it, one after the other."""
        self.take(n, "a")
        for _ in range(again):
            for worker in [w for w in self._workers() if w.message]:
                self.world.die(worker, status)
            self.world.live(3.0, until_well=True)
            if any(w.takes for w in self._workers()):
                self.take(n, "a")

    @precondition(lambda self: any(w.takes for w in self._workers()))
    @rule(n=ANY, times=st.integers(RETURNS_MAX - 1, RETURNS_MAX), put_back=st.integers(4, 5))
    def come_from_afar(self, n: int, times: int, put_back: int) -> None:
        """A message has come back again and again, from other hosts."""
        here = [*self.world.queue, *(w.message for w in self._workers(stuck=None) if w.message)]
        if not any(message.key == "far" for message in here):
            message = Message("far", is_redelivered=True, returns=times, put_back=put_back)
            self.world.queue.append(message)
            self.world.deliver(_nth(n, [w for w in self._workers() if w.takes]), message)

    @precondition(lambda self: any(w.is_running for w in self._workers()))
    @rule(n=ANY, what=st.sampled_from(["returns", "settles", "fails", "dies", "dies", "dies"]), status=SIGNALS)
    def work(self, n: int, what: str, status: str) -> None:
        worker = _nth(n, [w for w in self._workers() if w.is_running])
        if what == "returns":
            worker.is_settling = True
        elif what in ("settles", "fails") and worker.is_cut_off:
            self.world.leave(worker, Cause.BROKER, "connection reset")
        elif what in ("settles", "fails"):
            self.world.finish_task(worker, fails=what == "fails")
        else:
            self.world.die(worker, status)

    @rule(times=st.integers(1, 6), seconds=st.sampled_from([0, 1, 6]))
    def fail_again_and_again(self, times: int, seconds: int) -> None:
        """What the handlers need is down for a while."""
        for _ in range(times):
            self._work_through(fails=True)
            self.samples(seconds)

    def _work_through(self, *, fails: bool) -> None:
        """Whoever takes something gets a task, and ends it."""
        for worker in [w for w in self._workers() if w.takes]:
            self.world.queue.append(message := Message(f"any-{self.world.now}-{worker.page}"))
            self.world.deliver(worker, message)
            self.world.finish_task(worker, fails=fails)

    @precondition(lambda self: self._workers(stuck=None))
    @rule(n=ANY, status=SIGNALS)
    def die(self, n: int, status: str) -> None:
        self.world.die(_nth(n, self._workers(stuck=None)), status)

    @precondition(lambda self: self._workers(stuck=None))
    @rule(status=SIGNALS)
    def all_die(self, status: str) -> None:
        for worker in self._workers(stuck=None):
            self.world.die(worker, status)

    @rule(times=st.integers(1, 8), status=SIGNALS)
    def die_again_and_again(self, times: int, status: str) -> None:
        for _ in range(times):
            self.world.live(1.0, until_well=True)
            self.all_die(status)

    @precondition(lambda self: any(w.signals for w in self._workers(stuck=None)))
    @rule(n=ANY)
    def die_as_told(self, n: int) -> None:
        worker = _nth(n, [w for w in self._workers(stuck=None) if w.signals])
        self.world.die(worker, worker.signals[-1])

    @precondition(lambda self: any(w.is_idle and w.order for w in self._workers()))
    @rule(n=ANY, hangs=st.booleans())
    def obey(self, n: int, hangs: bool) -> None:
        worker = _nth(n, [w for w in self._workers() if w.is_idle and w.order])
        assert worker.order is not None
        self.world.leave(worker, worker.order.cause)
        if hangs:
            self.world.stick(worker)

    @precondition(lambda self: self._workers(Stage.CONSUMING))
    @rule(n=ANY, cause=st.sampled_from([Cause.BROKER, Cause.MAX_TASKS, Cause.DRAINED]))
    def leave(self, n: int, cause: Cause) -> None:
        worker = _nth(n, self._workers(Stage.CONSUMING))
        if cause is Cause.BROKER or (worker.message is None and not worker.is_cut_off):
            self.world.leave(worker, cause)

    @precondition(lambda self: self._workers(Stage.CONSUMING))
    @rule()
    def lose_the_broker(self) -> None:
        for worker in self._workers(Stage.CONSUMING):
            self.world.leave(worker, Cause.BROKER, "connection reset")

    @precondition(lambda self: any(w.is_running and not w.is_cut_off for w in self._workers(Stage.CONSUMING)))
    @rule(n=ANY, notices=st.booleans(), runs_on=st.booleans())
    def cut_off(self, n: int, notices: bool, runs_on: bool) -> None:
        worker = _nth(n, [w for w in self._workers(Stage.CONSUMING) if w.is_running and not w.is_cut_off])
        self.world.cut_off(worker)
        worker.runs_on = runs_on
        if notices:
            self.world.notice(worker)

    @precondition(lambda self: any(w.takes for w in self._workers()))
    @rule(n=ANY, times=st.integers(1, 3), dies_late=st.booleans(), seconds=st.integers(0, 20))
    def cut_off_again_and_again(self, n: int, times: int, dies_late: bool, seconds: int) -> None:
        """Long tasks in one slot, one after the other: each worker there loses its connection, and its task runs on.
        `dies_late`: who is sent a signal meanwhile takes its time."""
        world = self.world
        slot = _nth(n, [w for w in self._workers() if w.takes]).slot
        for _ in range(times):
            worker = world.seated.get(slot)
            if worker is not None and worker.takes and not worker.is_stuck:
                world.queue.append(message := Message(f"long-{world.now}"))
                world.deliver(worker, message)
                world.cut_off(worker)
                worker.runs_on = True
                world.notice(worker)
            world.dies_late = dies_late
            world.live(3.0)
            world.dies_late = False
        self.samples(seconds)

    @precondition(lambda self: any(w.takes for w in self._workers()))
    @rule(n=ANY, notices=st.booleans(), times=st.integers(1, 3), seconds=st.integers(1, 20), dies=st.booleans())
    def come_back_while_it_runs(self, n: int, notices: bool, times: int, seconds: int, dies: bool) -> None:
        """A message is given to one worker after the other: the first runs on and may die of it, the others wait and
        lose their connections, too."""
        world = self.world
        idle = [w for w in self._workers() if w.takes]
        first = idle.pop(n % len(idle))
        world.queue.append(message := Message(f"back-{world.now}"))
        world.deliver(first, message)
        world.cut_off(first)
        first.runs_on = True
        if notices:
            world.notice(first)
        for other in idle[:times]:
            if message in world.queue:
                world.deliver(other, message)
                if other is not idle[:times][-1] and other.is_asking:
                    world.cut_off(other)
        self.samples(seconds)
        first.runs_on = notices
        if dies and world.workers.get(first.page) is first:
            world.die(first, "SIGSEGV")

    @precondition(lambda self: any(w.is_asking and not w.is_cut_off for w in self._workers(Stage.CONSUMING)))
    @rule(n=ANY)
    def cut_off_while_it_asks(self, n: int) -> None:
        self.world.cut_off(_nth(n, [w for w in self._workers() if w.is_asking and not w.is_cut_off]))

    @precondition(
        lambda self: any(w.is_cut_off and w.is_running and w.lost_at is None for w in self._workers(Stage.CONSUMING))
    )
    @rule(n=ANY)
    def notice(self, n: int) -> None:
        self.world.notice(
            _nth(n, [w for w in self._workers(Stage.CONSUMING) if w.is_cut_off and w.is_running and w.lost_at is None])
        )

    @precondition(lambda self: any(w.is_asking and w.order and not w.order.finish for w in self._workers()))
    @rule(n=ANY)
    def hand_back(self, n: int) -> None:
        worker = _nth(n, [w for w in self._workers() if w.is_asking and w.order and not w.order.finish])
        assert worker.order is not None
        self.world.leave(worker, worker.order.cause)

    @precondition(lambda self: self._workers(Stage.LEAVING))
    @rule(n=ANY)
    def be_gone(self, n: int) -> None:
        self.world.be_gone(_nth(n, self._workers(Stage.LEAVING)))

    @precondition(lambda self: any(not w.message or self.world.settings.task_timeout for w in self._workers()))
    @rule(n=ANY)
    def stick(self, n: int) -> None:
        # A task without a limit may take for ever: that is no defect of the pool's.
        limit = self.world.settings.task_timeout
        self.world.stick(_nth(n, [w for w in self._workers() if not w.message or limit]))

    @precondition(lambda self: self._workers(stuck=None))
    @rule(n=ANY, megabytes=st.sampled_from([10, 101, 201, 260, 710]))
    def grow_fat(self, n: int, megabytes: int) -> None:
        _nth(n, self._workers(stuck=None)).rss = max(megabytes * MB, self.world.size)

    @precondition(lambda self: any(w.is_measuring for w in self._workers()))
    @rule(n=ANY)
    def answer(self, n: int) -> None:
        self.world.answer(_nth(n, [w for w in self._workers() if w.is_measuring]))

    # --------------------------------------------------------------------------------------- the operator, and time

    @rule(wish=st.sampled_from([Wish.GROW, Wish.SHRINK, Wish.SHRINK]), hangs=st.booleans())
    def resize(self, wish: Wish, hangs: bool) -> None:
        if wish is Wish.SHRINK or self.world.wanted < 4:
            self.world.ask(wish)
        leaving = [w for w in self._workers() if w.is_idle and w.order]
        if hangs and leaving:
            self.obey(0, hangs)

    @rule()
    def pause(self) -> None:
        self.world.ask(Wish.PAUSE)

    @rule()
    def resume(self) -> None:
        self.world.ask(Wish.RESUME)

    @precondition(lambda self: self.world.pool.open and self.world.seated)
    @rule(n=ANY, dead_letter=st.booleans(), at_once=st.booleans())
    def kill(self, n: int, dead_letter: bool, at_once: bool) -> None:
        seated = self.world.seated
        self.world.kill(seated[sorted(seated)[n % len(seated)]], dead_letter=dead_letter, at_once=at_once)

    @precondition(lambda self: self.world.pool.open)
    @rule(meant=st.sampled_from([True, False, False, False]))
    def stop(self, meant: bool) -> None:
        if meant:
            self.world.ask(Wish.STOP)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.5, 12.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=st.sampled_from([0.5, 4.0, 40.0]))
    def stall(self, seconds: float) -> None:
        self.world.stall(seconds)

    @precondition(lambda self: self.world.pool.deadline is not None)
    @rule()
    def deadline_comes(self) -> None:
        deadline = self.world.pool.deadline
        assert deadline is not None
        self.world.advance(max(0.0, deadline - self.world.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0]))
    def all_is_well_for_a_while(self, seconds: float) -> None:
        self.world.live(seconds, until_well=True)

    @rule(seconds=st.integers(1, 8))
    def samples(self, seconds: int) -> None:
        for _ in range(seconds):
            self.world.advance(1.0)
            self.world.sample()

    @precondition(lambda self: self.world.pool.open)
    @rule()
    def health_returns(self) -> None:
        world = self.world
        world.live(WELL_WITHIN, until_well=True)
        assert world.is_well or world.is_stopping or not world.pool.open, "a healthy world, and still not all READY"
        self._tasks_succeed_again()

    def _tasks_succeed_again(self) -> None:
        """An open breaker does not stay open."""
        world = self.world
        until = world.now + WELL_WITHIN + RESET_MOST
        while world.pool.open and not world.is_leaving and not world.is_paused and world.now < until:
            if all(worker.intake is Intake.ALL for worker in self._workers()):
                return
            self._work_through(fails=False)
            world.live(1.0)
        assert world.now < until, "tasks would succeed, and still not everybody takes them"

    def _give_everybody_work(self) -> None:
        for number, worker in enumerate([w for w in self._workers() if w.takes]):
            message = Message(f"last-{number}")
            self.world.queue.append(message)
            self.world.deliver(worker, message)

    def teardown(self) -> None:
        if not hasattr(self, "world") or self.world.is_broken:
            return
        world = self.world
        if not world.is_stopping and world.pool.open:
            self.health_returns()
        if world.pool.open and not world.is_stopping:
            self._give_everybody_work()
            for worker in [w for w in self._workers(Stage.CONSUMING) if self.ends_lost and w.is_running]:
                world.cut_off(worker)
                worker.runs_on = True
                world.notice(worker)
            world.ask(Wish.STOP)
        if self.ends_stuck:
            for worker in self._workers():
                world.stick(worker)
        world.live(GONE_WITHIN)
        assert world.left is not None, "asked to stop, and never left"
        assert not world.pool.handle(model.Asked(Wish.STOP, "SIGTERM"), world.now)
        assert not world.pool.overdue(world.now + 1000.0), "still acting after Leave"


PoolMachine.TestCase.settings = settings(
    # The same ones each time: the default suite takes the first of them, that of the planted bugs all.
    max_examples=300 if IS_PLANTED else 100,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    database=None,
    # Who only wants to know whether it fails need not wait for the shortest way to make it fail.
    phases=[Phase.explicit, Phase.generate] if IS_PLANTED else list(Phase),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestThePoolKeepsItsPromises = pytest.mark.timeout(400)(PoolMachine.TestCase)
"""When it fails, Hypothesis takes up to five minutes to find a short way to make it fail."""
