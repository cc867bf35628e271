"""The nouns that the processes share. Read this first.

    supervisor (the parent)  decides and watches; runs no user code
    nursery                  imports the handler once and forks workers
    worker                   one broker connection, one life
    slot                     a place for one worker, 0..N-1
    page                     a worker's place on the scoreboard; a slot has two
    orphan                   a worker whose connection is lost while its handler runs on
    task                     what a message asks for
    delivery                 one delivery of a message to a worker
    name                     what people call a task: the message id, else a digest of body and routing key
    key                      what the ledger calls it: the name and a checksum of the body, since ids are not unique

Messages between processes are in `messages`; the pool's input and output in `policy.events` and `policy.actions`. This
module imports nothing of ours and nothing heavy.
"""

from __future__ import annotations

from dataclasses import fields
from enum import IntEnum, StrEnum
from typing import Final

from supervisor.values import dataclass

# --------------------------------------------------------------------------------------------------- exit codes

EXIT_DONE: Final = 0
"""Stopped on request, everything settled."""
EXIT_KILLED: Final = 1
"""Stopped on request, but something had to be killed; or the pool gave up."""
EXIT_USAGE: Final = 2
"""The command line cannot be read."""
EXIT_SOFTWARE: Final = 70
"""A worker's or a nursery's: an unexpected error (EX_SOFTWARE, sysexits.h). It writes the traceback last, so that the
evidence has it."""
EXIT_BROKER: Final = 75
"""A worker's, and with `--burst` the supervisor's: the broker is down or closed the connection, or a local resource is
exhausted; a retry makes sense (EX_TEMPFAIL, sysexits.h)."""
EXIT_CONFIG: Final = 78
"""Restarting will not help (EX_CONFIG, sysexits.h)."""

# ------------------------------------------------------------------------------------------------ slots and pages

LOG_SPACE: Final = 36 * 1024
"""Bytes at the beginning of the scoreboard's file that belong to the log (`logs.Sink`)."""
SLOTS: Final = 1024
"""Slots at most. Each has two pages of the scoreboard, `slot` and `slot + SLOTS`: an orphan keeps its page, and its
replacement takes the other. Events and actions name a worker by its page."""


def slot_of(page: int) -> int:
    return page % SLOTS


def other_page(page: int) -> int:
    """The second page of the same slot."""
    return (page + SLOTS) % (2 * SLOTS)


# ------------------------------------------------------------------------------------------ what a worker does


class Phase(IntEnum):
    """What a worker is doing, from its page of the scoreboard."""

    VACANT = 0
    BOOTING = 1
    CONNECTING = 2
    IDLE = 3
    BUSY = 4
    SETTLING = 5
    """The handler has returned; the outcome is not settled yet."""
    LEAVING = 6
    PARKING = 7
    """A message is parked without being run: too large, unreadable, or condemned."""
    ASKING = 8
    """A redelivered message waits for the supervisor's verdict."""
    WAITING = 9
    """A message waits for the rate (`--rate`); nobody has begun with it."""


class Intake(StrEnum):
    """What a worker may take from the queue. Its task in flight and its connection do not depend on it."""

    ALL = "all"
    ONE = "one"
    """One task to run, then nothing: it tries whether tasks succeed."""
    NONE = "none"


class Cause(StrEnum):
    """Why a worker exited, by its own report or the supervisor's decision. Signals and exit codes stand for
    themselves."""

    DRAINED = "drained"
    BROKER = "broker"
    NOT_CONSUMING = "not consuming"
    """It believed that it consumed, but got no messages."""
    CONFIG = "config"
    LOCAL = "local"
    """The machine had no descriptor, memory or thread left."""
    HANDLER = "handler cannot be loaded"
    MAX_TASKS = "max_tasks"
    MEMORY = "memory"
    TIMEOUT = "timeout"
    HUNG = "hung"
    BOOT = "boot_timeout"
    GRACE = "grace"
    OPERATOR = "operator"
    """Somebody asked for it: `workq kill`."""
    OOM = "OOM"
    PROTOCOL = "protocol"
    """It sent an invalid message: its handler has written to its link."""


