"""A connection that publishes: one channel, in confirm mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from supervisor import queues
from supervisor.amqp.channel import Channel
from supervisor.amqp.client import BrokerClient
from supervisor.amqp.properties import BasicProperties
from supervisor.amqp.topology import declare_anyway
from supervisor.clock import now
from supervisor.endpoint import Endpoint


@dataclass(slots=True)
class Sent:
    """A message in flight."""

    position: int
    message_id: str | None
    routing_key: str
    size: int
    returned: str = ""
    nacked: bool = False


class Session(BrokerClient):
    """It ends with the first thing that goes wrong.

    Everything happens in `pump`: callbacks only note what they are told.
    """

    def __init__(
        self, endpoint: Endpoint, heartbeat: float, name: str, timeout: float, on_blocked: Callable[[], None]
    ) -> None:
        super().__init__(endpoint, heartbeat=heartbeat, name=name, timeout=timeout)
        self.connection.on_blocked = on_blocked
        self.pending: dict[int, Sent] = {}
        """By delivery tag, oldest first."""
        self.bytes = 0
        self.settled: list[Sent] = []
        self.has_declared = False
        """Whether the publisher's queue was sent a declaration, and not only asked for."""
        self._tag = 0
        self._channel: Channel | None = None

    def open(self, declaration: queues.Declaration, declare: bool, timeout: float) -> None:
        """Connect, take or declare the queue, prepare the channel. Raises as `take` does."""
        deadline = now() + timeout
        self.connect(timeout)
        channel, _, wanted = self.take(declaration, declare=declare, timeout=deadline - now())
        self.has_declared = not wanted["passive"]
        self.depend_on(channel)
        channel.on_return = self._returned
        self.call(channel, lambda callback: channel.confirm_select(self._confirmed, callback), deadline - now())
        self._channel = channel

    def declare(self, declaration: queues.Declaration, declare: bool, timeout: float) -> bool:
        """Take or declare another queue, and tell whether it is new. Raises as `take` does; the session lives on if the
        broker only refused."""
        if not declare:
            self.take(declaration, declare=False, timeout=timeout)[0].close()
            return False
        answers: list[bool] = []
        refusals: list[BaseException] = []
        declare_anyway(self.connection, declaration, on_done=answers.append, on_failed=refusals.append)
        self.expect(lambda: bool(answers or refusals), timeout)
        if refusals:
            raise refusals[0]
        return answers[0]

    def send(self, exchange: str, sent: Sent, properties: BasicProperties, body: bytes) -> None:
        """At the latest with the next `pump`; not at all once the session is over. Raises ValueError for what AMQP
        cannot carry: then nothing was sent, and the session lives on."""
        assert self._channel is not None
        self.connection.hold()
        try:
            self._channel.basic_publish(exchange, sent.routing_key, body, properties)
        except MemoryError as error:
            self.end(error)
        except Exception as error:
            raise ValueError(f"AMQP cannot carry this message: {type(error).__name__}: {error}") from error
        if self.error is None:
            self._tag += 1
            self.pending[self._tag] = sent
            self.bytes += sent.size

    def await_confirmation(self, timeout: float) -> bool:
        """Until the broker has settled at least one message more. False if it has not, in time or ever."""
        before = len(self.pending)
        self.pump(lambda: len(self.pending) < before, now() + timeout)
        return len(self.pending) < before

    def close(self) -> None:
        """Close the connection: properly if that is quick and nothing is in flight, in any case."""
        if self.pending:
            self.drop()
        else:
            super().close()

    def _returned(self, method: Any, properties: BasicProperties) -> None:
        # A return names no delivery tag, but comes before the confirm of its message, and returns keep the order of
        # publishing (https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed).
        for sent in self.pending.values():
            same = sent.message_id == properties.message_id and sent.routing_key == method.routing_key
            if same and not sent.returned:
                sent.returned = f"{method.reply_code} {method.reply_text}"
                return

    def _confirmed(self, tag: int, multiple: bool, nacked: bool) -> None:
        up_to = takewhile(lambda held: not tag or held <= tag, self.pending)  # 0: all
        for each in list(up_to) if multiple else [tag]:
            sent = self.pending.pop(each, None)
            if sent is not None:
                sent.nacked = nacked
                self.bytes -= sent.size
                self.settled.append(sent)
