"""The producing side: durable, persistent, mandatory, confirmed.

    with Publisher("amqp://guest:guest@127.0.0.1:5672/%2F", "task_queue") as publisher:
        publisher.publish("resize 7.jpg")

`publish` returns when the broker has confirmed the message: for a durable queue, when it is on disk. Otherwise it
raises a PublishError; there is one for each thing to do next. ValueError: AMQP cannot carry the message or a header.

    NotSent       the broker is down, or refuses the login or the queue; or this process has no descriptor, memory or
                  thread left to connect
    Unroutable    the broker returned the message: no queue takes it
    Refused       the broker refused the message itself
    Unconfirmed   the connection was lost, or no confirm came in time: the message may or may not be there
    Blocked       the broker accepts no publishing (memory or disk alarm); otherwise like Unconfirmed

Publishing an Unconfirmed message again may make a duplicate: keep its message id.

A Publisher is for one thread: it has no locks, and serves its connection, heartbeats included, only inside its methods.
The broker therefore closes one that idles for long; the next call connects again, and nothing was in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypedDict

from supervisor import amqp, queues
from supervisor.amqp import Trouble
from supervisor.amqp.channel import ignore
from supervisor.amqp.client import Unreachable, reach
from supervisor.amqp.connection import Limits
from supervisor.amqp.properties import BasicProperties, persistent
from supervisor.amqp.session import Sent, Session
from supervisor.clock import now
from supervisor.endpoint import Endpoint
from supervisor.vocabulary import Kind

__all__ = ["Blocked", "NotSent", "Options", "PublishError", "Publisher", "Refused", "Unconfirmed", "Unroutable"]

_BYTES_IN_FLIGHT: Final = 16 * 1024 * 1024
"""Bound of memory beside the window, which counts messages: large bodies fill this first."""
_PRIORITY_MOST: Final = 255
"""An octet (AMQP 0-9-1, 4.2.6.1)."""
_LULL: Final = 0.005
"""Seconds between looks at the connection. Messages wait for the next look to be sent in one write, and none may wait
for a slow producer's next message; a look after each message costs a fast producer a third of its speed."""


class Options(TypedDict, total=False):
    """What may be said of one message; see `Publisher.publish`."""

    message_id: str | None
    headers: Mapping[str, Any] | None
    properties: BasicProperties | None
    exchange: str
    routing_key: str | None
    delay: float
    priority: int | None


Message = bytes | str | tuple[bytes | str, Options]


