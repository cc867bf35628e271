"""The pool: events in, actions out.

Pure. It holds one `Slot` a seat, the nursery's state, and the ledger of messages that kill. Time comes with every
call; nothing here waits, reads or writes. The loop performs what is returned, in order, and tells what happened by the
next event.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from supervisor.policy import advice, broker, restart
from supervisor.policy.broker import Broker
from supervisor.policy.poison import Ledger
from supervisor.policy.reload import Reload, Stage
from supervisor.policy.restart import STEADY, Backoff, Fault
from supervisor.policy.scaling import LOOK_EVERY, Scaling
from supervisor.policy.slot import (
    ABORT_TIMEOUT,
    ALIVE,
    ARRIVING,
    CONNECT_TIMEOUT,
    FORK_TIMEOUT,
    LEAVE_TIMEOUT,
    Seat,
    Slot,
)
from supervisor.policy.truth import Belief, Truth
from supervisor.policy.view import PoolView, Restarts, SlotView, State
from supervisor.settings import WORKERS_MOST, Settings
from supervisor.vocabulary import (
    EXIT_CONFIG,
    EXIT_DONE,
    EXIT_KILLED,
    Action,
    Asked,
    Blocked,
    Cause,
    Connecting,
    DeadDepth,
    Depth,
    Drain,
    Event,
    Exited,
    Kind,
    Leave,
    Leaving,
    Loaded,
    LoadFailed,
    Lost,
    Measure,
    NurseryGone,
    NurserySaid,
    Parked,
    Phase,
    Reading,
    Ready,
    Sampled,
    Say,
    Signal,
    Spawn,
    Started,
    StartFailed,
    StartNursery,
    StopNursery,
    Suspect,
    Tell,
    Threaded,
    Wish,
    WorkerSaid,
)

DEPTH_EVERY: Final = 5.0
"""Seconds between two looks at the queue's depth; every sample under `--burst`."""
DEPTH_HOLDS: Final = 20.0
"""Seconds after which a depth is history."""
DEAD_EVERY: Final = 60.0
"""Seconds between two looks at a dead-letter queue that was empty and that we put nothing into since: mostly it does
not exist, and to ask for it costs a line in the broker's log."""
DEAD_HOLDS: Final = DEAD_EVERY + DEPTH_HOLDS
PARKED_SHOWN: Final = 20
"""Dead letters remembered for those who look; all of them lie in the queue."""
SAMPLE_GAP: Final = 3.0
"""Seconds without a sample that say that the supervisor itself was held up: then nobody else is called hung."""
HUNG_AFTER: Final = 5.0
"""Seconds without a turn of an idle loop that nobody takes for starvation; more when the heartbeat is longer. The
broker itself gives up after two heartbeats."""
DUE_MARGIN: Final = 1.0
"""Seconds after a delay's end by which `--burst` takes the message for back in the queue."""
_THREADS: Final = "the import left threads behind, forking beside them is unsafe: each worker imports for itself"
_NURSERY_BACKOFF: Final = Backoff(free=1, first=0.25, most=30.0)


class NurseryState(StrEnum):
    NONE = "none"
    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True)
class Nursery:
    """What the pool knows of the process that forks workers."""

    generation: int
    settings: Settings
    """Those of its workers."""
    state: NurseryState = NurseryState.NONE
    deadline: float | None = None
    """LOADING: the import is given up. NONE: another one is started."""
    loaded_at: float = 0.0
    preload: bool = True
    failures: int = 0
    """In a row: since one forked a worker, or held for `STEADY` seconds. Loading proves nothing: a fork may kill it."""


