"""The dead letters of a queue: read without consuming them, published again, deleted.

AMQP 0-9-1 has no browsing: to see a message, take it, and it is requeued unless acknowledged. So a *sweep* takes what
was ready when it began, in windows. Messages that are done with are acknowledged; the others stay unacked until the
end, when they go back to their old place. If a sweep is interrupted, the broker requeues them. docs/decisions/0008 has
the alternatives, and what a quorum queue counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from supervisor import amqp, queues
from supervisor.amqp.channel import Channel
from supervisor.amqp.client import BrokerClient, Unreachable, reach
from supervisor.amqp.properties import Encoded, Properties
from supervisor.clock import now
from supervisor.commands.dead.letter import Letter, anew
from supervisor.endpoint import Endpoint
from supervisor.publisher import Message, NotSent, Options, Publisher, PublishError, Unroutable
from supervisor.vocabulary import Kind

_HEARTBEAT: Final = 60.0
_CONNECTING: Final = 15.0
_ANSWER: Final = 60.0
"""Seconds for the broker to answer a request: a queue that takes back 100,000 messages answers nobody for half a minute
on a busy machine."""
_LULL: Final = 0.2
"""Seconds without a delivery after which to ask whether any is left."""
_STALL: Final = 10.0
"""Seconds without a delivery, while the queue says that it has some, after which to give up."""
_BREATH: Final = 5.0
"""Seconds for which a busy publisher may leave the other connection, and its heartbeats, unattended."""
_CONFIRM: Final = 30.0
_RETURNING: Final = 5.0
"""Seconds without a change to wait for the queue to count what was requeued, which others may take at once ..."""
_AT_ONCE: Final = 16
"""Windows that are returned before waiting for them. What comes faster than a quorum queue takes it is held back, and
mixed up, from the 32nd on (rabbit_fifo_client, quorum_commands_soft_limit)."""
_RETURNING_EACH: Final = 0.001
"""... and more for each message: a quorum queue counts 100,000 of them after 20 s, all at once."""
_TURN: Final = 0.01
_NAP: Final = 0.1
CROWD: Final = 1000
"""Messages held on a channel before another is opened, if some are acknowledged one by one: for each of these the
broker goes through the older ones of its channel (rabbit_channel:collect_acks). Measured with 15,000 held: 200
acknowledgements take 0.7 s."""
_FIRST_WINDOW: Final = 4
_BYTES: Final = 16 * 1024 * 1024
"""Bodies held at a time, roughly: a window ends with the message that exceeds it."""

WORN: Final = 4
"""Returns after which a dead letter is published again instead of returned once more.

