"""A consumer's subscription: take the queue as it is, or declare it; consume if it may, cancel, consume again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from supervisor import amqp, queues
from supervisor.amqp.channel import Channel, Consume, ignore
from supervisor.amqp.connection import Connection
from supervisor.policy import advice, poison
from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Intake, Kind
from supervisor.worker.gone import Gone

_EVERYBODY: Final = {"x-priority": 0}
"""Always sent with basic.consume. The default priority (https://www.rabbitmq.com/docs/consumer-priority) changes
nothing, but a stream refuses it (406); without it a stream would let us consume new messages, and never remove them.
AMQP 0-9-1 has no way to ask for a queue's type."""
_OF_TYPE: Final = re.compile(r"of queue type rabbit_(\w+)_queue")


class Subscription:
    """Started on each connection that is tried; `channel` is the consuming one."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        delivered: Consume,
        cancelled: Callable[[Gone], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        """`name`: the consumer tag. `cancelled` is called when the broker cancels it, `lost` when the broker refuses it
        or the connection is lost."""
        self._settings = settings
        self._name = name
        self._delivered = delivered
        self._cancelled = cancelled
        self._lost = lost
        self._version = ""
        self._arguments: dict[str, int] = {}
        """Of basic.consume, beyond `_EVERYBODY`."""
        self._has_begun = False
        self.channel: Channel | None = None
        self.intake = Intake.ALL
        self._changed: Callable[[], None] = ignore
        self.is_active = False
        """The broker has confirmed the consumer, which has not been cancelled."""
        self.is_changing = True
        """It has been asked to, or to cancel it, and has not answered."""
        self.has_declared: bool | None = None
        """Whether the queue was missing and declared; None when it was declared for comparison."""
        self.prefetch = settings.prefetch
        """The prefetch count."""

    def begin(self, connection: Connection, channel: Channel, version: str, intake: Intake) -> None:
        """Send all requests, on this new channel. `version` as `Consumer.version`."""
        self.intake, self._changed, self.is_changing = intake, ignore, True
        self._version = version
        self._arguments = advice.consumer_arguments(version, self._settings)
        self._has_begun = self.is_active = False
        self._take(connection, channel, self._attempts())

    def end(self, answered: Callable[[], None]) -> None:
        """Call only while it is active."""
        assert self.channel is not None
        self.is_active, self.is_changing, self._changed = False, True, answered
        self.channel.basic_cancel(self._name, callback=self._answered)

    def resume(self, intake: Intake, answered: Callable[[], None]) -> None:
        """Consume again, on the same channel. Call only when it neither is active nor changes."""
        assert self.channel is not None
        self.intake, self.is_changing, self._changed = intake, True, answered
        self._consume(self.channel)

    def _attempts(self) -> Sequence[queues.Declaration]:
        settings = self._settings
        return queues.attempts(queues.declaration(settings.queue, settings.queue_type), settings.declare)

    def _take(self, connection: Connection, channel: Channel, attempts: Sequence[queues.Declaration]) -> None:
        """Take the queue, or declare it, and consume. On refusal the broker closes the channel and ignores the requests
        behind; the next attempt uses another channel."""
        wanted = attempts[0]
        self.channel = channel
        channel.add_on_cancel_callback(self._broker_cancelled)
        channel.add_on_close_callback(lambda _, reason: self._closed(connection, reason, attempts[1:]))
        must_know_type = self.prefetch > 1 and poison.has_limit(self._version)

        def taken(_: Any) -> None:
            if self._settings.queue_type == "default" or not self._settings.declare:
                self.has_declared = self.has_declared or not wanted["passive"]
            if must_know_type:
                self._ask_type(connection, channel)

        channel.queue_declare(**wanted, callback=taken)
        if not must_know_type:
            self._consume(channel)

    def _closed(self, connection: Connection, reason: BaseException, others: Sequence[queues.Declaration]) -> None:
        """The broker has refused a request, or the connection is lost."""
        if connection.is_closed or self._has_begun:
            self._lost(reason)
        elif others and amqp.is_missing(reason):
            self._take(connection, connection.channel(), others)
        elif self._arguments and advice.ARGUMENT in str(reason):
            # Only a quorum queue accepts the argument.
            self._arguments = {}
            self._take(connection, connection.channel(), self._attempts())
        else:
            self._lost(reason)

    def _consume(self, channel: Channel) -> None:
        if self.intake is Intake.NONE:
            channel.basic_qos(1, self._held)  # its answer shows that the queue was taken
            return
        # Do not prefetch messages that `--max-tasks` would return unrun.
        most = min(self.prefetch, self._settings.max_tasks or self.prefetch)
        channel.basic_qos(1 if self.intake is Intake.ONE else most)
        channel.basic_consume(
            self._settings.queue, self._delivered, self._name, self._arguments | _EVERYBODY, self._consuming
        )

    def _consuming(self, _: Any) -> None:
        self._has_begun = self.is_active = True
        self._answered()

    def _held(self, _: Any) -> None:
        # With arguments the queue may refuse the consumer when there is one, and is then taken again without them.
        self._has_begun = not self._arguments
        self._answered()

    def _answered(self, _: Any = None) -> None:
        self.is_changing = False
        self._changed()

    def _ask_type(self, connection: Connection, consuming: Channel) -> None:
        """Consume once the queue's type is known, on which the prefetch count depends.

        A refusal shows it, without further permissions: only streams are consumed from an offset, and they refuse
        `_EVERYBODY`.
        """

        def told(_: Channel, reason: BaseException) -> None:
            found = _OF_TYPE.search(str(reason))
            self.prefetch = poison.prefetch(self.prefetch, self._version, found[1] if found else "")
            self._consume(consuming)

        channel = connection.channel()
        channel.add_on_close_callback(told)
        channel.basic_consume(self._settings.queue, lambda *_: None, "", _EVERYBODY | {"x-stream-offset": "next"})

    def _broker_cancelled(self, _: Any) -> None:
        # The queue was deleted, its node went down, or (4.3) an acknowledgement came too late. The channel cannot
        # recover.
        self.is_active = False
        question = f"was queue {self._settings.queue!r} deleted or moved"
        for name, ms in self._arguments.items():
            question += f", or a message held for longer than {ms / 1000:g} s ({name})"
        self._cancelled(Gone(Cause.BROKER, f"the broker cancelled the consumer: {question}?", Kind.CANCELLED))
