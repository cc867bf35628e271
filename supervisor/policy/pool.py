"""The pool: events in, actions out.

Pure: every call is given the time; nothing here waits, reads or writes. The loop performs the actions in order and
reports the results as further events. The pool only routes; decisions are in:

| what | where |
|---|---|
| slots and orphans | `slots`, `slot` |
| the pool's state, and giving up | `condition` |
| the process that forks: it loads, fails, is refused | `nursery`, `imports`, `shortage` |
| new code, or new settings | `rollout`, `canary` |
| how many workers, which slot gets one now | `sizing`, `turns` |
| may a worker consume | `admission` |
| how and when a worker is stopped | `termination`, `hung`, `killing` |
| what an exit means, and what happens to the slot | `exits`, `succession`, `restart` |
| the broker, the queue, the end of a burst | `broker`, `looks`, `burst` |
| messages that kill workers, are parked already, or are to be | `poison`, `parkings`, `sentences` |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from supervisor.messages import (
    Connecting,
    DeadDepth,
    Depth,
    Leaving,
    Lost,
    Nature,
    Parked,
    ParkingBlocked,
    Ready,
    Suspect,
)
from supervisor.policy import broker, hung, killing, poison, termination
from supervisor.policy.actions import Action, Leave, Say, StopNursery
from supervisor.policy.admission import Admission
from supervisor.policy.breaker import Breaker
from supervisor.policy.broker import BrokerState
from supervisor.policy.burst import Burst, Finish
from supervisor.policy.condition import Condition, GiveUp, State
from supervisor.policy.events import (
    Asked,
    Event,
    Exited,
    Garbled,
    NurseryFailed,
    NurseryGone,
    NurserySaid,
    Sampled,
    Started,
    StartFailed,
    Wish,
    WorkerSaid,
)
from supervisor.policy.imports import Imports
from supervisor.policy.looks import Looks
from supervisor.policy.nursery import Nursery, NurseryState, Upkeep
from supervisor.policy.parkings import Parkings
from supervisor.policy.poison import Ledger, Suspects
from supervisor.policy.restart import STEADY
from supervisor.policy.rollout import Adopt, Rollout
from supervisor.policy.shortage import Shortage
from supervisor.policy.sizing import Sizing
from supervisor.policy.slot import ARRIVING, CONNECT_TIMEOUT, LEAVE_TIMEOUT, Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.policy.succession import Succession
from supervisor.policy.turns import Turns
from supervisor.policy.view import OrphanView, PoolView, Restarts, SlotView
from supervisor.settings import Settings
from supervisor.vocabulary import EXIT_DONE, Cause, Intake, Kind, Reading


class Pool:
    """`seed` gives each supervisor its own restart jitter."""

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        self._slots = slots = Slots(settings.workers.least, seed)
        self._condition = condition = Condition()
        self._broker = broker = BrokerState()
        self._looks = looks = Looks(settings.workers)
        self._burst = Burst()
        breaker = Breaker(slots)
        self._shortage = shortage = Shortage()
        self._imports = imports = Imports()
        self._ledger = ledger = Ledger(settings.max_crashes)
        parkings = Parkings()
        self._suspects = suspects = Suspects(ledger, parkings)
        upkeep = Upkeep(slots, condition, shortage, imports)
        self._admission = admission = Admission(slots, condition, breaker)
        self._rollout = rollout = Rollout(
            slots, condition, broker, admission, looks, imports, upkeep, Nursery(1, settings, settings.preload)
        )
        self._sizing = Sizing(slots, condition, rollout, broker, looks, shortage, admission)
        self._turns = Turns(slots, condition, rollout, broker, shortage, imports, admission)
        self._succession = Succession(slots, condition, rollout, upkeep, broker, breaker, ledger, parkings, suspects)
        self._restarts = Restarts()
        self._weighed = 0
        """The generation already reported as larger than `--max-memory` from the start."""
        self._sampled_at: float | None = None
        self._left = False

    # ------------------------------------------------------------------------------------------------ queries

    @property
    def open(self) -> bool:
        """False once `Leave` was returned."""
        return not self._left

    @property
    def settings(self) -> Settings:
        return self._rollout.nursery.settings

    def settings_of(self, generation: int) -> Settings:
        return self._rollout.nursery_of(generation).settings

    @property
    def deadline(self) -> float | None:
        """When to call `overdue`, if no event comes first."""
        nurseries = [each.deadline for each in self._rollout.nurseries if each.deadline is not None]
        soonest = min(self._turns.deadline, self._admission.deadline, *nurseries, math.inf)
        return soonest if soonest < math.inf else None

    def view(self, now: float) -> PoolView:
        condition, looks, truth = self._condition, self._looks, self._looks.truth
        ready = self._slots.consuming()
        blockade, story = self._broker.blockade, self._broker.story(self.settings.heartbeat, len(ready), now)
        is_held_up = bool(ready) and all(slot.page in self._broker.blocked for slot in ready)
        return PoolView(
            state=condition.state,
            since=condition.since,
            because=condition.because,
            generation=self._rollout.nursery.generation,
            slots=tuple(map(SlotView.of, self._slots)),
            orphans=tuple(OrphanView(o.number, o.pid or 0, o.deadline or now) for o in self._slots.orphans.values()),
            exits=dict(self._succession.by_cause),
            crashes=self._succession.crashes,
            restart_buckets=tuple(self._restarts.buckets),
            restart_seconds=self._restarts.total,
            depth=looks.depth(now),
            dead=looks.dead(now),
            parked=looks.parked,
            broker=self._broker.address,
            trouble=(is_held_up and blockade) or story or blockade or (truth.doubt.because if truth.doubt else None),
            is_starved=truth.is_starved,
            standby=truth.standby,
            may_stand_by=self.settings.ready_when == "subscribed",
            shortage=self._shortage.because,
            not_imported=self._imports.because,
            is_held_up=is_held_up,
            blocked_since=self._broker.blocked_since,
            ready=len(ready),
            taking=sum(1 for slot in ready if slot.intake is not Intake.NONE),
            pause=self._admission.pause,
            refusal=self._admission.refusal(looks.depth(now), now),
            restriction=self._admission.restriction(now),
            breaker=self._admission.breaker.view(),
            steady=sum(1 for s in ready if s.ready_since is not None and now - s.ready_since >= STEADY),
            wanted=self._slots.wanted,
            reload=self._rollout.latest,
            scores=self._rollout.scores,
            is_reloading=self._rollout.is_moving,
        )

    # ------------------------------------------------------------------------------------------------- events

    def start(self, now: float) -> list[Action]:
        self._condition.since = now
        self._slots.refill(now)
        return [self._rollout.nursery.load(now, "the supervisor starts")]

    def handle(self, event: Event, now: float) -> list[Action]:
        return [] if self._left else self._with_what_follows(self._handle(event, now), now)

    def overdue(self, now: float) -> list[Action]:
        """Handle the deadlines that have passed."""
        if self._left:
            return []
        actions: list[Action] = []
        for slot in self._slots.everybody():
            if slot.is_due(now):
                actions += self._slot_overdue(slot, now)
        actions += self._resolve(self._rollout.overdue(now), now)
        actions += self._admission.overdue(now)
        return self._with_what_follows(actions, now)

    def _with_what_follows(self, actions: list[Action], now: float) -> list[Action]:
        follows = [*self._rollout.step(now), *self._admission.step(), *self._turns.spawn(now)]
        return [*actions, *follows, *self._leave(now)]

    def _handle(self, event: Event, now: float) -> list[Action]:
        match event:
            case Asked():
                return self._asked(event, now)
            case NurserySaid(generation, report):
                return self._resolve(self._rollout.loaded(generation, report, now), now)
            case NurseryFailed(generation, error):
                return self._resolve(self._rollout.refused(generation, error, now), now)
            case NurseryGone():
                return self._resolve(self._rollout.gone(event, now), now)
            case Started(page, pid):
                return self._started(self._slots.at(page), pid, now)
            case StartFailed(page, error):
                return self._start_failed(self._slots.at(page), error, now)
            case WorkerSaid(page, Suspect() as suspect, holders):
                return [*self._suspects.ask(page, suspect, holders, now)]
            case WorkerSaid(page, report, moved=moved):
                self._succession.parked(self._slots.at(page), moved, now)
                if isinstance(report, Leaving):
                    self._suspects.forget(page)
                return self._worker_said(self._slots.at(page), report, now)
            case Garbled(page, because):
                return self._garbled(self._slots.at(page), because, now)
            case Exited():
                self._burst.all_idle = False
                return self._resolve(self._succession.exited(self._slots.at(event.page), event, now), now)
            case Sampled(readings, away):
                self._burst.away = away
                return self._sampled(readings, now)

    # ------------------------------------------------------------------------------------------------- wishes

    def _asked(self, asked: Asked, now: float) -> list[Action]:
        by, wanted = asked.by, self._slots.wanted
        match asked.wish:
            case Wish.STOP if self._condition.is_draining:
                return self._kill_all(f"{by} again: killing all workers")
            case Wish.DRAIN if self._condition.is_draining:
                under_way = f"{by}: already stopping ({self._condition.because})"
                return [Say("supervisor.stopping", "info", under_way)]
            case Wish.STOP | Wish.DRAIN:
                return self._stop(by, EXIT_DONE, now)
            case Wish.SCALE:
                return self._sizing.resize(asked.workers, by, now)
            case Wish.GROW:
                return self._sizing.resize(wanted + 1, by, now)
            case Wish.SHRINK:
                return self._sizing.resize(wanted - 1, by, now)
            case Wish.PAUSE:
                return self._admission.hold(by, asked.seconds, now)
            case Wish.RESUME:
                return self._admission.release(by)
            case Wish.KILL:
                return killing.kill(asked, self._slots, now)
            case Wish.RELOAD if why := self._rollout.refusal(asked):
                return [Say("reload.failed", "warning", f"{by}: {why}")]
            case Wish.RELOAD:
                return self._rollout.begin(asked, now)

    def _stop(self, because: str, code: int, now: float) -> list[Action]:
        """Drain every worker, within the grace."""
        self._condition.enter(State.DRAINING, because, now)
        self._condition.code = code
        actions: list[Action] = [Say("supervisor.stopping", "info", because, {"grace": self.settings.grace})]
        actions += self._rollout.stop(because, now)
        return actions + termination.drain_all(self._slots.everybody(), because, now + self.settings.grace)

    def _kill_all(self, because: str) -> list[Action]:
        actions: list[Action] = []
        for slot in self._slots.everybody():
            if slot.is_alive and slot.state is not SlotState.KILLED:
                actions += termination.kill(slot, Cause.GRACE, because)
        return actions

    def _finish(self, because: str) -> list[Action]:
        """The end of a burst: drain every worker, without a grace."""
        self._condition.is_finishing = True
        said = Say("supervisor.stopping", "info", because)
        return [said, *termination.drain_all(self._slots, because, None, finish=True)]

    def _resolve(self, decided: Iterable[Action | GiveUp | Finish | Adopt], now: float) -> list[Action]:
        """Turn decisions about the whole pool into actions."""
        actions: list[Action] = []
        for each in decided:
            match each:
                case GiveUp(because, code, ends_nursery):
                    actions += self._stop(because, code, now)
                    if ends_nursery:
                        self._rollout.unfork(now)
                        actions.append(StopNursery(self._rollout.nursery.generation, because))
                case Finish(because):
                    actions += self._finish(because)
                case Adopt():
                    actions += self._adopt(now)
                case _:
                    actions.append(each)
        return actions

    # ------------------------------------------------------------------------------------------------ workers

    def _started(self, slot: Slot, pid: int, now: float) -> list[Action]:
        nursery = self._rollout.nursery_of(slot.generation)
        nursery.failures = 0
        self._shortage.fill(slot.number)
        slot.pid = pid
        slot.enter(SlotState.BOOTING, now + nursery.settings.boot_timeout)
        said = Say("worker.started", "info", slot.why_started, {"slot": slot.number, "pid": pid})
        condition = self._condition
        if condition.is_draining:
            return [said, *termination.drain(slot, condition.because, now + self.settings.grace)]
        if condition.is_finishing or not self._slots.is_wanted(slot):
            return [said, *termination.drain(slot, "no longer wanted", None, finish=condition.is_finishing)]
        return [said]

    def _start_failed(self, slot: Slot, error: str, now: float) -> list[Action]:
        if self._condition.is_draining or not self._slots.is_wanted(slot):
            slot.enter(SlotState.EMPTY)
            return []
        if self._rollout.is_on_trial(slot):
            return self._rollout.fail_trial(slot, error, now)
        slot.enter(SlotState.WAITING, now)
        roll = self._slots.roll(slot.number)
        delay = self._shortage.refuse(slot.number, error, slot.spawned_at, now, roll)
        if delay is None:
            return []
        follows = f"one worker retries in {delay:.2f} s, the others wait for it"
        return [Say("worker.start_failed", "error", error, {"slot": slot.number, "next": follows})]

    def _worker_said(self, slot: Slot, report: object, now: float) -> list[Action]:
        is_draining = slot.state is SlotState.DRAINING
        is_at_work = is_draining or slot.state is SlotState.READY
        match report:
            case Connecting() if slot.state is SlotState.BOOTING:
                slot.enter(SlotState.CONNECTING, now + CONNECT_TIMEOUT)
                # It has imported the handler, or inherited it, and has set it up.
                if self._rollout.nursery.state is NurseryState.READY and not self._rollout.is_incoming(slot.generation):
                    self._imports.succeed()
            case Ready() if slot.state is SlotState.CONNECTING:
                return self._ready(slot, report, now)
            case Ready(resident=resident) if is_draining:
                slot.began_with = resident
                if not self._condition.is_draining:
                    # It may have a task in flight by now, of any length.
                    slot.deadline = None
            case Depth():
                return self._measured(report, now)
            case DeadDepth():
                self._looks.dead_measured(report, now)
            case Nature():
                return [*self._looks.described(report, self.settings.queue)]
            case Parked():
                self._suspects.sentences.carried_out(slot.page)
                self._looks.has_parked(report)
            case ParkingBlocked(is_blocked, because):
                return [*self._broker.block(slot.page, because if is_blocked else None, now)]
            case Lost() if is_at_work and not slot.is_lost:
                self._burst.all_idle = False
                return self._resolve(self._succession.lost(slot, report, now), now)
            case Leaving() if is_at_work and (not is_draining or slot.deadline is None):
                # It has the grace to exit: a thread or an atexit function of the handler may block it.
                slot.enter(SlotState.DRAINING, now + max(self.settings.grace, LEAVE_TIMEOUT))
        return []

    def _garbled(self, slot: Slot, because: str, now: float) -> list[Action]:
        """Do not trust it any more. SIGABRT, because the stack shows what wrote to its link."""
        if slot.state in (SlotState.ABORTING, SlotState.KILLED):
            return []
        because = f"invalid message on its link: {because}"
        said = Say("worker.garbled", "error", because, {"slot": slot.number, "pid": slot.pid})
        return [said, *termination.abort(slot, Cause.PROTOCOL, because, now)]

    def _ready(self, slot: Slot, report: Ready, now: float) -> list[Action]:
        slot.enter(SlotState.READY)
        slot.ready_since = now
        self._burst.reached()
        concerned = [other for other in self._slots if other.fault in broker.FAULTS]
        if self._broker.away_since is not None:
            for other in concerned:
                if other.state is SlotState.WAITING:
                    other.deadline = now
        if self._broker.away_since is not None or report.has_declared:
            self._looks.truth.forget_queue()
        settings = self.settings_of(slot.generation)
        has_queues = slot.has_queues or self._rollout.is_canary(slot)  # whose settings may need others than the rest
        actions: list[Action] = [*self._broker.consume(report, settings, has_queues=has_queues, now=now)]
        self._ledger.has_limit = poison.has_limit(report.version)
        actions += self._weigh(slot, report.resident)
        if not any(other.state is SlotState.WAITING or other.state in ARRIVING for other in concerned):
            self._broker.recover()
        fields: dict[str, object] = {"slot": slot.number, "pid": slot.pid, "broker": report.broker}
        if slot.died_at is not None:
            self._restarts.add(now - slot.died_at)
            fields["seconds"] = round(now - slot.died_at, 4)
            slot.died_at = None
        is_held = slot.intake is Intake.NONE
        because = "connected; it may take no tasks yet" if is_held else "the broker has confirmed the consumer"
        actions.append(Say("worker.ready", "info", because, fields))
        self._condition.has_worked = True
        actions += self._resolve(self._rollout.consumes(slot, now), now)
        return [*actions, *self._condition.consume(self._slots.count(SlotState.READY), self._slots.wanted, now)]

    def _adopt(self, now: float) -> list[Action]:
        """Apply the incoming generation's settings."""
        former = self.settings.workers
        actions = self._rollout.adopt(now)
        self._admission.breaker.reloaded(now)
        self._ledger.max_crashes = self.settings.max_crashes
        return [*actions, *self._sizing.adopt(former, now)]

    def _weigh(self, slot: Slot, resident: int) -> list[Action]:
        """Note its memory before the first task; log, once a generation, when `--max-memory` is less."""
        slot.began_with = resident
        because = hung.too_small(self.settings_of(slot.generation).max_memory, resident)
        if because is None or self._weighed >= slot.generation:
            return []
        self._weighed = slot.generation
        return [Say("worker.memory_limit_too_small", "error", because, {"slot": slot.number, "pid": slot.pid})]

    # -------------------------------------------------------------------------------------------------- timers

    def _slot_overdue(self, slot: Slot, now: float) -> list[Action]:
        if slot.state is SlotState.FORKING:
            return self._rollout.stuck(slot, now)
        boot_timeout = self.settings_of(slot.generation).boot_timeout
        return termination.overdue(slot, boot_timeout, self.settings.grace, now)

    def _sampled(self, readings: tuple[Reading, ...], now: float) -> list[Action]:
        held_up = self._sampled_at is not None and now - self._sampled_at > hung.SAMPLE_GAP
        self._sampled_at = now
        self._looks.sampled(tuple(reading for reading in readings if reading.page not in self._slots.orphans), now)
        actions: list[Action] = [*self._find_silent(readings, now), *self._suspects.sampled(readings, now)]
        actions += self._admission.sampled(readings, self.settings, now)
        actions += self._resolve(self._rollout.sampled(readings, now), now)
        for reading in readings:
            slot = self._slots.at(reading.page)
            if slot.pid == reading.pid and slot.state in (SlotState.READY, SlotState.DRAINING):
                limits = self._rollout.limits_of(slot)
                actions += termination.examine(slot, reading, limits, held_up=held_up, now=now)
        actions += self._condition.recover(self._slots.count(SlotState.READY), self._slots.wanted, now)
        return actions if self._condition.is_draining else [*actions, *self._look(readings, now)]

    def _look(self, readings: tuple[Reading, ...], now: float) -> list[Action]:
        """Ask for the queue's depth when that is due."""
        settings, consuming = self.settings, self._slots.consuming()
        actions: list[Action] = []
        if settings.burst:
            trouble = None if consuming else self._trouble()
            if given_up := self._burst.give_up(trouble, settings.burst_wait, now):
                return self._resolve(given_up, now)
            if not self._condition.is_finishing:
                all_ready = all(slot.state is SlotState.READY for slot in self._slots.in_use())
                actions += self._burst.ask(readings, all_ready=all_ready)
        if (not settings.burst or not settings.workers.is_fixed) and self._looks.is_due(now):
            actions += self._looks.ask(consuming, now)
        return actions

    def _trouble(self) -> str | None:
        """Why no worker consumes, if the reason is the broker, a transient import failure or a boot that hangs."""
        # Who connects has done so since: the broker is the reason by then.
        booting = (slot for slot in self._slots if slot.state is not SlotState.CONNECTING)
        if any(slot.last_exit is not None and slot.last_exit.cause == Cause.BOOT for slot in booting):
            return "importing or setting up the handler takes longer than --boot-timeout"
        is_trying = any(slot.state is SlotState.CONNECTING or slot.fault in broker.FAULTS for slot in self._slots)
        if self._imports.because is None and not is_trying:
            return None
        return self._imports.because or self._broker.trouble or "the broker does not answer"

    def _find_silent(self, readings: tuple[Reading, ...], now: float) -> Iterator[Action]:
        """Find workers that lost their connection and cannot report it; see `Suspects.silent`."""
        for page in self._suspects.silent(readings, hung.SILENT_AFTER * self.settings.heartbeat, now):
            why = "its message was redelivered: the handler blocks heartbeats, so the broker dropped the connection"
            yield from self._worker_said(self._slots.at(page), Lost(why, Kind.HEARTBEAT), now)

    def _measured(self, depth: Depth, now: float) -> list[Action]:
        self._looks.measured(depth, now)
        actions: list[Action] = []
        if not self._condition.is_leaving:
            actions += self._looks.compare(depth, self._slots.taking(), now)
        actions += self._sizing.scale(depth, now)
        if self.settings.burst and not self._condition.is_draining:
            ended = self._burst.measured(depth, self._slots.count(SlotState.READY), now)
            actions += self._resolve(ended, now)
        return actions

    def _leave(self, now: float) -> Iterator[Action]:
        if not self._condition.is_leaving:
            return
        if any(slot.state is not SlotState.EMPTY for slot in self._slots.everybody()):
            return
        self._left = True
        self._condition.state = State.STOPPED
        for nursery in self._rollout.nurseries:
            yield StopNursery(nursery.generation, "no worker is left to start")
        for sentence in self._suspects.sentences.pending(now):
            why = f"{sentence.by} wanted {sentence.name} dead-lettered; no worker has got it since, and a supervisor "
            why += "that stops forgets this: it runs again, unless it is killed once more where it runs"
            yield Say("worker.kill", "warning", why, {"message_id": sentence.name})
        yield Leave(self._condition.code, self._condition.why_left)
