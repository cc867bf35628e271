"""One dead letter: what it says of itself, and how it was before it died."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any, Final

from supervisor import queues
from supervisor.amqp.properties import Encoded, Field, decoded, fields, long, short, split_whole, value_of

_COUNTS: Final = (b"x-delivery-count", b"x-acquired-count")
"""What a quorum queue writes into the headers of what it delivers."""
_COPIES: Final = (b"CC", b"BCC")
"""What makes the broker route a message to further queues (https://www.rabbitmq.com/docs/sender-selected)."""
_OURS: Final = queues.OURS.encode()
_WAS: Final = queues.WAS.encode()
_RECORDS: Final = tuple(name.encode() for name in queues.RECORDS)


class Letter:
    """One dead letter."""

    def __init__(self, tag: int, raw: bytes, body: bytes, queue: str) -> None:
        """`queue` is the one whose dead letters these are, for one that does not say where it came from."""
        self.tag = tag
        self.body = body
        self.is_settled = False
        """Acknowledged."""
        self.parts: dict[str, bytes] = {}
        self.fields: list[Field] = []
        self.trouble = ""
        """Why it cannot be read or published, if so."""
        try:
            self.parts = split_whole(raw)
            self.fields = list(fields(self.parts.get("headers", b"")))
        except ValueError as error:
            self.trouble = str(error)
        self.values = dict(self.fields)
        self._queue = queue
        came_from = self.header(queues.QUEUE)
        usable = isinstance(came_from, str) and 0 < len(came_from.encode()) <= 255
        self.queue = came_from if usable else queue
        """Where it says that it came from."""
        self.id = self._identity()

    def header(self, name: str) -> Any:
        """The header's value; None when there is none, or when it has one of our names and is not ours."""
        if name.startswith(queues.OURS) and not self.is_ours:
            return None
        value = self.values.get(name.encode())
        return None if value is None else decoded(value)

    def number(self, name: str) -> int | None:
        value = self.header(name)
        return value if isinstance(value, int) else None

    def text(self, name: str) -> str:
        """The header as text, not fit for a terminal yet; empty when there is none."""
        return as_text(self.header(name))

    def part(self, name: str) -> str | int | bytes | None:
        """A property but the headers; None when it is not there. Bytes when it is not UTF-8."""
        part = self.parts.get(name)
        return None if part is None else value_of(name, part)

    @property
    def reason(self) -> str:
        """Why a worker, or the broker, put it here."""
        if self.is_ours:
            return self.text(queues.REASON)
        deaths = decoded(self.values[b"x-death"])
        latest = deaths[0] if isinstance(deaths, list) and deaths else None
        return str(latest.get("reason", "")) if isinstance(latest, dict) else ""

    @property
    def error(self) -> str:
        """What was raised, or why the message cannot be read."""
        return self.text(queues.ERROR) or self.trouble

    @property
    def first_seen(self) -> datetime.datetime | None:
        """When we first had it, else when the sender says that it was sent."""
        try:
            seen = datetime.datetime.fromisoformat(self.text(queues.FIRST_SEEN))
            return seen.astimezone(datetime.UTC) if seen.tzinfo else seen.replace(tzinfo=datetime.UTC)
        except (ValueError, OverflowError):
            pass
        stamp = self.part("timestamp")
        try:
            return datetime.datetime.fromtimestamp(stamp, datetime.UTC) if isinstance(stamp, int) else None
        except (ValueError, OverflowError, OSError):
            return None

    @property
    def fingerprint(self) -> int:
        """Tells it from others within this process: its id and its body. Bodies must not all be kept."""
        return hash((self.id, self.body))

    @property
    def returns(self) -> int:
        """How often a quorum queue has had it back; a classic one does not count."""
        return self.number("x-delivery-count") or 0

    @property
    def is_ours(self) -> bool:
        """Whether a worker may have put it here. What the broker has dead-lettered by itself has a record of that,
        which workers take off; the `x-workq-*` headers in it are the sender's."""
        deaths = self.values.get(b"x-death")
        return deaths is None or queues.waited_only(decoded(deaths), self._queue)

    def _identity(self) -> str:
        identity = self.part("message_id")
        return queues.name(identity if isinstance(identity, str | bytes) else None, self.body, self.queue)


def as_text(value: Any) -> str:
    """A header's or property's value, not fit for a terminal yet; empty when there is none."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)


def original(letter: Letter, user: str) -> Encoded:
    """The properties that the message had before it died, but persistent.

    A user id can be restored for `user` itself only: the broker refuses everybody else's
    (https://www.rabbitmq.com/docs/validated-user-id); it stays as the header that it has become. Headers that would
    send copies to further queues, which have had theirs, are left out. Raises ValueError when it cannot be done.
    """
    if letter.trouble:
        raise ValueError(letter.trouble)
    if letter.number(queues.PARTS):
        kept_by = f"`workq dead show --body` writes all of its body, {letter.number(queues.PARTS)} parts"
        raise ValueError(f"its body is larger than the broker takes (max_message_size); {kept_by}")
    parts, headers = letter.parts, letter.fields
    came_as = letter.header(queues.PROPERTIES)
    if isinstance(came_as, bytes):
        try:
            parts = split_whole(came_as)
            headers = list(fields(parts.get("headers", b"")))
        except ValueError:
            parts, headers = letter.parts, letter.fields  # cut to fit; then what could be read has to do
    parts, kept = dict(parts), list(_kept(letter, headers))
    expiration, user_id = letter.header(queues.EXPIRATION), letter.header(queues.USER_ID)
    if isinstance(expiration, str):
        parts["expiration"] = short(expiration.encode())
    if isinstance(user_id, str):
        parts["user_id"] = short(user_id.encode())
    owner = parts.get("user_id", b"")[1:]
    if owner and owner != user.encode():
        del parts["user_id"]
        kept.append(Field(queues.USER_ID.encode(), long(owner)))
    return Encoded(parts, (each.encoded for each in kept))


def _kept(letter: Letter, headers: Sequence[Field]) -> Iterator[Field]:
    """Those of its headers that go with it, the broker's record under another name: RabbitMQ before 4.0 would take it
    for its own, and throw the message away when it has to wait for another try (`queues.RECORDS`)."""
    for each in headers:
        if each.name.startswith(_RECORDS):
            if not letter.is_ours and each.name not in _COUNTS:
                yield Field(queues.demoted(each.name), each.value)
        elif each.name.startswith(_WAS) or (not each.name.startswith(_OURS) and each.name not in _COPIES):
            yield each


def anew(letter: Letter, user: str) -> Encoded | None:
    """The same dead letter, without a count; None when it cannot be published without changing it."""
    owner = letter.parts.get("user_id", b"")[1:]
    if letter.trouble or (owner and owner != user.encode()) or any(name in letter.values for name in _COPIES):
        return None
    kept = [each for each in letter.fields if each.name not in _COUNTS]
    return Encoded(letter.parts, (each.encoded for each in kept))
