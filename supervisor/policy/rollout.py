"""A rolling reload: import the new code, try it with one worker, replace the others one at a time, or roll back.

`Rollout` holds the nurseries and decides; what it has come to is a `Reload` (see `reload` for the stages).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace

from supervisor.messages import Loaded, LoadFailed, Threaded
from supervisor.policy import termination
from supervisor.policy.actions import Action, Say, StopNursery
from supervisor.policy.admission import Admission
from supervisor.policy.broker import BrokerState
from supervisor.policy.canary import Progress, Score, Watch
from supervisor.policy.condition import Condition, Consequence
from supervisor.policy.events import Asked, NurseryGone
from supervisor.policy.imports import Imports
from supervisor.policy.looks import Looks
from supervisor.policy.nursery import Nursery, NurseryState, Upkeep
from supervisor.policy.reload import Reload, Stage
from supervisor.policy.restart import Fault
from supervisor.policy.slot import ALIVE, FORK_TIMEOUT, Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import Counts, Reading


@dataclass(frozen=True, slots=True)
class Adopt:
    """A decision: the incoming generation becomes the current one."""


@dataclass(slots=True)
class Rollout:
    """The nurseries of the current and the incoming generation, and the change from one to the other."""

    slots: Slots
    condition: Condition
    broker: BrokerState
    admission: Admission
    looks: Looks
    imports: Imports
    upkeep: Upkeep
    nursery: Nursery
    incoming: Nursery | None = None
    """The next generation's, until one of its workers consumes, or its canary is over."""
    latest: Reload | None = None
    reloads: int = 0
    newest: int = 1
    """The number of the latest generation; failed ones count."""
    chosen: set[int] = field(default_factory=set)
    """Slots whose next worker is the incoming nursery's: its first one, or a canary's share."""
    watch: Watch | None = None
    """Of a canary, while its generation is the incoming one."""
    judged: tuple[Score, Score] = (Score(), Score())
    """What former canaries have counted: new code, old code."""
    is_held: bool = False
    """The incoming generation waits for a broker that is down."""
    is_rolling: bool = False
    """Workers of an older generation are being replaced, one at a time."""
    past: dict[int, Settings] = field(default_factory=dict)
    """By generation: the settings of older workers that still run."""

    # ------------------------------------------------------------------------------------------------ queries

    @property
    def nurseries(self) -> list[Nursery]:
        return [self.nursery] if self.incoming is None else [self.nursery, self.incoming]

    @property
    def is_watching(self) -> bool:
        """A canary runs."""
        return self.watch is not None and self.watch.began is not None

    @property
    def is_open(self) -> bool:
        """Neither finished nor failed, and no canary that runs."""
        return not self.is_watching and (self.is_rolling or self.incoming is not None)

    @property
    def is_moving(self) -> bool:
        """Open, and not waiting for the broker."""
        return self.is_open and (self.is_rolling or not self.is_held)

    @property
    def needs(self) -> int:
        """Workers at least: a canary compares two."""
        return 1 if self.watch is None else 2

    @property
    def scores(self) -> tuple[Score, Score]:
        """What all canaries have counted so far: new code, old code."""
        new, old = self.judged
        return (new, old) if self.watch is None else (new + self.watch.new, old + self.watch.old)

    def is_incoming(self, generation: int) -> bool:
        return self.incoming is not None and generation == self.incoming.generation

    def nursery_of(self, generation: int) -> Nursery:
        """The current one for a generation that has none any more."""
        return self.incoming if self.incoming is not None and self.is_incoming(generation) else self.nursery

    def limits_of(self, slot: Slot) -> Settings:
        """The settings its worker was started with."""
        return self.past.get(slot.generation, self.nursery_of(slot.generation).settings)

    def is_chosen(self, slot: Slot) -> bool:
        """Whether its next worker is of the incoming generation."""
        return slot.number in self.chosen

    def nursery_for(self, slot: Slot) -> Nursery:
        """The one that forks for this slot next."""
        return self.incoming if self.incoming is not None and self.is_chosen(slot) else self.nursery

    def is_new(self, slot: Slot) -> bool:
        """Whether its worker is of the incoming generation."""
        return self.is_incoming(slot.generation) and slot.state in (SlotState.FORKING, *ALIVE)

    def is_canary(self, slot: Slot) -> bool:
        """Whether its worker is, or was, one of a canary's."""
        return self.watch is not None and self.is_incoming(slot.generation)

    def is_on_trial(self, slot: Slot) -> bool:
        """Whether its worker is of the incoming generation, of which none has consumed yet."""
        return not self.is_watching and self.is_new(slot)

    def refusal(self, asked: Asked) -> str | None:
        """Why this reload cannot begin now."""
        if self.condition.is_leaving:
            return "the supervisor is stopping"
        if asked.canary is not None and self.slots.wanted < 2:
            return (
                "a canary is compared with other workers, and this pool has only one: `workq scale 2` adds one, or "
                "reload without --canary"
            )
        if asked.canary is not None and self.admission.breaker.is_restricting:
            return (
                "the circuit breaker is not closed, so a canary has no tasks to be compared by: reload without --canary"
            )
        if self.nursery.state is not NurseryState.READY and not self.condition.has_worked:
            each = "; the import is retried, and each retry reads the current code" if self.imports.because else ""
            return f"nothing has been loaded yet{each}"
        # Before its first worker is forked, another reload can replace it: it may wait an hour for a task to finish,
        # and its code may be known to be wrong by then.
        is_loading = self.incoming is not None and self.incoming.state is NurseryState.LOADING
        going = (
            "a reload is already in progress, and this one is not done: ask again when its code is loaded and tried, "
            "after --boot-timeout at the latest (`workq status` shows it); nothing aborts it before"
        )
        return going if is_loading or any(map(self.is_on_trial, self.slots)) else None

    def proves_nothing(self, fault: Fault) -> bool:
        """Whether the broker made the trial fail: it is down for the current generation too, with the same URLs. Unless
        that has been seen, new settings may be wrong, and would be retried without end."""
        return (
            self.incoming is not None
            and fault is Fault.BROKER
            and self.broker.away_since is not None
            and self.incoming.settings.url == self.nursery.settings.url
        )

    # ------------------------------------------------------------------------------------------------- events

    def begin(self, asked: Asked, now: float) -> list[Action]:
        """Import the new code; no worker is replaced until that has worked."""
        actions: list[Action] = []
        because, canary = asked.by, asked.canary
        if self.incoming is not None:
            replaced = f"replaced by another reload: {asked.by}"
            actions.append(StopNursery(self.incoming.generation, replaced))
            if self.is_watching:
                because = f"{asked.by}; the canary of generation {self.incoming.generation} is rolled back"
            actions += self._dismiss(replaced, now)
        settings: Settings = asked.settings or self.nursery.settings
        self.newest += 1
        self.reloads += 1
        self.latest = Reload(self.reloads, self.newest, asked.by, now, canary=canary)
        fields: dict[str, object] = {"generation": self.newest}
        if canary is not None:
            fields["canary"] = canary.percent
            fields["seconds"] = canary.seconds
        actions.append(Say("reload.started", "info", because, fields))
        if asked.problem:
            return [*actions, *self.fail(asked.problem, now)]
        self.watch = Watch(canary) if canary is not None else None
        self.incoming = Nursery(self.newest, settings, settings.preload)
        return [*actions, self.incoming.load(now, f"reload: {asked.by}")]

    def loaded(self, generation: int, report: Loaded | Threaded | LoadFailed, now: float) -> list[Consequence]:
        if self.incoming is not None and self.is_incoming(generation):
            return [*self._incoming_loaded(self.incoming, report, now)]
        if generation != self.nursery.generation or self.condition.is_draining:
            return []
        return self.upkeep.loaded(self.nursery, report, now)

    def _incoming_loaded(self, nursery: Nursery, report: Loaded | Threaded | LoadFailed, now: float) -> list[Action]:
        match report:
            case Loaded(seconds, preloaded):
                self._reach(Stage.TRYING)
                return [nursery.has_loaded(seconds, preloaded, now)]
            case Threaded():
                return nursery.load_bare(report, now)
            case LoadFailed(error, traceback):
                return self.fail(error, now, traceback)

    def gone(self, gone: NurseryGone, now: float) -> list[Consequence]:
        if self.is_incoming(gone.generation):
            return [*self.fail(f"the importing process died: {gone.cause}", now, gone.output)]
        if gone.generation != self.nursery.generation:
            return []
        self.unfork(now)
        return [] if self.condition.is_draining else self.upkeep.gone(self.nursery, gone, now)

    def refused(self, generation: int, error: str, now: float) -> list[Consequence]:
        if self.is_incoming(generation):
            return [*self.fail(error, now)]
        return self.upkeep.refused(self.nursery, error, now) if generation == self.nursery.generation else []

    def stuck(self, slot: Slot, now: float) -> list[Action]:
        """A nursery was asked to fork for this slot, and has not in time."""
        because = f"it did not fork a worker within {FORK_TIMEOUT:g} s"
        if self.is_on_trial(slot):
            return self.fail_trial(slot, because, now)
        if self.is_incoming(slot.generation):
            return self.roll_back(because, now)
        self.nursery.state = NurseryState.NONE
        self.unfork(now)
        retry = [] if self.condition.is_draining else self.nursery.retry(now, self.slots.roll())
        return [StopNursery(self.nursery.generation, because), *retry]

    def overdue(self, now: float) -> list[Consequence]:
        decided = self.upkeep.overdue(self.nursery, now)
        if self.incoming is None or self.incoming.deadline is None or self.incoming.deadline > now:
            return decided
        because = f"the import did not finish within --boot-timeout ({self.incoming.settings.boot_timeout:g} s)"
        stop = StopNursery(self.incoming.generation, because, stack=True)
        return [*decided, stop, *self.fail(because, now)]

    def adopt(self, now: float) -> list[Action]:
        """A worker of the incoming generation consumes: make that generation the current one."""
        assert self.incoming is not None
        self.unfork(now)
        self._end_watch()
        former, self.nursery, self.incoming = self.nursery, self.incoming, None
        self.chosen.clear()
        self.is_held = False
        self.is_rolling = True
        self.imports.succeed()
        self.past[former.generation] = former.settings
        self.broker.change(former.settings, self.nursery.settings, now)
        if former.settings.workers != self.nursery.settings.workers:
            self.looks.rescale(self.nursery.settings.workers)
        self._reach(Stage.REPLACING)
        return [StopNursery(former.generation, f"generation {self.nursery.generation} takes over")]

    def consumes(self, slot: Slot, now: float) -> list[Action | Adopt]:
        """A worker consumes. The first one of the incoming generation proves that it can, and begins the canary."""
        if not self.is_on_trial(slot):
            return []
        if self.watch is None:
            return [Adopt()]
        canary, wanted = self.watch.canary, self.slots.wanted
        self.watch.begin(now)
        self._reach(Stage.CANARY)
        self._show_progress()
        because = (
            f"it consumes; generation {self.newest} runs in {canary.size(wanted)} of {wanted} workers for "
            f"{canary.seconds:g} s, then it takes over or is rolled back"
        )
        return [Say("reload.canary", "info", because, {"generation": self.newest})]

    def sampled(self, readings: tuple[Reading, ...], now: float) -> list[Action | Adopt]:
        """Once a second: count for a canary, and judge it."""
        if self.watch is None:
            return []
        for reading in readings:
            slot = self.slots.at(reading.page)
            self.watch.look(reading.page, reading.counts, is_new=self.is_incoming(slot.generation))
        if not self.is_watching or self.condition.is_leaving:
            return []
        consumes = any(self.is_new(slot) and slot.state is SlotState.READY for slot in self.slots.in_use())
        is_idle = self.broker.away_since is not None or self.admission.is_shut
        verdict = self.watch.decide(now, consumes=consumes, is_idle=is_idle)
        self._show_progress()
        if verdict is None:
            return []
        if not verdict.is_good:
            return [*self.roll_back(verdict.because, now)]
        return [Say("reload.passed", "info", verdict.because, {"generation": self.newest}), Adopt()]

    def count(self, slot: Slot, counts: Counts | None, *, is_crash: bool) -> None:
        """Its worker, or orphan, has exited, and its page held `counts`."""
        if self.watch is None:
            return
        is_new = self.is_canary(slot)
        if counts is not None:
            self.watch.look(slot.page, counts, is_new=is_new)
        if is_crash:
            self.watch.crash(is_new=is_new)

    def died(self, failed: LoadFailed | None, now: float) -> list[Action]:
        """A worker of a canary has exited, and was counted. Roll back if that decides it."""
        assert self.watch is not None
        if failed is not None:
            return self.roll_back(f"one of its workers cannot be started: {failed.error}", now, failed.traceback)
        verdict = self.watch.judge()
        return self.roll_back(verdict.because, now) if verdict is not None else []

    def fail(self, because: str, now: float, traceback: str = "") -> list[Action]:
        """The current generation stays. Its nursery forks for the slot of the trial."""
        generation = self.nursery.generation
        because = f"the canary is rolled back: {because}" if self.is_watching else because
        fields: dict[str, object] = {"generation": generation} | ({"exception": traceback} if traceback else {})
        said = Say("reload.failed", "error", f"{because}; generation {generation} stays", fields)
        dismissed = self._dismiss(because, now)
        self._end(Stage.FAILED, now, because)
        return [said, *dismissed]

    def roll_back(self, because: str, now: float, traceback: str = "") -> list[Action]:
        """A canary has failed: its workers exit after their tasks, all at once, and the current generation's follow."""
        assert self.incoming is not None
        stop = StopNursery(self.incoming.generation, because)
        return [stop, *self.fail(because, now, traceback)]

    def fail_trial(self, slot: Slot, because: str, now: float, traceback: str = "") -> list[Action]:
        """The incoming generation's first worker failed."""
        assert self.incoming is not None
        stop = StopNursery(self.incoming.generation, because)
        failed = self.fail(f"its first worker does not consume: {because}", now, traceback)
        self._release(slot, now)
        return [stop, *failed]

    def hold(self, because: str) -> Action:
        """Keep the incoming generation loaded. The current one probes the broker: its settings are known to work."""
        self.chosen.clear()
        self.is_held = True
        self._reach(Stage.WAITING)
        because = f"the broker is down ({because}): the reload continues once it is back, unless another replaces it"
        return Say("reload.waiting", "warning", because, {"generation": self.newest})

    def stop(self, because: str, now: float) -> list[Action]:
        self.nursery.deadline = None
        if self.incoming is None:
            return []
        actions: list[Action] = [StopNursery(self.incoming.generation, because)]
        if self.is_watching:
            why = "the supervisor is stopping, and the canary with it; the next start loads the code that is there then"
            actions.append(Say("reload.failed", "info", why, {"generation": self.nursery.generation}))
        self._end_trial(now)
        self._end(Stage.FAILED, now, "the supervisor is stopping")
        return actions

    def unfork(self, now: float) -> None:
        """The current nursery will not fork what it was asked for."""
        for slot in self.slots:
            if slot.state is SlotState.FORKING and slot.generation == self.nursery.generation:
                self._release(slot, now)

    # -------------------------------------------------------------------------------------------------- steps

    def step(self, now: float) -> Iterator[Action]:
        """Replace one worker of an older generation, once the previous replacement consumes."""
        if self.condition.is_leaving:
            return
        if self.incoming is not None and self.incoming.state is NurseryState.READY:
            yield from self._share(now) if self.is_watching else self._try(now)
            return
        if not self.is_rolling:
            return
        slots = self.slots.in_use()
        generation = self.nursery.generation
        old = [slot for slot in slots if slot.is_alive and slot.generation < generation]
        if not old:
            self.is_rolling = False
            orphaned = {orphan.generation for orphan in self.slots.orphans.values()}
            self.past = {of: limits for of, limits in self.past.items() if of in orphaned}
            if self.latest is not None and self.latest.generation == generation:
                self._end(Stage.FINISHED, now)
            because = f"every worker runs generation {generation}"
            if self.latest is not None and self.latest.generation == generation and self.latest.progress is not None:
                because += f"; as a canary: {self.latest.progress.new}"
            yield Say("reload.finished", "info", because, {"generation": generation})
        elif all(slot.state is SlotState.READY for slot in slots):
            yield from termination.drain(old[0], f"reload: replaced by generation {generation}", None)

    def _try(self, now: float) -> Iterator[Action]:
        """Choose the slot for the incoming generation's first worker: an empty one, else an idle one."""
        if self.is_held and self.broker.away_since is not None:
            return
        if self.is_held:
            self.is_held = False
            self._reach(Stage.TRYING)
        self.chosen = {number for number in self.chosen if number < self.slots.wanted}
        if not self.chosen:
            yield from self._choose(f"reload: the first worker of generation {self.newest} follows", now)

    def _share(self, now: float) -> list[Action]:
        """Give a canary its share of the slots, one at a time."""
        assert self.watch is not None
        slots = self.slots.in_use()
        self.chosen = {number for number in self.chosen if number < self.slots.wanted}
        size = self.watch.canary.size(self.slots.wanted)
        if len(self.chosen) < size:
            return self._choose(f"reload: generation {self.newest} runs in {size} of {len(slots)} workers", now)
        spare = [slot for slot in slots if self.is_chosen(slot) and slot.state in (SlotState.READY, SlotState.WAITING)]
        if len(self.chosen) == size or not spare:
            return []
        self.chosen.remove(spare[-1].number)
        fewer = f"fewer workers are wanted, and generation {self.newest} runs in {size} of {len(slots)}"
        return termination.drain(spare[-1], fewer, None) if spare[-1].is_alive else []

    def _show_progress(self) -> None:
        if self.latest is not None and self.watch is not None and self.is_watching:
            workers = sum(1 for slot in self.slots.in_use() if self.is_new(slot) and slot.is_alive)
            progress = Progress(workers, self.watch.until, self.watch.new, self.watch.old)
            self.latest = replace(self.latest, progress=progress)

    def _end_watch(self) -> None:
        if self.watch is not None:
            self._show_progress()
            self.judged = self.scores
            self.watch = None

    def _choose(self, because: str, now: float) -> list[Action]:
        """One more slot for the incoming generation, if there is one to be had now."""
        slots = self.slots.in_use()
        others = [slot for slot in slots if not self.is_chosen(slot)]
        vacant = [slot for slot in others if slot.state is SlotState.WAITING]
        if vacant:
            self.chosen.add(vacant[0].number)
            vacant[0].deadline = now  # the reload may fix what its backoff waits for
        elif {slot.state for slot in slots} == {SlotState.READY}:
            slot = self.looks.idle_of(others)
            self.chosen.add(slot.number)
            return termination.drain(slot, because, None)
        return []

    def _dismiss(self, because: str, now: float) -> list[Action]:
        """The incoming generation has failed: its workers exit."""
        assert self.incoming is not None or not self.chosen
        if self.incoming is not None and self.is_watching:
            self.past[self.incoming.generation] = self.incoming.settings  # until the last of its tasks is finished
            dismissed = [slot for slot in self.slots if self.is_new(slot) and slot.is_alive]
        else:
            arriving = (SlotState.BOOTING, SlotState.CONNECTING)
            dismissed = [slot for slot in self.slots if self.is_new(slot) and slot.state in arriving]
        self._end_trial(now)
        return termination.drain_all(dismissed, because, None)

    def _end_trial(self, now: float) -> None:
        for slot in self.slots:
            if self.is_new(slot) and slot.state is SlotState.FORKING:
                self._release(slot, now)
        self._end_watch()
        self.incoming = None
        self.chosen.clear()
        self.is_held = False

    def _release(self, slot: Slot, now: float) -> None:
        """Its worker will not be forked: ask for another one, if one is wanted."""
        is_wanted = self.slots.is_wanted(slot) and not self.condition.is_draining
        slot.enter(*((SlotState.WAITING, now) if is_wanted else (SlotState.EMPTY, None)))

    def _reach(self, stage: Stage) -> None:
        if self.latest is not None:
            self.latest = replace(self.latest, stage=stage)

    def _end(self, stage: Stage, now: float, error: str = "") -> None:
        if self.latest is not None and not self.latest.is_over:
            self.latest = replace(self.latest, stage=stage, ended=now, error=error)