A quorum queue drops a message that has been returned more often than its delivery limit, which no client can read; 20
unless told otherwise from RabbitMQ 4.0 on (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
"""


class CutOff(Exception):
    """The connection or the queue was lost mid-sweep; the broker requeues the unacked dead letters."""


# --------------------------------------------------------------------------------------------- one connection


class _Reader(BrokerClient):
    """One connection, and the channel in use."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, heartbeat=_HEARTBEAT, name="workq dead", timeout=_CONNECTING)
        self._channel: Channel | None = None

    def open(self, queue: str) -> Any:
        """Connect and ask for the queue: pika's Queue.DeclareOk, None when there is none. Raises what went wrong."""
        self.connect(_CONNECTING)
        try:
            self._channel, answer, _ = self.take(queues.inquiry(queue), declare=False, timeout=_ANSWER)
        except Exception as error:
            if self.error is None and amqp.explain(error).kind is Kind.MISSING:
                return None
            raise
        self.depend_on(self._channel)
        return answer

    @property
    def channel(self) -> Channel:
        assert self._channel is not None, "there is no such queue"
        return self._channel

    def change_channel(self) -> None:
        """Use another from now on. The one before stays open."""
        self._channel = self.connection.channel()
        self.depend_on(self._channel)

    def ask(self, request: Callable[..., None]) -> Any:
        """Make a request and wait for its answer. Raises CutOff."""
        try:
            return self.call(self.channel, request, _ANSWER)
        except Exception as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> CutOff:
        return CutOff(amqp.explain(self.error or error, self.endpoint).reason)


# -------------------------------------------------------------------------------------------------- the queue


@dataclass(slots=True)
class _Held:
    """What is held on a channel."""

    channel: Channel
    open: int = 0
    """Taken, and neither acknowledged nor requeued."""
    ends: list[tuple[int, int]] = field(default_factory=list)
    """The last delivery tag of what is kept of each window, and how many that are."""


class _Return:
    """How much of what was returned is back."""

    def __init__(self, ready: int, note: Callable[[int], object]) -> None:
        self._expected = self._ready = ready
        self._notice = note
        self._deadline = 0.0
        self._is_in_vain = False

    def expect(self, count: int) -> None:
        self._expected += count
        self._deadline = 0.0

    def is_complete(self, ready: int, time: float) -> bool:
        """Whether all are, or somebody else takes them."""
        if ready > self._ready or not self._deadline:
            self._notice(max(0, ready - self._ready))
            self._ready = max(ready, self._ready)
            self._deadline = time + _RETURNING + self._expected * _RETURNING_EACH
        self._is_in_vain = self._is_in_vain or time > self._deadline
        return ready >= self._expected or self._is_in_vain


class Target(NamedTuple):
    """Where a dead letter goes, and as what."""

    queue: str
    properties: Encoded
    body: bytes | None = None
    """None: its own."""


class DeadQueue:
    """The dead letters of one queue. A context manager, for one sweep."""

    def __init__(self, endpoints: Sequence[Endpoint], queue: str) -> None:
        self.queue = queue
        self.name = queues.dead(queue)
        self.endpoint = endpoints[0]
        """The node that we are connected to."""
        self.count: int | None = None
        """How many were ready at the start; None when there is no such queue."""
        self.holders = 0
        """Other consumers of this queue, whose unacked messages cannot be seen."""
        self.warning = ""
        """For the operator, at the end."""
        self._endpoints = endpoints
        self._link: _Reader | None = None
        self._publisher: Publisher | None = None
        self._serial = itertools.count(1)
        self._arrived: list[Letter] = []
        self._bytes = 0
        self._largest = 0
        self._cancelled = False
        self._holds: list[_Held] = []
        """By channel; the last one is in use."""
        self._acknowledges_singly = False

    def __enter__(self) -> Self:
        """Raises Unreachable."""
        self._link = reach(self._endpoints, _Reader, self._open_link)
        self.endpoint = self._link.endpoint
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._publisher is not None:
            self._publisher.close()
        if (kind is None or kind is SystemExit) and self._link is not None:
            self._link.close()
        else:
            self._drop()

    def _open_link(self, link: _Reader) -> None:
        found = link.open(self.name)
        if found is not None:
            self.count, self.holders = found.message_count, found.consumer_count
            self._use(link)

    def _use(self, link: _Reader) -> None:
        link.channel.add_on_cancel_callback(self._cancel)
        self._holds.append(_Held(link.channel))

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.drop()

    def rest(self, until: float, stop: object) -> None:
        """Do nothing but keep the connection alive, until then, by `now`, or until asked to stop. Raises CutOff."""
        link = self._alive()
        while now() < until and not stop:
            # In short turns: a signal does not interrupt one (PEP 475).
            link.pump(lambda: False, min(until, now() + _NAP))
            if link.error is not None:
                raise link.lost(link.error)

    # ------------------------------------------------------------------------------------------------- taking

    def windows(self, most: int | None = None, *, size: int) -> Iterator[list[Letter]]:
        """What was ready when we came, or `most` of it, oldest first, up to `size` at a time.

        What becomes of each is the caller's to say before the next: `acknowledge`, `publish` or `keep`. Raises CutOff.
        """
        left = self.count or 0
        left = left if most is None else min(most, left)
        wanted = min(_FIRST_WINDOW, size)
        while left > 0:
            window, is_dry = self._take(min(wanted, left))
            left -= len(window)
            if window:
                yield window
            if is_dry:
                return
            wanted = max(1, min(2 * wanted, size, _BYTES // max(1, self._largest)))

    def _take(self, size: int) -> tuple[list[Letter], bool]:
        """Up to `size` dead letters, and whether there are no more."""
        link, tag = self._alive(), f"workq-dead-{next(self._serial)}"
        if self._acknowledges_singly and self._holds[-1].open >= CROWD and link.connection.has_free_channel:
            link.change_channel()
            self._use(link)
        self._arrived, self._bytes, self._largest = [], 0, 0
        # A consumer for each window: the prefetch is then exactly what we want, and nothing comes that must go back.
        link.ask(partial(link.channel.basic_qos, size))
        link.ask(partial(link.channel.basic_consume, self.name, self._delivered, tag))
        is_dry = self._gather(link, size)
        link.ask(partial(link.channel.basic_cancel, tag))
        return self._arrived, is_dry

    def _gather(self, link: _Reader, size: int) -> bool:
        """Until the window is full (False), or the queue is dry (True)."""
        deadline = now() + _STALL
        while True:
            before = len(self._arrived)
            link.pump(partial(self._has_news, size, before), now() + _LULL)
            if self._is_full(size):
                return False
            if link.error is not None:
                raise link.lost(link.error)
            if self._cancelled:
                raise CutOff(f"queue {self.name} was deleted, or its node went away")
            if len(self._arrived) > before:
                deadline = now() + _STALL
                continue
            # Twice: the first answer may have overtaken deliveries that were on their way to the channel.
            if self._ready(link) == 0 and self._ready(link) == 0 and len(self._arrived) == before:
                return True
            if now() > deadline:
                raise CutOff(
                    f"queue {self.name} has messages and gives us none: is there a single active consumer, or an alarm?"
                )

    def _has_news(self, size: int, before: int) -> bool:
        return self._cancelled or len(self._arrived) > before or self._is_full(size)

    def _is_full(self, size: int) -> bool:
        return len(self._arrived) >= size or self._bytes >= _BYTES

    def _ready(self, link: _Reader, channel: Channel | None = None) -> int:
        """How many are ready. Also a barrier: what was sent on the channel before has been carried out."""
        inquiry = partial((channel or link.channel).queue_declare, **queues.inquiry(self.name))
        return int(link.ask(inquiry).message_count)

    def _delivered(self, _: Channel, method: Any, properties: Properties, body: bytes) -> None:
        self._arrived.append(Letter(method.delivery_tag, properties.raw, body, self.queue))
        self._holds[-1].open += 1
        self._bytes += len(body)
        self._largest = max(self._largest, len(body))

    def _cancel(self, _frame: Any) -> None:
        self._cancelled = True

    def _alive(self) -> _Reader:
        assert self._link is not None, "outside of the context manager"
        return self._link

    # ----------------------------------------------------------------------------------------------- settling

    def acknowledge(self, letters: Sequence[Letter]) -> None:
        """Delete them for good. Raises CutOff: then the broker may redeliver them."""
        link = self._alive()
        if not letters:
            return
        if link.error is not None:
            raise link.lost(link.error)
        held = self._holds[-1]
        if len(letters) == held.open:
            # One frame: a quorum queue's client in the broker holds back what comes in many pieces, and forgets it
            # when the channel is closed (rabbit_fifo_client, "soft limit"). 0 stands for all that is open.
            link.channel.basic_ack(0, multiple=True)
        else:
            self._acknowledges_singly = True
            for letter in letters:
                link.channel.basic_ack(letter.tag)
        for letter in letters:
            letter.is_settled = True
        held.open -= len(letters)
        self._ready(link)

    def keep(self, letters: Sequence[Letter]) -> None:
        """Keep them in the queue: unacked until the sweep ends, or, when worn, published again at once."""
        worn = [letter for letter in letters if letter.returns >= WORN]
        renewed = [(letter, properties) for letter in worn if (properties := anew(letter, self.endpoint.user))]
        if len(renewed) < len(worn):
            self.warning = (
                f"some dead letters have been returned {WORN} times or more and cannot be written anew; {self.name} "
                "drops them at its delivery limit, if it has one: requeue or drop them"
            )
        try:
            self.publish([(letter, Target(self.name, properties)) for letter, properties in renewed], Counter())
        except PublishError as error:
            self.warning = f"dead letters returned {WORN} times could not be written anew: {error.reason}"
        # A tag that is open: with another one the broker closes the channel (406, unknown delivery tag).
        if kept := [letter.tag for letter in letters if not letter.is_settled]:
            self._holds[-1].ends.append((max(kept), len(kept)))

    @property
    def held(self) -> int:
        """Taken, and neither acknowledged nor requeued."""
        return sum(held.open for held in self._holds)

    def hand_back(self, note: Callable[[int], object] = lambda _count: None) -> None:
        """The end of a sweep: requeue all that is still open, to its old place, and wait until it is there, since later
        readers must find it. `note` is called with how many more have come back. Raises CutOff."""
        link = self._alive()
        if not self.held:
            return
        back = _Return(self._ready(link), note)
        for held in self._holds:
            left, held.open = held.open, 0
            # Window by window, since a quorum queue takes returns consumer by consumer, and orders them as they come; 0
            # stands for whatever is left. And nack, not reject, nor just leaving: from 4.3 on this is the one that a
            # quorum queue does not count.
            for number, (tag, count) in enumerate(held.ends, 1):
                held.channel.basic_nack(tag, multiple=True)
                left -= count
                back.expect(count)
                if number % _AT_ONCE == 0:
                    self._await(back, link, held.channel)
            if left:
                held.channel.basic_nack(0, multiple=True)
                back.expect(left)
            # Before the next channel's, which could overtake them.
            self._await(back, link, held.channel)

    def _await(self, back: _Return, link: _Reader, channel: Channel) -> None:
        """The queue answers before it has taken messages back."""
        while not back.is_complete(self._ready(link, channel), now()):
            link.pump(lambda: False, now() + _TURN)

    # --------------------------------------------------------------------------------------------- publishing

    def prepare(self) -> None:
        """Open the connection that publishes, before anything is taken. Raises Unreachable."""
        try:
            self._publishing().connect()
        except NotSent as error:
            if error.trouble is None:
                raise
            raise Unreachable([error.trouble]) from None

    def publish(self, aimed: Sequence[tuple[Letter, Target]], done: Counter[str]) -> list[Letter]:
        """Publish each to its target, have that confirmed, acknowledge the dead letter, count it in `done` by target.
        Returns those that there is no queue for; they stay open.

        Raises PublishError or CutOff, after acknowledging what was confirmed, as far as that goes.
        """
        waiting = list(aimed)
        homeless: list[Letter] = []
        while waiting:
            failure: PublishError | None = None
            confirmed: list[int] = []
            messages = (_message(letter, target) for letter, target in waiting)
            try:
                noting = partial(self._notice, confirmed)
                self._publishing().publish_many(messages, timeout=_CONFIRM, on_confirmed=noting)
            except PublishError as error:
                failure = error
            self.acknowledge([waiting[position][0] for position in confirmed])
            done.update(waiting[position][1].queue for position in confirmed)
            if failure is None:
                break
            if not isinstance(failure, Unroutable) or failure.pending:
                raise failure
            homeless += [waiting[position][0] for position in failure.failed]
            waiting = waiting[failure.sent :]
        return homeless

    def _notice(self, confirmed: list[int], position: int, _id: str) -> None:
        confirmed.append(position)
        link = self._alive()
        if now() - link.served > _BREATH:
            link.look()

    def _publishing(self) -> Publisher:
        # A connection of its own: under an alarm the broker stops reading from one that publishes, acknowledgements
        # included (https://www.rabbitmq.com/docs/alarms). The dead-letter queue is asked for because it is there; the
        # queues that messages go to are not declared: `mandatory` tells when one is missing.
        if self._publisher is None:
            self._publisher = Publisher(
                self.endpoint, self.name, declare=False, heartbeat=_HEARTBEAT, name="workq dead publishing"
            )
        return self._publisher


def _message(letter: Letter, target: Target) -> Message:
    body = letter.body if target.body is None else target.body
    return body, Options(properties=target.properties, routing_key=target.queue)
