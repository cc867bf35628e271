"""Facts about a broker, by AMQP. Changes nothing: no queue is declared, no message taken.

AMQP 0-9-1 has few queries, but refusals that give a reason. So most of this requests something impossible, and reads
the refusal:

| question | request | answer |
|---|---|---|
| is there a queue, how long is it? | a passive declaration | 404, or the counts |
| its type, its arguments? | declare it with an unknown type | 406 names a difference; adopt it, ask again |
| may we declare it? | the same | 403, or another refusal: permissions are checked first |
| may we consume it? | consume with a priority that is not a number | 403, or another refusal |
| may we publish? an alarm? | publish, `mandatory`, to no queue | 403, connection.blocked, or it is returned |

An unknown type is refused whether the queue exists or not, so the declaration cannot succeed even if the queue is
deleted meanwhile. Every refusal is a line in the broker's log (`channel exception`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from supervisor import amqp, queues
from supervisor.amqp.channel import Channel, ignore
from supervisor.amqp.client import BrokerClient
from supervisor.amqp.properties import BasicProperties
from supervisor.clock import now
from supervisor.commands.check.facts import Node, Queue
from supervisor.endpoint import Endpoint
from supervisor.vocabulary import Kind

NAME: Final = "workq check"
CONNECTING: Final = 10.0
ANSWER: Final = 10.0
MOST_ARGUMENTS: Final = 40
BRIEFLY: Final = 0.3


class Probe(BrokerClient):
    """Looks at one node. A context manager; each question has a channel of its own, which the refusal closes.

    Raises what `amqp.explain` knows.
    """

    def __init__(self, endpoint: Endpoint, heartbeat: float) -> None:
        super().__init__(endpoint, heartbeat=heartbeat, name=NAME, timeout=CONNECTING)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def node(self) -> Node:
        """Who it is, and what was agreed."""
        self.connect(CONNECTING)
        connection = self.connection
        said = connection.server_properties or {}
        return Node(
            self.endpoint,
            product=str(said.get("product", "")),
            version=str(said.get("version", "")),
            heartbeat=connection.heartbeat,
            channel_max=connection.limits.channels,
        )

    def queue(self, name: str) -> Queue:
        """Does it exist, and how long is it?"""
        answer = self.ask(Channel.queue_declare, **queues.inquiry(name))
        if not isinstance(answer, BaseException):
            return Queue(name, True, ready=answer.message_count, consumers=answer.consumer_count)
        trouble = amqp.explain(answer, self.endpoint)
        if trouble.kind is Kind.MISSING:
            return Queue(name, False)
        return Queue(name, None, trouble.kind, f"{name}: {trouble.reason}")

    def properties(self, queue: Queue) -> Queue:
        """The same queue with its type and the arguments that the broker compares; as it was if we may not know."""
        found: dict[str, Any] = {"durable": True, "auto_delete": False}
        arguments: dict[str, Any] = {}
        for _ in range(MOST_ARGUMENTS):
            refusal = self._declare(queue.name, arguments, **found)
            told = queues.difference(refusal)
            if told is None:
                break
            name, value = told
            if name == "x-queue-type":
                # A classic queue of before 3.13 has no such argument.
                kind = value or "classic"
                return Queue(
                    queue.name, True, ready=queue.ready, consumers=queue.consumers, type=kind,
                    durable=found["durable"], auto_delete=found["auto_delete"], arguments=arguments,
                )  # fmt: skip
            place = found if name in found else arguments
            if value is None or place.get(name) == value:
                break  # no progress: this difference is not ours to overcome
            place[name] = value
        return queue

    def may_declare(self, name: str) -> str | None:
        """The broker's no; empty: we may."""
        refusal = self._declare(name, {})
        return _no(refusal)

    def may_consume(self, name: str) -> str | None:
        """The broker's no; empty: we may; None: it has another reason to refuse."""

        # Should a broker take it after all: the channel is closed at once, and what came goes back.
        answer = self.ask(
            Channel.basic_consume,
            queue=name,
            on_message_callback=ignore,
            consumer_tag=NAME,
            arguments={"x-priority": queues.NO_TYPE},
        )
        if isinstance(answer, BaseException) and amqp.explain(answer).kind is Kind.LOCKED:
            return None
        return _no(_refusal(answer))

    def _declare(self, name: str, arguments: dict[str, Any], durable: bool = True, auto_delete: bool = False) -> str:
        """Declare what cannot be; the refusal."""
        wanted = {**arguments, "x-queue-type": queues.NO_TYPE}
        answer = self.ask(Channel.queue_declare, queue=name, durable=durable, auto_delete=auto_delete, arguments=wanted)
        return _refusal(answer)

    def ask(self, request: Callable[..., None], **arguments: Any) -> Any:
        """The answer, or the error with which the broker closed the channel. Raises if the connection ends."""
        channel = self.connection.channel()
        try:
            return self.call(channel, partial(request, channel, **arguments), ANSWER)
        except Exception as error:
            if self.error is not None or channel.error is None:
                raise
            return error
        finally:
            channel.close()
            self.pump(lambda: channel.is_closed, now() + ANSWER)  # there may be no other

    def publish(self, nowhere: str) -> tuple[str | None, str | None]:
        """Publish a message that no queue takes, then ask something: a blocked broker does not read on to that."""
        returned: list[Any] = []
        answered: list[Any] = []
        channel = self.connection.channel()
        channel.on_return = lambda *came: returned.append(came)
        channel.add_on_close_callback(lambda _, error: answered.append(error))
        channel.basic_publish("", nowhere, b"", BasicProperties())  # type: ignore[no-untyped-call]
        channel.basic_qos(1, answered.append)
        self.pump(lambda: bool(answered) or self.is_blocked, now() + ANSWER)
        if self.is_blocked:
            # Reader and channel are two processes in the broker: what the latter says of the message may come later.
            self.pump(lambda: bool(answered or returned), now() + BRIEFLY)
        self.expect(lambda: bool(answered) or self.is_blocked, 0.0)
        alarm = self.connection.blocked
        error = answered[0] if answered and isinstance(answered[0], BaseException) else None
        if error is not None:
            return _no(_refusal(error)), alarm
        return "" if returned or answered else None, alarm or ""


def may_publish(endpoint: Endpoint) -> tuple[str | None, str | None]:
    """The broker's no, and why it takes no messages for now; empty: it does not say no; None: not known.

    On a connection of its own: a broker with an alarm stops reading from one that publishes, and takes no goodbye
    either. It notices that we are gone by its own heartbeat, of which we ask for the shortest.
    """
    line = Probe(endpoint, heartbeat=1.0)
    try:
        line.connect(CONNECTING)
        return line.publish(f"workq-check-{uuid4().hex}")
    finally:
        if line.is_blocked:
            line.drop()
        else:
            line.close()


def look(endpoints: Sequence[Endpoint], heartbeat: float) -> list[Node]:
    """Try to get into each."""
    nodes = []
    for endpoint in endpoints:
        try:
            with Probe(endpoint, heartbeat) as probe:
                nodes.append(probe.node())
        except Exception as error:  # noqa: BLE001 - whatever the broker, ssl and the OS have to say
            trouble = amqp.explain(error, endpoint)
            nodes.append(Node(endpoint, trouble.kind, trouble.reason))
    return nodes


def _refusal(answer: Any) -> str:
    """The broker's; empty when it was none."""
    return amqp.refusal(answer) if isinstance(answer, BaseException) else ""


def _no(refusal: str) -> str:
    return refusal if refusal.startswith("ACCESS_REFUSED") else ""
