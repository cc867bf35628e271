"""A consumer: one queue, consumed by one connection (`amqp.connection`).

One connection, one life: whatever ends the connection, the channel or the consumer ends this object, with a `Gone`
that says why. Nothing here reconnects; the supervisor starts another worker.

*The baton.* One thread at a time pumps the loop: the main thread while it waits for a message; and while a handler
has kept the main thread for over a second, a keeper thread, so that heartbeats go out and the broker is heard for as
long as a handler runs. Deliveries are only stashed by the callback, and handled outside it. (Measured against a thread
that owns the connection all the time: docs/decisions/0002.)
"""

from __future__ import annotations

import os
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from supervisor import amqp, originals, queues, streams, trace
from supervisor.amqp.connection import Channel, Connection
from supervisor.amqp.ioloop import IOLoop, Timer
from supervisor.amqp.properties import Properties
from supervisor.clock import now
from supervisor.endpoint import Endpoint
from supervisor.policy import advice, poison, retry
from supervisor.settings import Settings
from supervisor.vocabulary import EXIT_SOFTWARE, Cause, Kind
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import _CAUSES, Gone, none_of
from supervisor.worker.heartbeats import KEEPER_AFTER, Baton

SHORT: Final = 0.001
"""Seconds: what takes no longer is a short task. Whatever comes meanwhile is treated as what comes just after."""
CONNECT_TIMEOUT: Final = 40.0
"""Seconds for one of the brokers to be reached: with `ANSWER_TIMEOUT` still below what the supervisor allows."""
ANSWER_TIMEOUT: Final = 15.0
"""Seconds the broker has to answer one request while the worker starts or leaves."""
OURS_WITHIN: Final = 2.0
"""Seconds at least for the broker to answer about the queues for retries and dead letters before a worker goes on
without; over a slow network twice as many as it took to consume."""
MOST_DIFFERENCES: Final = 40
"""Of a queue from a plain one."""
CLOSE_TIMEOUT: Final = 0.5
"""Seconds for a farewell to a broker that is believed to be well."""

_EVERYBODY: Final = {"x-priority": 0}
"""What basic.consume is sent in any case. It is every consumer's priority (https://www.rabbitmq.com/docs/consumer-priority)
and changes nothing; but a stream refuses it (406), and would otherwise let us consume what comes from now on, and
acknowledge it without end. AMQP 0-9-1 has no way to ask for a queue's type."""
_OF_TYPE: Final = re.compile(r"of queue type rabbit_(\w+)_queue")


