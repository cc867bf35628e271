"""A model of what the pool supervises: nursery, workers, messages and time, without one process.

It keeps the contracts of `parent.processes`: a stopped nursery is heard no more, and what it was asked for is
forgotten; `Started` is the first word of a worker and `Exited` its last; whoever is sent SIGKILL dies some time. And
those of RabbitMQ: what a worker had in hand when it died or lost its connection is delivered again, marked so, and
such a message runs only with the pool's leave.

Whatever the pool does is checked as it does it; a broken promise is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from supervisor.messages import (
    Admit,
    Connecting,
    Depth,
    Drain,
    Leaving,
    Loaded,
    LoadFailed,
    Lost,
    Measure,
    Parked,
    Ready,
    Suspect,
    Threaded,
    Verdict,
)
from supervisor.policy import breaker as breaker_policy
from supervisor.policy.actions import Action, Leave, Say, Signal, Spawn, StartNursery, StopNursery, Tell
from supervisor.policy.broker import PROBE_FOR
from supervisor.policy.canary import ABSENT_FOR, Canary
from supervisor.policy.condition import State
from supervisor.policy.events import (
    Asked,
    Event,
    Exited,
    NurseryFailed,
    NurseryGone,
    NurserySaid,
    Sampled,
    Started,
    StartFailed,
    Target,
    Wish,
    WorkerSaid,
)
from supervisor.policy.poison import PUT_BACK_MAX, RETURNS_MAX, RETURNS_URGENT
from supervisor.policy.pool import Pool
from supervisor.policy.reload import Reload
from supervisor.policy.reload import Stage as ReloadStage
from supervisor.settings import Settings, Span
from supervisor.vocabulary import (
    EXIT_BROKER,
    EXIT_CONFIG,
    EXIT_DONE,
    EXIT_KILLED,
    Away,
    Cause,
    Counts,
    InHand,
    Intake,
    Kind,
    Phase,
    Reading,
    slot_of,
)

MB = 1024 * 1024
LONGEST_BACKOFF = 30.0
"""Seconds; the longest of all in `restart`."""
EXIT_OF = {Cause.BROKER: "exit 75", Cause.CONFIG: "exit 78"}


def settings(**changes: object) -> Settings:
    """Those of a small pool. `workers` may be a number, for a pool of that size."""
    chosen = {"workers": 2, "boot_timeout": 5.0, "grace": 10.0, "app_dir": "/", **changes}
    if isinstance(number := chosen["workers"], int):
        chosen["workers"] = Span(number, number)
    return Settings("tasks:handle", **chosen)


def _load_failed(is_passing: bool) -> LoadFailed:
    if is_passing:
        return LoadFailed("importing tasks raised ConnectionRefusedError", "Traceback ...", is_passing=True)
    return LoadFailed("ImportError: no module named tasks", "Traceback ...")


class Stage(Enum):
    BOOTING = Phase.BOOTING
    CONNECTING = Phase.CONNECTING
    CONSUMING = Phase.IDLE
    LEAVING = Phase.LEAVING


ARRIVING = (Stage.BOOTING, Stage.CONNECTING)


@dataclass
class Message:
    """A message of the queue. Two with the same key may follow one another, as when somebody publishes a task again."""

    key: str
    is_redelivered: bool = False
    kills: int = 0
    returns: int = 0
    """As a quorum queue counts them, by workers of any host."""
    put_back: int = 0
    has_id: bool = True


@dataclass
class Worker:
    page: int
    pid: int
    beat: float
    stage: Stage = Stage.BOOTING
    message: Message | None = None
    since: float = 0.0
    tag: int = 0
    """Of its latest delivery."""
    is_settling: bool = False
    finished: int = 0
    former: tuple[int, int] = (0, 0)
    """Tasks of its page that had succeeded and failed when it began."""
    failed: int = 0
    said: Leaving | LoadFailed | None = None
    order: Drain | None = None
    signals: list[str] = field(default_factory=list)
    is_executed: bool = False
    """An operator has asked for its end."""
    is_stuck: bool = False
    """Deadlocked: it obeys nothing but signals."""
    is_dismissed: bool = False
    """Killed while it booted because it was not wanted any more: nothing is lost by that."""
    is_asking: bool = False
    """Its message has been somebody's before, and it waits for the verdict."""
    is_cut_off: bool = False
    """The broker is gone under its handler, which goes on; afterwards it leaves. The message is in the queue again."""
    lost_at: float | None = None
    """When it has told that."""
    is_orphan: bool = False
    """It has told that, and its slot was given on."""
    runs_on: bool = False
    """Its handler does not return before it is killed."""
    is_measuring: bool = False
    rss: int = 10 * MB
    generation: int = 1
    intake: Intake = Intake.ALL
    has_tried: bool = False
    """It was to take one task, and has."""

    @property
    def slot(self) -> int:
        return slot_of(self.page)

    @property
    def is_running(self) -> bool:
        """Its handler has begun, and has not come to its end, or that is not settled."""
        return self.message is not None and not self.is_asking

    @property
    def hand(self) -> InHand | None:
        return None if self.is_asking else self.held

    @property
    def held(self) -> InHand | None:
        if self.message is None:
            return None
        of = self.message
        name = of.key if of.has_id else None
        return InHand(of.key, name, self.tag, 1, of.is_redelivered, self.since, self.is_settling)

    @property
    def is_idle(self) -> bool:
        return self.stage is Stage.CONSUMING and self.message is None and not self.is_cut_off

    @property
    def takes(self) -> bool:
        """The broker may give it a message."""
        may = self.intake is Intake.ALL or (self.intake is Intake.ONE and not self.has_tried)
        return self.is_idle and self.order is None and may

    def read(self, now: float) -> Reading:
        phase = self.stage.value
        if self.message is not None:
            phase = Phase.ASKING if self.is_asking else Phase.SETTLING if self.is_settling else Phase.BUSY
        beat = self.beat if self.is_stuck else now
        return Reading(self.page, self.pid, phase, self.hand, beat, self.counts, self.rss, held=self.held)

    @property
    def counts(self) -> Counts:
        succeeded, failed = self.ended
        return Counts(succeeded=succeeded, failed=failed)

    @property
    def ended(self) -> tuple[int, int]:
        """As on its page, whose totals outlive it."""
        return self.former[0] + self.finished - self.failed, self.former[1] + self.failed


