"""How many workers are wanted: by an operator, by `scaling`, or by a reload that changes `--workers`."""

from __future__ import annotations

from supervisor.messages import Depth
from supervisor.policy import termination
from supervisor.policy.actions import Action, Say
from supervisor.policy.admission import Admission
from supervisor.policy.broker import BrokerState
from supervisor.policy.condition import Condition, State
from supervisor.policy.looks import Looks
from supervisor.policy.rollout import Rollout
from supervisor.policy.shortage import Shortage
from supervisor.policy.slots import Slots
from supervisor.settings import WORKERS_MOST, Span
from supervisor.values import dataclass


@dataclass(frozen=True, slots=True)
class Sizing:
    slots: Slots
    condition: Condition
    rollout: Rollout
    broker: BrokerState
    looks: Looks
    shortage: Shortage
    admission: Admission

    @property
    def _span(self) -> Span:
        return self.rollout.nursery.settings.workers

    def resize(self, wanted: int, by: str, now: float) -> list[Action]:
        span, former = self._span, self.slots.wanted
        least, most = (1, WORKERS_MOST) if span.is_fixed else (span.least, span.most)
        if self.condition.is_leaving:
            return [Say("supervisor.scaling", "warning", f"{by} ignored: the supervisor is stopping")]
        if not least <= wanted <= most:
            name, limit = ("maximum", most) if wanted > most else ("minimum", least)
            where = "already at" if former == limit else "above" if wanted > most else "below"
            limits = f"{where} the {name} of {limit} worker{'s' if limit > 1 else ''}"
            return [Say("supervisor.scaling", "warning", f"{by} ignored: {limits}")]
        if wanted < self.rollout.needs:
            return [Say("supervisor.scaling", "warning", f"{by} ignored: a canary needs two workers, to compare them")]
        if wanted == former:
            return [Say("supervisor.scaling", "info", f"{by}: already at {wanted} workers")]
        because = f"{by}: {former} -> {wanted} workers"
        too_many = self.slots.resize(wanted)
        for slot in too_many:
            self.shortage.fill(slot.number)
        self.slots.refill(now)
        said = Say("supervisor.resized", "info", because, {"workers": wanted})
        return [said, *termination.drain_all(too_many, because, None)]

    def adopt(self, former: Span, now: float) -> list[Action]:
        """The settings have changed. Keep a number that an operator has chosen, within the new limits."""
        span = self._span
        if span == former:
            return []
        wanted = span.least if span.is_fixed else min(max(self.slots.wanted, span.least), span.most)
        return self.resize(wanted, f"reload: workers = {span}", now)

    def scale(self, depth: Depth, now: float) -> list[Action]:
        """`--workers MIN..MAX`; see `scaling`."""
        is_steady = self.condition.state is State.RUNNING and not self.condition.is_finishing
        if not is_steady or self.rollout.is_open or self.broker.away_since is not None:
            return []
        if self.admission.is_restricted:
            return []
        decision = self.looks.scale(depth, self.slots.wanted, now)
        if decision is None or decision.wanted < self.rollout.needs:
            return []
        if decision.wanted == self.slots.wanted:
            return [Say("supervisor.scaling", "info", decision.because, {"workers": self.slots.wanted})]
        return self.resize(decision.wanted, decision.because, now)
