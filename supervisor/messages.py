"""What goes over a link: a *report* goes up, from worker or nursery to parent; an *order* goes down.

A report's annotations are what the parent lets through (see `frames`), so whatever it keeps is bounded here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from supervisor.vocabulary import Cause, Kind

# ------------------------------------------------------------------------------------------------ reports: up a link

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
    """The nursery, or a worker without preload: the handler cannot be loaded. A worker: it cannot be set up."""

    error: Page
    traceback: Page
    is_passing: bool = False
    """The reason may be gone by itself: a database that refuses, a file that is not there yet (`policy.passing`)."""
    is_set_up: bool = False
    """It was loaded, and could not be set up."""


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
    step: int = 1
    """Which copy of the message it is: see `Delivery.step`."""


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
class ParkingBlocked:
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


PoolReport = (
    Connecting | Ready | Suspect | Depth | DeadDepth | Nature | Parked | ParkingBlocked | Lost | Leaving | LoadFailed
)
"""Of a worker's, what the pool is told."""
WorkerReport = PoolReport | Record
NurseryReport = Loaded | Threaded | LoadFailed | Forked | ForkFailed | Record


# ------------------------------------------------------------------------------------------ orders: down a link


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