class Kind(StrEnum):
    """What is wrong between us and the broker."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    DNS = "dns"
    TIMEOUT = "timeout"
    TLS = "tls"
    PROTOCOL = "protocol"
    AUTHENTICATION = "authentication"
    VHOST = "vhost"
    LIMIT = "limit"
    PERMISSION = "permission"
    MISSING = "missing_queue"
    UNAVAILABLE = "queue_unavailable"
    MISMATCH = "mismatch"
    STREAM = "stream"
    PRECONDITION = "precondition"
    TOO_LARGE = "too_large"
    """A message above the broker's max_message_size."""
    ACK_TIMEOUT = "acknowledgement_timeout"
    CANCELLED = "cancelled"
    LOCKED = "locked"
    OPERATOR = "closed_by_operator"
    HEARTBEAT = "heartbeat"
    LOST = "lost"
    BROKER = "broker_error"
    BLOCKED = "blocked"
    SETTINGS = "settings"
    LOCAL = "local"
    """Not the broker: this process has no descriptor, memory or thread left."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class InHand:
    """The delivery that a worker was working on, read from the scoreboard."""

    key: str
    message_id: str | None
    delivery_tag: int
    attempt: int
    redelivered: bool
    since: float
    """When the handler was started, monotonic seconds."""
    settling: bool = False
    """The handler had returned; the acknowledgement may or may not have reached the broker."""
    trace_id: str = ""
    """Of the message's trace; empty if the sender named none."""
    step: int = 1
    """See `Moved`."""

    @property
    def name(self) -> str:
        """For people. (A key without a message id begins with a digest, which has no spaces.)"""
        return self.message_id or self.key.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Moved:
    """A message that a worker has parked, confirmed. Whether the broker has its acknowledgement is certain only after
    more deliveries than may be unacked at a time."""

    key: str
    step: int
    """Which copy of the message: each retry and each deferral publishes the next one (`Delivery.step`)."""
    later: int
    """Deliveries to the worker since."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Tasks by outcome. The one list of outcomes: see `OUTCOMES`."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    deferred: int = 0
    dead_lettered: int = 0
    quarantined: int = 0
    redelivered: int = 0
    unsettled: int = 0


OUTCOMES: Final = tuple(each.name for each in fields(Outcomes))
"""The order in scoreboard, totals, /status, the page, metrics and `workq top`."""

BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
)  # fmt: skip
"""Upper bounds of the histogram of tasks by duration, seconds."""


@dataclass(frozen=True, slots=True)
class Counts(Outcomes):
    """One slot's cumulative totals, which outlive its workers."""

    busy_seconds: float = 0.0
    log_lines_dropped: int = 0
    buckets: tuple[int, ...] = ()
    """Tasks by duration, one count for each of `BOUNDS` and one for longer ones; not cumulative."""
    due: float = 0.0
    """Monotonic seconds until which a task may wait in a delay queue; 0 when none ever did."""
    delayed: int = 0
    """Tasks put into delay queues ..."""
    returned: int = 0
    """... and, under `--burst`, those of them that were settled when they had come back."""

    @property
    def finished(self) -> int:
        """Tasks whose handler finished, with or without success."""
        return self.succeeded + self.failed + self.deferred

    @property
    def settled(self) -> int:
        """Grows with every settled message."""
        return self.finished + self.quarantined + self.dead_lettered + self.unsettled


@dataclass(frozen=True, slots=True)
class Away:
    """Tasks that this supervisor's workers have delayed, and not settled since."""

    tasks: int = 0
    due: float = 0.0
    """When the last one ever delayed is due, monotonic seconds; 0: none ever was."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A task that failed."""

    at: float
    """Monotonic seconds."""
    what: str
    """The exception's class, or how the worker died."""
    retry_after: float | None
    """Seconds, if the handler raised `Unavailable`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One page of the scoreboard at one instant."""

    page: int
    pid: int
    phase: Phase
    hand: InHand | None
    beat: float
    """When the worker's loop last turned, monotonic seconds."""
    counts: Counts
    rss: int = 0
    """Resident bytes; 0 when unknown."""
    is_stopped: bool = False
    """By SIGSTOP or a debugger; checked only when the loop is stuck."""
    held: InHand | None = None
    """Its message, whether a handler has it in hand or not: the worker may ask about it, or put it away."""
    trouble: Trouble | None = None
    """The latest task that failed; noted only with `--breaker`."""

    @property
    def key(self) -> str:
        """Of the message that it holds; empty when it has none."""
        return self.held.key if self.held is not None else ""
