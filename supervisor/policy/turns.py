"""Which waiting slot gets a worker now? One whose backoff has ended, when the nursery is ready and it is its turn. One
worker at a time while the machine refuses workers, an import fails, the broker is down or deaths are unexplained."""

from __future__ import annotations

import math
from collections.abc import Iterator

from supervisor.policy import broker
from supervisor.policy.actions import Spawn
from supervisor.policy.admission import Admission
from supervisor.policy.broker import BrokerState
from supervisor.policy.condition import Condition, State
from supervisor.policy.imports import Imports
from supervisor.policy.nursery import NurseryState
from supervisor.policy.rollout import Rollout
from supervisor.policy.shortage import Shortage
from supervisor.policy.slot import ARRIVING, FORK_TIMEOUT, Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.values import dataclass


@dataclass(frozen=True, slots=True)
class Turns:
    slots: Slots
    condition: Condition
    rollout: Rollout
    broker: BrokerState
    shortage: Shortage
    imports: Imports
    admission: Admission

    @property
    def deadline(self) -> float:
        """When a slot is due, if no event comes first; infinite: only an event helps."""
        slots = self.slots.everybody()
        times = [max(slot.deadline, self._free_at(slot)) for slot in slots if slot.deadline is not None]
        return min(times, default=math.inf)

    def spawn(self, now: float) -> Iterator[Spawn]:
        if self.condition.is_draining:
            return
        # A reload's first worker first: else, where one slot at a time may try the broker, it might never be its turn.
        for slot in sorted(self.slots, key=lambda slot: not self.rollout.is_chosen(slot)):
            if slot.state is SlotState.WAITING and slot.is_due(now) and self._free_at(slot) <= now:
                slot.enter(SlotState.FORKING, now + FORK_TIMEOUT)
                slot.spawned_at = now
                slot.generation = self.rollout.nursery_for(slot).generation
                slot.has_queues = not self.rollout.is_incoming(slot.generation) and self.broker.has_queues(now)
                slot.intake = self.admission.at_first()
                yield Spawn(slot.page, slot.generation, slot.why_started, slot.has_queues, self.broker.met, slot.intake)

    def _free_at(self, slot: Slot) -> float:
        """When a waiting slot no longer waits for others; infinite: only an event helps."""
        if slot.state is not SlotState.WAITING:
            return -math.inf
        if slot.page in self.slots.orphans:
            return math.inf  # the orphan is being killed already, see `Slots.orphan`
        if self.rollout.nursery_for(slot).state is not NurseryState.READY:
            return math.inf
        free_at = self.shortage.turn(self.slots.count(SlotState.FORKING) > 0)
        if not self.rollout.is_chosen(slot):  # its import is of other code
            is_importing = self.slots.count(SlotState.FORKING, SlotState.BOOTING) > 0
            free_at = max(free_at, self.imports.turn(is_importing))
        is_degraded = self.condition.state is State.DEGRADED
        if not is_degraded and slot.fault not in broker.FAULTS:
            return free_at
        begun = [other.spawned_at for other in self.slots if other.state in ARRIVING]
        if is_degraded:
            return math.inf if begun else free_at
        return max(free_at, broker.turn(begun, self.slots.count(SlotState.READY)))
