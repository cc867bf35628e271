"""The pool: events in, actions out.

Pure. Time comes with every call; nothing here waits, reads or writes. The loop performs what is returned, in order, and
tells what happened by the next event.

It holds one `Slot` a seat and one for each orphan, the `Nursery` (two during a reload), the `Ledger` of messages that
kill, what is known of the `Broker`, and what `Looks` at the queue have shown. They know; `exits`, `hung` and
`restart` judge; `termination` ends workers; what is done, and in which order, is decided here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from supervisor.policy import advice, broker, exits, hung, poison, restart, termination
from supervisor.policy.broker import Broker
from supervisor.policy.imports import Imports
from supervisor.policy.looks import Looks
from supervisor.policy.nursery import Nursery, NurseryState, why_bare
from supervisor.policy.parkings import Parkings
from supervisor.policy.poison import Ledger, Suspects
from supervisor.policy.reload import Reloads, Stage
from supervisor.policy.restart import STEADY, Fault
from supervisor.policy.shortage import NURSERY, Shortage
from supervisor.policy.slot import ALIVE, ARRIVING, CONNECT_TIMEOUT, FORK_TIMEOUT, LEAVE_TIMEOUT, Slot, SlotState
from supervisor.policy.view import OrphanView, PoolView, Restarts, SlotView, State
from supervisor.settings import WORKERS_MOST, Settings
from supervisor.vocabulary import (
    EXIT_BROKER,
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
    Event,
    Exited,
    Garbled,
    Kind,
    Leave,
    Leaving,
    Loaded,
    LoadFailed,
    Lost,
    Moved,
    Nature,
    NurseryFailed,
    NurseryGone,
    NurserySaid,
    Parked,
    Reading,
    Ready,
    Sampled,
    Say,
    Spawn,
    Started,
    StartFailed,
    StopNursery,
    Suspect,
    Threaded,
    Wish,
    WorkerSaid,
    other_page,
    slot_of,
)


class Pool:
    """See the module. `seed` spreads the jitter of one supervisor's restarts from another's."""

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        self._settings = settings
        self._seed = seed
        self._slots = [Slot(number) for number in range(settings.workers.least)]
        self._orphans: dict[int, Slot] = {}
        """By page: workers whose connection is gone while their handlers run on. The next worker has their seat; at
        most one of a seat, so there are never more of them than of others."""
        self._wanted = settings.workers.least
        self._nursery = Nursery(1, settings, settings.preload)
        self._incoming: Nursery | None = None
        """The next generation's, until a worker of it consumes."""
        self._trial: int | None = None
        """The seat of that worker: its next one is the incoming nursery's."""
        self._is_held = False
        """The incoming generation has met a broker that is away, and waits for it."""
        self._past: dict[int, Settings] = {}
        """By generation: the limits under which workers still at work have begun."""
        self._newest = 1
        """Generations are numbered as they are begun, whatever becomes of them."""
        self._reloads = Reloads()
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
        self._parkings = Parkings()
        self._suspects = Suspects(self._ledger, self._parkings)
        self._unexplained: list[float] = []
        self._exits: Counter[str] = Counter()
        self._crashes = 0
        self._weighed = 0
        """The generation whose workers were said to be larger than `--max-memory` from the start."""
        self._restarts = Restarts()
        self._broker = Broker()
        self._shortage = Shortage()
        self._imports = Imports()
        self._looks = Looks(settings.workers)
        self._awaited = ""
        """What a burst was last said to wait for."""
        self._unreached_since: float | None = None
        """Under `--burst`: since when nobody consumes because of the broker."""
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
        times = [max(slot.deadline, self._free_at(slot)) for slot in self._everybody() if slot.deadline is not None]
        nurseries = (self._nursery, self._incoming)
        times += [n.deadline for n in nurseries if n is not None and n.deadline is not None]
        soonest = min(times, default=math.inf)
        return soonest if soonest < math.inf else None

    def view(self, now: float) -> PoolView:
        ready = self._consuming()
        doubt = self._looks.doubt
        blockade, story = self._broker.blockade, self._broker.story(self._settings.heartbeat, now)
        is_held_up = bool(ready) and all(slot.number in self._broker.blocked for slot in ready)
        return PoolView(
            state=self._state,
            since=self._since,
            because=self._because,
            generation=self._nursery.generation,
            slots=tuple(
                SlotView(s.number, s.pid, s.state, s.restarts, s.last_exit, s.page, s.has_both) for s in self._slots
            ),
            orphans=tuple(OrphanView(o.number, o.pid or 0, o.deadline or now) for o in self._orphans.values()),
            exits=dict(self._exits),
            crashes=self._crashes,
            restart_buckets=tuple(self._restarts.buckets),
            restart_seconds=self._restarts.total,
            depth=self._looks.depth(now),
            dead=self._looks.dead(now),
            parked=self._looks.parked,
            broker=self._broker.address,
            trouble=(is_held_up and blockade) or story or blockade or (doubt.because if doubt else None),
            is_starved=self._looks.is_starved,
            standby=self._looks.standby,
            may_stand_by=self._settings.ready_when == "subscribed",
            shortage=self._shortage.because,
            not_imported=self._imports.because,
            is_held_up=is_held_up,
            blocked_since=self._broker.blocked_since,
            ready=len(ready),
            steady=sum(1 for s in ready if s.ready_since is not None and now - s.ready_since >= STEADY),
            wanted=self._wanted,
            reload=self._reloads.latest,
            is_reloading=(self._incoming is not None and not self._is_held) or self._is_rolling,
        )

    # --------------------------------------------------------------------------------------------- to be told

    def start(self, now: float) -> list[Action]:
        """The first actions."""
        self._since = now
        for slot in self._slots:
            slot.enter(SlotState.WAITING, now)
        return [self._nursery.load(now, "the supervisor starts")]

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
            case NurseryFailed(generation, error):
                actions += self._nursery_failed(generation, error, now)
            case NurseryGone():
                actions += self._nursery_gone(event, now)
            case Started(page, pid):
                actions += self._started(self._at(page), pid, now)
            case StartFailed(page, error):
                actions += self._start_failed(self._at(page), error, now)
            case WorkerSaid(page, Suspect() as suspect, holders):
                actions += self._suspects.ask(page, suspect, holders, now)
            case WorkerSaid(page, report, moved=moved):
                self._parked(self._at(page), moved, now)
                if isinstance(report, Leaving):
                    self._suspects.forget(page)
                actions += self._worker_said(self._at(page), report, now)
            case Garbled(page, because):
                actions += self._garbled(self._at(page), because, now)
            case Exited():
                actions += self._exited(self._at(event.page), event, now)
            case Sampled(readings, away):
                self._looks.away = away
                actions += self._sampled(readings, now)
        return [*actions, *self._replace_next(now), *self._spawns(now), *self._leave()]

    def overdue(self, now: float) -> list[Action]:
        """What follows from the time alone."""
        if self._left:
            return []
        actions: list[Action] = []
        for slot in self._everybody():
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
            self._end_trial(SlotState.EMPTY, None)
            self._reloads.end(Stage.FAILED, now, "the supervisor leaves")
        for slot in self._everybody():
            actions += termination.drain(slot, because, now + self._settings.grace)
        return actions

    def _kill_all(self, because: str) -> list[Action]:
        actions: list[Action] = []
        for slot in self._everybody():
            if slot.is_alive and slot.state is not SlotState.KILLED:
                actions += termination.kill(slot, Cause.GRACE, because)
        return actions

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
                self._shortage.fill(slot.number)
                actions += termination.drain(slot, because, None)
            elif slot.state is SlotState.EMPTY:
                slot.enter(SlotState.WAITING, now)
        return actions

    # ------------------------------------------------------------------------------------------------ nursery

    def _nursery_said(self, generation: int, report: Loaded | Threaded | LoadFailed, now: float) -> list[Action]:
        if self._incoming is not None and generation == self._incoming.generation:
            return self._incoming_said(self._incoming, report, now)
        if generation != self._nursery.generation or self._state is State.DRAINING:
            return []
        match report:
            case Loaded(seconds, preloaded):
                self._shortage.fill(NURSERY)
                if preloaded:
                    self._imports.succeed()
                return [self._nursery.has_loaded(seconds, preloaded, now)]
            case Threaded(threads):
                self._imports.succeed()
                fields = {"threads": threads, "preloaded": False}
                said = Say("handler.loaded", "warning", why_bare(report), fields)
                return [said, *self._nursery.load_bare(report, now)]
            case LoadFailed():
                self._nursery.state = NurseryState.NONE
                return self._nursery_cannot_load(report, now)

    def _nursery_cannot_load(self, failed: LoadFailed, now: float) -> list[Action]:
        if self._may_pass(failed):
            told = self._import_later(failed, now, now, self._roll(0))
            self._nursery.wait(self._imports.turn(is_importing=False))
            return told
        if not self._worked:
            return self._cannot_load(failed, now)
        retry = self._nursery.retry(now, self._roll(0))
        return [self._import_failed(failed, "it is tried again: there are workers that have loaded it"), *retry]

    def _cannot_load(self, failed: LoadFailed, now: float) -> list[Action]:
        """No worker has ever consumed, and none will."""
        follows = "none: restarting will not help"
        if failed.is_passing:
            follows = "none; this may pass: with --boot-retry it is tried again"
        said = self._import_failed(failed, follows)
        return [said, *self._give_up(f"the handler cannot be loaded: {failed.error}", now)]

    def _import_failed(self, failed: LoadFailed, follows: str) -> Say:
        fields = {"handler": self._settings.handler, "next": follows}
        if failed.traceback:
            fields["exception"] = failed.traceback
        return Say("handler.import_failed", "error", failed.error, fields)

    def _may_pass(self, failed: LoadFailed) -> bool:
        return failed.is_passing and self._settings.boot_retry

    def _import_later(self, failed: LoadFailed, began_at: float, now: float, roll: float) -> list[Action]:
        """It is tried again, by one for all, when `Imports.turn` says so. The traceback is told once for a reason."""
        told = self._imports.fail(failed.error, began_at, now, roll)
        if told is None:
            return []
        delay, is_news = told
        fields = {"handler": self._settings.handler, "next": f"tried again in {delay:.2f} s (--boot-retry)"}
        if failed.traceback and is_news:
            fields["exception"] = failed.traceback
        return [Say("handler.import_failed", "warning", failed.error, fields)]

    def _give_up(self, because: str, now: float) -> list[Action]:
        """Restarting will not help."""
        if self._state is State.DRAINING:
            return []
        self._unfork(SlotState.EMPTY, None)
        return [*self._stop(because, now, EXIT_CONFIG), StopNursery(self._nursery.generation, because)]

    def _nursery_gone(self, gone: NurseryGone, now: float) -> list[Action]:
        generation, cause = gone.generation, gone.cause
        if self._incoming is not None and generation == self._incoming.generation:
            return self._reload_failed(f"the process that imports it died: {cause}", now, gone.output)
        if generation != self._nursery.generation:
            return []
        if self._state is State.DRAINING:
            self._unfork(SlotState.EMPTY, None)
            return []
        self._unfork(SlotState.WAITING, now)
        was_loading = self._nursery.state is NurseryState.LOADING
        self._nursery.has_died(now)
        fields: dict[str, object] = {"output": gone.output} if gone.output else {}
        said = Say("nursery.exited", "warning", f"{cause}; the workers live on, another nursery follows", fields)
        if was_loading and not self._worked and self._nursery.failures >= 2:
            error = f"the process that imports it died three times, the last by {cause}"
            return [said, *self._cannot_load(LoadFailed(error, gone.output), now)]
        return [said, *self._nursery.retry(now, self._roll(0))]

    def _nursery_failed(self, generation: int, error: str, now: float) -> list[Action]:
        """The machine refuses the process that forks workers."""
        if self._incoming is not None and generation == self._incoming.generation:
            return self._reload_failed(error, now)
        if generation != self._nursery.generation:
            return []
        self._nursery.has_died(now)
        if self._state is State.DRAINING:
            return []
        if not self._worked and self._nursery.failures >= 2:
            # Not for ever, as after a start: a service manager, or a person, looks at a start that fails.
            said = Say("nursery.start_failed", "error", error, {"next": "none: it was refused three times"})
            return [said, *self._stop(error, now, EXIT_KILLED)]
        roll = self._roll(0)
        self._shortage.refuse(NURSERY, error, now, now, roll)
        retry = self._nursery.retry(now, roll)
        delay = max(0.0, (self._nursery.deadline or now) - now) if not retry else 0.0
        return [Say("nursery.start_failed", "error", error, {"next": f"tried again in {delay:.2f} s"}), *retry]

    def _unfork(self, state: SlotState, deadline: float | None) -> None:
        """What the nursery was asked for will not come."""
        for slot in self._slots:
            if slot.generation != self._nursery.generation:
                continue  # the incoming one was asked
            if slot.state is SlotState.FORKING and slot.number < self._wanted:
                slot.enter(state, deadline)
            elif slot.state is SlotState.FORKING:
                slot.enter(SlotState.EMPTY)

    def _nursery_overdue(self, now: float) -> list[Action]:
        if self._nursery.state is not NurseryState.LOADING:
            why = (
                "the import may succeed by now" if self._imports.because else f"after {self._nursery.failures} failures"
            )
            return [self._nursery.load(now, why)]
        failed = _hung(self._settings)
        self._nursery.state = NurseryState.NONE
        self._nursery.deadline = None
        stop = StopNursery(self._nursery.generation, failed.error, stack=True)
        return [stop, *self._nursery_cannot_load(failed, now)]

    # ------------------------------------------------------------------------------------------------- reload

    def _reload(self, asked: Asked, now: float) -> list[Action]:
        """Load the code anew beside what runs; nothing is replaced before that has worked."""
        if why := self._cannot_reload():
            return [Say("reload.failed", "warning", f"{asked.by}: {why}")]
        actions: list[Action] = []
        if self._incoming is not None:
            actions.append(StopNursery(self._incoming.generation, f"another reload takes its place: {asked.by}"))
            self._end_trial(SlotState.WAITING, now)
        settings: Settings = asked.settings or self._settings
        self._newest += 1
        self._reloads.begin(self._newest, asked.by, now)
        actions.append(Say("reload.started", "info", asked.by, {"generation": self._newest}))
        if asked.problem:
            return [*actions, *self._reload_failed(asked.problem, now)]
        self._incoming = Nursery(self._newest, settings, settings.preload)
        return [*actions, self._incoming.load(now, f"reload: {asked.by}")]

    def _cannot_reload(self) -> str | None:
        if self._state is State.DRAINING or self._is_finishing:
            return "the supervisor leaves"
        if self._nursery.state is not NurseryState.READY and not self._worked:
            each = "; it is tried again, and each try reads the code anew" if self._imports.because else ""
            return f"nothing has been loaded yet{each}"
        # Until a worker of it is being forked it may be taken back; that one waits for somebody's task, for an hour
        # perhaps, and what it is to prove may be known to be wrong by then.
        is_loading = self._incoming is not None and self._incoming.state is NurseryState.LOADING
        return "one is under way already" if is_loading or any(map(self._is_on_trial, self._slots)) else None

    def _incoming_said(self, incoming: Nursery, report: Loaded | Threaded | LoadFailed, now: float) -> list[Action]:
        match report:
            case Loaded(seconds, preloaded):
                self._reloads.reach(Stage.TRYING)
                return [incoming.has_loaded(seconds, preloaded, now)]
            case Threaded():
                return incoming.load_bare(report, now)
            case LoadFailed(error, traceback):
                return self._reload_failed(error, now, traceback)

    def _try_next(self, now: float) -> Iterator[Action]:
        """Find the seat whose next worker tries the incoming generation: one that is empty, else an idle one."""
        if self._is_held and self._broker.away_since is not None:
            return
        if self._is_held:
            self._is_held = False
            self._reloads.reach(Stage.TRYING)
        if self._trial is not None and self._trial < self._wanted:
            return
        seats = self._slots[: self._wanted]
        vacant = [slot for slot in seats if slot.state is SlotState.WAITING]
        if vacant:
            self._trial = vacant[0].number
            vacant[0].deadline = now  # what it was to wait for may be what the reload mends
        elif {slot.state for slot in seats} == {SlotState.READY}:
            idle = (slot for slot in seats if self._looks.is_idle(slot.page))
            slot = next(idle, seats[0])
            self._trial = slot.number
            yield from termination.drain(slot, f"reload: to be the first of generation {self._newest}", None)

    def _is_on_trial(self, slot: Slot) -> bool:
        """Whether a worker of the incoming generation is on its way there."""
        incoming = self._incoming
        return (
            incoming is not None
            and slot.generation == incoming.generation
            and slot.state in (SlotState.FORKING, *ALIVE)
        )

    def _adopt(self, incoming: Nursery, now: float) -> list[Action]:
        """A worker of the next generation consumes: it is the present one from here."""
        self._unfork(SlotState.WAITING, now)
        former, self._nursery, self._incoming, self._trial = self._nursery, incoming, None, None
        self._is_held = False
        self._imports.succeed()
        self._past[former.generation] = former.settings
        if (former.settings.heartbeat, former.settings.url) != (incoming.settings.heartbeat, incoming.settings.url):
            self._broker.silences.forget()
        self._broker.queues_since = now  # its retries may need other delay queues, which are no older than this
        self._settings = settings = incoming.settings
        self._ledger.max_crashes = settings.max_crashes
        self._is_rolling = True
        self._reloads.reach(Stage.REPLACING)
        actions: list[Action] = [StopNursery(former.generation, f"generation {incoming.generation} consumes")]
        span = settings.workers
        if span != former.settings.workers:
            self._looks.rescale(span)
            # A number that an operator has chosen stays where the new limits allow it.
            wanted = span.least if span.is_fixed else min(max(self._wanted, span.least), span.most)
            actions += self._resize(wanted, f"reload: workers = {span}", now)
        return actions

    def _end_trial(self, state: SlotState, deadline: float | None) -> None:
        """The incoming generation is given up; nobody forks for it any more."""
        for slot in self._slots:
            if self._is_on_trial(slot) and slot.state is SlotState.FORKING:
                slot.enter(*((state, deadline) if slot.number < self._wanted else (SlotState.EMPTY, None)))
        self._incoming = self._trial = None
        self._is_held = False

    def _reload_failed(self, because: str, now: float, traceback: str = "") -> list[Action]:
        """The generation there is stays. Its nursery forks where one of the other was on its way."""
        generation = self._nursery.generation
        arriving = (SlotState.BOOTING, SlotState.CONNECTING)
        on_trial = [slot for slot in self._slots if self._is_on_trial(slot) and slot.state in arriving]
        self._end_trial(SlotState.WAITING, now)
        self._reloads.end(Stage.FAILED, now, because)
        fields: dict[str, object] = {"generation": generation} | ({"exception": traceback} if traceback else {})
        actions: list[Action] = [Say("reload.failed", "error", f"{because}; generation {generation} stays", fields)]
        for slot in on_trial:
            actions += termination.drain(slot, because, None)
        return actions

    def _trial_failed(self, slot: Slot, because: str, now: float, traceback: str = "") -> list[Action]:
        """The incoming generation's first worker does not come."""
        assert self._incoming is not None
        stop = StopNursery(self._incoming.generation, because)
        failed = self._reload_failed(f"its first worker does not consume: {because}", now, traceback)
        slot.enter(*((SlotState.WAITING, now) if slot.number < self._wanted else (SlotState.EMPTY, None)))
        return [stop, *failed]

    def _proves_nothing(self, fault: Fault) -> bool:
        """Whether the trial's failure is the broker's: it is away for the generation there as well, by the same URLs.
        Not before that has been seen, or settings that no broker takes would be tried for ever."""
        return (
            self._incoming is not None
            and fault is Fault.BROKER
            and self._broker.away_since is not None
            and self._incoming.settings.url == self._settings.url
        )

    def _hold(self, because: str) -> Action:
        """The incoming generation stays loaded. Those there look for the broker: their settings have been proved."""
        self._trial, self._is_held = None, True
        self._reloads.reach(Stage.WAITING)
        because = f"the broker is away ({because}): the reload is carried out when it is back; another one replaces it"
        return Say("reload.waiting", "warning", because, {"generation": self._newest})

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
            orphaned = {orphan.generation for orphan in self._orphans.values()}
            self._past = {of: limits for of, limits in self._past.items() if of in orphaned}
            if self._reloads.latest is not None and self._reloads.latest.generation == generation:
                self._reloads.end(Stage.FINISHED, now)
            yield Say(
                "reload.finished", "info", f"every worker is of generation {generation}", {"generation": generation}
            )
        elif all(slot.state is SlotState.READY for slot in seats):
            yield from termination.drain(old[0], f"reload: generation {generation} follows", None)

    # ------------------------------------------------------------------------------------------------ workers

    def _started(self, slot: Slot, pid: int, now: float) -> list[Action]:
        nursery = self._nursery
        if self._is_on_trial(slot):
            assert self._incoming is not None
            nursery = self._incoming
        nursery.failures = 0
        self._shortage.fill(slot.number)
        slot.pid = pid
        slot.enter(SlotState.BOOTING, now + nursery.settings.boot_timeout)
        said = Say("worker.started", "info", slot.why_started, {"slot": slot.number, "pid": pid})
        if self._state is State.DRAINING:
            return [said, *termination.drain(slot, self._because, now + self._settings.grace)]
        if self._is_finishing or slot.number >= self._wanted:
            return [said, *termination.drain(slot, "no longer wanted", None, finish=self._is_finishing)]
        return [said]

    def _start_failed(self, slot: Slot, error: str, now: float) -> list[Action]:
        if self._state is State.DRAINING or slot.number >= self._wanted:
            slot.enter(SlotState.EMPTY)
            return []
        if self._is_on_trial(slot):
            return self._trial_failed(slot, error, now)
        slot.enter(SlotState.WAITING, now)
        delay = self._shortage.refuse(slot.number, error, slot.spawned_at, now, self._roll(slot.number))
        if delay is None:
            return []
        follows = f"one worker tries again in {delay:.2f} s, the others wait for it"
        return [Say("worker.start_failed", "error", error, {"slot": slot.number, "next": follows})]

    def _worker_said(self, slot: Slot, report: object, now: float) -> list[Action]:
        match report:
            case Connecting() if slot.state is SlotState.BOOTING:
                slot.enter(SlotState.CONNECTING, now + CONNECT_TIMEOUT)
                if not self._nursery.preload and not self._is_on_trial(slot):
                    self._imports.succeed()
                return []
            case Ready() if slot.state is SlotState.CONNECTING:
                return self._ready(slot, report, now)
            case Depth() as depth:
                return self._measured(depth, now)
            case DeadDepth() as dead:
                self._looks.dead_measured(dead, now)
                return []
            case Nature() as nature:
                return self._described(nature)
            case Parked() as parked:
                self._looks.has_parked(parked)
                return []
            case Lost() if slot.state in (SlotState.READY, SlotState.DRAINING) and not slot.is_lost:
                return self._lost(slot, report, now)
            case Blocked(is_blocked, because):
                return [*self._broker.block(slot.page, because if is_blocked else None, now)]
            case Ready(resident=resident) if slot.state is SlotState.DRAINING:
                slot.began_with = resident
                if self._state is not State.DRAINING:
                    # It may have a task in hand by now, for as long as that takes.
                    slot.deadline = None
                return []
            case Leaving() if slot.state is SlotState.READY or (
                slot.state is SlotState.DRAINING and slot.deadline is None
            ):
                # From here it has the grace to be gone: a thread or an atexit function of the handler's may hold it.
                slot.enter(SlotState.DRAINING, now + max(self._settings.grace, LEAVE_TIMEOUT))
                return []
            case _:
                return []

    def _garbled(self, slot: Slot, because: str, now: float) -> list[Action]:
        """It is not to be trusted any more. By SIGABRT: the stack shows what wrote to its link."""
        if slot.state in (SlotState.ABORTING, SlotState.KILLED):
            return []
        because = f"what came on its link is no report of a worker: {because}"
        said = Say("worker.garbled", "error", because, {"slot": slot.number, "pid": slot.pid})
        return [said, *termination.abort(slot, Cause.PROTOCOL, because, now)]

    def _ready(self, slot: Slot, report: Ready, now: float) -> list[Action]:
        slot.enter(SlotState.READY)
        slot.ready_since = now
        self._unreached_since = None
        advised = advice.acknowledgement(report.version, self._settings)
        concerned = [other for other in self._slots if other.fault in broker.FAULTS]
        if self._broker.away_since is not None:
            for other in concerned:
                if other.state is SlotState.WAITING:
                    other.deadline = now
        if self._broker.away_since is not None or report.has_declared:
            self._looks.forget_queue()
        actions: list[Action] = [*self._broker.reach(report.broker, report.version, advised, now)]
        self._ledger.has_limit = poison.has_limit(report.version)
        actions += self._broker.find_queue(self._settings, report.has_declared)
        if not slot.has_queues:
            actions += self._broker.declare(report.refused, now)
        actions += self._broker.narrow(self.settings_of(slot.generation).prefetch, report)
        actions += self._weigh(slot, report.resident)
        if not any(other.state is SlotState.WAITING or other.state in ARRIVING for other in concerned):
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
        if self._state is State.STARTING and self._count(SlotState.READY) >= self._wanted:
            self._set_state(State.RUNNING, "every worker consumes", now)
            actions.append(Say("supervisor.ready", "info", self._because, {"workers": self._wanted}))
        return actions

    def _weigh(self, slot: Slot, resident: int) -> list[Action]:
        """Note what it takes before its first task; say so, once a generation, when `--max-memory` is less."""
        slot.began_with = resident
        because = hung.too_small(self.settings_of(slot.generation).max_memory, resident)
        if because is None or self._weighed == slot.generation:
            return []
        self._weighed = slot.generation
        return [Say("worker.memory_limit_too_small", "error", because, {"slot": slot.number, "pid": slot.pid})]

    def _lost(self, slot: Slot, lost: Lost, now: float) -> list[Action]:
        """Its connection is gone, and its handler runs on: for an hour perhaps, and the result counts for nothing."""
        grace = self._settings_of_worker(slot).lost_grace
        until = now + grace if slot.deadline is None else min(now + grace, slot.deadline)
        fields: dict[str, object] = {"slot": slot.number, "pid": slot.pid}
        because = f"{lost.detail}; its handler may run on for {until - now:g} s (--lost-grace {grace:g} s)"
        if self._state is State.DRAINING:
            slot.is_lost, slot.deadline = True, until
            fields["next"] = "none: the supervisor is stopping"
            return [Say("worker.orphaned", "warning", because, fields)]
        actions: list[Action] = []
        if (older := self._orphans.get(other_page(slot.page))) is not None and older.state is SlotState.DRAINING:
            actions += termination.kill(
                older, Cause.BROKER, "the stand-in for this orphan has lost its connection, too"
            )
        said = Leaving(Cause.BROKER, lost.detail, lost.kind, silence=lost.silence)
        fault = exits.fault_of_broker(said)
        was_ready = slot.ready_since is not None
        lived = now - slot.ready_since if slot.ready_since is not None else 0.0
        orphan = slot.orphan(until, said.cause, now)
        self._orphans[orphan.page] = orphan
        self._looks.all_idle = False
        fields["next"] = self._follow(slot, said, lost.finished, fault, was_ready, lived, now, actions)
        return [Say("worker.orphaned", "warning", because, fields), *actions]

    def _exited(self, slot: Slot, died: Exited, now: float) -> list[Action]:
        was_ready = slot.ready_since is not None
        lived = now - slot.ready_since if slot.ready_since is not None else 0.0
        trouble, is_usual = self._broker.trouble, self._is_usual(died.said)
        cause = exits.cause_of(slot, died)
        fault = exits.fault_of(died, cause, has_worked=self._worked)
        crashes = 0
        if fault is Fault.MESSAGE and died.hand is not None:
            who = f"worker {slot.number} (pid {died.pid})"
            crashes = self._ledger.blame(died.hand.key, cause, died.output, at=died.at, who=who)
        self._exits[cause] += 1
        self._crashes += exits.is_crash(fault)
        if self._state is State.DRAINING and self._code == EXIT_DONE and exits.is_unclean(slot, died):
            self._code = EXIT_KILLED
        is_trial = self._is_on_trial(slot) and slot.number < self._wanted and not self._is_finishing
        self._parkings.died(died.moved, died.last)
        self._parked(slot, died.moved, now)
        slot.vacate(died, cause, now)
        self._looks.all_idle = False
        failed = self._failed_import(slot, died, cause)
        is_awaited = failed is not None and self._may_pass(failed)
        actions: list[Action] = [*self._suspects.died(died.page, now)]
        actions += self._broker.block(died.page, None, now)
        if self._orphans.pop(died.page, None) is not None:
            follows = self._follow_orphan(slot)
        elif is_trial and self._state is not State.DRAINING and self._proves_nothing(fault):
            actions.append(self._hold(exits.because(died, cause, fault)))
            follows = self._follow(slot, died.said, died.finished, fault, was_ready, lived, now, actions)
        elif is_trial and self._state is not State.DRAINING:
            because = failed.error if failed else exits.because(died, cause, fault)
            actions += self._trial_failed(slot, because, now, failed.traceback if failed else "")
            slot.restarts += 1
            follows = f"the reload has failed; one of generation {self._nursery.generation} follows"
        elif failed is not None and is_awaited and not self._is_finishing:
            follows = self._follow_import(slot, failed, now, actions)
        else:
            follows = self._follow(slot, died.said, died.finished, fault, was_ready, lived, now, actions)
        if crashes:
            follows += f"; the message has killed {crashes} of {self._settings.max_crashes}"
            if self._ledger.is_condemned(crashes):
                follows += " and will be quarantined"
        is_old_news = fault in broker.FAULTS and not was_ready and trouble == self._broker.trouble
        told = exits.obituary(slot.number, died, cause, fault, follows, now, is_old_news or is_usual or is_awaited)
        return [told, *actions]

    def _failed_import(self, slot: Slot, died: Exited, cause: str) -> LoadFailed | None:
        """Why the worker of this seat could not import the handler, if it could not."""
        if cause == Cause.HANDLER and isinstance(died.said, LoadFailed):
            return died.said
        nursery = self._nursery_for(slot)
        return _hung(nursery.settings) if cause == Cause.BOOT and not nursery.preload else None

    def _follow_import(self, slot: Slot, failed: LoadFailed, now: float, actions: list[Action]) -> str:
        """It could not import, for a reason that may pass. Returns what becomes of the seat, in words."""
        if self._state is State.DRAINING:
            return "none: the supervisor is stopping"
        if slot.number >= self._wanted:
            return "none: fewer workers are wanted"
        actions += self._import_later(failed, slot.spawned_at, now, self._roll(slot.number))
        slot.restarts += 1
        slot.enter(SlotState.WAITING, now)
        return "the import is tried again by one worker, the others wait for it (--boot-retry)"

    def _parked(self, slot: Slot, moved: tuple[Moved, ...], now: float) -> None:
        """What a worker that ends had put into other queues, which it may not have been able to acknowledge."""
        if not slot.has_told:
            self._parkings.ended(moved, self._settings_of_worker(slot).prefetch, now)
        slot.has_told = slot.has_told or bool(moved)

    def _follow_orphan(self, orphan: Slot) -> str:
        """What becomes of an orphan's seat, in words: that was decided when the connection was lost."""
        slot = self._slots[orphan.number]
        slot.last_exit = orphan.last_exit
        if slot.state is not SlotState.EMPTY:
            return "none: a stand-in has its slot"
        return "none: the supervisor is stopping" if self._state is State.DRAINING else "none: fewer workers are wanted"

    def _follow(
        self,
        slot: Slot,
        said: Leaving | LoadFailed | None,
        finished: int,
        fault: Fault,
        was_ready: bool,
        lived: float,
        now: float,
        actions: list[Action],
    ) -> str:
        """Decide what becomes of the seat; returns it in words, for the log."""
        if self._state is State.DRAINING:
            return "none: the supervisor is stopping"
        if slot.number >= self._wanted:
            return "none: fewer workers are wanted"
        if self._is_finishing:
            if isinstance(said, Leaving) and said.cause == Cause.DRAINED:
                return "none: the queue is empty"
            # It may have left something behind: not even `max_tasks` runs what was delivered beside the last task.
            self._is_finishing = False
            for other in self._slots[: self._wanted]:
                if other.state is SlotState.EMPTY:
                    other.enter(SlotState.WAITING, now)
        if fault is Fault.CONFIG and not self._worked:
            detail = said.error if isinstance(said, LoadFailed) else said.detail if said else ""
            if isinstance(said, LoadFailed):
                actions += self._cannot_load(said, now)
            else:
                actions += self._give_up(detail or "a worker says that its configuration is wrong", now)
            return "none: restarting will not help"
        if fault is Fault.UNEXPLAINED:
            self._note_unexplained(now, actions)
        is_usual = self._is_usual(said)
        if isinstance(said, Leaving) and said.cause == Cause.BROKER and was_ready:
            self._broker.silences.ended(said.kind, said.silence, now)
            actions += self._broker.name_idling(self._settings.heartbeat, now)
        elif fault in broker.FAULTS and not was_ready:
            self._broker.silences.missed()
        # Where a task's failure is what cannot be parked, each worker finishes one, and proves nothing by it.
        has_recovered = lived >= STEADY or (finished > 0 and fault is not Fault.LOCAL) or is_usual
        streak = slot.count(fault, recovered=has_recovered)
        roll = self._roll(slot.number)
        again = restart.decide(fault, streak=streak, was_ready=was_ready, now=now, roll=roll).at
        if fault in broker.FAULTS and isinstance(said, Leaving) and said.cause != Cause.NOT_CONSUMING:
            consuming = self._count(SlotState.READY)
            kind, detail = said.kind, said.detail or "it did not say why"
            if was_ready:
                actions += self._broker.lose(kind, detail, consuming, now, is_usual=is_usual)
            elif consuming:
                actions += self._broker.turn_away(kind, detail, consuming)
            if not consuming and again > now + restart.LULL:
                again, news = self._broker.fail(fault, kind, detail, streak, now, roll)
                actions += news
                self._wait_for_the_probe(again)
        slot.restarts += 1
        slot.enter(SlotState.WAITING, again)
        return "restart at once" if again <= now else f"restart in {again - now:.2f} s"

    def _is_usual(self, said: Leaving | LoadFailed | None) -> bool:
        """Whether its connection was closed for being idle, as is known of idle ones."""
        return isinstance(said, Leaving) and self._broker.silences.expects(said.kind, said.silence)

    def _wait_for_the_probe(self, at: float) -> None:
        for slot in self._slots:
            if slot.state is SlotState.WAITING and slot.fault in broker.FAULTS and slot.deadline is not None:
                slot.deadline = max(slot.deadline, at)

    def _note_unexplained(self, now: float, actions: list[Action]) -> None:
        self._unexplained = [at for at in self._unexplained if at > now - restart.INTENSITY_WINDOW] + [now]
        if self._state is not State.DEGRADED and restart.too_intense(self._unexplained, self._wanted, now):
            deaths = f"{len(self._unexplained)} unexplained deaths in {restart.INTENSITY_WINDOW:g} s"
            because = f"{deaths}: one worker at a time from here"
            self._set_state(State.DEGRADED, because, now)
            actions.append(Say("supervisor.degraded", "error", because))

    # ----------------------------------------------------------------------------------------------- the time

    def _slot_overdue(self, slot: Slot, now: float) -> list[Action]:
        match slot.state:
            case SlotState.FORKING:
                because = f"it did not fork within {FORK_TIMEOUT:g} s"
                if self._is_on_trial(slot):
                    return self._trial_failed(slot, because, now)
                self._nursery.state = NurseryState.NONE
                if self._state is State.DRAINING:
                    self._unfork(SlotState.EMPTY, None)
                    return [StopNursery(self._nursery.generation, because)]
                self._unfork(SlotState.WAITING, now)
                return [StopNursery(self._nursery.generation, because), *self._nursery.retry(now, self._roll(0))]
            case SlotState.BOOTING:
                limit = self.settings_of(slot.generation).boot_timeout
                because = f"not booted within --boot-timeout ({limit:g} s)"
                return termination.abort(slot, Cause.BOOT, because, now)
            case SlotState.CONNECTING:
                return termination.abort(
                    slot, Cause.HUNG, f"not connected, and not given up either, for {CONNECT_TIMEOUT:g} s", now
                )
            case SlotState.DRAINING if slot.is_lost:
                because = "its connection is gone, and its handler has used up what it may run on for (--lost-grace)"
                return termination.kill(slot, Cause.BROKER, because)
            case SlotState.DRAINING:
                because = f"it was to leave, and is still there (--grace {self._settings.grace:g} s)"
                return termination.kill(slot, Cause.GRACE, because)
            case SlotState.ABORTING:
                return termination.kill(slot, slot.condemned or Cause.HUNG, "SIGABRT did not end it")
            case _:
                return []

    def _sampled(self, readings: tuple[Reading, ...], now: float) -> list[Action]:
        held_up = self._sampled_at is not None and now - self._sampled_at > hung.SAMPLE_GAP
        self._sampled_at = now
        self._looks.sampled(tuple(reading for reading in readings if reading.page not in self._orphans), now)
        actions: list[Action] = [*self._find_silent(readings, now)]
        actions += self._suspects.sampled(readings, now)
        for reading in readings:
            slot = self._at(reading.page)
            if slot.pid == reading.pid and slot.state in (SlotState.READY, SlotState.DRAINING):
                actions += self._examine(slot, reading, held_up, now)
        self._recover(now, actions)
        if self._state is State.DRAINING:
            return actions
        if self._settings.burst and (given_up := self._wait_no_longer(now)):
            return [*actions, *given_up]
        if self._settings.burst and not self._is_finishing:
            all_ready = all(slot.state is SlotState.READY for slot in self._slots[: self._wanted])
            actions += self._looks.ask_if_empty(readings, now, all_ready=all_ready)
        if (not self._settings.burst or not self._settings.workers.is_fixed) and self._looks.is_due(now):
            actions += self._looks.ask(self._consuming(), now)
        return actions

    def _wait_no_longer(self, now: float) -> list[Action]:
        """`--burst-wait`: a burst does not wait for ever for a broker that is away, or for a handler that cannot be
        imported for now."""
        is_trying = self._imports.because is not None or any(
            slot.state is SlotState.CONNECTING or slot.fault in broker.FAULTS for slot in self._slots
        )
        if self._consuming() or not is_trying:
            self._unreached_since = None
            return []
        if self._unreached_since is None:
            self._unreached_since = now
        if now - self._unreached_since < self._settings.burst_wait:
            return []
        trouble = self._imports.because or self._broker.trouble or "the broker does not answer"
        waited = f"--burst: no worker consumes for {self._settings.burst_wait:g} s (--burst-wait): {trouble}"
        return self._stop(waited, now, EXIT_BROKER)

    def _find_silent(self, readings: tuple[Reading, ...], now: float) -> Iterator[Action]:
        """Find workers that have lost their connection and cannot tell; see `Suspects.silent`."""
        for page in self._suspects.silent(readings, hung.SILENT_AFTER * self._settings.heartbeat, now):
            slot = self._at(page)
            if slot.state is SlotState.READY or (slot.state is SlotState.DRAINING and not slot.is_lost):
                why = "its message has come back: its handler lets no heartbeat be sent, and the broker has dropped it"
                yield from self._lost(slot, Lost(why, Kind.HEARTBEAT), now)

    def _examine(self, slot: Slot, reading: Reading, held_up: bool, now: float) -> list[Action]:
        limits = self._settings_of_worker(slot)
        is_ready = slot.state is SlotState.READY
        found = hung.examine(reading, limits, began_with=slot.began_with, is_ready=is_ready, held_up=held_up, now=now)
        if found is None:
            return []
        if found.is_hung:
            return termination.abort_hung(slot, found.cause, found.because, reading, now)
        return [termination.replace(slot, found.cause, found.because)]

    def _recover(self, now: float, actions: list[Action]) -> None:
        match self._state:
            case State.DEGRADED if not self._unexplained or now - self._unexplained[-1] >= STEADY:
                because = "every worker consumes again"
            case State.STARTING:
                because = "every worker consumes"  # since fewer are wanted: else `_ready` has said so
            case _:
                return
        if self._count(SlotState.READY) >= self._wanted:
            self._unexplained.clear()
            self._set_state(State.RUNNING, because, now)
            actions.append(Say("supervisor.ready", "info", self._because, {"workers": self._wanted}))

    def _measured(self, depth: Depth, now: float) -> list[Action]:
        self._looks.measured(depth, now)
        actions = [*self._compare(depth, now), *self._scale(depth, now)]
        is_asked = self._settings.burst and depth.delayed is not None and self._looks.all_idle
        if not is_asked or depth.ready or self._state is State.DRAINING:
            return actions
        awaited = self._looks.await_delayed(depth, self._count(SlotState.READY), now)
        if awaited is not None:
            is_news, self._awaited = self._awaited != awaited, awaited
            return [*actions, *([Say("burst.waiting", "info", f"--burst: {awaited}")] if is_news else [])]
        because = "--burst: the queue is empty and everybody is idle"
        if missing := self._looks.missing:
            because += f"; {missing} delayed and not settled here since, and AMQP does not tell where they are"
            if not self._looks.may_be_elsewhere:
                return [*actions, *self._stop(f"{because}: run it again", now, EXIT_BROKER)]
            because += ": other consumers may have settled them"
        self._is_finishing = True
        actions.append(Say("supervisor.stopping", "info", because))
        for slot in self._slots:
            actions += termination.drain(slot, because, None, finish=True)
        return actions

    def _scale(self, depth: Depth, now: float) -> list[Action]:
        """`--workers MIN..MAX`; see `scaling`."""
        is_moving = self._is_rolling or self._incoming is not None or self._is_finishing
        if self._state is not State.RUNNING or is_moving or self._broker.away_since is not None:
            return []
        decision = self._looks.scale(depth, self._wanted, now)
        if decision is None:
            return []
        if decision.wanted == self._wanted:
            return [Say("supervisor.scaling", "info", decision.because, {"workers": self._wanted})]
        return self._resize(decision.wanted, decision.because, now)

    def _compare(self, depth: Depth, now: float) -> list[Action]:
        """The broker's truth with our workers' beliefs; see `truth`."""
        if self._state is State.DRAINING or self._is_finishing:
            return []
        doubt = self._looks.compare(depth, self._consuming(), now)
        asked = self._looks.ask_of_its_kind(self._consuming())
        if doubt is None:
            return [*asked]
        if doubt.replace is None:
            return [Say("worker.not_consuming", "warning", doubt.because)] if doubt.is_news else []
        slot = self._slots[doubt.replace]
        fields = {"slot": slot.number, "pid": slot.pid, "next": "it is replaced"}
        said = Say("worker.not_consuming", "error", doubt.because, fields)
        return [said, termination.replace(slot, Cause.NOT_CONSUMING, doubt.because)]

    def _described(self, nature: Nature) -> list[Action]:
        """Say once that the queue has a single active consumer."""
        if not self._looks.described(nature):
            return []
        because = (
            f"{self._settings.queue} has a single active consumer: one worker of all hosts is given its messages, the "
            "others stand by, idle, until that one ends; none is replaced for it"
        )
        return [Say("queue.single_active_consumer", "info", because)]

    # ------------------------------------------------------------------------------------------- what follows

    def _spawns(self, now: float) -> Iterator[Action]:
        if self._state is State.DRAINING:
            return
        # A reload's trial first: where one at a time may try the broker, a seat before it would always be the one.
        for slot in sorted(self._slots, key=lambda slot: slot.number != self._trial):
            if slot.state is SlotState.WAITING and slot.is_due(now) and self._free_at(slot) <= now:
                slot.enter(SlotState.FORKING, now + FORK_TIMEOUT)
                slot.spawned_at = now
                slot.generation = self._nursery_for(slot).generation
                slot.has_queues = slot.generation == self._nursery.generation and self._broker.has_queues(now)
                yield Spawn(slot.page, slot.generation, slot.why_started, slot.has_queues)

    def _free_at(self, slot: Slot) -> float:
        """When a waiting seat need not wait for others any more; infinite when only an event can tell."""
        if slot.state is not SlotState.WAITING:
            return -math.inf
        if slot.page in self._orphans:
            return math.inf  # one is killed for it already, see `_lost`
        if self._nursery_for(slot).state is not NurseryState.READY:
            return math.inf
        refused = self._shortage.turn(self._count(SlotState.FORKING) > 0)
        if slot.number != self._trial:  # which shows by its import what the next generation is worth
            is_importing = self._count(SlotState.FORKING) + self._count(SlotState.BOOTING) > 0
            refused = max(refused, self._imports.turn(is_importing))
        if self._state is not State.DEGRADED and slot.fault not in broker.FAULTS:
            return refused
        begun = [other.spawned_at for other in self._slots if other.state in ARRIVING]
        if self._state is State.DEGRADED:
            return math.inf if begun else refused
        return max(refused, broker.turn(begun, self._count(SlotState.READY)))

    def _nursery_for(self, slot: Slot) -> Nursery:
        """The one that is to fork for this seat."""
        return self._incoming if self._incoming is not None and slot.number == self._trial else self._nursery

    def _leave(self) -> Iterator[Action]:
        if self._state is not State.DRAINING and not self._is_finishing:
            return
        if any(slot.state is not SlotState.EMPTY for slot in self._everybody()):
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

    def _at(self, page: int) -> Slot:
        """Whose page it is: an orphan's, or the seat's."""
        return self._orphans.get(page) or self._slots[slot_of(page)]

    def _everybody(self) -> list[Slot]:
        return [*self._slots, *self._orphans.values()]

    def _settings_of_worker(self, slot: Slot) -> Settings:
        """The limits under which it has begun."""
        return self._past.get(slot.generation, self._settings)

    def _consuming(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.state is SlotState.READY]

    def _count(self, state: SlotState) -> int:
        return sum(1 for slot in self._slots if slot.state is state)

    def _roll(self, number: int) -> float:
        slot = self._slots[number]
        slot.rolls += 1
        return restart.roll(self._seed, number, slot.rolls)


def _hung(settings: Settings) -> LoadFailed:
    """An import that does not end: it may pass, for a host that drops packets is the usual reason."""
    limit = f"--boot-timeout ({settings.boot_timeout:g} s)"
    return LoadFailed(f"the import of {settings.handler} did not end within {limit}", "", is_passing=True)
