"""A pika connection that its owner serves: within calls of `pump`, each with a bound, on the caller's thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from pika import exceptions
from pika.adapters.select_connection import IOLoop

from supervisor import amqp
from supervisor.clock import now
from supervisor.endpoint import Endpoint

CLOSING: Final = 2.0
"""Seconds that a polite goodbye may take. pika's own has no bound."""


class Connection(amqp.Connection):
    """One that can be let go of."""

    def abort(self) -> None:
        """End the stream at once, without a word to the broker, which may not be listening any more."""
        # What pika itself does when a heartbeat is missing; its public close() waits for the broker, without a bound.
        terminate: Any = getattr(self, "_terminate_stream")  # noqa: B009 - pika's type stubs leave it out
        if not self.is_closed:
            terminate(exceptions.ConnectionClosedByClient(320, "aborted"))


class Served:
    """One connection, begun when this is made. It ends with the first thing that goes wrong, which is `error`.

    pika's callbacks are called in `pump` only, and what they raise ends the connection like anything else.
    `heartbeat` and `timeout` in seconds are those of `amqp.parameters`, as is what it raises; an OSError, a MemoryError
    or a RuntimeError says that this process cannot even begin.
    """

    def __init__(
        self, endpoint: Endpoint, *, heartbeat: float, name: str, timeout: float, kind: type[Connection] = Connection
    ) -> None:
        self.error: BaseException | None = None
        self.served = now()
        """When last."""
        parameters = amqp.parameters(endpoint, heartbeat=heartbeat, name=name, timeout=timeout)
        self._loop: Any = IOLoop()
        try:
            self._loop.activate_poller()
            self._connection: Any = kind(
                parameters,
                on_open_callback=lambda connection: None,
                on_open_error_callback=lambda connection, error: self.ended(
                    connection, amqp.opening_error(connection, error)
                ),
                on_close_callback=self.ended,
                custom_ioloop=self._loop,
            )
        except BaseException:
            self._loop.close()
            raise

    def pump(self, until: Callable[[], bool], deadline: float) -> None:
        """Serve the connection until something is the case, or it ends, or the deadline passes."""
        alarm = self._loop.call_later(max(0.0, deadline - now()), lambda: None)
        try:
            while self.error is None and not until():
                try:
                    self._loop.poll()
                    self._loop.process_timeouts()
                except Exception as error:  # noqa: BLE001 - pika lets out here what a reset, or a decoder, raises
                    self.ended(self._connection, amqp.opening_error(self._connection, error))
                self.served = now()
                if self.served >= deadline:
                    break
        finally:
            self._loop.remove_timeout(alarm)

    def expect(self, what: Callable[[], bool], timeout: float) -> None:
        """`pump` until something is the case. Raises what ended the connection, or TimeoutError."""
        self.pump(what, now() + timeout)
        if self.error is not None:
            raise self.error
        if not what():
            raise TimeoutError

    def connect(self, timeout: float) -> None:
        """Raises as `expect` does."""
        self.expect(lambda: bool(self._connection.is_open), timeout)

    def close(self) -> None:
        """Say goodbye if that can be done quickly; let go in any case."""
        if self.error is None and self._connection.is_open:
            self._connection.close()
            self.pump(lambda: False, now() + CLOSING)
        self.drop()

    def drop(self) -> None:
        """Let go of the connection at once."""
        # What has failed once may be in no state to be aborted in order; the loop must go in any case, as its
        # descriptors go with it.
        with contextlib.suppress(Exception):
            self._connection.abort()
            for _ in range(3):
                # The abort is carried out by the loop's callbacks; none of them waits for the network.
                self._loop.process_timeouts()
        self._loop.close()

    def ended(self, _subject: Any, error: Any) -> None:
        """The connection, or what the owner needs of it, is no more: a callback for pika."""
        # A lost connection also closes its channel; the first word is the more telling one.
        self.error = self.error or error
