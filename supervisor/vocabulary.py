"""The nouns that the processes share. Read this first.

    supervisor (the parent)  decides and watches; runs no user code
    nursery                  imports the handler once and forks workers
    worker                   one broker connection, one life
    slot                     a seat for a worker, 0..N-1
    page                     a worker's place on the scoreboard; a slot has two
    orphan                   a worker whose connection is gone while its handler runs on
    task                     what a message asks for
    delivery                 the message in hand
    name                     what people call a task: the message id, else a digest of body and routing key
    key                      what the ledger calls it: the name and a checksum of the body, since ids are not unique

An *event* is something that happened, told to the pool. An *action* is something the pool wants done; each says
`because`. A *report* goes up a link (worker or nursery to parent), an *order* goes down. A report's annotations are
what the parent lets through (see `frames`), so whatever it keeps is bounded here.
This module imports nothing of ours and nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Literal

# --------------------------------------------------------------------------------------------------- exit codes

EXIT_DONE: Final = 0
"""Asked to leave, everything settled."""
EXIT_KILLED: Final = 1
"""Asked to leave, and something had to be killed; or the pool gave up."""
EXIT_USAGE: Final = 2
"""The command line cannot be read."""
EXIT_SOFTWARE: Final = 70
"""A worker's or a nursery's: an error that nobody foresaw (EX_SOFTWARE, sysexits.h). Its traceback is the last that it
writes, and so in the evidence."""
EXIT_BROKER: Final = 75
"""A worker's, and with `--burst` the supervisor's: the broker is away or sent it away, or something local is exhausted;
trying again makes sense (EX_TEMPFAIL, sysexits.h)."""
EXIT_CONFIG: Final = 78
"""Restarting will not help (EX_CONFIG, sysexits.h)."""

# ------------------------------------------------------------------------------------------------ slots and pages

LOG_SPACE: Final = 36 * 1024
"""Bytes at the beginning of the scoreboard's file that are not the scoreboard's but the log's (`logs.Sink`)."""
SLOTS: Final = 1024
"""Slots at most. Each has two pages of the scoreboard, `slot` and `slot + SLOTS`: an orphan keeps the one it writes to,
and its stand-in takes the other. Events and actions name a worker by its page."""


def slot_of(page: int) -> int:
    return page % SLOTS


def other_page(page: int) -> int:
    """The second page of the same slot."""
    return (page + SLOTS) % (2 * SLOTS)


# ------------------------------------------------------------------------------------------ what a worker does


class Phase(IntEnum):
    """What a worker's page of the scoreboard says it is doing."""

    VACANT = 0
    BOOTING = 1
    CONNECTING = 2
    IDLE = 3
    BUSY = 4
    SETTLING = 5
    """The handler has returned; whether the broker will know is not certain yet."""
    LEAVING = 6
    PARKING = 7
    """A message that is not run is being put away: too large, unreadable, or condemned."""
    ASKING = 8
    """A message that has been delivered before waits for the supervisor's verdict."""


