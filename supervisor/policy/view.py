"""What other threads may read of the pool: immutable values."""

from __future__ import annotations

from dataclasses import field
from typing import Final

from supervisor.messages import DeadDepth, Depth, Parked
from supervisor.policy.admission import Pause
from supervisor.policy.breaker import BreakerView
from supervisor.policy.canary import Score
from supervisor.policy.condition import State
from supervisor.policy.reload import Reload
from supervisor.policy.slot import LastExit, Slot, SlotState
from supervisor.values import dataclass

RESTART_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0,
)  # fmt: skip
"""Upper bounds, seconds, of the time from an exit to consuming again."""


@dataclass(frozen=True, slots=True)
class SlotView:
    slot: int
    pid: int | None
    state: SlotState
    restarts: int
    last_exit: LastExit | None
    page: int
    """Of its worker."""
    has_both: bool
    """As in `Slot`."""
    generation: int
    """Of its worker, or the latest one's."""

    @classmethod
    def of(cls, slot: Slot) -> SlotView:
        return cls(
            slot.number,
            slot.pid,
            slot.state,
            slot.restarts,
            slot.last_exit,
            slot.page,
            slot.has_both,
            slot.generation,
        )


@dataclass(frozen=True, slots=True)
class OrphanView:
    slot: int
    pid: int
    until: float
    """When it is killed, monotonic seconds."""


@dataclass(frozen=True, slots=True)
class PoolView:
    state: State
    since: float
    because: str
    generation: int
    slots: tuple[SlotView, ...]
    orphans: tuple[OrphanView, ...]
    exits: dict[str, int]
    crashes: int
    """Exits blamed on a message, or unexplained."""
    restart_buckets: tuple[int, ...]
    restart_seconds: float
    depth: Depth | None
    dead: DeadDepth | None
    parked: tuple[Parked, ...]
    """The last messages dead-lettered, the latest last."""
    broker: str | None
    trouble: str | None
    """Why a worker cannot consume; or how the broker's view differs from ours."""
    is_starved: bool
    """Every worker believes it consumes, but gets no message while messages wait."""
    standby: str | None
    """The same, because the queue's single active consumer is or seems to be elsewhere; in words."""
    may_stand_by: bool
    """A standby is ready: `--ready-when subscribed`."""
    shortage: str | None
    """Why the machine refuses a worker or a nursery, and the remedy."""
    not_imported: str | None
    """Why the handler cannot be imported or set up yet; it is retried."""
    is_held_up: bool
    """Every worker that consumes is waiting to park a message, and takes no other."""
    blocked_since: float | None
    """Since when a worker waits for that, monotonic seconds."""
    ready: int
    """Workers that consume, or would if they might (`admission`)."""
    taking: int
    """Those of them that may."""
    steady: int
    pause: Pause | None
    refusal: str | None
    """Why tasks have to wait, in words."""
    restriction: str | None
    """Why not every worker may take tasks, in words."""
    breaker: BreakerView | None
    """None: it is off."""
    wanted: int
    """Number of workers wanted."""
    reload: Reload | None
    """The latest."""
    scores: tuple[Score, Score]
    """All canaries' so far: new code, old code."""
    is_reloading: bool
    """New code is being imported, or older workers are still to be replaced."""


@dataclass(slots=True)
class Restarts:
    """Histogram of the time from a death to consuming again."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(RESTART_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[sum(seconds > bound for bound in RESTART_BOUNDS)] += 1
        self.total += seconds
