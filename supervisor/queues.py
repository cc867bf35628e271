"""The queues' names, their declarations for consumer and producer, and the headers on what we publish. Pure."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from typing import Any, Final, Literal, TypedDict

try:
    from _blake2 import blake2b  # hashlib would load OpenSSL: 16 ms of each start
except ImportError:
    from hashlib import blake2b

ATTEMPT: Final = "x-workq-attempt"
REASON: Final = "x-workq-reason"
ERROR: Final = "x-workq-error"
TRACEBACK: Final = "x-workq-traceback"
CRASHES: Final = "x-workq-crashes"
CAUSE: Final = "x-workq-cause"
EVIDENCE: Final = "x-workq-evidence"
HOST: Final = "x-workq-host"
FIRST_SEEN: Final = "x-workq-first-seen"
QUEUE: Final = "x-workq-queue"
"""A dead letter's original queue."""
EXPIRATION: Final = "x-workq-expiration"
USER_ID: Final = "x-workq-user-id"
"""The original's properties, which a parked message cannot keep as properties."""
PROPERTIES: Final = "x-workq-properties"
"""The raw bytes of properties that could not be decoded: flags and values, as in AMQP's content header."""
COPIES: Final = "x-workq-cc"
"""The original's `CC`, which the broker has already obeyed."""
DROPPED: Final = "x-workq-dropped"
"""The sender's headers that had to be dropped for room, by name and size."""
OURS: Final = "x-workq-"
"""The prefix of our headers."""
WAS: Final = "x-workq-was-"
"""Prefix for headers kept as evidence only, so that they are not obeyed in the next queue: the broker's record of what
it did with the message, and headers with our names that are not known to be ours."""
RECORDS: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
"""Prefixes of the broker's record (https://www.rabbitmq.com/docs/dlx#effects). RabbitMQ before 4.0 believes it from any
sender, and drops, as a cycle, a message that would come back from a delay to a queue named in it."""
PART: Final = "x-workq-part"
"""Of a dead letter whose body is larger than the broker now accepts: the number of this part, from 1 ..."""
PARTS: Final = "x-workq-parts"
"""... of how many ..."""
PART_OF: Final = "x-workq-part-of"
"""... and of which message: its id or digest."""
BURST: Final = "x-workq-burst"
"""The supervisor with `--burst` that has delayed the message and waits for it."""
DEFERRED: Final = "x-workq-deferred"
"""How often its handler has raised `Unavailable`, which is not counted as a try."""
PUT_BACK: Final = "x-workq-put-back"
"""How often the message was put back fresh, near the broker's delivery limit."""
EDITED_FROM: Final = "x-workq-edited-from"
"""Of a message that was requeued with another body: the old one."""
HEADERS: Final = (
    ATTEMPT, REASON, ERROR, TRACEBACK, CRASHES, CAUSE, EVIDENCE, HOST, FIRST_SEEN, QUEUE, EXPIRATION, USER_ID,
    PROPERTIES, DROPPED, COPIES, PART, PARTS, PART_OF, PUT_BACK, BURST, DEFERRED,
    EDITED_FROM,
)  # fmt: skip
"""Every header of ours."""
SETTLES_IN: Final = 1.5
"""Seconds after which a newly declared queue is safe to use. A quorum queue exists before its Raft cluster has a leader
(until then it refuses messages), and before the node has recorded it on disk: a broker that is killed within the first
second loses the queue, with every confirmed message (docs/decisions/0019)."""

SHORT_MOST: Final = 255
"""Bytes of a short string: a name, an id, a routing key (AMQP 0-9-1, 4.2.5.3)."""

NO_TYPE: Final = "workq-check"
"""A queue type that no broker has: declaring it never succeeds, and the refusal shows the actual type."""
SINGLE: Final = "x-single-active-consumer"

QueueType = Literal["default", "quorum", "classic"]
TYPES: Final[tuple[QueueType, ...]] = ("default", "quorum", "classic")


class Declaration(TypedDict):
    """The keyword arguments of pika's `queue_declare`."""

    queue: str
    passive: bool
    durable: bool
    arguments: dict[str, Any] | None


def dead(queue: str) -> str:
    """The queue for dead letters and quarantined messages."""
    return f"{queue}.dead"


def delay(queue: str, ms: int) -> str:
    """The queue where messages wait `ms` milliseconds. It never expires
    (https://www.rabbitmq.com/docs/ttl#queue-ttl)."""
    return f"{queue}.delay.{ms}"


LADDER: Final = (
    100, 200, 500,
    1_000, 2_000, 5_000, 10_000, 20_000, 30_000,
    60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000,
    3_600_000, 7_200_000, 21_600_000, 43_200_000, 86_400_000,
)  # fmt: skip
"""Milliseconds: each has its delay queue, and every delay is rounded up to one. RabbitMQ expires messages only at the
head of a queue, so different delays in one queue would block each other
(https://www.rabbitmq.com/docs/ttl#per-message-ttl-caveats)."""


def step(seconds: float) -> int:
    """This delay rounded up to a step of the ladder, milliseconds; a day at most."""
    at = bisect.bisect_left(LADDER, seconds * 1000.0)
    return LADDER[min(at, len(LADDER) - 1)]


