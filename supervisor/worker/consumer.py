"""A consumer: one queue, consumed by one connection (`amqp.connection`).

One connection, one life: the end of the connection, the channel or the consumer ends this object, with the reason in a
`Gone`. Nothing here reconnects; the supervisor starts another worker.

The loop's callback only stashes deliveries; they are handled outside it. The main thread pumps the loop while it waits
for a message, the heartbeat thread while a handler runs (`heartbeats`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from supervisor import amqp, queues, trace
from supervisor.amqp.channel import Channel, ignore
from supervisor.amqp.connection import Connection
from supervisor.amqp.ioloop import IOLoop, Timer
from supervisor.amqp.properties import Properties
from supervisor.clock import now
from supervisor.endpoint import Endpoint
from supervisor.policy import advice
from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Intake, Kind
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import Gone, cause_of, none_of
from supervisor.worker.heartbeats import Baton
from supervisor.worker.own_queues import OwnQueues
from supervisor.worker.subscription import Subscription

SHORT: Final = 0.001
"""Seconds that a short task takes at most. What arrives during one is handled as if it came just after."""
CONNECT_TIMEOUT: Final = 40.0
"""Seconds to reach one of the brokers; together with `ANSWER_TIMEOUT` less than the supervisor allows."""
ANSWER_TIMEOUT: Final = 15.0
"""Seconds for the broker to answer a request while the worker starts or exits."""
OURS_WITHIN: Final = 2.0
"""Seconds at least that a worker waits for the queues for retries and dead letters; over a slow network, twice the time
it took to consume."""
PATIENCE: Final = 60.0
"""Seconds that a turn of the loop waits at most. The heartbeat's timer is due earlier: the supervisor sees by it that
the loop turns (`hung.stands_still_after`)."""
CLOSE_TIMEOUT: Final = 0.5
"""Seconds to close the connection to a broker that seems healthy."""
_NONE: Final = MappingProxyType[str, str]({})


class Consumer:
    """Consumes one queue: `open`, then `next()` until it returns None or raises Gone, then `close`.

    `beat` is called every turn of the loop; `lost` from the heartbeat thread, when the connection ends while a handler
    runs; `idle` while there is no message: it may wait for a descriptor to be readable, for the given seconds at most,
    and returns whether it did.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        beat: Callable[[], None],
        lost: Callable[[Gone], None],
        idle: Callable[[IOLoop, float], bool] = lambda *_: False,
        intake: Intake = Intake.ALL,
    ) -> None:
        self._settings = settings
        self._name = name
        self._beat = beat
        self._lost = lost
        self._idle = idle
        self._stash: deque[Delivery] = deque()
        self._gone: Gone | None = None
        self.leaving: Gone | None = None
        """Why it should end, once asked to."""
        self._intake = intake
        self.is_restrained = intake is Intake.ONE
        """Call `before_ack` before each acknowledgement."""
        self._finish = False
        self._endpoint: Endpoint | None = None
        self._connection: Connection | None = None
        self._has_arrived = False
        self._declares_ours = False
        self.own_queues = OwnQueues(settings)
        self.subscription = Subscription(settings, name, self._delivered, self._end, self._lose)
        self._ioloop = IOLoop()
        self.unattended = Baton(self._wake)
        """`with consumer.unattended:` the caller does something long; after a second the heartbeat thread takes the
        baton."""

    # ---------------------------------------------------------------------------------------------- the story

    def open(self, *, declare_ours: bool = False, met: Mapping[str, str] = _NONE) -> str:
        """Connect to one of the brokers, in random order, take or declare the queue, consume if it may. Returns the
        broker. `declare_ours`: also declare the queues for retries and dead letters. `met` as in `Begin`.

        Raises Gone if none can be used, with the reason for each.
        """
        refusals: list[Gone] = []
        self._declares_ours = declare_ours
        deadline = now() + CONNECT_TIMEOUT
        endpoints = list(self._settings.url)
        random.shuffle(endpoints)
        for endpoint in endpoints:
            begun = now()
            try:
                self._connect(endpoint, met.get(str(endpoint), ""), deadline)
                break
            except Gone as gone:
                if gone.cause is not Cause.BROKER:
                    raise
                refusals.append(gone)
                self._gone = None
                if len(refusals) == len(endpoints) or now() >= deadline:
                    self._gone = none_of(refusals)
                    raise self._gone from None
        self._wait(lambda: not self.subscription.is_changing)
        patience = max(OURS_WITHIN, 2 * (now() - begun))
        self._happens(lambda: self.own_queues.is_answered, patience)
        self.own_queues.give_up(patience)
        self._has_arrived = True
        self._adjust()
        return str(endpoint)

    def start_heartbeats(self) -> None:
        """Call before handlers run for long. Raises Gone."""
        try:
            self.unattended.start(self._pump, lambda: self._gone is not None)
        except RuntimeError as error:
            self._lose(error)
            raise self._gone from error  # type: ignore[misc]

    @property
    def endpoint(self) -> Endpoint:
        """The broker in use."""
        assert self._endpoint is not None
        return self._endpoint

    @property
    def version(self) -> str:
        """As `Connection.version`."""
        return self._connection.version if self._connection is not None else ""

    def next(self) -> Delivery | None:
        """The next message to run; None when asked to exit and nothing is left to do. Raises Gone."""
        while True:
            if self._gone is not None:
                raise self._gone
            if self.leaving is not None:
                return self._next_of_the_last()
            if self._stash:
                return self._stash.popleft()
            has_waited = self._idle(self._ioloop, PATIENCE)
            self._pump(0.0 if has_waited else PATIENCE)

    def put_back(self, delivery: Delivery) -> None:
        """It is the next one again: it has not begun."""
        self._stash.appendleft(delivery)

    @property
    def has_delivery(self) -> bool:
        """Whether `next` has one that has come already."""
        return bool(self._stash)

    def pass_time(self, seconds: float) -> None:
        """Turn the loop for `seconds` with a delivery put back, or until `next` would not give it out again."""
        until = now() + seconds
        timer = self._ioloop.call_later(seconds, ignore)
        while now() < until and self._stash and self._gone is None and (self.leaving is None or self._finish):
            # As in `next`, which has no call to spare.
            has_waited = self._idle(self._ioloop, PATIENCE)
            self._pump(0.0 if has_waited else PATIENCE)
        timer.callback = None

    def turn(self) -> None:
        """One turn of the loop, for a caller that waits for something other than a message. Raises Gone."""
        self._pump()
        if self._gone is not None:
            raise self._gone

    def take_back(self, delivery: Delivery) -> bool:
        """Asked to exit before this message has begun: return it and everything else delivered."""
        if self.leaving is None or self._finish:
            return False
        self._stash.appendleft(delivery)
        return True

    def rest(self, seconds: float) -> None:
        """Turn the loop for `seconds`, or until asked to exit. Raises Gone."""
        until = now() + seconds
        self._ioloop.call_later(seconds, ignore)
        while now() < until and self.leaving is None:
            self.turn()

    @property
    def gone(self) -> Gone | None:
        """Why the connection is unusable, if it is."""
        return self._gone

    def catch_up(self) -> None:
        """Handle what came while a handler ran: a cancel, after which there must be no ack, or an order. Skipped after
        a short task: there is almost never anything, and a look costs as much as such a task."""
        if self._stash or (self.unattended.spent > SHORT and self._ioloop.has_news()):
            self._pump(0.0)

    def ack(self, delivery: Delivery) -> None:
        """Write the acknowledgement to the kernel. Raises Gone if it cannot reach the broker."""
        if self._gone is not None:
            raise self._gone
        connection, channel = self._connection, self.subscription.channel
        assert connection is not None and channel is not None
        channel.basic_ack(delivery.tag)
        while not connection.has_written:
            if self._gone is not None:
                raise self._gone
            self._pump()

    def leave(self, cause: Cause, detail: str, *, finish: bool = False) -> None:
        """Take nothing more: `next()` cancels the consumer and returns None. `finish`: first run what has been
        delivered."""
        if self.leaving is None:
            self.leaving = Gone(cause, detail)
            self._finish = finish
            self.is_restrained = True
            self._wake()

    def admit(self, intake: Intake) -> None:
        """Take this from now on. What has been delivered and not begun is returned when the consumer is cancelled.
        Callable on whichever thread pumps."""
        self._intake = intake
        self.is_restrained = self.leaving is not None or intake is Intake.ONE
        if self._has_arrived:
            self._adjust()

    def before_ack(self, *, has_run: bool) -> None:
        """Cancel the consumer if this message is the last one, so that the broker sends nothing after its ack.
        `has_run`: its handler was called. Raises Gone."""
        if self.leaving is not None:
            self.cancel()
        elif has_run and self._intake is Intake.ONE:
            self.admit(Intake.NONE)

    def cancel(self) -> None:
        """Stop the deliveries: after this returns, nothing more comes.

        Called before the last ack, so that the broker sends nothing after it that would be returned and marked
        redelivered.
        """
        subscription = self.subscription
        if self._gone is None:
            self._wait(lambda: not subscription.is_changing)
        if self._gone is None and subscription.is_active:
            subscription.end(ignore)
            self._wait(lambda: not subscription.is_changing)

    def open_channel(self) -> Channel | None:
        """None while no connection is open. Raises NoFreeChannels."""
        connection = self._connection
        return connection.channel() if connection is not None and connection.is_open else None

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Have the loop call `readable` when `fd` is readable, on whichever thread pumps."""
        self._ioloop.add_handler(fd, lambda *_: readable(), self._ioloop.READ)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have the loop call this later, on whichever thread pumps, unless its `callback` is None by then."""
        return self._ioloop.call_later(seconds, call)

    def unwatch(self, fd: int) -> None:
        self._ioloop.remove_handler(fd)

    def close(self) -> bool:
        """Close the connection to a healthy broker, in bounded time and without raising. Returns whether the broker has
        answered: then it has every acknowledgement."""
        connection = self._connection
        if self._gone is not None or connection is None or not connection.is_open:
            return False
        deadline = now() + CLOSE_TIMEOUT
        self._ioloop.call_later(CLOSE_TIMEOUT, ignore)
        connection.close()
        while not connection.is_closed and now() < deadline:
            self._pump()
        return connection.has_taken_leave

    # --------------------------------------------------------------------------------------------- the steps

    def _connect(self, endpoint: Endpoint, version: str, deadline: float) -> None:
        """Raises Gone. No other attempt after the deadline: this one may still end, which would be reported."""
        self._endpoint = endpoint
        try:
            connection = self._connection = Connection(
                endpoint,
                self._ioloop,
                heartbeat=self._settings.heartbeat,
                name=self._name,
                on_greeted=self._ask_for_all,
                expected=version,
                on_closed=self._lose,
            )
        except Exception as error:  # an unusable file, or this process lacks a resource
            self._lose(error)
            raise self._gone from error  # type: ignore[misc]
        # TCP, TLS and AMQP have limits for each of the host's addresses; only this one covers the number of addresses
        # and the name look-up.
        if not self._happens(lambda: connection.has_opened, deadline - now()):
            wrong = "its host name takes too long to look up, or none of its addresses answers"
            self._end(Gone(Cause.BROKER, f"no connection to {endpoint} in time: {wrong}", Kind.TIMEOUT))
            connection.drop()
            raise self._gone  # type: ignore[misc]

    def _ask_for_all(self, connection: Connection) -> None:
        """Send all requests of a worker's start in one write."""
        self._connection = connection
        channel = connection.channel()  # first: there may be few
        if self._declares_ours:
            # Before the queue is taken, to wait less for these answers.
            self.own_queues.declare(connection, self._endpoint)
        self.subscription.begin(connection, channel, self.version, self._intake)

    def _adjust(self) -> None:
        """Consume, or cancel, as it may; called again when the broker has answered."""
        subscription = self.subscription
        if self.leaving is not None or self._gone is not None or subscription.is_changing:
            return
        if subscription.is_active and subscription.intake is not self._intake:
            subscription.end(self._adjust)
            self._return_stash()
        elif not subscription.is_active and self._intake is not Intake.NONE:
            subscription.resume(self._intake, self._adjust)

    def _wait(self, happened: Callable[[], bool]) -> None:
        patience = ANSWER_TIMEOUT
        if self.leaving is not None:
            # The supervisor waits no longer than the grace, and the task in flight may still be acknowledged.
            patience = min(ANSWER_TIMEOUT, self._settings.grace / 2)
        if not self._happens(happened, patience):
            channel = self.subscription.channel
            what = (channel and channel.awaited) or "basic.consume"
            self._gone = Gone(Cause.BROKER, f"the broker did not answer {what} within {patience:g} s", Kind.TIMEOUT)
            raise self._gone

    def _happens(self, what: Callable[[], bool], within: float) -> bool:
        """Turn the loop until `what()` is true, for so many seconds at most. Returns whether it is. Raises Gone."""
        deadline = now() + within
        timer = self._ioloop.call_later(max(0.0, within), ignore)
        try:
            while not what():
                self.turn()
                if self.leaving is not None and not self._has_arrived:
                    raise self.leaving
                if now() >= deadline:
                    return what()
            return True
        finally:
            timer.callback = None

    def _next_of_the_last(self) -> Delivery | None:
        """Asked to exit: stop the deliveries; then run what has come (`finish`) or return it."""
        self.cancel()
        if self._finish and self._stash:
            return self._stash.popleft()
        self._return_stash()
        if self._gone is not None:
            raise self._gone
        return None

    def _return_stash(self) -> None:
        channel = self.subscription.channel
        while self._stash and channel is not None:
            channel.basic_nack(self._stash.popleft().tag)

    # ------------------------------------------------------------------------------------------------ the pump

    def _pump(self, patience: float = PATIENCE) -> None:
        """One turn of the loop, which waits `patience` seconds at most."""
        self._beat()
        try:
            self._ioloop.turn(patience)
        except Exception as error:  # noqa: BLE001 - whatever a callback stumbles over, the one life ends
            self._lose(error)

    def _wake(self) -> None:
        self._ioloop.add_callback(ignore)

    # ----------------------------------------------------------------------------------- what the broker tells us

    def _delivered(self, _: Channel, method: Any, properties: Properties, body: bytes) -> None:
        routing_key = method.routing_key
        if type(routing_key) is bytes:  # as pika gives a short string that is not UTF-8
            routing_key = routing_key.decode("utf-8", "backslashreplace")
        self._stash.append(
            Delivery(
                method.delivery_tag,
                routing_key,
                method.redelivered,
                properties,
                body,
                queues.name(properties.message_id, body, routing_key),
                method.exchange,
                trace.trace_id(properties.headers) if properties.headers else "",
            )
        )

    def _lose(self, error: BaseException) -> None:
        silence = self._connection.silence if self._connection is not None and self._has_arrived else 0.0
        trouble = amqp.explain(error, self._endpoint)
        reason = trouble.reason
        if trouble.kind is Kind.ACK_TIMEOUT:
            reason += f"; {advice.remedy(self.version, self._settings)}"
        self._end(Gone(cause_of(trouble.kind), reason, trouble.kind, silence))

    def _end(self, gone: Gone) -> None:
        if self._gone is None:
            self._gone = gone
            if self.unattended.free_since is not None:
                self._lost(gone)