class Cause(StrEnum):
    """Why a worker left, when it said so itself or when the supervisor decided it. Signals and exit codes name
    themselves."""

    DRAINED = "drained"
    BROKER = "broker"
    NOT_CONSUMING = "not consuming"
    """It believed that it consumes, and the broker gave it nothing."""
    CONFIG = "config"
    LOCAL = "local"
    """Its own machine had no descriptor, memory or thread left for it."""
    HANDLER = "handler cannot be loaded"
    MAX_TASKS = "max_tasks"
    MEMORY = "memory"
    TIMEOUT = "timeout"
    HUNG = "hung"
    BOOT = "boot_timeout"
    GRACE = "grace"
    OOM = "OOM"
    PROTOCOL = "protocol"
    """It sent what no worker sends: its handler has written to its link."""


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
    """Nothing is wrong with the broker: this process has no descriptor, memory or thread left."""
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
    """Monotonic seconds at which the handler was started."""
    settling: bool = False
    """The handler had returned; the acknowledgement may or may not have reached the broker."""
    trace_id: str = ""
    """Of the trace that the message belongs to; empty when its sender named none."""

    @property
    def name(self) -> str:
        """For people. (A key without a message id begins with a digest, which has no spaces.)"""
        return self.message_id or self.key.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Moved:
    """A message that a worker has put into another queue, confirmed. Whether its acknowledgement has reached the broker
    is known only when the broker has sent more messages than may be unacknowledged at a time."""

    key: str
    attempt: int
    later: int
    """Messages that the worker has been given since."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How many tasks ended which way. The one list of the ways: see `OUTCOMES`."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    dead_lettered: int = 0
    quarantined: int = 0
    redelivered: int = 0
    unsettled: int = 0


OUTCOMES: Final = tuple(each.name for each in fields(Outcomes))
"""In this order scoreboard, totals, /status, the page, metrics and `workq top` have them."""


@dataclass(frozen=True, slots=True)
class Counts(Outcomes):
    """One slot's cumulative totals. They outlive the workers that made them."""

    busy_seconds: float = 0.0
    log_lines_dropped: int = 0
    buckets: tuple[int, ...] = ()
    """Tasks by duration, one count for each bound of `scoreboard.BOUNDS` and one for what is longer; not cumulative."""
    due: float = 0.0
    """Monotonic seconds until which a task may wait in a delay queue; 0 when none ever did."""
    delayed: int = 0
    """Tasks put into delay queues ..."""
    returned: int = 0
    """... and, under `--burst`, those of them that were settled when they had come back."""

    @property
    def finished(self) -> int:
        """Tasks whose handler came to an end, well or not."""
        return self.succeeded + self.failed

    @property
    def settled(self) -> int:
        """A number that grows with every message that leaves a worker's hand."""
        return self.finished + self.quarantined + self.dead_lettered + self.unsettled


@dataclass(frozen=True, slots=True)
class Away:
    """Tasks that this supervisor's workers have put into delay queues, and have not settled since."""

    tasks: int = 0
    due: float = 0.0
    """Monotonic seconds at which the last of all that ever were is due; 0 when none ever was."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One page of the scoreboard at one instant."""

    page: int
    pid: int
    phase: Phase
    hand: InHand | None
    beat: float
    """Monotonic seconds at which the worker's loop last turned."""
    counts: Counts
    rss: int = 0
    """Resident bytes; 0 when unknown."""
    is_stopped: bool = False
    """By SIGSTOP or a debugger; looked at only when the loop has not turned for a while."""
    key: str = ""
    """Of the message that it has, whether its handler has begun or not; empty when it has none."""


# -------------------------------------------------------------------------------- reports: up a link, to the parent

Text = Annotated[str, 255]
"""A short one: 255 characters at most, and so for the others."""
Line = Annotated[str, 1024]
Page = Annotated[str, 32 * 1024]
Pid = Annotated[int, 2**31 - 1]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The nursery: the handler is imported (or, without preload, will be by each worker). Fork away."""

    seconds: float
    preloaded: bool


@dataclass(frozen=True, slots=True)
class Threaded:
    """The nursery: the import left threads behind, or replaced what forks and waits (gevent does), and forking after it
    would be unsafe. Start me again without preload."""

    threads: list[Text]
    replaced: list[Text] = field(default_factory=list)
    """Functions of the standard library: `os.fork`."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The nursery, or a worker without preload: the handler cannot be loaded."""

    error: Page
    traceback: Page
    is_passing: bool = False
    """The reason may be gone by itself: a database that refuses, a file that is not there yet (`policy.passing`)."""


@dataclass(frozen=True, slots=True)
class Forked:
    """The nursery: a worker exists, and is the supervisor's own child by now."""

    ticket: int
    pid: Pid


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """The nursery: fork(2) said no."""

    ticket: int
    error: Line
    errno: int = 0
    """What the kernel said; 0 when something else is wrong."""


@dataclass(frozen=True, slots=True)
class Connecting:
    """A worker: booted, the handler is at hand; now it is the broker's turn."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker: the broker has confirmed the consumer."""

    broker: Text
    version: Text = ""
    """RabbitMQ's: `3.10.8`; empty when it does not say."""
    has_declared: bool | None = None
    """Whether there was no queue before; None when the broker compared it with what was asked for, and does not
    tell."""
    refused: str = ""
    """Why a queue for retries or dead letters cannot be declared, if so."""
    prefetch: int = 0
    """Messages that it takes at once; 0: not known."""
    resident: int = 0
    """Bytes that it takes before its first task; 0: not known."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker: this message has been delivered before. May I run it?"""

    key: Line
    delivery_count: int = 0
    """`x-delivery-count`: how often a quorum queue has had it back."""
    put_back: int = 0
    """How often it was put back fresh: the count began again each time."""
    name: Line = ""
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Depth:
    """A worker, asked: what a passive declare said about the queue."""

    ready: int
    consumers: int
    delayed: int | None = None
    """What waits in our delay queues; None: that was not asked."""


