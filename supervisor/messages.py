"""Messages on a link: *reports* from worker or nursery to parent, *orders* from parent to them.

The parent checks reports by these annotations (see `frames`), so they bound whatever it keeps.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from supervisor.values import dataclass
from supervisor.vocabulary import Cause, Intake, Kind

# ------------------------------------------------------------------------------------------------ reports: up a link

Text = Annotated[str, 255]
"""255 characters at most; likewise the others."""
Line = Annotated[str, 1024]
Page = Annotated[str, 32 * 1024]
Pid = Annotated[int, 2**31 - 1]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The nursery: the handler is imported (or, without preload, each worker will import it). Ready to fork."""

    seconds: float
    preloaded: bool


@dataclass(frozen=True, slots=True)
class Threaded:
    """The nursery: the import left threads running, or replaced functions that fork or wait (as gevent does), so
    forking would be unsafe. Start it again without preload."""

    threads: list[Text]
    replaced: list[Text] = field(default_factory=list)
    """Functions of the standard library: `os.fork`."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The nursery, or a worker without preload: the handler cannot be loaded. A worker: it cannot be set up."""

    error: Page
    traceback: Page
    is_passing: bool = False
    """Transient: a database that refuses, a file that does not exist yet (`policy.passing`)."""
    is_set_up: bool = False
    """It was loaded, but could not be set up."""


@dataclass(frozen=True, slots=True)
class Forked:
    """The nursery: a worker exists, and is now the supervisor's own child."""

    ticket: int
    pid: Pid


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """The nursery: fork(2) failed."""

    ticket: int
    error: Line
    errno: int = 0
    """The kernel's; 0 for another error."""


@dataclass(frozen=True, slots=True)
class Connecting:
    """A worker: the handler is ready; connecting to the broker."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker: the broker has confirmed the consumer, or would: it may take nothing yet (`Intake`)."""

    broker: Text
    version: Text = ""
    """RabbitMQ's: `3.10.8`; empty when it does not say."""
    has_declared: bool | None = None
    """Whether the queue was missing; None when the broker only compared the declaration."""
    refused: str = ""
    """Why a queue for retries or dead letters cannot be declared."""
    prefetch: int = 0
    """The prefetch count; 0: not known."""
    resident: int = 0
    """Resident bytes before the first task; 0: not known."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker: this message has been delivered before. May I run it?"""

    key: Line
    delivery_count: int = 0
    """`x-delivery-count`: a quorum queue's count of returns."""
    put_back: int = 0
    """How often it was put back fresh, which resets the count."""
    name: Line = ""
    step: int = 1
    """As `Delivery.step`."""


@dataclass(frozen=True, slots=True)
class Depth:
    """A worker's answer: the result of a passive declare."""

    ready: int
    consumers: int
    delayed: int | None = None
    """Messages in our delay queues; None: not asked."""


@dataclass(frozen=True, slots=True)
class DeadDepth:
    """A worker's answer: the length of the dead-letter queue, 0 if it does not exist."""

    ready: int


@dataclass(frozen=True, slots=True)
class Nature:
    """A worker's answer: what kind of queue it is. None is sent if our user may not declare it."""

    is_single: bool
    """It has a single active consumer."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A worker: the broker has confirmed that this message is in the dead-letter queue."""

    message_id: Line
    """As `workq dead` names it: the message id, else the digest."""
    reason: Text
    """`exception`, `rejected`, `crash`, `operator`, `too_large` or `undecodable`."""
    because: Line
    attempt: int
    at: Text
    """When, for people: UTC, ISO 8601."""
    cause: Text = ""
    """The cause of the last worker's death."""
    crashes: int = 0
    evidence: Annotated[str, 4 * 1024] = ""
    """The end of the dead workers' output, or of the traceback."""


@dataclass(frozen=True, slots=True)
class ParkingBlocked:
    """A worker: the message in flight cannot be parked yet, so it takes no other; or it is parked now."""

    is_blocked: bool
    because: str = ""
    """Empty: the broker has a memory or disk alarm."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker: the connection or consumer is lost while a handler runs. It exits when the handler has finished."""

    detail: Page
    kind: Kind | Literal[""]
    finished: int = 0
    """Set by the parent: tasks finished by this worker so far."""
    silence: float = 0.0
    """As in `Leaving`."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker's last words: why it exits."""

    cause: Cause
    detail: Page = ""
    kind: Kind | Literal[""] = ""
    """If the broker is the cause."""
    is_unsettled: bool = False
    """A task finished, but could not be settled."""
    silence: float = 0.0
    """Seconds without a byte before the connection ended by itself; 0: it had been silent for longer before."""


@dataclass(frozen=True, slots=True)
class Record:
    """A log line too long for one atomic write; the parent writes it (see `logs`)."""

    line: str


PoolReport = (
    Connecting | Ready | Suspect | Depth | DeadDepth | Nature | Parked | ParkingBlocked | Lost | Leaving | LoadFailed
)
"""A worker's reports that go to the pool."""
WorkerReport = PoolReport | Record
NurseryReport = Loaded | Threaded | LoadFailed | Forked | ForkFailed | Record


# ------------------------------------------------------------------------------------------ orders: down a link


@dataclass(frozen=True, slots=True)
class Load:
    """To the nursery: the settings. Not by argv or environ, which show secrets."""

    settings: dict[str, Any]
    preload: bool
    parent: int
    generation: int


@dataclass(frozen=True, slots=True)
class Fork:
    """To the nursery, with two descriptors: the worker's end of its link, and the pipe for its stdout and stderr."""

    ticket: int
    """A unique number."""


@dataclass(frozen=True, slots=True)
class Begin:
    """To a worker, which waits for it: it is watched, and this is its page."""

    page: int
    has_queues: bool = False
    """Another worker declared the queues for retries and dead letters long enough ago for them to be safe to use."""
    met: dict[str, str] = field(default_factory=dict)
    """RabbitMQ's versions by address, of the brokers that workers have met: they take a handshake in one write."""
    intake: str = Intake.ALL


@dataclass(frozen=True, slots=True)
class Admit:
    """To a worker: what it may take from now on."""

    intake: str


@dataclass(frozen=True, slots=True)
class Drain:
    """To a worker: take nothing more, finish the task in flight, exit."""

    finish: bool = False
    """Also run what was delivered but not begun (`--burst`); else it is requeued."""
    cause: str = Cause.DRAINED
    """The cause for the worker to report."""


@dataclass(frozen=True, slots=True)
class Measure:
    """To a worker: report the queue's Depth."""

    dead: bool = False
    """And the dead-letter queue's: DeadDepth."""
    nature: bool = False
    """And what kind of queue it is: Nature."""
    delays: bool = False
    """And, first, the number of tasks in our delay queues."""


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
    """Neither run nor quarantined: replace the message by a copy with count 0."""
    is_parked: bool = False
    """It is parked already: only acknowledge it."""
    by: str = ""
    """Who has asked for it to be dead-lettered; empty: nobody."""


Order = Load | Fork | Begin | Admit | Drain | Measure | Verdict
