"""A consumer: one queue, consumed by one connection (`amqp.connection`).

One connection, one life: whatever ends the connection, the channel or the consumer ends this object, with a `Gone`
that says why. Nothing here reconnects; the supervisor starts another worker.

Deliveries are only stashed by the loop's callback, and handled outside it: the loop is pumped by the main thread while
it waits for a message, and by the heartbeat thread while it does not (`heartbeats`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from supervisor import amqp, queues, trace
from supervisor.amqp.channel import Channel
from supervisor.amqp.connection import Connection
from supervisor.amqp.ioloop import IOLoop, Timer
from supervisor.amqp.properties import Properties
from supervisor.clock import now
from supervisor.endpoint import Endpoint
from supervisor.policy import advice
from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Kind
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import Gone, cause_of, none_of
from supervisor.worker.heartbeats import Baton
from supervisor.worker.own_queues import OwnQueues
from supervisor.worker.subscription import Subscription

SHORT: Final = 0.001
"""Seconds: what takes no longer is a short task. Whatever comes meanwhile is treated as what comes just after."""
CONNECT_TIMEOUT: Final = 40.0
"""Seconds for one of the brokers to be reached: with `ANSWER_TIMEOUT` still below what the supervisor allows."""
ANSWER_TIMEOUT: Final = 15.0
"""Seconds the broker has to answer one request while the worker starts or leaves."""
OURS_WITHIN: Final = 2.0
"""Seconds at least for the broker to answer about the queues for retries and dead letters before a worker goes on
without; over a slow network twice as many as it took to consume."""
PATIENCE: Final = 5.0
"""Seconds that a turn of the loop waits at most: somebody looks whether it turns."""
CLOSE_TIMEOUT: Final = 0.5
"""Seconds for a farewell to a broker that is believed to be well."""


class Consumer:
    """Consumes one queue. Made, opened, asked for `next()` until that is None or raises Gone, closed.

    `beat` is called at every turn of the loop; `lost` from the heartbeat thread, when the connection ends while the
    main thread is away; `idle` while there is no message: it may wait until a descriptor can be read, for so many
    seconds at most, and says whether it has.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        beat: Callable[[], None],
        lost: Callable[[Gone], None],
        idle: Callable[[int, float], bool] = lambda *_: False,
    ) -> None:
        self._settings = settings
        self._name = name
        self._beat = beat
        self._lost = lost
        self._idle = idle
        self._stash: deque[Delivery] = deque()
        self._gone: Gone | None = None
        self.leaving: Gone | None = None
        """Why it comes to its end, once it is asked to."""
        self._finish = False
        self._endpoint: Endpoint | None = None
        self._connection: Connection | None = None
        self._has_arrived = False
        self._declares_ours = False
        self.own_queues = OwnQueues(settings)
        self.subscription = Subscription(settings, name, self._delivered, self._end, self._lose)
        self._ioloop = IOLoop()
        self.unattended = Baton(self._wake)
        """`with consumer.unattended:` the caller does something that may take long, and the heartbeat thread takes the
        baton when it takes over a second."""

    # ---------------------------------------------------------------------------------------------- the story

    def open(self, *, declare_ours: bool = False) -> str:
        """Connect to one of the brokers, in random order, take or declare the queue, consume. Returns which broker.
        `declare_ours`: meanwhile declare the queues for retries and dead letters, too.

        Raises Gone: when none can be used, with what is wrong with each.
        """
        refusals: list[Gone] = []
        self._declares_ours = declare_ours
        deadline = now() + CONNECT_TIMEOUT
        endpoints = list(self._settings.url)
        random.shuffle(endpoints)
        for endpoint in endpoints:
            begun = now()
            try:
                self._connect(endpoint, deadline)
                break
            except Gone as gone:
                if gone.cause is not Cause.BROKER:
                    raise
                refusals.append(gone)
                self._gone = None
                if len(refusals) == len(endpoints) or now() >= deadline:
                    self._gone = none_of(refusals)
                    raise self._gone from None
        self._wait(lambda: self.subscription.is_active)
        patience = max(OURS_WITHIN, 2 * (now() - begun))
        self._happens(lambda: self.own_queues.is_answered, patience)
        self.own_queues.give_up(patience)
        self._has_arrived = True
        return str(endpoint)

    def start_heartbeats(self) -> None:
        """From now on a handler may run for long. Raises Gone."""
        try:
            self.unattended.start(self._pump, lambda: self._gone is not None)
        except RuntimeError as error:
            self._lose(error)
            raise self._gone from error  # type: ignore[misc]

    @property
    def endpoint(self) -> Endpoint:
        """The broker that it is connected to."""
        assert self._endpoint is not None
        return self._endpoint

    @property
    def version(self) -> str:
        """RabbitMQ's: `3.10.8`. Empty when it is another broker, or does not say."""
        said = (self._connection and self._connection.server_properties) or {}
        return str(said.get("version", "")) if said.get("product") == "RabbitMQ" else ""

    def next(self) -> Delivery | None:
        """The next message to run; None when asked to leave and nothing is left to do. Raises Gone."""
        while True:
            if self._gone is not None:
                raise self._gone
            if self.leaving is not None:
                return self._next_of_the_last()
            if self._stash:
                return self._stash.popleft()
            has_waited = self._idle(self._ioloop.fileno(), self._ioloop.patience(PATIENCE))
            self._pump(0.0 if has_waited else PATIENCE)

    def turn(self) -> None:
        """One turn of the loop, for somebody who waits for something else than a message. Raises Gone."""
        self._pump()
        if self._gone is not None:
            raise self._gone

    def take_back(self, delivery: Delivery) -> bool:
        """Asked to leave before this message has begun: hand it back with what has been delivered beside it."""
        if self.leaving is None or self._finish:
            return False
        self._stash.appendleft(delivery)
        return True

    def rest(self, seconds: float) -> None:
        """Turn the loop for a while, or until asked to leave. Raises Gone."""
        until = now() + seconds
        self._ioloop.call_later(seconds, _nothing)
        while now() < until and self.leaving is None:
            self.turn()

    @property
    def gone(self) -> Gone | None:
        """Why the connection cannot be used any more, if so."""
        return self._gone

    def catch_up(self) -> None:
        """Hear what came while a handler ran: a cancel, after which there may be no ack, or an order. After a short
        task there is nothing, nearly always, and to look costs as much as such a task."""
        if self._stash or (self.unattended.spent > SHORT and self._ioloop.has_news()):
            self._pump(0.0)

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge, and hand that to the kernel. Raises Gone: then the broker will not hear of it."""
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
        """Take nothing more: `next()` cancels the consumer and comes to its end. `finish`: run what has been delivered
        already."""
        if self.leaving is None:
            self.leaving = Gone(cause, detail)
            self._finish = finish
            self._wake()

    def cancel(self) -> None:
        """Stop the deliveries: after this returns, nothing more comes.

        To be called before the last ack, so that the broker sends nothing after it that would come back marked
        redelivered.
        """
        if self.subscription.is_active and self._gone is None:
            answers: list[Any] = []
            self.subscription.end(answers.append)
            self._wait(lambda: bool(answers))

    def open_channel(self) -> Channel | None:
        """One more; None while there is no open connection. Raises NoFreeChannels."""
        connection = self._connection
        return connection.channel() if connection is not None and connection.is_open else None

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Have the loop call `readable` when `fd` has something to read, whoever pumps."""
        self._ioloop.add_handler(fd, lambda *_: readable(), self._ioloop.READ)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have the loop call this later, whoever pumps; unless its `callback` is None by then."""
        return self._ioloop.call_later(seconds, call)

    def unwatch(self, fd: int) -> None:
        self._ioloop.remove_handler(fd)

    def close(self) -> bool:
        """Say goodbye to a broker that is well: bounded, and without complaint. Whether the broker has answered: then
        it has heard every acknowledgement."""
        connection = self._connection
        if self._gone is not None or connection is None or not connection.is_open:
            return False
        deadline = now() + CLOSE_TIMEOUT
        self._ioloop.call_later(CLOSE_TIMEOUT, _nothing)
        connection.close()
        while not connection.is_closed and now() < deadline:
            self._pump()
        return connection.has_taken_leave

    # --------------------------------------------------------------------------------------------- the steps

    def _connect(self, endpoint: Endpoint, deadline: float) -> None:
        """Raises Gone. After the deadline there must be no other attempt: this one may still end, for all to hear."""
        self._endpoint = endpoint
        try:
            connection = self._connection = Connection(
                endpoint,
                self._ioloop,
                heartbeat=self._settings.heartbeat,
                name=self._name,
                on_greeted=self._ask_for_all,
                on_closed=self._lose,
            )
        except Exception as error:  # a file that cannot be used, or this process has nothing left to begin with
            self._lose(error)
            raise self._gone from error  # type: ignore[misc]
        # TCP, TLS and AMQP are bounded for each of the host's addresses; how many there are, and how long it takes to
        # look them up, nobody but us.
        if not self._happens(lambda: connection.has_opened, deadline - now()):
            wrong = "its host name takes too long to look up, or none of its addresses answers"
            self._end(Gone(Cause.BROKER, f"no connection to {endpoint} in time: {wrong}", Kind.TIMEOUT))
            connection.drop()
            raise self._gone  # type: ignore[misc]

    def _ask_for_all(self, connection: Connection) -> None:
        """All that a worker asks for at its start, in one go."""
        self._connection = connection
        channel = connection.channel()  # first: there may be few
        if self._declares_ours:
            # Before the queue is taken: we wait less long for these answers.
            self.own_queues.declare(connection, self._endpoint)
        self.subscription.begin(connection, channel, self.version)

    def _wait(self, happened: Callable[[], bool]) -> None:
        patience = ANSWER_TIMEOUT
        if self.leaving is not None:
            # The supervisor waits for no longer than the grace, and what is in hand may yet be acknowledged.
            patience = min(ANSWER_TIMEOUT, self._settings.grace / 2)
        if not self._happens(happened, patience):
            channel = self.subscription.channel
            what = (channel and channel.awaited) or "basic.consume"
            self._gone = Gone(Cause.BROKER, f"the broker did not answer {what} within {patience:g} s", Kind.TIMEOUT)
            raise self._gone

    def _happens(self, what: Callable[[], bool], within: float) -> bool:
        """Turn the loop until `what()` holds, or for so many seconds; whether it holds. Raises Gone."""
        deadline = now() + within
        timer = self._ioloop.call_later(max(0.0, within), _nothing)
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
        """Asked to leave: stop the flow; then run what has come (`finish`) or hand it back."""
        self.cancel()
        if self._finish and self._stash:
            return self._stash.popleft()
        channel = self.subscription.channel
        while self._stash and channel is not None:
            channel.basic_nack(self._stash.popleft().tag)
        if self._gone is not None:
            raise self._gone
        return None

    # ------------------------------------------------------------------------------------------------ the pump

    def _pump(self, patience: float = PATIENCE) -> None:
        """One turn of the loop: wait for something, `patience` seconds at most."""
        self._beat()
        try:
            self._ioloop.turn(patience)
        except Exception as error:  # noqa: BLE001 - whatever a callback stumbles over, the one life ends
            self._lose(error)

    def _wake(self) -> None:
        self._ioloop.add_callback(_nothing)

    # ----------------------------------------------------------------------------------- what the broker tells us

    def _delivered(self, _: Channel, method: Any, properties: Properties, body: bytes) -> None:
        routing_key = method.routing_key
        if type(routing_key) is bytes:  # as pika gives a short string that is not UTF-8
            routing_key = routing_key.decode("utf-8", "backslashreplace")
        name = properties.message_id
        if not name or type(name) is bytes:
            name = queues.digest(name or body, routing_key)
        self._stash.append(
            Delivery(
                method.delivery_tag,
                routing_key,
                method.redelivered,
                properties,
                body,
                name,
                method.exchange,
                trace.trace_id(properties.headers),
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


def _nothing(*_: Any) -> None:
    pass