@dataclass(frozen=True, slots=True)
class DeadDepth:
    """A worker, asked: how many messages lie in the dead-letter queue. One that does not exist has none."""

    ready: int


@dataclass(frozen=True, slots=True)
class Nature:
    """A worker, asked: what the broker's refusal of a declaration that nobody means says about the queue. Users that
    may not declare it are told nothing."""

    is_single: bool
    """It has a single active consumer."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A worker: the broker has confirmed that this message lies in the dead-letter queue."""

    message_id: Line
    """As `workq dead` names it: the message id, else the digest."""
    reason: Text
    """`exception`, `rejected`, `crash`, `too_large` or `undecodable`."""
    because: Line
    attempt: int
    at: Text
    """When, for people: UTC, ISO 8601."""
    cause: Text = ""
    """What the last of its victims died of."""
    crashes: int = 0
    evidence: Annotated[str, 4 * 1024] = ""
    """What the victims left behind, or the traceback; the end of it."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A worker: the message in hand cannot be parked yet, so it takes no other; or, it is parked now."""

    is_blocked: bool
    because: str = ""
    """Empty: the broker has a memory or disk alarm, and takes no messages."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker: the broker has gone, or sent it away, while a handler runs. It leaves when that has come to its end."""

    detail: Page
    kind: Kind | Literal[""]
    finished: int = 0
    """Filled in by the parent: tasks that this worker has brought to an end so far."""
    silence: float = 0.0
    """As in `Leaving`."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker's last words: it leaves of its own will, and why."""

    cause: Cause
    detail: Page = ""
    kind: Kind | Literal[""] = ""
    """Where the broker is the cause."""
    is_unsettled: bool = False
    """A task came to its end, and the broker could not be told."""
    silence: float = 0.0
    """Seconds without a byte before the connection ended by itself; 0: it had been silent for longer before."""


@dataclass(frozen=True, slots=True)
class Record:
    """A log line too long for one atomic write; the parent writes it (see `logs`)."""

    line: str


WorkerReport = (
    Connecting | Ready | Suspect | Depth | DeadDepth | Nature | Parked | Blocked | Lost | Leaving | LoadFailed | Record
)
NurseryReport = Loaded | Threaded | LoadFailed | Forked | ForkFailed | Record


# ------------------------------------------------------------------------------------- orders: down a link


@dataclass(frozen=True, slots=True)
class Load:
    """To the nursery: the settings, by the socket so that no secret is in argv or environ."""

    settings: dict[str, Any]
    preload: bool
    parent: int
    generation: int


@dataclass(frozen=True, slots=True)
class Fork:
    """To the nursery, with two descriptors: the worker's end of its link, and the pipe for its stdout and stderr."""

    ticket: int
    """A number that no two births share."""


@dataclass(frozen=True, slots=True)
class Begin:
    """To a worker: you are my child, and known, and this is your page. Until then it waits."""

    page: int
    has_queues: bool = False
    """Another worker has declared the queues for retries and dead letters, long enough ago that they are safe to
    use."""


@dataclass(frozen=True, slots=True)
class Drain:
    """To a worker: take nothing more, finish what is in hand, leave."""

    finish: bool = False
    """Also run what was already delivered but not begun (`--burst`); else it is handed back."""
    cause: str = Cause.DRAINED
    """What the worker shall give as the cause of its leaving."""


