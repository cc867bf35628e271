"""A connection that its owner serves: within calls that have a bound, on the caller's thread."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from supervisor import queues
from supervisor.amqp.channel import Channel
from supervisor.amqp.connection import Connection
from supervisor.amqp.errors import Trouble, explain, is_missing, opening_error
from supervisor.amqp.ioloop import IOLoop
from supervisor.clock import now
from supervisor.endpoint import Endpoint

CLOSING: Final = 2.0
"""Seconds for closing the connection properly."""


class Unreachable(Exception):
    """No node can be used; its text says what is wrong with each."""

    def __init__(self, troubles: Sequence[Trouble]) -> None:
        super().__init__("; ".join(trouble.reason for trouble in troubles))
        # One node that may be back is reason enough to try again.
        self.trouble = next((each for each in troubles if not each.permanent), troubles[0])


class BrokerClient:
    """One connection, begun when this is made. It ends with the first thing that goes wrong, which is `error`.

    Callbacks are called in `pump` only, and what they raise ends the connection like anything else. `heartbeat`,
    `timeout` and what is raised are those of `Connection`; an OSError, a MemoryError or a RuntimeError says that this
    process cannot even begin.
    """

    def __init__(self, endpoint: Endpoint, *, heartbeat: float, name: str, timeout: float) -> None:
        self.endpoint = endpoint
        self.error: BaseException | None = None
        self.served = now()
        """When last."""
        self._loop = IOLoop(shared=True)
        try:
            self.connection = Connection(
                endpoint, self._loop, heartbeat=heartbeat, name=name, timeout=timeout, on_closed=self.end
            )
        except BaseException:
            self._loop.close()
            raise

    @property
    def is_blocked(self) -> bool:
        """By an alarm of the broker's."""
        return self.connection.blocked is not None

    def pump(self, until: Callable[[], bool], deadline: float) -> None:
        """Serve the connection until something is the case, or it ends, or the deadline passes."""
        self.connection.release()
        while self.error is None and not until():
            try:
                self._loop.turn(max(0.0, deadline - now()))
            except Exception as error:  # noqa: BLE001 - whatever a callback stumbles over
                self.end(error)
            self.served = now()
            if self.served >= deadline:
                break

    def look(self) -> None:
        """Send and receive what can be without waiting: a turn reads once, and the end may come behind heartbeats."""
        self.pump(lambda: False, now())
        while self.error is None and self._loop.has_news():
            self.pump(lambda: False, now())

    def expect(self, what: Callable[[], bool], timeout: float) -> None:
        """`pump` until something is the case. Raises what ended the connection, or TimeoutError."""
        self.pump(what, now() + timeout)
        if self.error is not None:
            raise self.error
        if not what():
            raise opening_error(self.connection, TimeoutError())

    def connect(self, timeout: float) -> None:
        """Raises as `expect` does."""
        self.expect(lambda: self.connection.is_open, timeout)

    def call(self, channel: Channel, request: Callable[..., None], timeout: float) -> Any:
        """Make a request on a channel, and wait for its answer: pika's method. Raises as `expect` does, and with what
        the broker closed the channel."""
        answers: list[Any] = []
        request(callback=answers.append)
        self.expect(lambda: bool(answers) or channel.error is not None, timeout)
        if not answers:
            assert channel.error is not None
            raise channel.error
        return answers[0].method

    def take(
        self, declaration: queues.Declaration, *, declare: bool, timeout: float
    ) -> tuple[Channel, Any, queues.Declaration]:
        """Take a queue as it is, or declare it: `queues.attempts`, one after the other, each on a channel of its own,
        since a refusal closes the channel that it came by.

        Returns the open channel, pika's Queue.DeclareOk (`message_count`, `consumer_count`) and the attempt that it
        answers. Raises as `call` does.
        """
        deadline = now() + timeout
        attempts = queues.attempts(declaration, declare)
        for wanted in attempts:
            channel = self.connection.channel()
            try:
                answer = self.call(channel, partial(channel.queue_declare, **wanted), deadline - now())
            except Exception as error:
                if wanted is attempts[-1] or not is_missing(error):
                    raise
            else:
                return channel, answer, wanted
        raise AssertionError("there is at least one attempt")

    def depend_on(self, channel: Channel) -> None:
        """End with this channel, too."""
        channel.add_on_close_callback(lambda _, error: self.end(error))

    def close(self) -> None:
        """Close the connection: properly if that is quick, in any case."""
        if self.error is None and self.connection.is_open:
            self.connection.close()
            self.pump(lambda: False, now() + CLOSING)
        self.drop()

    def drop(self) -> None:
        """Close at once, without connection.close: the broker may no longer read."""
        self.connection.drop()
        self._loop.close()

    def end(self, error: BaseException) -> None:
        """The connection, or what the owner needs of it, is no more."""
        # A lost connection also closes its channel; the first word is the more telling one.
        self.error = self.error or error


Reached = TypeVar("Reached", bound=BrokerClient)


def reach(
    endpoints: Sequence[Endpoint], begin: Callable[[Endpoint], Reached], prepare: Callable[[Reached], None]
) -> Reached:
    """A connection to one of the nodes, tried in random order: begun, and opened. Raises Unreachable."""
    troubles: list[Trouble] = []
    for endpoint in random.sample(endpoints, len(endpoints)):
        client: Reached | None = None
        try:
            client = begin(endpoint)
            prepare(client)
            return client
        except BaseException as error:
            if client is not None:
                client.drop()
            if not isinstance(error, Exception):
                raise
            # The broker's, that of an unusable file, or of a process that has nothing left to begin with.
            troubles.append(explain(error, endpoint))
    raise Unreachable(troubles)
