"""What a handler did, and what the broker is told: two values, and the step from one to the other.

| outcome | settlement |
|---|---|
| returned | acknowledge |
| raised, whatever it was | dead-letter with reason `exception`; acknowledge after the confirm |
| raised `Reject` | dead-letter with reason `rejected` |
| not run: killed too many workers | dead-letter with reason `crash` |
| not run: larger than `--max-body` | dead-letter with reason `too_large` |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from supervisor import queues
from supervisor.vocabulary import Verdict

TRACEBACK_MAX: Final = 8 * 1024
EVIDENCE_MAX: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned."""


@dataclass(frozen=True, slots=True)
class Raised:
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Rejected:
    why: str


@dataclass(frozen=True, slots=True)
class Condemned:
    """Not run: the supervisor's verdict."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TooLarge:
    size: int
    limit: int


Outcome = Returned | Raised | Rejected | Condemned | TooLarge


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The work is done."""

    counter: str = "succeeded"
    event: str = "task.succeeded"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Park the message with these headers, have that confirmed, then acknowledge."""

    reason: str
    counter: str
    event: str
    because: str
    headers: dict[str, str | int] = field(default_factory=dict)


Settlement = Acknowledge | DeadLetter

_ACKNOWLEDGE: Final = Acknowledge()


def settle(outcome: Outcome) -> Settlement:
    """What to tell the broker."""
    match outcome:
        case Returned():
            return _ACKNOWLEDGE
        case Raised(error, traceback):
            return _dead(
                "exception",
                error,
                {queues.ERROR: clip_start(error, 1024), queues.TRACEBACK: clip_end(traceback, TRACEBACK_MAX)},
            )
        case Rejected(why):
            return _dead("rejected", why, {queues.ERROR: clip_start(why, 1024)})
        case TooLarge(size, limit):
            why = f"the body has {size} bytes, --max-body allows {limit}"
            return _dead("too_large", why, {queues.ERROR: why})
        case Condemned(verdict):
            headers: dict[str, str | int] = {queues.CRASHES: verdict.crashes, queues.CAUSE: verdict.cause}
            if verdict.evidence:
                headers[queues.EVIDENCE] = clip_end(verdict.evidence, EVIDENCE_MAX)
            because = f"it has killed {verdict.crashes} workers, the last by {verdict.cause}"
            return DeadLetter("crash", "quarantined", "task.quarantined", because, headers)


def _dead(reason: str, because: str, headers: dict[str, str | int]) -> DeadLetter:
    return DeadLetter(reason, "dead_lettered", "task.dead_lettered", because, headers)


def clip_end(text: str, limit: int) -> str:
    """The end of `text`, `limit` bytes of UTF-8 at most."""
    return text.encode("utf-8", "replace")[-limit:].decode("utf-8", "ignore")


def clip_start(text: str, limit: int) -> str:
    """The start of `text`, `limit` bytes of UTF-8 at most."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
