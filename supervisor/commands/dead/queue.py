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
_ANSWER: Final = 15.0
"""Seconds for the broker to answer a request."""
_LULL: Final = 0.2
"""Seconds without a delivery after which to ask whether any is left."""
_STALL: Final = 10.0
"""Seconds without a delivery, while the queue says that it has some, after which to give up."""
_BREATH: Final = 5.0
"""Seconds for which a busy publisher may leave the other connection, and its heartbeats, unattended."""
_CONFIRM: Final = 30.0
_RETURNING: Final = 5.0
"""Seconds to wait for the queue to count what was requeued, which other consumers may take at once."""
_TURN: Final = 0.01
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
    """One connection with one channel."""

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

    def ask(self, request: Callable[..., None]) -> Any:
        """Make a request and wait for its answer. Raises CutOff."""
        try:
            return self.call(self.channel, request, _ANSWER)
        except Exception as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> CutOff:
        return CutOff(amqp.explain(self.error or error, self.endpoint).reason)


# -------------------------------------------------------------------------------------------------- the queue


class Target(NamedTuple):
    """Where a dead letter goes."""

    queue: str
    properties: Encoded


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
        self._open = 0
        """Taken, and neither acknowledged nor requeued."""
        self._ends: list[int] = []
        """The last delivery tag of what is kept of each window."""

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
            link.channel.add_on_cancel_callback(self._cancel)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.drop()

    # ------------------------------------------------------------------------------------------------- taking

    def windows(self, most: int | None = None, *, size: int) -> Iterator[list[Letter]]:
        """What was ready when we came, or `most` of it, oldest first, up to `size` at a time.

        What becomes of each is the caller's to say before the next: `acknowledge`, `publish` or `keep`. Raises CutOff.
        """
        left = self.count or 0
        left = left if most is None else min(most, left)
        wanted = _FIRST_WINDOW
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

    def _ready(self, link: _Reader) -> int:
        """How many are ready. Also a barrier: what was sent on the channel before has been carried out."""
        return int(link.ask(partial(link.channel.queue_declare, **queues.inquiry(self.name))).message_count)

    def _delivered(self, _: Channel, method: Any, properties: Properties, body: bytes) -> None:
        self._arrived.append(Letter(method.delivery_tag, properties.raw, body, self.queue))
        self._open += 1
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
        if len(letters) == self._open:
            # One frame: a quorum queue's client in the broker holds back what comes in many pieces, and forgets it
            # when the channel is closed (rabbit_fifo_client, "soft limit"). 0 stands for all that is open.
            link.channel.basic_ack(0, multiple=True)
        else:
            for letter in letters:
                link.channel.basic_ack(letter.tag)
        for letter in letters:
            letter.is_settled = True
        self._open -= len(letters)
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
        end = max((letter.tag for letter in letters if not letter.is_settled), default=None)
        if end is not None:
            self._ends.append(end)

    def hand_back(self) -> None:
        """The end of a sweep: requeue all that is still open, to its old place. Raises CutOff."""
        link = self._alive()
        back, self._open = self._open, 0
        if not back:
            return
        # Window by window, since a quorum queue takes returns consumer by consumer, and orders them as they come; 0
        # stands for whatever is left. And nack, not reject, nor just leaving: from 4.3 on this is the one that a quorum
        # queue does not count.
        for tag in (*self._ends, 0):
            link.channel.basic_nack(tag, multiple=True)
        # The queue answers before it has taken the messages back; later readers must find them.
        deadline = now() + _RETURNING
        while self._ready(link) < back and now() < deadline:
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
                noting = partial(self._note, confirmed)
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

    def _note(self, confirmed: list[int], position: int, _id: str) -> None:
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
    return letter.body, Options(properties=target.properties, routing_key=target.queue)
