"""What a handler did (an outcome), what to do with the message (a settlement), and the step from one to the other.

| outcome | settlement |
|---|---|
| returned | acknowledge |
| raised any other exception | publish to a delay queue for a retry; acknowledge after the confirm |
| raised `Retry` | the same, with the delay it asked for |
| raised `Unavailable` | the same, not counted as a try |
| an exception or `Retry` after `--retries` retries | dead-letter with reason `exception` |
| raised `Reject` | dead-letter with reason `rejected` |
| not run: killed too many workers | dead-letter with reason `crash` |
| not run: an operator had its worker killed, to that end | dead-letter with reason `operator` |
| not run: the broker would soon drop it, without blame | publish to its own queue; acknowledge after the confirm |
| not run: larger than `--max-body` | dead-letter with reason `too_large` |
| not run: its properties cannot be decoded | dead-letter with reason `undecodable` and the raw bytes |
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from supervisor import queues
from supervisor.messages import Verdict
from supervisor.policy import retry
from supervisor.redaction import clip_end, clip_start
from supervisor.values import dataclass

TRACEBACK_MAX: Final = 8 * 1024
EVIDENCE_MAX: Final = 16 * 1024
PROPERTIES_MAX: Final = 96 * 1024
"""Bytes: with our other headers they fit into one frame of the default frame_max, 128 KiB."""


@dataclass(frozen=True, slots=True)
class Returned: ...


@dataclass(frozen=True, slots=True)
class Raised:
    error: str
    traceback: str
    kind: str = ""
    """The exception's class, with its module: `requests.exceptions.Timeout`."""


@dataclass(frozen=True, slots=True)
class RetryAsked:
    delay: float | None
    """Seconds; None: as after an exception."""
    why: str
    traceback: str = ""
    """Of an error in the exception's own __str__."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Something that the handler needs is down."""

    retry_after: float
    """Seconds."""
    why: str
    traceback: str = ""
    """As above."""


@dataclass(frozen=True, slots=True)
class Rejected:
    why: str
    traceback: str = ""
    """As above."""


@dataclass(frozen=True, slots=True)
class Condemned:
    """Not run: the supervisor's verdict; with `fresh` it is not to blame."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TooLarge:
    size: int
    limit: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Not run: its properties cannot be decoded."""

    error: str
    raw: bytes
    """The properties as they came."""