class PublishError(Exception):
    """Not every message is known to be with the broker.

    Messages are counted from 0, in the order of the call. Those from `sent` on were never sent. Those before, and
    neither in `failed` nor in `pending`, are confirmed.
    """

    def __init__(
        self,
        reason: str,
        *,
        trouble: Trouble | None = None,
        sent: int = 0,
        confirmed: int = 0,
        failed: Sequence[int] = (),
        pending: Sequence[int] = (),
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        """One line, without any secret."""
        self.trouble = trouble
        """What is wrong with the broker, where it was that."""
        self.sent = sent
        self.confirmed = confirmed
        self.failed = tuple(failed)
        """Refused or returned: not there."""
        self.pending = tuple(pending)
        """Sent and neither confirmed nor refused: they may or may not be there."""


class NotSent(PublishError):
    """No connection, or no queue: `trouble` says why, and whether trying again makes sense. Nothing is in doubt."""


class Unroutable(PublishError):
    """The broker returned a message, since no queue takes it: the queue does not exist (any more)."""


class Refused(PublishError):
    """The broker refused a message: its queue is full (x-overflow), it is too large, or not permitted."""


class Unconfirmed(PublishError):
    """The connection was lost, or time ran out, before the broker confirmed. `pending` may or may not be there."""


class Blocked(Unconfirmed):
    """The broker accepts no publishing because of a memory or disk alarm, and time ran out."""


@dataclass(slots=True)
class _Call:
    """One call of `publish_many`: what was asked, and how it is getting on."""

    window: int
    timeout: float
    note: Callable[[int, str], None]
    sent: int = 0
    confirmed: int = 0
    failed: list[Sent] = field(default_factory=list)


class Publisher:
    """Publishes to one queue of one broker. A context manager; connects at first use. Not thread-safe."""

    def __init__(
        self,
        url: str | Endpoint | Sequence[str | Endpoint],
        queue: str = "task_queue",
        *,
        queue_type: str = "default",
        declare: bool = True,
        heartbeat: float = 60.0,
        connect_timeout: float = 15.0,
        name: str = "workq publisher",
        on_blocked: Callable[[], None] | None = None,
    ) -> None:
        """`url` is one broker node or several, tried in random order. Raises ValueError, which quotes no secret.

        A `queue` that exists is used as it is; else it is declared durable. With a `queue_type` other than default the
        broker compares, and a queue of another type is an error. `declare=False` never declares.
        `heartbeat` and `connect_timeout` (for each node) are in seconds; `name` is the connection's. `on_blocked` is
        called when the broker says that it takes no publishing for now, because of an alarm: publishing waits.
        """
        urls = [url] if isinstance(url, str | Endpoint) else list(url)
        self._endpoints = [Endpoint.parse(each) if isinstance(each, str) else each for each in urls]
        if not self._endpoints:
            raise ValueError("no broker is given")
        self.queue = queue
        self.endpoint = self._endpoints[0]
        """The node connected to last."""
        self._declaration = queues.declaration(queue, queue_type)
        self._declare = declare
        self._heartbeat = heartbeat
        self._connect_timeout = connect_timeout
        self._name = name
        self._on_blocked = on_blocked
        self._session: Session | None = None
        self._delays: set[int] = set()
        """Milliseconds of the delay queues that are there, and safe to use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect now, and see that the queue is there. Raises NotSent."""
        self._ready(_Call(window=1, timeout=self._connect_timeout, note=ignore))

    @property
    def frame_max(self) -> int:
        """Bytes of the largest frame that the broker takes, as agreed when connecting; RabbitMQ's default before."""
        return self._session.connection.frame_max if self._session is not None else Limits().frame

    def close(self) -> None:
        """End the connection; bounded by 2 seconds. The next use opens another."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def declare(self, declaration: queues.Declaration, *, timeout: float = 30.0) -> bool:
        """Declare a queue by this connection, and tell whether it is new, or may be. `timeout` in seconds. Raises
        NotSent."""
        call = _Call(window=1, timeout=timeout, note=ignore)
        session = self._ready(call)
        try:
            is_new = session.declare(declaration, self._declare, timeout)
            return is_new or (session.has_declared and declaration["queue"] == self.queue)
        except Exception as error:  # noqa: BLE001 - as above
            trouble = amqp.explain(error, self.endpoint)
            if session.error is not None:
                self._drop()
            raise NotSent(trouble.reason, trouble=trouble, sent=0, confirmed=0) from None

    def publish(
        self,
        body: bytes | str,
        *,
        message_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: BasicProperties | None = None,
        exchange: str = "",
        routing_key: str | None = None,
        delay: float = 0.0,
        priority: int | None = None,
        timeout: float = 30.0,
    ) -> str:
        """Publish one message and wait for the broker's confirmation. Returns the message id.

        `message_id` is made up unless given. `properties` are sent as they are but for delivery mode (persistent),
        headers (`headers` are added) and message id (if given; none is made up, and "" returned, when they have none).
        The routing key is the queue's name unless given. After a `delay` in seconds the message comes to the queue:
        rounded up to a step of `queues.LADDER`, 24 hours at most. It waits in a delay queue; an `expiration` of its own
        is kept as the header x-workq-expiration, since that property is the delay meanwhile. `priority` (0 to 255) is
        for a queue with x-max-priority, or a quorum queue of RabbitMQ 4. `timeout` in seconds is for the broker's
        answer; connecting has its own. Raises PublishError; TypeError for a body, delay or priority that is of another
        type; ValueError for what AMQP has no room for, a delay that is none or too long, or one with an exchange or
        routing key: it ends at the publisher's own queue.
        """
        options = Options(
            message_id=message_id,
            headers=headers,
            properties=properties,
            exchange=exchange,
            routing_key=routing_key,
            delay=delay,
            priority=priority,
        )
        ids: list[str] = []
        self.publish_many([(body, options)], timeout=timeout, on_confirmed=lambda _position, each: ids.append(each))
        return ids[0]

    def publish_many(
        self,
        messages: Iterable[Message | None],
        *,
        window: int = 1000,
        timeout: float = 30.0,
        on_confirmed: Callable[[int, str], None] | None = None,
    ) -> int:
        """Publish in order, up to `window` messages ahead of the broker's confirmations. Returns how many: all.

        A message is a body, or a body with Options. Memory stays bounded (by `window`, and 16 MiB of bodies) however
        many there are. `on_confirmed(position, message_id)` is called for each as it is confirmed, not always in order.
        A None among the messages means that the next may be long in coming: what is in flight is settled first.
        `timeout` is the number of seconds without any confirmation after which to give up.

        Raises PublishError, with counts and positions; at the first message refused or returned, nothing more is sent
        and what is in flight is settled. An error out of `messages` comes through after what was sent is settled.
        """
        if window < 1:
            raise ValueError("the window holds at least one message")
        call = _Call(window, timeout, on_confirmed or ignore)
        if self._session is not None and (self._session.pending or self._session.settled):
            # Left by a call that an `on_confirmed` broke off; its positions are not ours.
            self._drop()
        try:
            for message in messages:
                if message is None:
                    self._settle(call)
                    continue
                self._make_room(call)
                body, options = message if isinstance(message, tuple) else (message, Options())
                self._send(call, body, options)
                self._collect(call)
            self._settle(call)
        except PublishError:
            raise
        except Exception:
            # The caller's own: an iterable that fails, a header that AMQP cannot carry.
            self._settle(call)
            raise
        except BaseException:
            self._drop()
            raise
        return call.confirmed

    # ------------------------------------------------------------------------------------------ connecting

    def _ready(self, call: _Call) -> Session:
        """A session that was alive when last looked at, with the queue in place. Raises PublishError."""
        session = self._session
        if session is not None and now() - session.served > _LULL:
            # Before writing more: the kernel answers a write to a connection that the broker has closed by throwing
            # away the broker's last words, confirmations among them (tcp(7), RST).
            session.look()
            self._collect(call)
        if session is not None and session.error is not None:
            if session.pending:
                raise self._lost(session, call)
            self._drop()
            session = None
        return session or self._connected(call)

    def _connected(self, call: _Call) -> Session:
        def begin(endpoint: Endpoint) -> Session:
            self.endpoint = endpoint
            return Session(endpoint, self._heartbeat, self._name, self._connect_timeout, self._on_blocked or ignore)

        def prepare(session: Session) -> None:
            session.open(self._declaration, self._declare, self._connect_timeout)

        self._delays.clear()  # another node, or another day
        try:
            self._session = reach(self._endpoints, begin, prepare)
        except Unreachable as error:
            raise NotSent(str(error), trouble=error.trouble, sent=call.sent, confirmed=call.confirmed) from None
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.drop()

    # --------------------------------------------------------------------------------------------- sending

    def _send(self, call: _Call, body: bytes | str, options: Options) -> None:
        data = queues.octets(body)
        properties = persistent(options.get("properties"), options.get("message_id"), options.get("headers") or {})
        routing_key, exchange = options.get("routing_key") or self.queue, options.get("exchange", "")
        if (priority := options.get("priority")) is not None:
            what = f"a priority is a number from 0 to {_PRIORITY_MOST}"
            if not _is_within(priority, _PRIORITY_MOST, what):
                raise ValueError(f"{what}, and {priority} is given")
            properties.priority = priority
        if delay := _delay(options):
            properties, routing_key = _waiting(properties, delay), queues.delay(self.queue, delay)
        for what, text in (("message id", properties.message_id), ("routing key", routing_key), ("exchange", exchange)):
            if text:
                queues.check_short(what, text)
        session = self._ready(call)
        if session.is_blocked:
            self._await_unblocked(session, call)
        if delay and delay not in self._delays:
            self._have_delay(session, delay, call)
        sent = Sent(call.sent, properties.message_id, routing_key, len(data))
        session.send(exchange, sent, properties, data)
        if session.error is not None:
            self._collect(call)
            raise self._lost(session, call)
        call.sent += 1
        if now() - session.served > _LULL:
            session.look()

    def _have_delay(self, session: Session, ms: int, call: _Call) -> None:
        """Declare a delay queue, and wait until it is safe to use when it is new. Raises NotSent."""
        if self.declare(queues.delayed(self.queue, ms), timeout=call.timeout):
            session.pump(lambda: session.error is not None, now() + queues.SETTLES_IN)
        self._delays.add(ms)

    def _await_unblocked(self, session: Session, call: _Call) -> None:
        session.pump(lambda: not session.is_blocked, now() + call.timeout)
        self._collect(call)
        if session.error is not None:
            raise self._lost(session, call)
        if session.is_blocked:
            raise self._late(session, call)

    def _make_room(self, call: _Call) -> None:
        session = self._session
        if session is None or (len(session.pending) < call.window and session.bytes < _BYTES_IN_FLIGHT):
            return
        # Down to half: waiting for room for one message would mean a turn of the loop for each.
        self._reduce(session, call, call.window // 2, _BYTES_IN_FLIGHT // 2)

    def _settle(self, call: _Call) -> None:
        if self._session is not None:
            self._reduce(self._session, call, 0, 0)

    def _reduce(self, session: Session, call: _Call, messages: int, size: int) -> None:
        """Until no more than so many messages and bytes are in flight."""
        while len(session.pending) > messages or session.bytes > size:
            progress = session.await_confirmation(call.timeout)
            self._collect(call)
            if progress:
                continue
            raise self._late(session, call) if session.error is None else self._lost(session, call)
        self._collect(call)

    def _collect(self, call: _Call) -> None:
        """Note what the broker has settled. At the first failure, settle everything and raise."""
        session = self._session
        if session is None or not session.settled:
            return
        _note(session, call)
        if not call.failed:
            return
        while session.pending and session.await_confirmation(call.timeout):
            pass
        _note(session, call)
        pending = [sent.position for sent in session.pending.values()]
        # RabbitMQ 3.10 refuses all that follows on a channel whose first publish met a quorum queue without a leader,
        # long after there is one: a refusal ends the session.
        if pending or session.error is not None or any(sent.nacked for sent in call.failed):
            self._drop()
        raise _failure(call, pending)

    def _lost(self, session: Session, call: _Call) -> PublishError:
        """The session is over; what was in flight is in doubt."""
        pending = [sent.position for sent in session.pending.values()]
        assert session.error is not None
        trouble = amqp.explain(session.error, self.endpoint)
        if amqp.is_refusal(session.error) and len(pending) == 1:
            # It is closed because of what was sent on it, and there was nothing else.
            self._drop()
            return Refused(trouble.reason, trouble=trouble, sent=call.sent, confirmed=call.confirmed, failed=pending)
        self._drop()
        reason = f"{trouble.reason}; {_doubt(len(pending))}" if pending else trouble.reason
        kind = Unconfirmed if pending else NotSent
        return kind(reason, trouble=trouble, sent=call.sent, confirmed=call.confirmed, pending=pending)

    def _late(self, session: Session, call: _Call) -> PublishError:
        """No word in time. What is in flight is given up, and the connection with it."""
        pending = [sent.position for sent in session.pending.values()]
        kind: type[Unconfirmed] = Blocked if session.is_blocked else Unconfirmed
        if session.is_blocked:
            what = f"{self.endpoint} accepts no publishing for now: a memory or disk alarm, see rabbitmqctl status"
        else:
            what = f"{self.endpoint} has confirmed nothing for {call.timeout:g} s"
        # With nothing in flight a blocked connection is kept: it is the only one that knows when the alarm ends.
        if pending:
            self._drop()
            what = f"{what}; {_doubt(len(pending))}"
        trouble = Trouble(Kind.BLOCKED if session.is_blocked else Kind.TIMEOUT, what, permanent=False)
        return kind(what, trouble=trouble, sent=call.sent, confirmed=call.confirmed, pending=pending)


def _delay(options: Options) -> int:
    """Milliseconds, of the ladder; 0: none. Raises ValueError."""
    delay = options.get("delay", 0.0)
    what = "a delay is a number of seconds from 0 to 86400 (24 h)"
    if not _is_within(delay, queues.LADDER[-1] / 1000, what):
        raise ValueError(f"{what}, and {delay} is given")
    if delay and (options.get("exchange") or options.get("routing_key")):
        raise ValueError("a delayed message comes to the publisher's own queue: give no exchange and no routing_key")
    return queues.step(delay) if delay else 0


def _is_within(number: Any, most: float, what: str) -> bool:
    """Raises TypeError for what is no number; `what` says what it should be."""
    try:
        return bool(0 <= number <= most)
    except TypeError:
        raise TypeError(f"{what}, and {number!r} is given") from None


def _waiting(properties: BasicProperties, ms: int) -> BasicProperties:
    """As they are while the message waits. The queue's own time to live is not enough, see `worker.parking`."""
    if properties.expiration is not None:
        properties.headers = {**(properties.headers or {}), queues.EXPIRATION: properties.expiration}
    properties.expiration = str(ms)
    return properties


def _note(session: Session, call: _Call) -> None:
    settled, session.settled = session.settled, []
    for sent in settled:
        if sent.nacked or sent.returned:
            call.failed.append(sent)
        else:
            call.confirmed += 1
            call.note(sent.position, sent.message_id or "")


def _doubt(count: int) -> str:
    messages = "1 message" if count == 1 else f"{count} messages"
    return f"{messages} in flight may or may not be there, and publishing again may make duplicates"


def _failure(call: _Call, pending: Sequence[int]) -> PublishError:
    positions = sorted(sent.position for sent in call.failed)
    first = min(call.failed, key=lambda sent: sent.position)
    kind: type[PublishError]
    if first.returned:
        kind = Unroutable
        reason = f"no queue takes messages for {first.routing_key}: it was deleted or never declared ({first.returned})"
    else:
        kind = Refused
        reason = (
            f"the broker refuses messages for {first.routing_key}: it is full (x-overflow), or in trouble; see its log"
        )
    if pending:
        reason = f"{reason}; {_doubt(len(pending))}"
    return kind(reason, sent=call.sent, confirmed=call.confirmed, failed=positions, pending=pending)