def arguments(queue_type: str) -> dict[str, str] | None:
    """A declaration's arguments: the type, or nothing for `default`. So a producer that declares a plain durable queue
    agrees with us, whoever starts first; else it would fail with 406
    (https://www.rabbitmq.com/docs/queues#property-equivalence). Raises ValueError for another type."""
    if queue_type not in TYPES:
        raise ValueError(f"queue type {queue_type!r} is none of {', '.join(TYPES)}")
    return None if queue_type == "default" else {"x-queue-type": queue_type}


def name(message_id: str | bytes | None, body: bytes, routing_key: str) -> str:
    """Of a message: its id; without one in UTF-8, a digest."""
    return message_id if message_id and isinstance(message_id, str) else digest(message_id or body, routing_key)


def digest(identity: bytes, routing_key: str) -> str:
    """The name of a message without a usable id: the same bytes to the same queue are the same task."""
    key = routing_key.encode("utf-8", "replace")[:64]
    return "digest:" + blake2b(identity, digest_size=16, key=key).hexdigest()


def key(name: str, checksum: int) -> str:
    """Identifies a task across deliveries, for the ledger: its name and the CRC-32 of its body, since senders reuse
    ids; 0 adds nothing. CRC-32 takes 0.3 ms for 1 MB, BLAKE2b 1.5; Adler-32 is weak for short texts, and hash() differs
    in each nursery."""
    return f"{name} {checksum:08x}" if checksum else name


def octets(body: object) -> bytes:
    """A body as it is sent. Raises TypeError."""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes):
        return body
    if isinstance(body, bytearray | memoryview):
        return bytes(body)
    what = type(body).__name__
    raise TypeError(
        f"a body is text or bytes, and a {what} is given: json.dumps() makes text of it, task.json() reads it"
    )


def check_short(what: str, text: str | bytes) -> None:
    """Raises ValueError unless it is a short string (AMQP 0-9-1, 4.2.5.3): UTF-8, at most 255 bytes."""
    try:
        size = len(text.encode() if isinstance(text, str) else text)
    except UnicodeEncodeError:
        raise ValueError(f"the {what} is not UTF-8") from None
    if size > SHORT_MOST:
        raise ValueError(f"the {what} has {size} bytes, AMQP allows {SHORT_MOST}")


def declaration(queue: str, queue_type: str = "default") -> Declaration:
    """A durable queue: the main one, or one for dead letters. Raises ValueError for another type, or no name."""
    if not queue:
        # The broker would make up a name for it (queue.declare, AMQP 0-9-1).
        raise ValueError("the queue has no name")
    check_short("queue's name", queue)
    return Declaration(queue=queue, passive=False, durable=True, arguments=arguments(queue_type))


def delayed(queue: str, ms: int) -> Declaration:
    """The delay queue of `ms` milliseconds: expired messages go back to `queue` by the default exchange.

    Without `x-expires`, which would delete it with its messages (seen on 3.10.8 and 4.3.6). Always a quorum queue, the
    only type that dead-letters at least once: when a broker starts, messages expire before `queue` has a leader
    (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
    """
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # without it the strategy is at most once
        "x-message-ttl": ms,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
    }
    return Declaration(queue=delay(queue, ms), passive=False, durable=True, arguments=arguments)


def waited_only(deaths: object, queue: str) -> bool:
    """Whether this value of `x-death` records only our own delays between tries of `queue`."""
    prefix = delay(queue, 0)[:-1]
    return isinstance(deaths, list) and all(
        isinstance(death, dict) and str(death.get("queue", "")).startswith(prefix) for death in deaths
    )


def demoted(name: bytes) -> bytes:
    """The name under which a header is kept as evidence, cut to fit."""
    return name if name.startswith(WAS.encode()) else (WAS.encode() + name)[:255]


def ours(queue: str, steps: Iterable[int]) -> list[Declaration]:
    """Our other queues for `queue`: for dead letters, and for each delay between tries."""
    return [declaration(dead(queue)), *(delayed(queue, ms) for ms in steps)]


def inquiry(queue: str) -> Declaration:
    """A passive declaration: does the queue exist, and how long is it? Changes nothing, compares nothing."""
    return Declaration(queue=queue, passive=True, durable=False, arguments=None)


def attempts(wanted: Declaration, declare: bool = True) -> tuple[Declaration, ...]:
    """The declarations to try, each after a 404 for the one before. Without arguments an existing queue is used as it
    is; with arguments the broker compares, and a mismatch (406) is a configuration error."""
    if not declare:
        return (inquiry(wanted["queue"]),)
    if wanted["arguments"]:
        return (wanted,)
    return inquiry(wanted["queue"]), wanted


_DIFFERENCE: Final = re.compile(
    r"inequivalent arg '([^']+)' for .* but current is (none|the value '(.*)' of type '(\w+)'|'(.*)')", re.S
)


def difference(text: str) -> tuple[str, Any] | None:
    """The first difference between a queue and a declaration, from the text of a 406 (the same on 3.10, 4.0 and 4.3):
    the queue's name and value (None: it has none) of an argument. None for another text."""
    found = _DIFFERENCE.search(text)
    if found is None:
        return None
    name, current, typed, kind, plain = found.groups()
    if current == "none":
        return name, None
    value = plain if typed is None else typed
    if kind == "bool" or name in ("durable", "auto_delete", "exclusive"):
        return name, value == "true"
    if kind not in (None, "longstr") and re.fullmatch(r"-?\d+", value):
        return name, int(value)
    return name, value
