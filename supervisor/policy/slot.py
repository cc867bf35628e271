"""One slot: one state, one deadline.

| state      | meaning                                     | deadline          | when it passes                       |
|------------|---------------------------------------------|-------------------|--------------------------------------|
| EMPTY      | no worker, none wanted                      | none              |                                      |
| WAITING    | no worker, one is wanted                    | the backoff's end | spawn, when a nursery is ready       |
| FORKING    | the nursery was asked for one               | 10 s              | the nursery is stuck: replace it     |
| BOOTING    | a process; it imports (without preload)     | `--boot-timeout`  | SIGABRT, as `boot_timeout`           |
| CONNECTING | talks to the broker, each wait bounded      | 60 s              | SIGABRT, as `hung`                   |
| READY      | consumes, unless it may not (`admission`)   | none              |                                      |
| DRAINING   | was asked to exit, or reported that it does | `--grace` or none | SIGKILL, as `grace`                  |
| ABORTING   | SIGABRT sent, writes its stack              | 2 s               | SIGKILL                              |
| KILLED     | SIGKILL sent                                | none              | (the kernel will not fail us)        |

From BOOTING on there is a process, and every state ends with `Exited` or `Lost`. After `Lost` the worker is an orphan:
it keeps running outside the slot, in DRAINING, for `--lost-grace` at most.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Final

from supervisor.policy.restart import Fault
from supervisor.values import dataclass
from supervisor.vocabulary import InHand, Intake, other_page

FORK_TIMEOUT: Final = 10.0
CONNECT_TIMEOUT: Final = 60.0
ABORT_TIMEOUT: Final = 2.0
LEAVE_TIMEOUT: Final = 2.0
"""The least time for a worker that exits by itself, however short the grace: it has no task in flight."""


class SlotState(Enum):
    EMPTY = "empty"
    WAITING = "backoff"
    FORKING = "forking"
    BOOTING = "starting"
    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    ABORTING = "aborting"
    KILLED = "killed"


ALIVE: Final = frozenset(SlotState) - {SlotState.EMPTY, SlotState.WAITING, SlotState.FORKING}
ARRIVING: Final = frozenset({SlotState.FORKING, SlotState.BOOTING, SlotState.CONNECTING})


@dataclass(frozen=True, slots=True)
class LastExit:
    cause: str
    message_id: str | None
    at: float
    is_planned: bool = False


@dataclass(frozen=True, slots=True)
class Killing:
    """What an operator asked for, and the pool has begun."""

    by: str
    hand: InHand | None = None
    """The message to be dead-lettered."""


@dataclass(slots=True)
class Slot:
    number: int
    state: SlotState = SlotState.EMPTY
    deadline: float | None = None
    pid: int | None = None
    generation: int = 0
    ready_since: float | None = None
    """When its worker began to consume; None before."""
    died_at: float | None = None
    """When the previous worker was found dead; None once another consumes."""
    condemned: str | None = None
    """The `Cause` for which the supervisor sent a signal."""
    why_killed: str = ""
    """In words."""
    meant: int | None = None
    """Delivery tag of the message for which it is condemned."""
    killing: Killing | None = None
    """With `Cause.OPERATOR`."""
    began_with: int = 0
    """Resident bytes of its worker before the first task."""
    spawned_at: float = 0.0
    """When its latest worker was asked for."""
    has_queues: bool = False
    """That worker need not declare the queues for retries and dead letters."""
    streak: int = 0
    fault: Fault | None = None
    """Of the deaths in the streak."""
    rolls: int = 0
    restarts: int = 0
    last_exit: LastExit | None = None
    page: int = -1
    """Its worker's, or the next one's."""
    has_both: bool = False
    """Workers of this slot have used both pages."""
    has_told: bool = False
    """The worker has reported what it had parked."""
    is_lost: bool = False
    """The connection is lost, and the handler runs on."""
    intake: Intake = Intake.ALL
    """What its worker was told to take."""

    def __post_init__(self) -> None:
        if self.page < 0:
            self.page = self.number

    def enter(self, state: SlotState, deadline: float | None = None) -> None:
        self.state = state
        self.deadline = deadline

    @property
    def is_alive(self) -> bool:
        """There is a process that is not yet reaped."""
        return self.state in ALIVE

    def consumes_for(self, now: float) -> float | None:
        """Seconds; None when its worker has not consumed."""
        return None if self.ready_since is None else now - self.ready_since

    @property
    def why_started(self) -> str:
        last = self.last_exit
        return "first start of this slot" if last is None else f"replaces one that exited: {last.cause}"

    def is_due(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def orphan(self, deadline: float, cause: str, now: float) -> Slot:
        """Detach the worker, which may run until the deadline; the next one writes to the other page."""
        orphan = replace(self, is_lost=True)
        orphan.enter(SlotState.DRAINING, deadline)
        self.last_exit = LastExit(cause, None, now)
        self.page, self.has_both = other_page(self.page), True
        self._empty(now)
        return orphan

    def vacate(self, exited: LastExit) -> None:
        self.last_exit = exited
        self._empty(exited.at)

    def _empty(self, now: float) -> None:
        self.pid = None
        self.ready_since = None
        self.condemned, self.why_killed, self.meant = None, "", None
        self.killing = None
        self.began_with = 0
        self.is_lost = self.has_told = False
        self.died_at = now
        self.enter(SlotState.EMPTY)

    def count(self, fault: Fault, recovered: bool) -> int:
        """Add a death to the streak; `recovered` or another fault begins a new one. Returns its length."""
        if recovered or fault is not self.fault:
            self.streak = 0
        self.fault = fault
        self.streak += 1
        return self.streak