@dataclass
class NurseryProcess:
    generation: int
    preload: bool
    is_ready: bool = False
    is_stuck: bool = False
    births: list[int] = field(default_factory=list)
    """The pages it was asked to fork for."""


class World:
    """One supervisor's world. Its methods are what may happen; each tells the pool."""

    def __init__(self, settings: Settings, now: float = 1000.0) -> None:
        self.settings = settings
        self.now = now
        self.version = "3.10.8"
        """The broker's. From 4.0 on it drops a message at its 20th return."""
        self.size = 10 * MB
        """What a worker takes before its first task."""
        self.pool = Pool(settings)
        self.wanted = settings.workers.least
        self.nursery: NurseryProcess | None = None
        self.incoming: NurseryProcess | None = None
        """The next generation's, until one of its workers consumes, or its canary has passed."""
        self.workers: dict[int, Worker] = {}
        """By page."""
        self.queue: list[Message] = []
        self.away = Away()
        """What the scoreboard says of tasks in delay queues."""
        self.quarantined: list[Message] = []
        self.kills: Counter[str] = Counter()
        """By key: workers that its messages have killed."""
        self.sentenced: Counter[str] = Counter()
        """By key: messages that an operator has had dead-lettered, and that were not yet."""
        self.log: list[Action] = []
        self.left: Leave | None = None
        self.deaths = 0
        self.has_worked = False
        self.was_asked_to_stop = False
        self.is_stopping = False
        self.has_given_up = False
        """A burst has waited for the broker long enough."""
        self.reached_at = now
        """When a worker last consumed."""
        self.is_finishing = False
        self.is_unsettled = False
        """Something had to be killed, or died with a message in hand, after the stop began."""
        self.is_refused = False
        """The latest nursery could not be started."""
        self.is_broken = False
        """A promise was broken already: what follows from that proves nothing."""
        self._is_awaited = False
        """An import has failed for a reason that may pass, and that is tried again."""
        self.is_paused = False
        self.failures = 0
        """Tasks that have failed since the breaker closed."""
        self._closed_until = 0.0
        """When a task may be tried, since the breaker opened."""
        self._ended: dict[int, tuple[int, int]] = {}
        """By page: as `Worker.ended` when its worker died."""
        self._at_first: dict[int, Intake] = {}
        """By page: what the worker that was asked for may take."""
        self._pids = iter(range(100, 10**9))
        self._vacant_since: dict[int, float] = {}
        self._tried_at = now
        self._spawned_at: dict[int, float] = {}
        """By slot: when a worker was asked for that does not consume yet."""
        self.dies_late = False
        """Who is sent a signal takes its time."""
        self._sent_away: set[int] = set()
        """Slots whose worker has lost the broker or was refused, until somebody reaches it."""
        self.perform(self.pool.start(now))

    # ------------------------------------------------------------------------------------------ what the pool does

    def tell(self, event: Event) -> None:
        self.perform(self.pool.handle(event, self.now))
        self.check()

    def turn(self) -> None:
        """What the loop does each time round."""
        self.perform(self.pool.overdue(self.now))
        self.check()
        deadline = self.pool.deadline
        assert not self.pool.open or deadline is None or deadline > self.now, "the loop would be busy"
        self._check_seats_are_filled()
        for worker in self.workers.values():
            if worker.lost_at is not None and self.now > worker.lost_at + self.settings.lost_grace:
                assert worker.signals, "it runs on without a connection, beyond its grace"

    def perform(self, actions: list[Action]) -> None:
        try:
            self._perform_all(actions)
        except AssertionError:
            self.is_broken = True
            raise

    def _perform_all(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.left is None, f"{action} after Leave"
            assert action.because.strip(), f"{action} does not say why"
            self.log.append(action)
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case StartNursery(generation, preload):
                assert not self.is_stopping, "a nursery is started while stopping"
                self.is_refused = False
                if generation > self.pool.view(self.now).generation:
                    assert self.incoming is None, "two reloads"
                    self.incoming = NurseryProcess(generation, preload)
                else:
                    assert self.nursery is None, "two nurseries"
                    self.nursery = NurseryProcess(generation, preload)
            case StopNursery(generation):
                for name in ("nursery", "incoming"):
                    nursery = getattr(self, name)
                    if nursery is not None and nursery.generation == generation:
                        setattr(self, name, None)
                if self.incoming is not None and self.incoming.generation == self.pool.view(self.now).generation:
                    assert self.nursery is None, "the former generation's nursery lives on"
                    self.nursery, self.incoming = self.incoming, None
                    self._closed_until = 0.0  # new code may have ended the trouble
            case Spawn(page, generation, intake=intake):
                self._at_first[page] = intake
                self._spawn(page, generation)
            case Tell(page, Admit(intake)):
                assert self.workers[page].intake is not intake, "told what it knows"
                self.workers[page].intake, self.workers[page].has_tried = Intake(intake), False
            case Say("breaker.opened", level, fields=fields):
                self._opened(fields["seconds"], is_new=level == "error")
            case Say("breaker.half_open"):
                assert self.now >= self._closed_until, "a task is tried too early"
                assert not self.is_paused, "a task is tried during a pause"
            case Say("breaker.closed"):
                self.failures = 0

            case Tell(page, Drain() as order):
                if action.because.startswith("reload"):
                    self._check_roll(page)
                assert order.cause != Cause.MEMORY or self.workers[page].rss > self.size, (
                    "recycled though it has not grown"
                )
                self.workers[page].order = order
            case Tell(page, Measure()):
                self.workers[page].is_measuring = True
            case Tell(page, Verdict() as verdict):
                self._heed(self.workers[page], verdict)
            case Signal(page, name):
                worker = self.workers[page]
                has_grown = worker.rss > self.size or "resident" not in action.because
                assert has_grown, "killed for what it took from the start"
                worker.is_dismissed = worker.stage is Stage.BOOTING and name == "SIGKILL" and not worker.signals
                worker.signals.append(name)
            case Say("supervisor.resized", fields=fields):
                self.wanted = fields["workers"]
                self._sent_away = {slot for slot in self._sent_away if slot < self.wanted}
            case Say("supervisor.stopping", because=because):
                self._stopping(because)
            case Leave(code):
                self._leave(action, code)

    def _spawn(self, page: int, generation: int) -> None:
        slot = slot_of(page)
        assert not self.is_stopping, "a worker is spawned while stopping"
        assert slot < self.wanted, f"nobody wants a worker in slot {slot}"
        assert slot not in self.seated, f"two workers in slot {slot}"
        assert page not in self.workers, f"two workers write to page {page}"
        nursery = self.nursery
        if self.incoming is not None and self.incoming.generation == generation:
            nursery = self.incoming
            others = [*map(slot_of, nursery.births), *(w.slot for w in self._seated() if w.generation == generation)]
            others = [other for other in others if other < self.wanted]
            if self.canary is None:
                assert not others, "two workers try the next generation"
            leaving = [w.slot for w in self._seated() if w.generation == generation and (w.order or w.signals)]
            most = self.canary.size(self.wanted) if self.canary else 1
            assert len(set(others) - set(leaving)) < most, "more than its share runs the canary"
        assert nursery is not None and nursery.is_ready, "nobody is there to fork it"
        assert nursery.generation == generation, "a worker of a generation that is gone"
        assert slot not in self.births, f"slot {slot} is being forked already"
        if nursery is self.nursery and self.pool.view(self.now).not_imported:
            importing = [w for w in self._seated() if w.stage is Stage.BOOTING and not w.signals]
            assert not importing and not self.nursery.births, "while it cannot be imported, one worker tries"
        if self.pool.view(self.now).state is State.DEGRADED:
            arriving = [w for w in self._seated() if w.stage in ARRIVING and not w.order and not w.signals]
            assert not arriving and not self.births, "while degraded, one worker at a time"
        self._check_probe(slot)
        nursery.births.append(page)

    @property
    def births(self) -> list[int]:
        """The slots that a nursery was asked for, whichever."""
        nurseries = [each for each in (self.nursery, self.incoming) if each is not None]
        return [slot_of(page) for nursery in nurseries for page in nursery.births]

    @property
    def reload(self) -> Reload | None:
        return self.pool.view(self.now).reload

    @property
    def canary(self) -> Canary | None:
        """The one that runs."""
        reload = self.reload
        return reload.canary if reload is not None and reload.stage is ReloadStage.CANARY else None

    def _check_canary(self) -> None:
        """What is so while it runs."""
        if self.canary is not None:
            assert self.incoming is not None or not self.pool.open, "a canary without its nursery"
            assert self.wanted >= 2, "nothing to compare it with"

    def _seated(self) -> list[Worker]:
        """The workers that have a slot: orphans have none."""
        return [worker for worker in self.workers.values() if not worker.is_orphan]

    @property
    def seated(self) -> dict[int, Worker]:
        """By slot."""
        return {worker.slot: worker for worker in self._seated()}

    def _check_probe(self, slot: int) -> None:
        """Whoever was sent away by the broker waits for the one that tries it, and for no more than a while."""
        view = self.pool.view(self.now)
        # What a nursery was asked for that is gone does not come.
        arriving = {*self.births, *(w.slot for w in self._seated() if w.stage in ARRIVING)} - {slot}
        self._spawned_at = {other: at for other, at in self._spawned_at.items() if other in arriving}
        recent = [at for at in self._spawned_at.values() if at + PROBE_FOR > self.now]
        last = view.slots[slot].last_exit
        if slot in self._sent_away and last is not None and last.cause == Cause.BROKER:
            assert len(recent) < 1 + 2 * view.ready, "a herd"
            self._spawned_at[slot] = self.now

    def _check_roll(self, page: int) -> None:
        """A reload replaces one worker at a time, and only while everybody else consumes."""
        generation = self.pool.view(self.now).generation
        if self.incoming is not None and self.incoming.is_ready:
            generation = self.incoming.generation
        assert self.workers[page].generation < generation, "a worker of this generation is replaced by a reload"
        others = [self.seated.get(other) for other in range(self.wanted)]
        assert all(w and w.stage is Stage.CONSUMING and not w.order and not w.signals for w in others), "a gap"

    def _heed(self, worker: Worker, verdict: Verdict) -> None:
        message = worker.message
        assert worker.is_asking, "a verdict that nobody asked for"
        assert message is not None and verdict.key == message.key, "a verdict on another message"
        worker.is_asking, worker.since = False, self.now
        assert verdict.crashes <= self.kills[message.key], "blamed for what it has not done"
        is_near = self.version >= "4.0" and message.returns >= RETURNS_MAX
        if worker.is_cut_off and not verdict.run:
            worker.message = None  # whatever it does about it comes to nothing
        elif verdict.fresh:
            assert is_near and not verdict.run and not message.kills, "put back without need, or though it kills"
            message.returns, message.put_back, message.is_redelivered = 0, message.put_back + 1, False
            self.queue.append(message)
            worker.message = None
        elif verdict.by:
            assert not verdict.run and self.sentenced[message.key] > 0, "dead-lettered though nobody asked for it"
            self.sentenced[message.key] -= 1
            worker.message = None
            self.tell(WorkerSaid(worker.page, Parked(message.key, "operator", "asked for", 1, "09:00")))
        elif verdict.run:
            assert not is_near, "run until the broker drops it"
            assert self.kills[message.key] < self.settings.max_crashes, "run though it has killed often enough"
            self._begin(worker, message)
        else:
            is_known = verdict.crashes or message.put_back >= PUT_BACK_MAX
            assert verdict.crashes >= self.settings.max_crashes or (is_near and is_known), (
                "quarantined without evidence"
            )
            assert verdict.cause
            self.quarantined.append(message)
            worker.message = None

    def _begin(self, worker: Worker, message: Message) -> None:
        worker.has_tried = worker.intake is Intake.ONE
        others = [other for other in self.workers.values() if other is not worker and other.message is message]
        assert not [other for other in others if other.is_running], "two copies of a message run at once"

    def _stopping(self, because: str) -> None:
        if "--burst-wait" in because:
            self.has_given_up = True
            assert self.settings.burst, "the broker is awaited for ever"
            assert self.now - self.reached_at >= self.settings.burst_wait, "a burst has waited for too short a time"
        if "AMQP does not show where" in because and "other consumers" not in because:
            self.has_given_up = True
            assert self.settings.burst and self.away.tasks, "nothing is missing"
        self.is_stopping = self.was_asked_to_stop or not self.settings.burst or not self.has_worked or self.has_given_up
        self.is_finishing = not self.is_stopping
        gave_up = not (self.was_asked_to_stop or self.is_finishing or self.has_given_up)
        assert not (gave_up and self.has_worked), "a pool that has worked gave up"
        assert not (gave_up and self._is_awaited), "it gave up for what may pass"

    def _leave(self, leave: Leave, code: int) -> None:
        assert not self.workers, "left before its workers"
        assert self.nursery is self.incoming is None, "left before its nursery"
        assert self.is_stopping or self.is_finishing, "nobody asked it to leave"
        if self.is_finishing and not self.is_stopping:
            assert not [message for message in self.queue if message.is_redelivered], "burst left unsettled work behind"
        if self.has_given_up:
            assert code == EXIT_BROKER, "the exit code when it waited no longer"
        elif self.is_stopping and not self.was_asked_to_stop:
            assert code == (EXIT_KILLED if self.is_refused else EXIT_CONFIG), "the exit code when it gave up"
        elif code != EXIT_CONFIG or self.has_worked:
            assert code == (EXIT_KILLED if self.is_unsettled else EXIT_DONE), "the exit code"
        self.left = leave

    # ------------------------------------------------------------------------------------------------- promises

    def check(self) -> None:
        """What is so after every event."""
        view = self.pool.view(self.now)
        self._check_canary()
        if view.ready:
            self.reached_at = self.now
        assert sum(view.exits.values()) == self.deaths, "every exit is counted once"
        assert self.pool.open == (self.left is None)
        for slot in view.slots:
            worker = self.seated.get(slot.slot)
            assert slot.pid == (worker.pid if worker else None), f"slot {slot.slot} has lost sight of its process"
        consuming = [
            w
            for w in self.workers.values()
            if w.stage is Stage.CONSUMING and not w.order and not w.signals and w.lost_at is None
        ]
        assert view.ready == len(consuming), "a worker that consumes is READY"
        self._check_admission()
        orphans = [worker for worker in self.workers.values() if worker.is_orphan]
        assert {orphan.pid for orphan in view.orphans} == {orphan.pid for orphan in orphans}, "an orphan is forgotten"
        spared = [orphan.slot for orphan in orphans if not orphan.signals]
        assert len(spared) == len(set(spared)), "one orphan of a slot at most"

    def _opened(self, seconds: float, *, is_new: bool) -> None:
        threshold = self.settings.breaker
        assert threshold is not None and self.now >= self._closed_until, "it opens twice"
        assert self.failures >= (threshold.ratio * threshold.count if is_new else 1), "it opens though few have failed"
        assert seconds >= self.settings.breaker_reset
        self._closed_until = self.now + seconds

    def _check_admission(self) -> None:
        """What every worker was told is what holds now, whoever is new or was replaced."""
        breaker = self.pool.view(self.now).breaker
        state = breaker.state if breaker else breaker_policy.State.CLOSED
        told = [
            worker
            for worker in self.workers.values()
            if not (worker.order or worker.signals or worker.is_orphan or worker.stage is Stage.LEAVING)
        ]
        intakes = {worker.intake for worker in told}
        if self.is_paused or state is breaker_policy.State.OPEN:
            assert intakes <= {Intake.NONE}, "it may take nothing"
        elif state is breaker_policy.State.HALF_OPEN:
            assert Intake.ALL not in intakes, "it may try one task at most"
            assert len([worker for worker in told if worker.takes]) <= 1, "two are about to try"
        else:
            assert Intake.ONE not in intakes, "the breaker is closed"
            may = [worker for worker in told if worker.intake is Intake.ALL]
            assert may or not [w for w in told if w.stage is Stage.CONSUMING], "nobody takes anything"
            assert len(may) == len(told) or (breaker and len(may) > 1), "it was told something else"

    def _check_seats_are_filled(self) -> None:
        """A slot that is wanted and empty is filled within the longest backoff, once there is a nursery."""
        can_fork = self.nursery is not None and self.nursery.is_ready and not self.is_stopping and not self.is_finishing
        view = self.pool.view(self.now)
        is_degraded = view.state is State.DEGRADED
        since, self._vacant_since = self._vacant_since, {}
        if view.shortage or view.not_imported or (view.trouble and not view.ready):
            # One probes for all.
            # A worker that is there proves nothing of the machine.
            is_tried = not can_fork or is_degraded or self.births or (self.workers and not view.shortage)
            if is_tried:
                self._tried_at = self.now
            assert self.now - self._tried_at <= LONGEST_BACKOFF, "nobody tries the broker, or the machine"
            return
        self._tried_at = self.now
        for slot in range(self.wanted):
            # A slot waits for the end of an orphan that was killed for it.
            is_blocked = any(w.is_orphan and w.slot == slot and w.signals for w in self.workers.values())
            is_vacant = slot not in self.seated and slot not in self.births and not is_blocked
            if can_fork and is_vacant and not is_degraded:
                self._vacant_since[slot] = since.get(slot, self.now)
                assert self.now - self._vacant_since[slot] <= LONGEST_BACKOFF, f"slot {slot} is left empty"

    # ------------------------------------------------------------------------------------------------ the nursery

    def nursery_loads(self) -> None:
        assert self.nursery is not None
        self.nursery.is_ready = True
        self.tell(NurserySaid(self.nursery.generation, Loaded(0.1, self.nursery.preload)))

    def nursery_finds_threads(self) -> None:
        assert self.nursery is not None and self.nursery.preload
        self.tell(NurserySaid(self.nursery.generation, Threaded(["pool-1"])))

    def nursery_cannot_load(self, is_passing: bool = False) -> None:
        assert self.nursery is not None
        generation, self.nursery = self.nursery.generation, None
        self._is_awaited = is_passing and self.settings.boot_retry
        self.tell(NurserySaid(generation, _load_failed(is_passing)))
        self._is_awaited = False

    def nursery_is_refused(self) -> None:
        """The process could not be started."""
        assert self.nursery is not None
        generation, self.nursery = self.nursery.generation, None
        self.is_refused = True
        self.tell(NurseryFailed(generation, "fork: Resource temporarily unavailable"))

    def nursery_dies(self, status: str = "SIGKILL") -> None:
        assert self.nursery is not None
        generation, self.nursery = self.nursery.generation, None
        self.tell(NurseryGone(generation, status))

    def reload_loads(self) -> None:
        assert self.incoming is not None
        self.incoming.is_ready = True
        self.tell(NurserySaid(self.incoming.generation, Loaded(0.1, self.incoming.preload)))

    def reload_finds_threads(self) -> None:
        assert self.incoming is not None and self.incoming.preload
        self.tell(NurserySaid(self.incoming.generation, Threaded(["pool-1"])))

    def reload_fails(self, dies: bool, is_refused: bool = False) -> None:
        assert self.incoming is not None
        generation, self.incoming = self.incoming.generation, None
        if is_refused:
            self.tell(NurseryFailed(generation, "fork: Resource temporarily unavailable"))
        elif dies:
            self.tell(NurseryGone(generation, "SIGKILL"))
        else:
            self.tell(NurserySaid(generation, LoadFailed("SyntaxError: invalid syntax", "Traceback ...")))
        assert self.pool.view(self.now).generation < generation, "a generation that cannot be loaded"

    def _forking(self, page: int) -> NurseryProcess:
        return next(each for each in (self.nursery, self.incoming) if each is not None and page in each.births)

    def fork(self, page: int) -> Worker:
        nursery = self._forking(page)
        nursery.births.remove(page)
        self._vacant_since.pop(slot_of(page), None)  # it may be gone again before the loop turns
        worker = self.workers[page] = Worker(page, next(self._pids), self.now)
        worker.generation, worker.rss, worker.intake = nursery.generation, self.size, self._at_first[page]
        worker.former = self._ended.get(page, (0, 0))
        self.tell(Started(page, worker.pid))
        return worker

    def fail_to_fork(self, page: int) -> None:
        self._forking(page).births.remove(page)
        self.tell(StartFailed(page, "fork: Resource temporarily unavailable"))

    # ------------------------------------------------------------------------------------------------- a worker

    def connect(self, worker: Worker) -> None:
        worker.stage = Stage.CONNECTING
        self.tell(WorkerSaid(worker.page, Connecting()))

    def become_ready(self, worker: Worker) -> None:
        worker.stage = Stage.CONSUMING
        self._sent_away.clear()
        self.has_worked = self.has_worked or not worker.order
        self.tell(WorkerSaid(worker.page, Ready("127.0.0.1:5672", self.version, resident=self.size)))
        if self.incoming is not None and not worker.order and self.canary is None:
            assert worker.generation != self.incoming.generation, "it consumes, and its generation is not adopted"

    def deliver(self, worker: Worker, message: Message) -> None:
        """The broker gives it a message; it runs, or is quarantined, at once unless somebody here runs it still."""
        may = worker.intake is Intake.ALL or (worker.intake is Intake.ONE and not worker.has_tried)
        assert may, "a message for a worker that may take nothing"
        self.queue.remove(message)
        worker.message, worker.since, worker.is_settling = message, self.now, False
        worker.tag += 1
        if not (message.is_redelivered or message.put_back):
            worker.has_tried = worker.intake is Intake.ONE
            return
        worker.is_asking = True
        others = [other for other in self.workers.values() if other is not worker and other.message]
        holders = tuple(other.page for other in others if other.message and other.message.key == message.key)
        self.tell(WorkerSaid(worker.page, Suspect(message.key, message.returns, message.put_back), holders))
        self._check_questions(worker)

    def _check_questions(self, *concerned: Worker) -> None:
        """Who asks is answered unless somebody holds the message who may have begun it. Who waits in turn is answered
        at the next sample."""
        for asking in [worker for worker in concerned or self.workers.values() if worker.is_asking]:
            assert asking.message is not None
            others = [worker.message.key for worker in self.workers.values() if worker.message and worker.is_running]
            assert asking.message.key in others, "a question is forgotten"
            is_urgent = self.version >= "4.0" and asking.message.returns >= RETURNS_URGENT
            assert not is_urgent, "the broker may drop what waits for its verdict"

    def finish_task(self, worker: Worker, *, fails: bool = False) -> None:
        """Its handler returns, or raises, and that is settled."""
        assert worker.is_running and not worker.is_cut_off
        worker.message = None
        worker.finished += 1
        worker.failed += fails
        self.failures += fails

    def leave(
        self, worker: Worker, cause: str, detail: str = "it says so", kind: str = "", silence: float = 0.0
    ) -> None:
        """Last words. A message in hand goes back, as when the connection is lost under it."""
        self._give_back(worker)
        if cause == Cause.BROKER and not worker.is_orphan:
            self._sent_away.add(worker.slot)
        worker.stage = Stage.LEAVING
        worker.said = Leaving(cause, detail, kind, silence=silence)
        self.tell(WorkerSaid(worker.page, worker.said))

    def cut_off(self, worker: Worker) -> None:
        """The connection is lost while its handler runs, or while it waits for a verdict. The broker is the first to
        know."""
        assert worker.message is not None
        worker.is_cut_off = True
        worker.message.is_redelivered = True
        worker.message.returns += 1
        assert self.version < "4.0" or worker.message.returns < 20, "the broker has dropped a message"
        self.queue.append(worker.message)

    def notice(self, worker: Worker, silence: float = 0.0) -> None:
        """And then the worker is."""
        worker.lost_at = self.now
        worker.is_orphan = not self.is_stopping and not worker.signals
        self._sent_away.add(worker.slot)
        self.is_finishing = self.is_finishing and not (worker.is_orphan and worker.slot < self.wanted)
        self.tell(WorkerSaid(worker.page, Lost("connection reset", Kind.LOST, silence=silence)))

    def be_gone(self, worker: Worker) -> None:
        """The exit that goes with the last words."""
        assert isinstance(worker.said, Leaving)
        self.die(worker, EXIT_OF.get(Cause(worker.said.cause), "exit 0"))

    def cannot_load(self, worker: Worker, is_passing: bool = False) -> None:
        worker.said = _load_failed(is_passing)
        self._is_awaited = is_passing and self.settings.boot_retry
        self.die(worker, "exit 78")
        self._is_awaited = False

    def die(self, worker: Worker, status: str) -> None:
        """The process is gone."""
        hand, message = worker.hand, worker.message
        was_killed = bool(worker.signals) and not worker.is_dismissed and not status.startswith("exit ")
        if message is not None and worker.is_running:
            # Who is sent SIGKILL and nothing before it has outstayed the grace; that is no fault of the message's.
            is_crash = (worker.signals[:1] != ["SIGKILL"] and not worker.is_executed) or status == "OOM"
            message.kills += is_crash
            self.kills[message.key] += is_crash
            self.failures += is_crash
            assert message.kills <= self.settings.max_crashes, f"message {message.key} has killed {message.kills}"
        self._give_back(worker)
        if self.was_asked_to_stop and (was_killed or hand is not None):
            self.is_unsettled = True
        if self.is_finishing and not worker.is_orphan and worker.slot < self.wanted:
            self.is_finishing = isinstance(worker.said, Leaving) and worker.said.cause == Cause.DRAINED
        self._ended[worker.page] = worker.ended
        del self.workers[worker.page]
        self.deaths += 1
        self.tell(
            Exited(
                worker.page,
                worker.pid,
                status,
                hand,
                worker.said,
                worker.finished,
                "Fatal Python error" if hand else "",
                counts=worker.counts,
            )
        )

    def _give_back(self, worker: Worker) -> None:
        if worker.message is not None and not worker.is_cut_off:
            worker.message.is_redelivered = True
            worker.message.returns += 1
            assert self.version < "4.0" or worker.message.returns < 20, "the broker has dropped a message"
            self.queue.append(worker.message)
        worker.message, worker.is_asking = None, False

    def stick(self, worker: Worker) -> None:
        worker.is_stuck = True
        worker.beat = self.now

    def answer(self, worker: Worker, ready: int | None = None) -> None:
        worker.is_measuring = False
        found = len(self.queue) if ready is None else ready
        self.tell(WorkerSaid(worker.page, Depth(found, len(self.workers), delayed=0)))

    # ---------------------------------------------------------------------------------------------------- others

    def ask(self, wish: Wish, canary: Canary | None = None) -> None:
        if wish in (Wish.STOP, Wish.DRAIN):
            self.was_asked_to_stop = self.was_asked_to_stop or not self.is_stopping
        self.is_paused = self._is_paused_after(wish)
        self.tell(Asked(wish, "SIGTERM", canary=canary))
        if wish in (Wish.STOP, Wish.DRAIN):
            assert self.is_stopping

    def _is_paused_after(self, wish: Wish) -> bool:
        is_leaving = self.is_stopping or self.is_finishing or not self.pool.open
        return (wish is Wish.PAUSE and not is_leaving) or (self.is_paused and wish is not Wish.RESUME)

    def kill(self, worker: Worker, *, dead_letter: bool = False, at_once: bool = False) -> None:
        """An operator asks for the end of what is in its slot."""
        was_signalled = bool(worker.signals)
        readings = tuple(each.read(self.now) for each in self.workers.values())
        target = Target(str(worker.slot), "slot", dead_letter, at_once, readings)
        self.tell(Asked(Wish.KILL, "workq kill", target=target))
        worker.is_executed = worker.is_executed or (bool(worker.signals) and not was_signalled)
        if worker.is_executed and not was_signalled and dead_letter:
            assert worker.message is not None and worker.is_running and not worker.is_settling
            self.sentenced[worker.message.key] += 1

    def work(self, tries: int, failing: int = 0) -> None:
        """Who consumes has made so many tries since the last sample; of the next generation's so many have failed."""
        for worker in self.workers.values():
            if worker.takes and worker.intake is Intake.ALL and not worker.is_stuck:
                is_new = self.incoming is not None and worker.generation == self.incoming.generation
                failed = failing if is_new else 0
                worker.finished += tries
                worker.failed += failed
                self.failures += failed

    def sample(self) -> None:
        self.tell(Sampled(tuple(worker.read(self.now) for worker in self.workers.values()), self.away))
        if self.canary is not None and self.pool.view(self.now).ready and not self.is_finishing and not self.is_paused:
            assert self.reload is not None and self.reload.progress is not None
            assert self.now < self.reload.progress.until + ABSENT_FOR, "a canary without an end"
        self._check_questions()

    def advance(self, seconds: float) -> None:
        """Time goes by; the loop turns whenever the pool wants it to, and nothing else happens."""
        until = self.now + seconds
        self.turn()
        while self.pool.open and (deadline := self.pool.deadline) is not None and deadline < until:
            self.now = deadline
            self.turn()
        self.now = until
        self.turn()

    def stall(self, seconds: float) -> None:
        """Time goes by, and the supervisor is held up."""
        self.now += seconds
        self.turn()

    # ----------------------------------------------------------------------------------------------- good health

    def live(self, seconds: float, *, until_well: bool = False) -> None:
        """Everything that can, does what it should, at once. Deadlocked processes stay so until they are killed."""
        end = self.now + seconds
        sample_at = self.now
        while self.pool.open and self.now < end and not (until_well and self.is_well):
            self._respond()
            if until_well and self.is_well:
                return  # before a sample, at which a burst that finds the queue empty leaves
            if self.pool.open and self.now >= sample_at:
                self.sample()
                self._respond()
                sample_at = self.now + 1.0
            self.turn()
            if self._has_news():
                continue
            deadline = self.pool.deadline
            self.now = min(sample_at, end if deadline is None else deadline)
            self.turn()

    @property
    def is_leaving(self) -> bool:
        return self.is_stopping or self.is_finishing

    @property
    def is_well(self) -> bool:
        view = self.pool.view(self.now)
        is_full = view.ready == self.wanted and len(self.workers) == self.wanted
        new = sum(worker.generation != view.generation for worker in self.workers.values())
        is_current = new == 0 and self.incoming is None
        # Its time stands still.
        is_held = self.is_paused and self.canary is not None and new == self.canary.size(self.wanted)
        return view.state is State.RUNNING and is_full and (is_current or is_held)

    def _has_news(self) -> bool:
        nurseries = [each for each in (self.nursery, self.incoming) if each is not None and not each.is_stuck]
        forks = any(nursery.births or not nursery.is_ready for nursery in nurseries)
        return forks or any(self._has_something_to_do(worker) for worker in self.workers.values())

    def _has_something_to_do(self, worker: Worker) -> bool:
        if worker.signals or worker.runs_on:
            return bool(worker.signals) and not self.dies_late
        if worker.is_asking and not worker.is_stuck:
            # It waits for the verdict, and hands the message back when it is to leave.
            return worker.is_cut_off or (worker.order is not None and not worker.order.finish)
        is_busy = not worker.is_idle or worker.is_measuring or worker.is_cut_off
        return not worker.is_stuck and (is_busy or worker.order is not None)

    def _respond(self) -> None:
        while self.pool.open and self._has_news():
            nursery = self.nursery
            if nursery is not None and not nursery.is_stuck:
                if not nursery.is_ready:
                    self.nursery_loads()
                elif nursery.births:
                    self.fork(nursery.births[0])
            if self.incoming is not None and not self.incoming.is_stuck:
                if not self.incoming.is_ready:
                    self.reload_loads()
                elif self.incoming.births:
                    self.fork(self.incoming.births[0])
            for worker in list(self.workers.values()):
                if self.workers.get(worker.page) is worker and self._has_something_to_do(worker):
                    self._do(worker)

    def _do(self, worker: Worker) -> None:
        if worker.signals:
            self.die(worker, worker.signals[-1])
        elif worker.is_asking and not worker.is_cut_off:
            self.leave(worker, worker.order.cause)
        elif worker.is_cut_off and worker.stage is Stage.CONSUMING and not worker.is_running:
            self.leave(worker, Cause.BROKER, "connection reset", Kind.LOST)
        elif worker.is_cut_off and worker.lost_at is None:
            self.notice(worker)
        elif worker.is_cut_off and worker.stage is Stage.CONSUMING:
            self.leave(worker, Cause.BROKER, "connection reset", Kind.LOST)
        elif worker.message is not None:
            self.finish_task(worker)
        elif worker.stage is Stage.LEAVING:
            self.be_gone(worker)
        elif worker.stage is Stage.BOOTING:
            self.connect(worker)
        elif worker.order is not None:
            self.leave(worker, worker.order.cause)
        elif worker.stage is Stage.CONNECTING:
            self.become_ready(worker)
        elif worker.is_measuring:
            self.answer(worker)