Outcome = Returned | Raised | RetryAsked | Deferred | Rejected | Condemned | TooLarge | Undecodable


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The work is done."""

    counter: str = "succeeded"
    event: str = "task.succeeded"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Publish to the dead-letter queue with these headers; acknowledge after the confirm."""

    reason: str
    counter: str
    event: str
    because: str
    headers: dict[str, str | int | bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Later:
    """Publish to the delay queue of `ms` milliseconds; acknowledge after the confirm."""

    ms: int
    attempt: int
    """The number of the next try."""
    because: str
    counter: str = "retried"
    event: str = "task.retried"

    @property
    def is_deferred(self) -> bool:
        """Not counted as a try."""
        return self.counter == "deferred"


@dataclass(frozen=True, slots=True)
class Afresh:
    """Publish the message to its own queue again; acknowledge after the confirm."""

    because: str
    event: str = "task.put_back"


Settlement = Acknowledge | DeadLetter | Later | Afresh

_ACKNOWLEDGE: Final = Acknowledge()


@dataclass(frozen=True, slots=True)
class Patience:
    """`--retries` and `--retry-delay`."""

    retries: int = 0
    delay: float = 1.0


_NO_RETRIES: Final = Patience()


def settle(outcome: Outcome, attempt: int = 1, patience: Patience = _NO_RETRIES) -> Settlement:
    """The settlement after the `attempt`-th try (from 1)."""
    match outcome:
        case Returned():
            return _ACKNOWLEDGE
        case Raised(error, traceback):
            if attempt <= patience.retries:
                return _later(retry.backoff(attempt, patience.delay), attempt, patience, error)
            return _dead("exception", error, _evidence(error, traceback))
        case RetryAsked(delay, why, traceback):
            if attempt <= patience.retries:
                delay = retry.backoff(attempt, patience.delay) if delay is None else delay
                return _later(delay, attempt, patience, why)
            why = f"no retry left, attempt {attempt} asked for one: {why}"
            return _dead("exception", why, _evidence(why, traceback))
        case Deferred(retry_after, why):
            ms = queues.step(retry_after)
            because = f"{why}; not counted as a try: try {attempt} starts again in {ms / 1000:g} s"
            return Later(ms, attempt, because, "deferred", "task.deferred")
        case Rejected(why, traceback):
            return _dead("rejected", why, _evidence(why, traceback))
        case TooLarge(size, limit):
            why = f"the body has {size} bytes, --max-body allows {limit}"
            return _dead("too_large", why, {queues.ERROR: why})
        case Undecodable(error, raw):
            why = f"its properties cannot be decoded: {error}; header {queues.PROPERTIES} holds their bytes"
            return _dead(
                "undecodable", why, {queues.ERROR: clip_start(error, 1024), queues.PROPERTIES: raw[:PROPERTIES_MAX]}
            )
        case Condemned(verdict) if verdict.fresh:
            why = "the broker would drop it soon, so a fresh copy goes to the end of the queue"
            return Afresh(f"it was {verdict.cause} without killing a worker; {why}")
        case Condemned(verdict) if verdict.by:
            why = f"{verdict.by}: its worker was killed, and it is not to run again"
            said: dict[str, str | int | bytes] = {queues.CAUSE: verdict.cause, queues.ERROR: clip_start(why, 1024)}
            if verdict.evidence:
                said[queues.EVIDENCE] = clip_end(verdict.evidence, EVIDENCE_MAX)
            return _dead("operator", why, said)
        case Condemned(verdict):
            headers: dict[str, str | int | bytes] = {queues.CRASHES: verdict.crashes, queues.CAUSE: verdict.cause}
            if verdict.first_seen:
                headers[queues.FIRST_SEEN] = verdict.first_seen
            if verdict.evidence:
                headers[queues.EVIDENCE] = clip_end(verdict.evidence, EVIDENCE_MAX)
            workers = "1 worker" if verdict.crashes == 1 else f"{verdict.crashes} workers, the last"
            because = f"it has killed {workers} by {verdict.cause}"
            if not verdict.crashes:
                because = f"it was {verdict.cause}"
            return DeadLetter("crash", "quarantined", "task.quarantined", because, headers)


def failure(outcome: Outcome) -> tuple[str, float | None] | None:
    """By what a task has failed, and after how many seconds to try again, if the handler has said so. None: it has not
    failed, or was not run."""
    match outcome:
        case Raised(error, kind=kind):
            return kind or error.partition(":")[0], None
        case RetryAsked():
            return "Retry", None
        case Rejected():
            return "Reject", None
        case Deferred(retry_after, why):
            return f"Unavailable: {why}", retry_after
        case _:
            return None


def _evidence(error: str, traceback: str) -> dict[str, str | int | bytes]:
    said: dict[str, str | int | bytes] = {queues.ERROR: clip_start(error, 1024)}
    return said | ({queues.TRACEBACK: clip_end(traceback, TRACEBACK_MAX)} if traceback else {})


def _later(delay: float, attempt: int, patience: Patience, why: str) -> Later:
    ms = queues.step(delay)
    return Later(ms, attempt + 1, f"{why}; try {attempt + 1} of {patience.retries + 1} in {ms / 1000:g} s")


def _dead(reason: str, because: str, headers: dict[str, str | int | bytes]) -> DeadLetter:
    return DeadLetter(reason, "dead_lettered", "task.dead_lettered", because, headers)
