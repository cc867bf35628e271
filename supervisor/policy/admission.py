"""May this worker consume? The one place that decides it.

| | a worker may take |
|---|---|
| paused (`workq pause`) | nothing |
| the breaker is open (`breaker`) | nothing |
| it is half-open | one task, if this one tries; else nothing |
| it has just closed | everything, if this is one of the first; else nothing yet |
| else | everything |

Who asks for a state does not tell workers: after every event, `step` tells each worker whose latest order differs from
what holds now. So it does not matter which worker is new, was replaced, or had its order crossed by another one.

A worker that may take nothing keeps its connection and finishes its task; messages that it had prefetched go back to
the queue. A stop, and the end of a burst, do not ask here: they drain it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from typing import Final

from supervisor.messages import Admit, Depth
from supervisor.policy.actions import Action, Say, Tell
from supervisor.policy.breaker import Breaker, State
from supervisor.policy.condition import Condition
from supervisor.policy.slot import Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import Intake, Reading

_TOLD: Final = frozenset({SlotState.BOOTING, SlotState.CONNECTING, SlotState.READY})
"""States in which a worker reads such an order, sooner or later."""


@dataclass(frozen=True, slots=True)
class Pause:
    by: str
    """The origin: `workq pause (anna)`."""
    since: float
    until: float
    """Monotonic seconds; infinite: until `workq resume`."""

    def story(self, now: float) -> str:
        """In words, for /readyz."""
        rest = "until workq resume" if self.until == math.inf else f"for another {max(0.0, self.until - now):.0f} s"
        return f"paused by {self.by}, {rest}"


@dataclass(slots=True)
class Admission:
    slots: Slots
    condition: Condition
    breaker: Breaker
    pause: Pause | None = None

    # ------------------------------------------------------------------------------------------------ queries

    @property
    def deadline(self) -> float:
        """When to call `overdue`, monotonic seconds; infinite: never."""
        return self.pause.until if self.pause is not None else math.inf

    @property
    def is_restricted(self) -> bool:
        """Not every worker may take everything."""
        return self.pause is not None or self.breaker.is_restricting

    @property
    def is_shut(self) -> bool:
        """No worker may take anything."""
        return self.pause is not None or self.breaker.state is State.OPEN

    def refusal(self, depth: Depth | None, now: float) -> str | None:
        """Why tasks have to wait, in words; None: that is not the reason. `depth`: the queue's, if known.

        Half-open with an empty queue nothing waits, and the next task will be taken.
        """
        if self.pause is not None:
            return self.pause.story(now)
        if self.breaker.state is State.CLOSED or (self.breaker.state is State.HALF_OPEN and depth and not depth.ready):
            return None
        return self.breaker.story(now)

    def restriction(self, now: float) -> str | None:
        """Why not every worker takes tasks, if some do, in words."""
        return self.breaker.story(now) if self.breaker.is_restricting else None

    def at_first(self) -> Intake:
        """What a new worker may take until it is told otherwise."""
        return Intake.NONE if self.is_restricted else Intake.ALL

    # ------------------------------------------------------------------------------------------------- events

    def hold(self, by: str, seconds: float | None, now: float) -> list[Action]:
        """`workq pause`, for so many seconds."""
        if self.condition.is_leaving:
            return [Say("pool.paused", "warning", f"{by} ignored: the supervisor is stopping")]
        until = math.inf if seconds is None else now + seconds
        again = "still paused, now " if self.pause is not None else ""
        self.pause = Pause(by, now, until)
        follows = "until workq resume" if seconds is None else f"for {seconds:g} s"
        because = f"{by}: {again}{follows}; no worker takes tasks, those in flight are finished"
        return [Say("pool.paused", "info", because, {} if seconds is None else {"seconds": seconds})]

    def release(self, by: str) -> list[Action]:
        """`workq resume`."""
        if self.condition.is_leaving:
            return [Say("pool.resumed", "warning", f"{by} ignored: the supervisor is stopping")]
        if self.pause is None:
            return [Say("pool.resumed", "info", f"{by}: it is not paused")]
        self.pause = None
        return [Say("pool.resumed", "info", f"{by}: workers take tasks again")]

    def sampled(self, readings: tuple[Reading, ...], settings: Settings, now: float) -> list[Say]:
        if self.condition.is_leaving:
            return []
        return self.breaker.sampled(readings, settings, may_try=self.pause is None, now=now)

    def overdue(self, now: float) -> list[Action]:
        if self.pause is None or self.pause.until > now:
            return []
        if self.condition.is_leaving:
            self.pause = None
            return []
        return self.release(f"{self.pause.by}: its --for has passed")

    def step(self) -> Iterator[Tell]:
        """Tell each worker what it may take, if it was told something else."""
        first = self._first()
        for slot in self.slots:
            if slot.state in _TOLD and slot.intake is not (intake := self._of(slot, first)):
                slot.intake = intake
                yield Tell(slot.page, Admit(intake), f"it may take {intake}")

    def _of(self, slot: Slot, first: Container[int] | None) -> Intake:
        if self.pause is not None:
            return Intake.NONE
        match self.breaker.state:
            case State.OPEN:
                return Intake.NONE
            case State.HALF_OPEN:
                return Intake.ONE if self.breaker.tries(slot) else Intake.NONE
        return Intake.ALL if first is None or slot.number in first else Intake.NONE

    def _first(self) -> Container[int] | None:
        """The slots that may take everything, where not all may: those that do already, before others. None: all."""
        if self.breaker.allowed == math.inf:
            return None
        ready = sorted(self.slots.consuming(), key=lambda slot: (slot.intake is Intake.NONE, slot.number))
        return {slot.number for slot in ready[: int(self.breaker.allowed)]}
