"""A rolling reload: import the new code, try it with one worker, replace the others one at a time, or roll back.

`Rollout` holds the nurseries and decides; a `Reload` is what /status shows of it.

loading     a nursery of the next generation imports the code; nothing else has changed
trying      one worker of that generation must consume first; the others are unchanged
waiting     it could not, because the broker is down for the old workers too: retried once the broker is back
replacing   it consumes: the others are replaced, one at a time, each when it has finished its task
finished    every worker runs that generation
failed      the previous generation stays
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from supervisor.messages import Loaded, LoadFailed, Threaded
from supervisor.policy import termination
from supervisor.policy.actions import Action, Say, StopNursery
from supervisor.policy.broker import BrokerState
from supervisor.policy.condition import Condition, Consequence
from supervisor.policy.events import Asked, NurseryGone
from supervisor.policy.imports import Imports
from supervisor.policy.looks import Looks
from supervisor.policy.nursery import Nursery, NurseryState, Upkeep
from supervisor.policy.restart import Fault
from supervisor.policy.slot import ALIVE, FORK_TIMEOUT, Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.settings import Settings


class Stage(StrEnum):
    LOADING = "loading"
    TRYING = "trying"
    WAITING = "waiting"
    REPLACING = "replacing"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reload:
    number: int
    """From 1."""
    generation: int
    by: str
    """Where the request came from: `SIGHUP`."""
    began: float
    stage: Stage = Stage.LOADING
    ended: float | None = None
    error: str = ""
    """Why it failed."""

    @property
    def is_over(self) -> bool:
        return self.stage in (Stage.FINISHED, Stage.FAILED)


@dataclass(slots=True)
class Rollout:
    """The nurseries of the current and the incoming generation, and the change from one to the other."""

    slots: Slots
    condition: Condition
    broker: BrokerState
    looks: Looks
    imports: Imports
    upkeep: Upkeep
    nursery: Nursery
    incoming: Nursery | None = None
    """The next generation's, until one of its workers consumes."""
    latest: Reload | None = None
    reloads: int = 0
    newest: int = 1
    """The number of the latest generation; failed ones count."""
    trial: int | None = None
    """The slot whose next worker is the incoming nursery's first."""
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
    def is_open(self) -> bool:
        """Neither finished nor failed."""
        return self.is_rolling or self.incoming is not None

    @property
    def is_moving(self) -> bool:
        """Open, and not waiting for the broker."""
        return self.is_rolling or (self.incoming is not None and not self.is_held)

    def is_incoming(self, generation: int) -> bool:
        return self.incoming is not None and generation == self.incoming.generation

    def nursery_of(self, generation: int) -> Nursery:
        """The current one for a generation that has none any more."""
        return self.incoming if self.incoming is not None and self.is_incoming(generation) else self.nursery

    def limits_of(self, slot: Slot) -> Settings:
        """The settings its worker was started with."""
        return self.past.get(slot.generation, self.nursery.settings)

    def is_trial(self, slot: Slot) -> bool:
        """Whether its next worker is the incoming generation's first."""
        return slot.number == self.trial

    def nursery_for(self, slot: Slot) -> Nursery:
        """The one that forks for this slot next."""
        return self.incoming if self.incoming is not None and self.is_trial(slot) else self.nursery

    def is_on_trial(self, slot: Slot) -> bool:
        """Whether its worker is of the incoming generation."""
        return self.is_incoming(slot.generation) and slot.state in (SlotState.FORKING, *ALIVE)

    def refusal(self) -> str | None:
        """Why no other reload can begin now."""
        if self.condition.is_leaving:
            return "the supervisor is stopping"
        if self.nursery.state is not NurseryState.READY and not self.condition.has_worked:
            each = "; the import is retried, and each retry reads the current code" if self.imports.because else ""
            return f"nothing has been loaded yet{each}"
        # Before its first worker is forked, another reload can replace it: it may wait an hour for a task to finish,
        # and its code may be known to be wrong by then.
        is_loading = self.incoming is not None and self.incoming.state is NurseryState.LOADING
        return "a reload is already in progress" if is_loading or any(map(self.is_on_trial, self.slots)) else None

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
        if self.incoming is not None:
            actions.append(StopNursery(self.incoming.generation, f"replaced by another reload: {asked.by}"))
            self._end_trial(now)
        settings: Settings = asked.settings or self.nursery.settings
        self.newest += 1
        self.reloads += 1
        self.latest = Reload(self.reloads, self.newest, asked.by, now)
        actions.append(Say("reload.started", "info", asked.by, {"generation": self.newest}))
        if asked.problem:
            return [*actions, *self.fail(asked.problem, now)]
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
        former, self.nursery, self.incoming, self.trial = self.nursery, self.incoming, None, None
        self.is_held = False
        self.is_rolling = True
        self.imports.succeed()
        self.past[former.generation] = former.settings
        self.broker.change(former.settings, self.nursery.settings, now)
        if former.settings.workers != self.nursery.settings.workers:
            self.looks.rescale(self.nursery.settings.workers)
        self._reach(Stage.REPLACING)
        return [StopNursery(former.generation, f"generation {self.nursery.generation} consumes")]

    def fail(self, because: str, now: float, traceback: str = "") -> list[Action]:
        """The current generation stays. Its nursery forks for the slot of the trial."""
        generation = self.nursery.generation
        arriving = (SlotState.BOOTING, SlotState.CONNECTING)
        on_trial = [slot for slot in self.slots if self.is_on_trial(slot) and slot.state in arriving]
        self._end_trial(now)
        self._end(Stage.FAILED, now, because)
        fields: dict[str, object] = {"generation": generation} | ({"exception": traceback} if traceback else {})
        said = Say("reload.failed", "error", f"{because}; generation {generation} stays", fields)
        return [said, *termination.drain_all(on_trial, because, None)]

    def fail_trial(self, slot: Slot, because: str, now: float, traceback: str = "") -> list[Action]:
        """The incoming generation's first worker failed."""
        assert self.incoming is not None
        stop = StopNursery(self.incoming.generation, because)
        failed = self.fail(f"its first worker does not consume: {because}", now, traceback)
        self._release(slot, now)
        return [stop, *failed]

    def hold(self, because: str) -> Action:
        """Keep the incoming generation loaded. The current one probes the broker: its settings are known to work."""
        self.trial, self.is_held = None, True
        self._reach(Stage.WAITING)
        because = f"the broker is down ({because}): the reload continues once it is back, unless another replaces it"
        return Say("reload.waiting", "warning", because, {"generation": self.newest})

    def stop(self, because: str, now: float) -> list[Action]:
        self.nursery.deadline = None
        if self.incoming is None:
            return []
        stop = StopNursery(self.incoming.generation, because)
        self._end_trial(now)
        self._end(Stage.FAILED, now, "the supervisor is stopping")
        return [stop]

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
            yield from self._try(now)
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
        if self.trial is not None and self.trial < self.slots.wanted:
            return
        slots = self.slots.in_use()
        vacant = [slot for slot in slots if slot.state is SlotState.WAITING]
        if vacant:
            self.trial = vacant[0].number
            vacant[0].deadline = now  # the reload may fix what its backoff waits for
        elif {slot.state for slot in slots} == {SlotState.READY}:
            slot = self.looks.idle_of(slots)
            self.trial = slot.number
            yield from termination.drain(slot, f"reload: the first worker of generation {self.newest} follows", None)

    def _end_trial(self, now: float) -> None:
        for slot in self.slots:
            if self.is_on_trial(slot) and slot.state is SlotState.FORKING:
                self._release(slot, now)
        self.incoming = self.trial = None
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
