"""What the pool shows of itself: values that never change, so another thread may read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from supervisor.messages import DeadDepth, Depth, Parked
from supervisor.policy.condition import State
from supervisor.policy.reload import Reload
from supervisor.policy.slot import LastExit, SlotState

RESTART_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0,
)  # fmt: skip
"""Upper bounds of the histogram from a death to consuming again, seconds."""


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
    """A worker of it has been on its other page, too."""


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
    """Exits that blame a message, or that nothing explains."""
    restart_buckets: tuple[int, ...]
    restart_seconds: float
    depth: Depth | None
    dead: DeadDepth | None
    parked: tuple[Parked, ...]
    """The last messages that went to the dead-letter queue, the latest last."""
    broker: str | None
    trouble: str | None
    """Why a worker could not consume, for as long as one waits for that; or why the broker's truth is not ours."""
    is_starved: bool
    """Every worker believes it consumes, and is given nothing while messages wait."""
    standby: str | None
    """That, and as far as one knows because the queue's single active consumer is elsewhere; in words."""
    may_stand_by: bool
    """It is ready all the same: `--ready-when subscribed`."""
    shortage: str | None
    """What the machine refuses a worker, or the process that forks them, and what to do."""
    not_imported: str | None
    """Why the handler cannot be imported, or set up, for now: it is tried again."""
    is_held_up: bool
    """Every worker that consumes waits until it can park a message, and takes nothing."""
    blocked_since: float | None
    """Since when (monotonic seconds) a worker waits for that."""
    ready: int
    steady: int
    wanted: int
    """Number of workers wanted."""
    reload: Reload | None
    """The latest."""
    is_reloading: bool
    """Other code is being imported, or workers of an older generation are still to be replaced."""


@dataclass(slots=True)
class Restarts:
    """Histogram of the time from a death to consuming again."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(RESTART_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[sum(seconds > bound for bound in RESTART_BOUNDS)] += 1
        self.total += seconds