class Pool:
    """See the module. `seed` spreads the jitter of one supervisor's restarts from another's."""

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        self._settings = settings
        self._seed = seed
        self._slots = [Slot(number) for number in range(settings.workers.least)]
        self._wanted = settings.workers.least
        self._nursery = Nursery(1, settings, preload=settings.preload)
        self._incoming: Nursery | None = None
        """The next generation's, until a worker of it consumes."""
        self._trial: int | None = None
        """The seat of that worker: its next one is the incoming nursery's."""
        self._past: dict[int, Settings] = {}
        """By generation: the limits under which workers still at work have begun."""
        self._newest = 1
        """Generations are numbered as they are begun, whatever becomes of them."""
        self._reloads = 0
        self._latest: Reload | None = None
        self._is_rolling = False
        """Workers of an older generation are being replaced, one at a time."""
        self._ledger = Ledger(settings.max_crashes)
        self._state = State.STARTING
        self._since = 0.0
        self._because = "starting"
        self._code = EXIT_DONE
        self._is_finishing = False
        self._left = False
        self._worked = False
        self._suspects: dict[int, tuple[str, int]] = {}
        """Who asked about a message that another worker seemed to hold, and still waits."""
        self._unexplained: list[float] = []
        self._exits: Counter[str] = Counter()
        self._restarts = Restarts()
        self._depth: Depth | None = None
        self._depth_asked = 0.0
        self._depth_at = 0.0
        self._dead: DeadDepth | None = None
        self._dead_asked = -math.inf
        """Minus infinity: to be looked at with the next look at the queue."""
        self._dead_at = 0.0
        self._parked: tuple[Parked, ...] = ()
        self._broker = Broker()
        self._has_queue = False
        """A worker has consumed from the queue."""
        self._truth = Truth()
        self._compared_at = 0.0
        self._scaling = Scaling(settings.workers)
        self._pages: dict[int, Reading] = {}
        """By slot, as last sampled."""
        self._idle_finished: int | None = None
        self._sampled_at: float | None = None

    # ------------------------------------------------------------------------------------------- to be asked

    @property
    def open(self) -> bool:
        """False once `Leave` was returned."""
        return not self._left

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._settings

    def settings_of(self, generation: int) -> Settings:
        """Those for a nursery that is to be started."""
        incoming = self._incoming
        return incoming.settings if incoming is not None and incoming.generation == generation else self._settings

    @property
    def deadline(self) -> float | None:
        """When `overdue` has something to do, if nothing happens before."""
        times = [max(slot.deadline, self._free_at(slot)) for slot in self._slots if slot.deadline is not None]
        nurseries = (self._nursery, self._incoming)
        times += [n.deadline for n in nurseries if n is not None and n.deadline is not None]
        soonest = min(times, default=math.inf)
        return soonest if soonest < math.inf else None

    def view(self, now: float) -> PoolView:
        ready = [slot for slot in self._slots if slot.phase is Seat.READY]
        doubt = self._truth.doubt
        return PoolView(
            state=self._state,
            since=self._since,
            because=self._because,
            generation=self._nursery.generation,
            slots=tuple(SlotView(s.number, s.pid, s.phase, s.restarts, s.last_exit) for s in self._slots),
            exits=dict(self._exits),
            restart_buckets=tuple(self._restarts.buckets),
            restart_seconds=self._restarts.total,
            depth=self._depth if now - self._depth_at <= DEPTH_HOLDS else None,
            dead=self._dead if now - self._dead_at <= DEAD_HOLDS else None,
            parked=self._parked,
            broker=self._broker.address,
            trouble=self._broker.trouble or self._broker.blockade or (doubt.because if doubt else None),
            is_starved=self._truth.is_starved,
            ready=len(ready),
            steady=sum(1 for s in ready if s.ready_since is not None and now - s.ready_since >= STEADY),
            wanted=self._wanted,
            reload=self._latest,
            is_reloading=self._incoming is not None or self._is_rolling,
        )

    # --------------------------------------------------------------------------------------------- to be told

    def start(self, now: float) -> list[Action]:
        """The first actions."""
        self._since = now
        for slot in self._slots:
            slot.enter(Seat.WAITING, now)
        return self._start_nursery(now, "the supervisor starts")

    def handle(self, event: Event, now: float) -> list[Action]:
        """What follows from this event."""
        if self._left:
            return []
        actions: list[Action] = []
        match event:
            case Asked():
                actions += self._asked(event, now)
            case NurserySaid(generation, report):
                actions += self._nursery_said(generation, report, now)
            case NurseryGone(generation, cause):
                actions += self._nursery_gone(generation, cause, now)
            case Started(number, pid):
                actions += self._started(self._slots[number], pid, now)
            case StartFailed(number, error):
                actions += self._start_failed(self._slots[number], error, now)
            case WorkerSaid(number, report):
                actions += self._worker_said(self._slots[number], report, now)
            case Exited():
                actions += self._exited(self._slots[event.slot], event, now)
            case Sampled(readings):
                actions += self._sampled(readings, now)
        return [*actions, *self._replace_next(now), *self._spawns(now), *self._leave()]

    def overdue(self, now: float) -> list[Action]:
        """What follows from the time alone."""
        if self._left:
            return []
        actions: list[Action] = []
        for slot in self._slots:
            if slot.is_due(now):
                actions += self._slot_overdue(slot, now)
        if self._nursery.deadline is not None and self._nursery.deadline <= now:
            actions += self._nursery_overdue(now)
        if self._incoming is not None and self._incoming.deadline is not None and self._incoming.deadline <= now:
            limit = self._incoming.settings.boot_timeout
            because = f"the import did not end within --boot-timeout ({limit:g} s)"
            actions.append(StopNursery(self._incoming.generation, because, stack=True))
            actions += self._reload_failed(because, now)
        return [*actions, *self._replace_next(now), *self._spawns(now), *self._leave()]

    # ------------------------------------------------------------------------------------------------- wishes

    def _asked(self, asked: Asked, now: float) -> list[Action]:
        by = asked.by
        match asked.wish:
            case Wish.STOP if self._state is State.DRAINING:
                return self._kill_all(f"{by} a second time: now")
            case Wish.DRAIN if self._state is State.DRAINING:
                return [Say("supervisor.stopping", "info", f"{by}: it is under way already ({self._because})")]
            case Wish.STOP | Wish.DRAIN:
                return self._stop(by, now)
            case Wish.SCALE:
                return self._resize(asked.workers, by, now)
            case Wish.GROW:
                return self._resize(self._wanted + 1, by, now)
            case Wish.SHRINK:
                return self._resize(self._wanted - 1, by, now)
            case Wish.RELOAD:
                return self._reload(asked, now)

    def _stop(
        self, because: str, now: float, code: int = EXIT_DONE, event: str = "supervisor.stopping"
    ) -> list[Action]:
        """Drain everyone, within the grace."""
        self._set_state(State.DRAINING, because, now)
        self._code = code
        self._nursery.deadline = None
        actions: list[Action] = [Say(event, "info", because, {"grace": self._settings.grace})]
        if self._incoming is not None:
            actions.append(StopNursery(self._incoming.generation, because))
            self._end_trial(Seat.EMPTY, None)
            self._end_reload(Stage.FAILED, now, "the supervisor leaves")
        for slot in self._slots:
            actions += self._drain(slot, because, now + self._settings.grace)
        return actions

    def _drain(self, slot: Slot, because: str, deadline: float | None, *, finish: bool = False) -> list[Action]:
        match slot.phase:
            case Seat.WAITING | Seat.FORKING:
                # A worker that is being forked right now is told when it shows itself (see _started).
                if slot.phase is Seat.WAITING:
                    slot.enter(Seat.EMPTY)
                return []
            case Seat.BOOTING:
                # It imports, perhaps for ever, hears nothing, and has nothing in hand that could be lost.
                return self._kill(slot, Cause.DRAINED, because)
            case Seat.CONNECTING | Seat.READY:
                # One that hangs while it connects does not hear this: without a grace, the phase's own deadline stays.
                slot.enter(Seat.DRAINING, slot.deadline if deadline is None else deadline)
                return [Tell(slot.number, Drain(finish), because)]
            case Seat.DRAINING:
                if deadline is not None:
                    slot.deadline = deadline if slot.deadline is None else min(deadline, slot.deadline)
                return []
            case _:
                return []

    def _kill_all(self, because: str) -> list[Action]:
        actions: list[Action] = []
        for slot in self._slots:
            if slot.is_alive and slot.phase is not Seat.KILLED:
                actions += self._kill(slot, Cause.GRACE, because)
        return actions

    def _kill(self, slot: Slot, cause: str, because: str) -> list[Action]:
        slot.condemned = slot.condemned or cause
        slot.enter(Seat.KILLED)
        return [Signal(slot.number, "SIGKILL", because)]

    def _abort(self, slot: Slot, cause: str, because: str, now: float) -> list[Action]:
        """SIGABRT makes faulthandler write every thread's stack before the process dies."""
        slot.condemned = slot.condemned or cause
        slot.enter(Seat.ABORTING, now + ABORT_TIMEOUT)
        return [Signal(slot.number, "SIGABRT", because)]

    def _resize(self, wanted: int, by: str, now: float) -> list[Action]:
        span = self._settings.workers
        least, most = (1, WORKERS_MOST) if span.is_fixed else (span.least, span.most)
        if self._state is State.DRAINING or self._is_finishing:
            return [Say("supervisor.scaling", "warning", f"{by}: the supervisor leaves")]
        if not least <= wanted <= most:
            return [
                Say("supervisor.scaling", "warning", f"{by}: there are {self._wanted} workers, of {least} to {most}")
            ]
        if wanted == self._wanted:
            return [Say("supervisor.scaling", "info", f"{by}: there are {wanted} workers already")]
        because = f"{by}: {self._wanted} -> {wanted} workers"
        self._wanted = wanted
        for number in range(len(self._slots), wanted):
            self._slots.append(Slot(number))
        actions: list[Action] = [Say("supervisor.resized", "info", because, {"workers": wanted})]
        for slot in self._slots:
            if slot.number >= wanted:
                actions += self._drain(slot, because, None)
            elif slot.phase is Seat.EMPTY:
                slot.enter(Seat.WAITING, now)
        return actions

    # ------------------------------------------------------------------------------------------------ nursery

    def _start_nursery(self, now: float, because: str) -> list[Action]:
        self._nursery.state = NurseryState.LOADING
        self._nursery.deadline = now + self._settings.boot_timeout
        return [StartNursery(self._nursery.generation, self._nursery.preload, because)]

    def _nursery_said(self, generation: int, report: Loaded | Threaded | LoadFailed, now: float) -> list[Action]:
        if self._incoming is not None and generation == self._incoming.generation:
            return self._incoming_said(self._incoming, report, now)
        if generation != self._nursery.generation or self._state is State.DRAINING:
            return []
        match report:
            case Loaded(seconds, preloaded):
                self._nursery.state = NurseryState.READY
                self._nursery.deadline = None
                self._nursery.loaded_at = now
                return [self._loaded(self._settings.handler, seconds, preloaded)]
            case Threaded(threads):
                self._nursery.preload = False
                self._nursery.state = NurseryState.NONE
                return [
                    Say("handler.loaded", "warning", _THREADS, {"threads": threads, "preloaded": False}),
                    StopNursery(generation, _THREADS),
                    *self._start_nursery(now, _THREADS),
                ]
            case LoadFailed(error, traceback):
                self._nursery.state = NurseryState.NONE
                return self._cannot_load(error, traceback, now)

    def _loaded(self, handler: str, seconds: float, preloaded: bool) -> Say:
        fields = {"handler": handler, "seconds": round(seconds, 3), "preloaded": preloaded}
        because = "imported once, for every worker" if preloaded else "each worker imports it for itself"
        return Say("handler.loaded", "info", because, fields)

    def _cannot_load(self, error: str, traceback: str, now: float) -> list[Action]:
        fields = {"handler": self._settings.handler} | ({"exception": traceback} if traceback else {})
        said = Say("handler.import_failed", "error", error, fields)
        if not self._worked:
            return [said, *self._give_up(f"the handler cannot be loaded: {error}", now)]
        return [said, *self._retry_nursery(now)]

    def _give_up(self, because: str, now: float) -> list[Action]:
        """Restarting will not help."""
        if self._state is State.DRAINING:
            return []
        self._unfork(Seat.EMPTY, None)
        return [*self._stop(because, now, EXIT_CONFIG), StopNursery(self._nursery.generation, because)]

    def _nursery_gone(self, generation: int, cause: str, now: float) -> list[Action]:
        if self._incoming is not None and generation == self._incoming.generation:
            return self._reload_failed(f"the process that imports it died: {cause}", now)
        if generation != self._nursery.generation:
            return []
        if self._state is State.DRAINING:
            self._unfork(Seat.EMPTY, None)
            return []
        self._unfork(Seat.WAITING, now)
        was_loading = self._nursery.state is NurseryState.LOADING
        if not was_loading and now - self._nursery.loaded_at >= STEADY:
            self._nursery.failures = 0
        self._nursery.state = NurseryState.NONE
        said = Say("nursery.exited", "warning", f"{cause}; the workers live on, another nursery follows")
        if was_loading and not self._worked and self._nursery.failures >= 2:
            error = f"the process that imports it died three times, the last by {cause}"
            return [said, *self._cannot_load(error, "", now)]
        return [said, *self._retry_nursery(now)]

    def _unfork(self, phase: Seat, deadline: float | None) -> None:
        """What the nursery was asked for will not come."""
        for slot in self._slots:
            if slot.generation != self._nursery.generation:
                continue  # the incoming one was asked
            if slot.phase is Seat.FORKING and slot.number < self._wanted:
                slot.enter(phase, deadline)
            elif slot.phase is Seat.FORKING:
                slot.enter(Seat.EMPTY)

    def _retry_nursery(self, now: float) -> list[Action]:
        self._nursery.failures += 1
        delay = _NURSERY_BACKOFF.delay(self._nursery.failures, self._roll(0))
        if not delay:
            return self._start_nursery(now, "the nursery is gone")
        self._nursery.deadline = now + delay
        return []

    def _nursery_overdue(self, now: float) -> list[Action]:
        if self._nursery.state is not NurseryState.LOADING:
            return self._start_nursery(now, f"after {self._nursery.failures} failures")
        limit = f"--boot-timeout ({self._settings.boot_timeout:g} s)"
        because = f"the import of {self._settings.handler} did not end within {limit}"
        self._nursery.state = NurseryState.NONE
        self._nursery.deadline = None
        return [StopNursery(self._nursery.generation, because, stack=True), *self._cannot_load(because, "", now)]

    # ------------------------------------------------------------------------------------------------- reload

    def _reload(self, asked: Asked, now: float) -> list[Action]:
        """Load the code anew beside what runs; nothing is replaced before that has worked."""
        if why := self._cannot_reload():
            return [Say("reload.failed", "warning", f"{asked.by}: {why}")]
        actions: list[Action] = []
        if self._incoming is not None:
            actions.append(StopNursery(self._incoming.generation, f"another reload takes its place: {asked.by}"))
            self._end_trial(Seat.WAITING, now)
        settings: Settings = asked.settings or self._settings
        self._newest += 1
        self._reloads += 1
        self._latest = Reload(self._reloads, self._newest, asked.by, now)
        actions.append(Say("reload.started", "info", asked.by, {"generation": self._newest}))
        if asked.problem:
            return [*actions, *self._reload_failed(asked.problem, now)]
        deadline = now + settings.boot_timeout
        self._incoming = Nursery(self._newest, settings, NurseryState.LOADING, deadline, preload=settings.preload)
        return [*actions, StartNursery(self._newest, settings.preload, f"reload: {asked.by}")]

    def _cannot_reload(self) -> str | None:
        if self._state is State.DRAINING or self._is_finishing:
            return "the supervisor leaves"
        if self._nursery.state is not NurseryState.READY and not self._worked:
            return "nothing has been loaded yet"
        # Until a worker of it is being forked it may be taken back; that one waits for somebody's task, for an hour
        # perhaps, and what it is to prove may be known to be wrong by then.
        is_loading = self._incoming is not None and self._incoming.state is NurseryState.LOADING
        return "one is under way already" if is_loading or any(map(self._is_on_trial, self._slots)) else None

    def _incoming_said(self, incoming: Nursery, report: Loaded | Threaded | LoadFailed, now: float) -> list[Action]:
        match report:
            case Loaded(seconds, preloaded):
                incoming.state, incoming.deadline, incoming.loaded_at = NurseryState.READY, None, now
                if self._latest is not None:
                    self._latest = replace(self._latest, stage=Stage.TRYING)
                return [self._loaded(incoming.settings.handler, seconds, preloaded)]
            case Threaded():
                incoming.preload = False
                incoming.deadline = now + incoming.settings.boot_timeout
                return [
                    StopNursery(incoming.generation, _THREADS),
                    StartNursery(incoming.generation, False, _THREADS),
                ]
            case LoadFailed(error, traceback):
                return self._reload_failed(error, now, traceback)

    def _try_next(self, now: float) -> Iterator[Action]:
        """Find the seat whose next worker tries the incoming generation: one that is empty, else an idle one."""
        if self._trial is not None and self._trial < self._wanted:
            return
        seats = self._slots[: self._wanted]
        vacant = [slot for slot in seats if slot.phase is Seat.WAITING]
        if vacant:
            self._trial = vacant[0].number
            vacant[0].deadline = now  # what it was to wait for may be what the reload mends
        elif {slot.phase for slot in seats} == {Seat.READY}:
            idle = (slot for slot in seats if (page := self._pages.get(slot.number)) and page.phase is Phase.IDLE)
            slot = next(idle, seats[0])
            self._trial = slot.number
            yield from self._drain(slot, f"reload: to be the first of generation {self._newest}", None)

    def _is_on_trial(self, slot: Slot) -> bool:
        """Whether a worker of the incoming generation is on its way there."""
        incoming = self._incoming
        return incoming is not None and slot.generation == incoming.generation and slot.phase in (Seat.FORKING, *ALIVE)

    def _adopt(self, incoming: Nursery, now: float) -> list[Action]:
        """A worker of the next generation consumes: it is the present one from here."""
        self._unfork(Seat.WAITING, now)
        former, self._nursery, self._incoming, self._trial = self._nursery, incoming, None, None
        self._past[former.generation] = former.settings
        self._settings = settings = incoming.settings
        self._ledger.max_crashes = settings.max_crashes
        self._is_rolling = True
        if self._latest is not None:
            self._latest = replace(self._latest, stage=Stage.REPLACING)
        actions: list[Action] = [StopNursery(former.generation, f"generation {incoming.generation} consumes")]
        span = settings.workers
        if span != former.settings.workers:
            self._scaling = Scaling(span)
            # A number that an operator has chosen stays where the new limits allow it.
            wanted = span.least if span.is_fixed else min(max(self._wanted, span.least), span.most)
            actions += self._resize(wanted, f"reload: workers = {span}", now)
        return actions

    def _end_trial(self, phase: Seat, deadline: float | None) -> None:
        """The incoming generation is given up; nobody forks for it any more."""
        for slot in self._slots:
            if self._is_on_trial(slot) and slot.phase is Seat.FORKING:
                slot.enter(*((phase, deadline) if slot.number < self._wanted else (Seat.EMPTY, None)))
        self._incoming = self._trial = None

    def _reload_failed(self, because: str, now: float, traceback: str = "") -> list[Action]:
        """The generation there is stays. Its nursery forks where one of the other was on its way."""
        generation = self._nursery.generation
        arriving = (Seat.BOOTING, Seat.CONNECTING)
        on_trial = [slot for slot in self._slots if self._is_on_trial(slot) and slot.phase in arriving]
        self._end_trial(Seat.WAITING, now)
        self._end_reload(Stage.FAILED, now, because)
        fields: dict[str, object] = {"generation": generation} | ({"exception": traceback} if traceback else {})
        actions: list[Action] = [Say("reload.failed", "error", f"{because}; generation {generation} stays", fields)]
        for slot in on_trial:
            actions += self._drain(slot, because, None)
        return actions

    def _trial_failed(self, slot: Slot, because: str, now: float, traceback: str = "") -> list[Action]:
        """The incoming generation's first worker does not come."""
        assert self._incoming is not None
        stop = StopNursery(self._incoming.generation, because)
        failed = self._reload_failed(f"its first worker does not consume: {because}", now, traceback)
        slot.enter(*((Seat.WAITING, now) if slot.number < self._wanted else (Seat.EMPTY, None)))
        return [stop, *failed]

    def _end_reload(self, stage: Stage, now: float, error: str = "") -> None:
        if self._latest is not None and not self._latest.is_over:
            self._latest = replace(self._latest, stage=stage, ended=now, error=error)

    def _replace_next(self, now: float) -> Iterator[Action]:
        """Replace one worker of an older generation, when the one before it has been replaced by one that consumes."""
        if self._state is State.DRAINING or self._is_finishing:
            return
        if self._incoming is not None and self._incoming.state is NurseryState.READY:
            yield from self._try_next(now)
            return
        if not self._is_rolling:
            return
        seats = self._slots[: self._wanted]
        generation = self._nursery.generation
        old = [slot for slot in seats if slot.is_alive and slot.generation < generation]
        if not old:
            self._is_rolling = False
            self._past.clear()
            if self._latest is not None and self._latest.generation == generation:
                self._end_reload(Stage.FINISHED, now)
            yield Say(
                "reload.finished", "info", f"every worker is of generation {generation}", {"generation": generation}
            )
        elif all(slot.phase is Seat.READY for slot in seats):
            yield from self._drain(old[0], f"reload: generation {generation} follows", None)

    # ------------------------------------------------------------------------------------------------ workers

    def _started(self, slot: Slot, pid: int, now: float) -> list[Action]:
        nursery = self._nursery
        if self._is_on_trial(slot):
            assert self._incoming is not None
            nursery = self._incoming
        nursery.failures = 0
        slot.pid = pid
        slot.enter(Seat.BOOTING, now + nursery.settings.boot_timeout)
        said = Say("worker.started", "info", _why_started(slot), {"slot": slot.number, "pid": pid})
        if self._state is State.DRAINING:
            return [said, *self._drain(slot, self._because, now + self._settings.grace)]
        if self._is_finishing or slot.number >= self._wanted:
            return [said, *self._drain(slot, "no longer wanted", None, finish=self._is_finishing)]
        return [said]

    def _start_failed(self, slot: Slot, error: str, now: float) -> list[Action]:
        if self._state is State.DRAINING or slot.number >= self._wanted:
            slot.enter(Seat.EMPTY)
            return []
        if self._is_on_trial(slot):
            return self._trial_failed(slot, error, now)
        streak = slot.count(Fault.UNEXPLAINED, recovered=False)
        again = restart.decide(
            Fault.UNEXPLAINED, streak=streak + 1, was_ready=False, now=now, roll=self._roll(slot.number)
        )
        slot.enter(Seat.WAITING, again.at)
        return [Say("worker.start_failed", "error", error, {"slot": slot.number, "next": again.because})]

    def _worker_said(self, slot: Slot, report: object, now: float) -> list[Action]:
        match report:
            case Connecting() if slot.phase is Seat.BOOTING:
                slot.enter(Seat.CONNECTING, now + CONNECT_TIMEOUT)
                return []
            case Ready() if slot.phase is Seat.CONNECTING:
                return self._ready(slot, report, now)
            case Suspect(key, returns, is_held=True):
                # Whoever holds it may be dying of it this instant; if so, the next sample comes after its death.
                self._suspects[slot.number] = (key, returns)
                return []
            case Suspect(key, returns):
                return [self._verdict(slot.number, key, returns)]
            case Depth() as depth:
                return self._measured(depth, now)
            case DeadDepth() as dead:
                self._dead, self._dead_at = dead, now
                return []
            case Parked() as parked:
                self._parked = (*self._parked, parked)[-PARKED_SHOWN:]
                self._dead_asked = -math.inf
                if self._dead is not None:
                    self._dead = DeadDepth(self._dead.ready + 1)  # until the broker's own word
                return []
            case Lost(detail, kind) if slot.phase is Seat.READY:
                # It leaves when its handler has come to an end, in an hour perhaps. Until then it does not consume.
                slot.enter(Seat.DRAINING, None)
                return [*self._broker.lose(kind, detail, self._count(Seat.READY), now)]
            case Blocked(is_blocked):
                return [*self._broker.block(slot.number, is_blocked)]
            case Ready() if slot.phase is Seat.DRAINING and self._state is not State.DRAINING:
                # It may have a task in hand by now, for as long as that takes.
                slot.deadline = None
                return []
            case Leaving() if slot.phase is Seat.READY or (slot.phase is Seat.DRAINING and slot.deadline is None):
                # From here it has the grace to be gone: a thread or an atexit function of the handler's may hold it.
                slot.enter(Seat.DRAINING, now + max(self._settings.grace, LEAVE_TIMEOUT))
                return []
            case _:
                return []

    def _verdict(self, slot: int, key: str, returns: int) -> Tell:
        verdict = self._ledger.verdict(key, returns)
        if not verdict.crashes and not verdict.run:
            return Tell(slot, verdict, f"it was {verdict.cause}, and the broker drops such messages")
        if not verdict.crashes:
            return Tell(slot, verdict, "it is not known to have killed a worker")
        return Tell(slot, verdict, f"it has killed {verdict.crashes} of {self._settings.max_crashes}")

    def _answer_suspects(self, key: str | None = None) -> list[Action]:
        """Those who asked about this key, or all."""
        due = [slot for slot, (asked, _) in self._suspects.items() if key is None or asked == key]
        return [self._verdict(slot, *self._suspects.pop(slot)) for slot in due]

    def _ready(self, slot: Slot, report: Ready, now: float) -> list[Action]:
        slot.enter(Seat.READY)
        slot.ready_since = now
        advised = advice.acknowledgement(report.version, self._settings)
        concerned = [other for other in self._slots if other.fault in broker.FAULTS]
        if self._broker.away_since is not None:
            for other in concerned:
                if other.phase is Seat.WAITING:
                    other.deadline = now
        actions: list[Action] = [*self._broker.reach(report.broker, report.version, advised, now)]
        actions += self._queue_found(report.has_declared)
        if not any(other.phase is Seat.WAITING or other.phase in ARRIVING for other in concerned):
            self._broker.recover()
        fields: dict[str, object] = {"slot": slot.number, "pid": slot.pid, "broker": report.broker}
        if slot.died_at is not None:
            self._restarts.add(now - slot.died_at)
            fields["seconds"] = round(now - slot.died_at, 4)
            slot.died_at = None
        actions.append(Say("worker.ready", "info", "the broker has confirmed the consumer", fields))
        self._worked = True
        if self._incoming is not None and self._is_on_trial(slot):
            actions += self._adopt(self._incoming, now)
        if self._state is State.STARTING and self._count(Seat.READY) >= self._wanted:
            self._set_state(State.RUNNING, "every worker consumes", now)
            actions.append(Say("supervisor.ready", "info", self._because, {"workers": self._wanted}))
        return actions

    def _queue_found(self, has_declared: bool | None) -> Iterator[Action]:
        """What is known of the queue, said when a worker first has it, and when it was deleted and is there again."""
        queue, type_ = self._settings.queue, self._settings.queue_type
        was_gone = self._broker.kind in (Kind.CANCELLED, Kind.MISSING)
        if has_declared and (was_gone or not self._has_queue):
            anew = "was deleted, with what was in it, and is declared anew" if self._has_queue else "is declared"
            level = "warning" if self._has_queue else "info"
            yield Say("queue.declared", level, f"{queue} {anew}: durable, of the virtual host's default type")
        elif not self._has_queue and has_declared is None:
            yield Say("queue.taken", "info", f"{queue} is durable and of type {type_}, as asked for")
        elif not self._has_queue:
            untold = "AMQP does not tell of which type it is and with which arguments, `workq check` does"
            yield Say("queue.taken", "info", f"{queue} exists and is used as it is; {untold}")
        self._has_queue = True

    def _exited(self, slot: Slot, died: Exited, now: float) -> list[Action]:
        was_ready = slot.ready_since is not None
        lived = now - slot.ready_since if slot.ready_since is not None else 0.0
        trouble = self._broker.trouble
        cause = self._cause(slot, died)
        fault = self._fault(slot, died, cause)
        crashes = 0
        if fault is Fault.MESSAGE and died.hand is not None:
            who = f"worker {slot.number} (pid {died.pid})"
            crashes = self._ledger.blame(died.hand.key, cause, died.output, at=died.at, who=who)
        self._exits[cause] += 1
        was_killed = slot.condemned not in (None, Cause.DRAINED) and not died.status.startswith("exit ")
        is_unsettled = died.hand is not None or (isinstance(died.said, Leaving) and died.said.is_unsettled)
        if self._state is State.DRAINING and self._code == EXIT_DONE and (was_killed or is_unsettled):
            self._code = EXIT_KILLED
        is_trial = self._is_on_trial(slot) and slot.number < self._wanted and not self._is_finishing
        slot.vacate(died, cause, now)
        self._idle_finished = None
        self._suspects.pop(slot.number, None)
        unblocked = self._broker.block(slot.number, False)
        actions: list[Action] = self._answer_suspects(died.hand.key) if died.hand else []
        actions += unblocked
        if is_trial and self._state is not State.DRAINING:
            failed = died.said if isinstance(died.said, LoadFailed) else None
            because = failed.error if failed else _because(died, cause, fault)
            actions += self._trial_failed(slot, because, now, failed.traceback if failed else "")
            slot.restarts += 1
            follows = f"the reload has failed; one of generation {self._nursery.generation} follows"
        else:
            follows = self._follow(slot, died, fault, was_ready, lived, now, actions)
        if crashes:
            follows += f"; the message has killed {crashes} of {self._settings.max_crashes}"
            if self._ledger.is_condemned(crashes):
                follows += " and will be quarantined"
        is_old_news = fault in broker.FAULTS and not was_ready and trouble == self._broker.trouble
        return [self._obituary(slot, died, cause, fault, follows, now, is_old_news), *actions]

    def _cause(self, slot: Slot, died: Exited) -> str:
        # Last words count only with the exit that goes with them: a worker killed while it leaves was killed.
        if died.said is not None and died.status.startswith("exit "):
            return Cause.HANDLER if isinstance(died.said, LoadFailed) else died.said.cause
        if slot.condemned is not None and died.status != "OOM":
            return slot.condemned
        return died.status

    def _fault(self, slot: Slot, died: Exited, cause: str) -> Fault:
        match cause:
            case Cause.DRAINED | Cause.MAX_TASKS | Cause.GRACE:
                return Fault.PLANNED
            case Cause.BROKER:
                kind = died.said.kind if isinstance(died.said, Leaving) else ""
                return Fault.REFUSED if kind in restart.PEOPLE_MEND else Fault.BROKER
            case Cause.NOT_CONSUMING:
                return Fault.BROKER
            case Cause.CONFIG if self._worked and isinstance(died.said, Leaving):
                # The queue was replaced by one of another type, for instance.
                return Fault.REFUSED
            case Cause.CONFIG | Cause.HANDLER:
                return Fault.CONFIG
            case Cause.MEMORY if died.hand is None:
                return Fault.PLANNED
            case _:
                return Fault.MESSAGE if died.hand is not None else Fault.UNEXPLAINED

    def _follow(
        self, slot: Slot, died: Exited, fault: Fault, was_ready: bool, lived: float, now: float, actions: list[Action]
    ) -> str:
        """Decide what becomes of the seat; returns it in words, for the log."""
        if self._state is State.DRAINING:
            return "none: the supervisor is stopping"
        if slot.number >= self._wanted:
            return "none: fewer workers are wanted"
        if self._is_finishing:
            if isinstance(died.said, Leaving) and died.said.cause == Cause.DRAINED:
                return "none: the queue is empty"
            # It may have left something behind: not even `max_tasks` runs what was delivered beside the last task.
            self._is_finishing = False
            for other in self._slots[: self._wanted]:
                if other.phase is Seat.EMPTY:
                    other.enter(Seat.WAITING, now)
        if fault is Fault.CONFIG and not self._worked:
            detail = died.said.error if isinstance(died.said, LoadFailed) else died.said.detail if died.said else ""
            if isinstance(died.said, LoadFailed):
                actions += self._cannot_load(died.said.error, died.said.traceback, now)
            else:
                actions += self._give_up(detail or "a worker says that its configuration is wrong", now)
            return "none: restarting will not help"
        if fault is Fault.UNEXPLAINED:
            self._note_unexplained(now, actions)
        streak = slot.count(fault, recovered=lived >= STEADY or died.finished > 0)
        roll = self._roll(slot.number)
        again = restart.decide(fault, streak=streak, was_ready=was_ready, now=now, roll=roll).at
        if fault in broker.FAULTS and isinstance(died.said, Leaving) and died.said.cause != Cause.NOT_CONSUMING:
            consuming = self._count(Seat.READY)
            kind, detail = died.said.kind, died.said.detail or "it did not say why"
            if was_ready:
                actions += self._broker.lose(kind, detail, consuming, now)
            elif consuming:
                actions += self._broker.turn_away(kind, detail, consuming)
            if not consuming and again > now + restart.LULL:
                again, said = self._broker.fail(fault, kind, detail, streak, now, roll)
                actions += said
                self._wait_for_the_probe(again)
        slot.restarts += 1
        slot.enter(Seat.WAITING, again)
        return "restart at once" if again <= now else f"restart in {again - now:.2f} s"

    def _wait_for_the_probe(self, at: float) -> None:
        for slot in self._slots:
            if slot.phase is Seat.WAITING and slot.fault in broker.FAULTS and slot.deadline is not None:
                slot.deadline = max(slot.deadline, at)

    def _obituary(
        self, slot: Slot, died: Exited, cause: str, fault: Fault, follows: str, now: float, is_old_news: bool
    ) -> Say:
        fields: dict[str, object] = {
            "slot": slot.number,
            "pid": died.pid,
            "cause": cause,
            "status": died.status,
            "next": follows,
        }
        if died.hand is not None:
            fields["message_id"] = died.hand.message_id or died.hand.key
            fields["busy_seconds"] = round(now - died.hand.since, 3)
            fields["attempt"] = died.hand.attempt
            fields["redelivered"] = died.hand.redelivered
            if died.hand.settling:
                fields["settling"] = True
            if died.hand.trace_id:
                fields["trace_id"] = died.hand.trace_id
        else:
            fields["message_id"] = None
        if died.output and fault in (Fault.MESSAGE, Fault.UNEXPLAINED):
            fields["output"] = died.output
        level = "info" if is_old_news or (fault is Fault.PLANNED and cause != Cause.GRACE) else "warning"
        return Say("worker.exited", level, _because(died, cause, fault), fields)

    def _note_unexplained(self, now: float, actions: list[Action]) -> None:
        self._unexplained = [at for at in self._unexplained if at > now - restart.INTENSITY_WINDOW] + [now]
        if self._state is not State.DEGRADED and restart.too_intense(self._unexplained, self._wanted, now):
            deaths = f"{len(self._unexplained)} unexplained deaths in {restart.INTENSITY_WINDOW:g} s"
            because = f"{deaths}: one worker at a time from here"
            self._set_state(State.DEGRADED, because, now)
            actions.append(Say("supervisor.degraded", "error", because))

    # ----------------------------------------------------------------------------------------------- the time

    def _slot_overdue(self, slot: Slot, now: float) -> list[Action]:
        match slot.phase:
            case Seat.FORKING:
                because = f"it did not fork within {FORK_TIMEOUT:g} s"
                if self._is_on_trial(slot):
                    return self._trial_failed(slot, because, now)
                self._nursery.state = NurseryState.NONE
                if self._state is State.DRAINING:
                    self._unfork(Seat.EMPTY, None)
                    return [StopNursery(self._nursery.generation, because)]
                self._unfork(Seat.WAITING, now)
                return [StopNursery(self._nursery.generation, because), *self._retry_nursery(now)]
            case Seat.BOOTING:
                limit = self.settings_of(slot.generation).boot_timeout
                because = f"not booted within --boot-timeout ({limit:g} s)"
                return self._abort(slot, Cause.BOOT, because, now)
            case Seat.CONNECTING:
                return self._abort(
                    slot, Cause.HUNG, f"not connected, and not given up either, for {CONNECT_TIMEOUT:g} s", now
                )
            case Seat.DRAINING:
                because = f"it was to leave, and is still there (--grace {self._settings.grace:g} s)"
                return self._kill(slot, Cause.GRACE, because)
            case Seat.ABORTING:
                return self._kill(slot, slot.condemned or Cause.HUNG, "SIGABRT did not end it")
            case _:
                return []

    def _sampled(self, readings: tuple[Reading, ...], now: float) -> list[Action]:
        held_up = self._sampled_at is not None and now - self._sampled_at > SAMPLE_GAP
        self._sampled_at = now
        self._pages = {reading.slot: reading for reading in readings}
        self._scaling.sampled(readings, now)
        actions: list[Action] = self._answer_suspects()
        for reading in readings:
            slot = self._slots[reading.slot]
            if slot.pid == reading.pid and slot.phase in (Seat.READY, Seat.DRAINING):
                actions += self._judge(slot, reading, held_up, now)
        self._recover(now, actions)
        if self._settings.burst:
            actions += self._burst(readings, now)
        is_due = not self._settings.burst or not self._settings.workers.is_fixed
        if is_due and self._state is not State.DRAINING and now - self._depth_asked >= self._look_every:
            actions += self._measure(now)
        return actions

    def _judge(self, slot: Slot, reading: Reading, held_up: bool, now: float) -> list[Action]:
        limits = self._past.get(slot.generation, self._settings)
        if reading.hand is not None:
            busy = now - reading.hand.since
            if limits.task_timeout is not None and busy > limits.task_timeout and reading.phase is Phase.BUSY:
                because = f"task {reading.hand.key} runs for {busy:.1f} s, --task-timeout is {limits.task_timeout:g} s"
                return self._hang(slot, Cause.TIMEOUT, because, reading, now)
            if limits.max_memory is not None and reading.rss > 2 * limits.max_memory:
                because = f"{reading.rss} bytes resident, more than twice --max-memory, in the middle of a task"
                return self._hang(slot, Cause.MEMORY, because, reading, now)
        stands_still = not held_up and now - reading.beat > max(limits.heartbeat, HUNG_AFTER)
        if stands_still and reading.is_stopped:
            because = f"a signal has stopped it (SIGSTOP), and it has not moved for {now - reading.beat:.1f} s"
            return self._hang(slot, Cause.HUNG, because, reading, now)
        if reading.hand is not None:
            return []
        if reading.phase is Phase.IDLE and stands_still:
            return self._hang(
                slot, Cause.HUNG, f"its idle loop has not turned for {now - reading.beat:.1f} s", reading, now
            )
        if slot.phase is Seat.READY and limits.max_memory is not None and reading.rss > limits.max_memory:
            because = f"{reading.rss} bytes resident, above --max-memory: recycled between tasks"
            slot.enter(Seat.DRAINING, None)
            return [Tell(slot.number, Drain(cause=Cause.MEMORY), because)]
        return []

    def _hang(self, slot: Slot, cause: str, because: str, reading: Reading, now: float) -> list[Action]:
        fields = {"slot": slot.number, "pid": slot.pid, "cause": cause}
        if reading.hand is not None:
            fields["message_id"] = reading.hand.message_id or reading.hand.key
            if reading.hand.trace_id:
                fields["trace_id"] = reading.hand.trace_id
        return [Say("worker.hung", "error", because, fields), *self._abort(slot, cause, because, now)]

    def _recover(self, now: float, actions: list[Action]) -> None:
        match self._state:
            case State.DEGRADED if not self._unexplained or now - self._unexplained[-1] >= STEADY:
                because = "every worker consumes again"
            case State.STARTING:
                because = "every worker consumes"  # since fewer are wanted: else `_ready` has said so
            case _:
                return
        if self._count(Seat.READY) >= self._wanted:
            self._unexplained.clear()
            self._set_state(State.RUNNING, because, now)
            actions.append(Say("supervisor.ready", "info", self._because, {"workers": self._wanted}))

    @property
    def _look_every(self) -> float:
        return DEPTH_EVERY if self._settings.workers.is_fixed else LOOK_EVERY

    def _measure(self, now: float) -> list[Action]:
        """Ask somebody idle, if there is one: a handler that holds the interpreter keeps the question waiting."""
        ready = [slot.number for slot in self._slots if slot.phase is Seat.READY]
        if not ready:
            return []
        self._depth_asked = now
        idle = [number for number in ready if number in self._pages and self._pages[number].phase is Phase.IDLE]
        has_dead = self._dead is not None and self._dead.ready > 0
        dead = now - self._dead_asked >= (DEPTH_EVERY if has_dead else DEAD_EVERY)
        if dead:
            self._dead_asked = now
        return [Tell((idle or ready)[0], Measure(dead), "the queue's depth is looked at now and then")]

    def _burst(self, readings: tuple[Reading, ...], now: float) -> list[Action]:
        """Ask for the depth when everybody has been idle since the last sample."""
        if self._state is State.DRAINING or self._is_finishing:
            return []
        finished = sum(reading.counts.finished + reading.counts.quarantined for reading in readings)
        idle = [reading for reading in readings if reading.phase is Phase.IDLE]
        is_owed = any(reading.counts.due + DUE_MARGIN > now for reading in readings)
        seated = self._slots[: self._wanted]
        all_idle = not is_owed and len(idle) == len(readings) and all(slot.phase is Seat.READY for slot in seated)
        self._idle_finished = finished if all_idle else None
        if not all_idle:
            return []
        return [Tell(idle[0].slot, Measure(), "--burst: everybody is idle; is the queue empty?")]

    def _measured(self, depth: Depth, now: float) -> list[Action]:
        self._depth, self._depth_at = depth, now
        actions = [*self._compare(depth, now), *self._scale(depth, now)]
        if not self._settings.burst or depth.ready or self._idle_finished is None or self._state is State.DRAINING:
            return actions
        self._is_finishing = True
        because = "--burst: the queue is empty and everybody is idle"
        actions.append(Say("supervisor.stopping", "info", because))
        for slot in self._slots:
            actions += self._drain(slot, because, None, finish=True)
        return actions

    def _scale(self, depth: Depth, now: float) -> list[Action]:
        """`--workers MIN..MAX`; see `scaling`."""
        is_moving = self._is_rolling or self._incoming is not None or self._is_finishing
        if self._state is not State.RUNNING or is_moving or self._broker.away_since is not None:
            return []
        decision = self._scaling.look(depth, self._wanted, now)
        if decision is None:
            return []
        if decision.wanted == self._wanted:
            return [Say("supervisor.scaling", "info", decision.because, {"workers": self._wanted})]
        return self._resize(decision.wanted, decision.because, now)

    def _compare(self, depth: Depth, now: float) -> list[Action]:
        """The broker's truth with our workers' beliefs; see `truth`."""
        # Not at every look of the scaling: a quorum queue that elects a leader gives nobody anything for seconds.
        if self._state is State.DRAINING or self._is_finishing or now - self._compared_at < DEPTH_EVERY:
            return []
        self._compared_at = now
        beliefs = [
            Belief(slot.number, slot.pid, page.phase is Phase.IDLE, page.counts.settled)
            for slot in self._slots
            if slot.phase is Seat.READY and (page := self._pages.get(slot.number)) and page.pid == slot.pid
        ]
        doubt = self._truth.look(depth, beliefs)
        if doubt is None:
            return []
        if doubt.replace is None:
            return [Say("worker.not_consuming", "warning", doubt.because)] if doubt.is_news else []
        slot = self._slots[doubt.replace]
        fields = {"slot": slot.number, "pid": slot.pid, "next": "it is replaced"}
        slot.enter(Seat.DRAINING, None)
        return [
            Say("worker.not_consuming", "error", doubt.because, fields),
            Tell(slot.number, Drain(cause=Cause.NOT_CONSUMING), doubt.because),
        ]

    # ------------------------------------------------------------------------------------------- what follows

    def _spawns(self, now: float) -> Iterator[Action]:
        if self._state is State.DRAINING:
            return
        for slot in self._slots:
            if slot.phase is Seat.WAITING and slot.is_due(now) and self._free_at(slot) <= now:
                slot.enter(Seat.FORKING, now + FORK_TIMEOUT)
                slot.spawned_at = now
                slot.generation = self._nursery_for(slot).generation
                yield Spawn(slot.number, slot.generation, _why_started(slot))

    def _free_at(self, slot: Slot) -> float:
        """When a waiting seat need not wait for others any more; infinite when only an event can tell."""
        if slot.phase is not Seat.WAITING:
            return -math.inf
        if self._nursery_for(slot).state is not NurseryState.READY:
            return math.inf
        if self._state is not State.DEGRADED and slot.fault not in broker.FAULTS:
            return -math.inf
        begun = [other.spawned_at for other in self._slots if other.phase in ARRIVING]
        if self._state is State.DEGRADED:
            return math.inf if begun else -math.inf
        return broker.turn(begun, self._count(Seat.READY))

    def _nursery_for(self, slot: Slot) -> Nursery:
        """The one that is to fork for this seat."""
        return self._incoming if self._incoming is not None and slot.number == self._trial else self._nursery

    def _leave(self) -> Iterator[Action]:
        if self._state is not State.DRAINING and not self._is_finishing:
            return
        if any(slot.phase is not Seat.EMPTY for slot in self._slots):
            return
        self._left = True
        self._state = State.STOPPED
        for nursery in (self._nursery, self._incoming):
            if nursery is not None:
                yield StopNursery(nursery.generation, "nobody is left to fork")
        yield Leave(self._code, self._because if self._code else "everything is settled")

    # ------------------------------------------------------------------------------------------------- pieces

    def _set_state(self, state: State, because: str, now: float) -> None:
        self._state, self._because, self._since = state, because, now

    def _count(self, phase: Seat) -> int:
        return sum(1 for slot in self._slots if slot.phase is phase)

    def _roll(self, number: int) -> float:
        slot = self._slots[number]
        slot.rolls += 1
        return restart.roll(self._seed, number, slot.rolls)


def _why_started(slot: Slot) -> str:
    return "the seat is new" if slot.last_exit is None else f"the last one left: {slot.last_exit.cause}"


def _because(died: Exited, cause: str, fault: Fault) -> str:
    if isinstance(died.said, Leaving) and died.said.detail:
        return died.said.detail
    match fault:
        case Fault.MESSAGE:
            return f"{cause} while it had a message in hand"
        case Fault.UNEXPLAINED:
            return f"{cause} with nothing in hand"
        case _:
            return str(cause)