@dataclass(frozen=True, slots=True)
class Measure:
    """To a worker: tell me the queue's Depth."""

    dead: bool = False
    """And that of the dead-letter queue: DeadDepth."""
    nature: bool = False
    """And what kind of queue it is: Nature."""
    delays: bool = False
    """And, before, how many tasks wait in our delay queues."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """To a worker that asked Suspect: run it, put it back fresh, or quarantine it with this evidence."""

    key: str
    run: bool
    crashes: int = 0
    cause: str = ""
    evidence: str = ""
    first_seen: str = ""
    name: str = ""
    fresh: bool = False
    """Not run, and not quarantined: the message is replaced by a copy that the broker has not counted yet."""
    is_parked: bool = False
    """It lies in another queue already: acknowledge it, and nothing else."""


Order = Load | Fork | Begin | Drain | Measure | Verdict

# ---------------------------------------------------------------------------------------- events, to the pool


class Wish(StrEnum):
    """What somebody asked the supervisor for, by a signal or the control socket."""

    STOP = "stop"
    """Leave; asked a second time: at once."""
    DRAIN = "drain"
    """Leave; asked again, or in the middle of it: go on leaving."""
    RELOAD = "reload"
    SCALE = "scale"
    GROW = "one worker more"
    SHRINK = "one worker fewer"


@dataclass(frozen=True, slots=True)
class Asked:
    wish: Wish
    by: str
    """Who asked, for the log: `SIGTERM`."""
    workers: int = 0
    """With SCALE: how many."""
    settings: Any = None
    """With RELOAD: the `Settings` read anew (a type that this module does not know); None for those there are."""
    problem: str = ""
    """With RELOAD: why the settings cannot be used."""


@dataclass(frozen=True, slots=True)
class NurserySaid:
    generation: int
    report: Loaded | Threaded | LoadFailed


@dataclass(frozen=True, slots=True)
class NurseryFailed:
    """The process that forks workers could not be started."""

    generation: int
    error: str


@dataclass(frozen=True, slots=True)
class NurseryGone:
    generation: int
    cause: str
    output: str = ""
    """The last of what it wrote to stdout and stderr."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's process exists and was told to begin."""

    page: int
    pid: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    page: int
    error: str


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    page: int
    report: Connecting | Ready | Suspect | Depth | DeadDepth | Nature | Parked | Blocked | Lost | Leaving | LoadFailed
    holders: tuple[int, ...] = ()
    """With Suspect: the other pages that show this message. A worker there may be dying of it, or run it on without a
    connection, or have put it elsewhere and not know that its acknowledgement was lost."""
    moved: tuple[Moved, ...] = ()
    """With Leaving: what its page says; so far as it is not known to be acknowledged."""


@dataclass(frozen=True, slots=True)
class Garbled:
    """What a worker has sent is no report of ours; nothing more is heard of it."""

    page: int
    because: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker is gone: the kernel's word, the worker's last words, and what the scoreboard held."""

    page: int
    pid: int
    status: str
    """`SIGKILL`, `exit 3`, or `OOM`."""
    hand: InHand | None
    said: Leaving | LoadFailed | None
    finished: int
    """Tasks that this worker brought to an end in its life."""
    output: str = ""
    """The last of what it wrote to stdout and stderr."""
    at: str = ""
    """When, for people: UTC, ISO 8601."""
    moved: tuple[Moved, ...] = ()
    """What its page says."""
    last: InHand | None = None
    """The last message that it had, whatever became of that."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Once a second: every worker's page."""

    readings: tuple[Reading, ...]
    away: Away = field(default_factory=Away)


Event = (
    Asked | NurserySaid | NurseryFailed | NurseryGone | Started | StartFailed | WorkerSaid | Garbled | Exited | Sampled
)

# ---------------------------------------------------------------------------------------- actions, to the loop


@dataclass(frozen=True, slots=True)
class StartNursery:
    generation: int
    preload: bool
    because: str


@dataclass(frozen=True, slots=True)
class StopNursery:
    """End the nursery of a generation, and hear no more of it; its workers are not its children and live on."""

    generation: int
    because: str
    stack: bool = False
    """SIGABRT first, so that faulthandler tells where it hangs."""


@dataclass(frozen=True, slots=True)
class Spawn:
    page: int
    generation: int
    because: str
    has_queues: bool = False
    """As in `Begin`."""


@dataclass(frozen=True, slots=True)
class Tell:
    page: int
    order: Drain | Measure | Verdict
    because: str


@dataclass(frozen=True, slots=True)
class Signal:
    page: int
    signal: str
    """`SIGKILL` or `SIGABRT`."""
    because: str


@dataclass(frozen=True, slots=True)
class Say:
    """Nothing to do but to log."""

    event: str
    level: str
    because: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leave:
    """Everyone is gone: exit with this code."""

    code: int
    because: str


Action = StartNursery | StopNursery | Spawn | Tell | Signal | Say | Leave