class Consumer:
    """Consumes one queue. Made, opened, asked for `next()` until that is None or raises Gone, closed.

    `beat` is called at every turn of the loop; `measured` with (ready, consumers, delayed) after `measure()`;
    `counted_dead` after `count_dead()`; `lost` from the keeper's thread, when the connection ends while the main thread
    is away.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        beat: Callable[[], None],
        measured: Callable[[int, int, int | None], None],
        lost: Callable[[Gone], None],
        counted_dead: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._name = name
        self._beat = beat
        self._measured = measured
        self._counted_dead = counted_dead
        self._lost = lost
        self._stash: deque[Delivery] = deque()
        self._gone: Gone | None = None
        self.leaving: Gone | None = None
        """Why it comes to its end, once it is asked to."""
        self._finish = False
        self._endpoint: Endpoint | None = None
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._side_channel: Channel | None = None
        self._dead_channel: Channel | None = None
        self._arguments: dict[str, int] = {}
        """Of basic.consume, beyond `_EVERYBODY`."""
        self.has_declared: bool | None = None
        """Whether the queue was declared because there was none; None when it was declared as a comparison."""
        self._declares_ours = False
        self._undeclared: set[str] = set()
        self.declared: set[str] = set()
        """Queues for retries and dead letters that are there."""
        self.refused = ""
        """Why another of them is not."""
        self.prefetch = settings.prefetch
        """Messages that the broker gives it at once."""
        self._is_consuming = False
        self._has_arrived = False
        self._ioloop = IOLoop()
        self.unattended = Baton(self._wake)
        """`with consumer.unattended:` the caller does something that may take long, and the keeper takes the baton when
        it takes over a second."""

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
                self._gone = none_of(refusals)
                if now() >= deadline:
                    raise self._gone from None
                self._gone = None
        else:
            self._gone = none_of(refusals)
            raise self._gone
        self._wait(lambda: self._is_consuming)
        self._await_ours(max(OURS_WITHIN, 2 * (now() - begun)))
        self._has_arrived = True
        return str(endpoint)

    def start_keeper(self) -> None:
        """From now on a handler may run for long. Raises Gone."""
        try:
            originals.start_new_thread(self._keep_or_die, ())
        except RuntimeError as error:  # so does CPython put a pthread_create(3) that fails
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
            self._pump()

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
        connection, channel = self._connection, self._channel
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
        if self._is_consuming and self._gone is None and self._channel is not None:
            self._is_consuming = False
            answers: list[Any] = []
            self._channel.basic_cancel(self._name, callback=answers.append)
            self._wait(lambda: bool(answers))

    def measure(self, *, delays: bool = False) -> None:
        """Ask for the queue's depth, on a channel of its own: a missing queue closes that, not the consuming one. With
        `delays`, ask first how many tasks wait in our delay queues: one that comes back meanwhile is seen in one of
        them.
        """
        settings = self._settings
        if delays:
            steps = retry.steps(settings.retries, settings.retry_delay)
            self._count_delays(deque(queues.delay(settings.queue, ms) for ms in steps), 0)
        else:
            self._measure(None)

    def _count_delays(self, left: deque[str], found: int) -> None:
        """Add what waits in the queues that are left, then measure the main one."""

        def ask(channel: Channel) -> None:
            if left:
                channel.queue_declare(**queues.inquiry(left[0]), callback=lambda frame: answered(channel, frame))
            else:
                channel.close()
                self._measure(found)

        def answered(channel: Channel, frame: Any) -> None:
            nonlocal found
            found += frame.method.message_count
            left.popleft()
            ask(channel)

        def closed(_: Any, reason: BaseException) -> None:
            if left and amqp.explain(reason, self._endpoint).kind in (Kind.MISSING, Kind.PERMISSION):
                left.popleft()
                self._count_delays(left, found)

        if self._connection is not None and self._connection.is_open:
            self._connection.channel(on_open_callback=ask).add_on_close_callback(closed)

    def _measure(self, delayed: int | None) -> None:
        def ask(channel: Channel) -> None:
            channel.queue_declare(**queues.inquiry(self._settings.queue), callback=answered)

        def answered(frame: Any) -> None:
            self._measured(frame.method.message_count, frame.method.consumer_count, delayed)

        channel = self._side_channel
        if channel is not None and channel.is_open:
            ask(channel)
        elif self._connection is not None and self._connection.is_open:
            self._side_channel = self._connection.channel(on_open_callback=ask)

    def count_dead(self) -> None:
        """Ask how many dead letters there are, on one more channel: mostly there is no such queue, which closes it."""
        channel = self._dead_channel
        if channel is not None and channel.is_open:
            self._count_dead_on(channel)
        elif self._connection is not None and self._connection.is_open and (channel is None or channel.is_closed):
            self._dead_channel = self._connection.channel(on_open_callback=self._count_dead_on)
            self._dead_channel.add_on_close_callback(self._not_counted)

    def describe(self, told: Callable[[bool], object]) -> None:
        """Ask what kind of queue it is: `told` whether it has a single active consumer, if our user may know.

        AMQP has no question for it, but a refusal: a declaration with a type that there is not tells one difference,
        which is adopted, and so on. Each is a line in the broker's log, so this is not for every day.
        """
        self._describe(told, {"durable": True, "auto_delete": False}, {}, MOST_DIFFERENCES)

    def _describe(
        self, told: Callable[[bool], object], found: dict[str, Any], arguments: dict[str, Any], left: int
    ) -> None:
        if self._connection is None or not self._connection.is_open or not left:
            return

        def refused(_: Channel, reason: BaseException) -> None:
            name, value = queues.difference(str(getattr(reason, "reply_text", ""))) or ("", None)
            place = found if name in found else arguments
            if name in (queues.SINGLE, "x-queue-type"):
                told(name == queues.SINGLE and value is True)
            elif value is not None and place.get(name) != value:
                place[name] = value
                self._describe(told, found, arguments, left - 1)

        channel = self._connection.channel()
        channel.add_on_close_callback(refused)
        channel.queue_declare(self._settings.queue, arguments={**arguments, "x-queue-type": queues.NO_TYPE}, **found)

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
            self._end(Cause.BROKER, f"no connection to {endpoint} in time: {wrong}", Kind.TIMEOUT)
            connection.drop()
            raise self._gone  # type: ignore[misc]

    def _ask_for_all(self, connection: Connection) -> None:
        """All that a worker asks for at its start, in one go."""
        self._connection = connection
        self._undeclared.clear()  # another node may have been asked before
        self.refused = ""
        self._arguments = advice.consumer_arguments(self.version, self._settings)
        channel = connection.channel()  # first: there may be few
        if self._declares_ours:
            self._declare_ours(connection)  # before the queue is taken: we wait less long for these answers
        self._take_queue(connection, channel, self._attempts())

    def _attempts(self) -> Sequence[queues.Declaration]:
        settings = self._settings
        return queues.attempts(queues.declaration(settings.queue, settings.queue_type), settings.declare)

    def _take_queue(self, connection: Connection, channel: Channel, attempts: Sequence[queues.Declaration]) -> None:
        """Take the queue as it is, or declare it, and consume. If the broker refuses, it closes the channel and ignores
        the requests behind; then the next attempt is made on another channel."""
        wanted = attempts[0]
        self._channel = channel
        channel.add_on_cancel_callback(self._cancelled)
        channel.add_on_close_callback(lambda _, reason: self._closed(connection, reason, attempts[1:]))
        must_know_type = self.prefetch > 1 and poison.has_limit(self.version)

        def taken(_: Any) -> None:
            if self._settings.queue_type == "default" or not self._settings.declare:
                self.has_declared = self.has_declared or not wanted["passive"]
            if must_know_type:
                self._ask_type(connection, channel)

        channel.queue_declare(**wanted, callback=taken)
        if not must_know_type:
            self._consume(channel)

    def _closed(self, connection: Connection, reason: BaseException, others: Sequence[queues.Declaration]) -> None:
        """The broker has refused a request, or the connection is gone."""
        if connection.is_closed or self._is_consuming or self._has_arrived:
            self._lose(reason)
        elif others and amqp.is_missing(reason):
            self._take_queue(connection, connection.channel(), others)
        elif self._arguments and advice.ARGUMENT in str(reason):
            # Only a quorum queue takes the argument.
            self._arguments = {}
            self._take_queue(connection, connection.channel(), self._attempts())
        else:
            self._lose(reason)

    def _consume(self, channel: Channel) -> None:
        channel.basic_qos(self._at_once())
        channel.basic_consume(
            self._settings.queue, self._delivered, self._name, self._arguments | _EVERYBODY, self._has_begun
        )

    def _has_begun(self, _: Any) -> None:
        self._is_consuming = True

    def _declare_ours(self, connection: Connection) -> None:
        """Begin to declare the queues for retries and dead letters; what cannot be declared is `refused`, and tried
        again when it is needed.

        By this connection, since it is there: the one that publishes is opened when something has failed, and by then a
        new queue would be too young (`queues.SETTLES_IN`).
        """
        steps = retry.steps(self._settings.retries, self._settings.retry_delay)
        for declaration in queues.ours(self._settings.queue, steps):
            queue = declaration["queue"]
            self._undeclared.add(queue)
            done, failed = partial(self._has_declared_ours, queue), partial(self._refused_ours, queue)
            try:
                amqp.declare_anyway(connection, declaration, on_done=done, on_failed=failed)
            except Exception as error:  # noqa: BLE001 - no channel is left
                failed(error)

    def _await_ours(self, patience: float) -> None:
        """Wait for the answers, but not for long: a queue whose node is away keeps the broker from answering for many
        seconds, and whoever consumes does not need it yet. Raises Gone."""
        self._happens(lambda: not self._undeclared, patience)
        if self._undeclared:
            names = ", ".join(sorted(self._undeclared))
            self.refused = f"the broker has not answered within {patience:.0f} s whether it has {names}"

    def _has_declared_ours(self, queue: str, _is_new: bool) -> None:
        self._undeclared.discard(queue)
        self.declared.add(queue)

    def _refused_ours(self, queue: str, error: BaseException) -> None:
        self._undeclared.discard(queue)
        self.refused = f"queue {queue} cannot be declared: {amqp.explain(error, self._endpoint).reason}"

    def _at_once(self) -> int:
        """What is prefetched and not run before `--max-tasks` is reached goes back, for nothing."""
        return min(self.prefetch, self._settings.max_tasks or self.prefetch)

    def _ask_type(self, connection: Connection, consuming: Channel) -> None:
        """Consume when it is known which type the queue is of, which decides how many messages a worker has at once.

        There is no question for it that needs no permission beyond ours, but a refusal that says it: only streams are
        consumed from an offset, and they refuse `_EVERYBODY`.
        """

        def told(_: Channel, reason: BaseException) -> None:
            found = _OF_TYPE.search(str(reason))
            self.prefetch = poison.prefetch(self.prefetch, self.version, found[1] if found else "")
            self._consume(consuming)

        channel = connection.channel()
        channel.add_on_close_callback(told)
        channel.basic_consume(self._settings.queue, _nothing, "", _EVERYBODY | {"x-stream-offset": "next"})

    def _wait(self, happened: Callable[[], bool]) -> None:
        patience = ANSWER_TIMEOUT
        if self.leaving is not None:
            # The supervisor waits for no longer than the grace, and what is in hand may yet be acknowledged.
            patience = min(ANSWER_TIMEOUT, self._settings.grace / 2)
        if not self._happens(happened, patience):
            what = (self._channel and self._channel.awaited) or "basic.consume"
            self._gone = Gone(Cause.BROKER, f"the broker did not answer {what} within {patience:g} s", Kind.TIMEOUT)
            raise self._gone

    def _happens(self, what: Callable[[], bool], within: float) -> bool:
        """Turn the loop until `what()` holds, or for so many seconds; whether it holds. Raises Gone."""
        deadline = now() + within
        timer = self._ioloop.call_later(max(0.0, within), _nothing)
        try:
            while not what():
                self._pump_unless_gone()
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
        while self._stash and self._channel is not None:
            self._channel.basic_nack(self._stash.popleft().tag)
        if self._gone is not None:
            raise self._gone
        return None

    # ------------------------------------------------------------------------------------------------ the pump

    def _pump(self, patience: float = 5.0) -> None:
        """One turn of the loop: wait for something, `patience` seconds at most."""
        self._beat()
        try:
            self._ioloop.turn(patience)
        except Exception as error:  # noqa: BLE001 - whatever a callback stumbles over, the one life ends
            self._lose(error)

    def _pump_unless_gone(self) -> None:
        self._pump()
        if self._gone is not None:
            raise self._gone
        if self.leaving is not None and not self._has_arrived:
            raise self.leaving

    def _keep_or_die(self) -> None:
        """Without its keeper a worker would lose its connection in the middle of a task, and nobody would know why."""
        try:
            self._keep()
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed
            streams.complain_of(error)
            os._exit(EXIT_SOFTWARE)

    def _keep(self) -> None:
        """The keeper: pump in the main thread's stead while a handler keeps it."""
        while self._gone is None:
            originals.sleep(KEEPER_AFTER)
            baton = self.unattended
            away = baton.free_since
            if away is None or now() - away < KEEPER_AFTER:
                continue
            with baton.lock:
                while baton.free_since is not None and self._gone is None:
                    self._pump()

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

    def _cancelled(self, _: Any) -> None:
        # The queue was deleted, its node went away, or (4.3) an acknowledgement came too late. There is no way back on
        # this channel: leave.
        self._is_consuming = False
        question = f"was queue {self._settings.queue!r} deleted or moved"
        for name, ms in self._arguments.items():
            question += f", or a message held for longer than {ms / 1000:g} s ({name})"
        self._end(Cause.BROKER, f"the broker cancelled the consumer: {question}?", Kind.CANCELLED)

    def _lose(self, error: BaseException | str) -> None:
        if isinstance(error, str):
            self._end(Cause.BROKER, error, Kind.OTHER)
            return
        silence = self._connection.silence if self._connection is not None and self._has_arrived else 0.0
        trouble = amqp.explain(error, self._endpoint)
        reason = trouble.reason
        if trouble.kind is Kind.ACK_TIMEOUT:
            reason += f"; {advice.remedy(self.version, self._settings)}"
        self._end(_CAUSES.get(trouble.kind, Cause.BROKER), reason, trouble.kind, silence)

    def _end(self, cause: Cause, detail: str, kind: Kind, silence: float = 0.0) -> None:
        if self._gone is None:
            self._gone = Gone(cause, detail, kind)
            self._gone.silence = silence
            if self.unattended.free_since is not None:
                self._lost(self._gone)

    def _count_dead_on(self, channel: Channel) -> None:
        def answered(frame: Any) -> None:
            self._counted_dead(frame.method.message_count)

        channel.queue_declare(**queues.inquiry(queues.dead(self._settings.queue)), callback=answered)

    def _not_counted(self, _: Any, reason: BaseException) -> None:
        if amqp.explain(reason, self._endpoint).kind is Kind.MISSING:
            self._counted_dead(0)


def _nothing(*_: Any) -> None:
    pass
