"""What a handler is given, and what it may raise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from supervisor import logs
from supervisor.policy import retry

if TYPE_CHECKING:
    from supervisor.worker.delivery import Delivery


class Reject(Exception):
    """Raise it in a handler to dead-letter the message at once: trying again would make no sense.

        raise supervisor.Reject("no such customer")

    The reason travels in the header `x-workq-error`.
    """


class Retry(Exception):
    """Raise it in a handler to have the message retried later. It counts as a try, like an exception.

        raise supervisor.Retry(delay=30)
        raise supervisor.Retry("the other side is busy")

    `delay` in seconds is rounded up to `queues.LADDER` (0.1 s to 24 h); without it, the delay is that after an
    exception. Raises ValueError if it is not a number from 0.
    """

    delay: float | None = None
    """A class attribute too, for subclasses whose `__init__` does not call this one."""

    def __init__(self, why: str = "", *, delay: float | None = None) -> None:
        super().__init__(why)
        self.delay = retry.checked(delay)


class Unavailable(Exception):
    """Raise it in a handler when something it needs is down. That is not the message's fault: no try is counted, and
    the message is run again later.

        raise supervisor.Unavailable("database", retry_after=10)

    `retry_after` in seconds is rounded up to `queues.LADDER`. Raises ValueError if it is not a number from 0.
    """

    retry_after: float = 10.0
    """A class attribute too: see `Retry`."""

    def __init__(self, why: str = "", *, retry_after: float = 10.0) -> None:
        super().__init__(why)
        self.retry_after = retry.checked(retry_after) or 0.0


class SoftTimeout(Exception):
    """Raised in a handler, once, when its task has run for `--soft-timeout`: clean up, or finish. A task that goes on
    is killed at `--task-timeout`."""


class Task:
    """One delivery, as the handler sees it.

    Everything is read from the message when asked for, so a handler pays for what it touches.
    """

    __slots__ = ("_delivery", "_log", "attempt", "body", "lost", "queue", "received_at")

    def __init__(self, delivery: Delivery, attempt: int, received_at: float, queue: str) -> None:
        self._delivery = delivery
        self._log: Any = None
        self.body: bytes = delivery.body
        """The message's body, as it came."""
        self.attempt: int = attempt
        """1 for the first try."""
        self.queue: str = queue
        """The queue that it was taken from."""
        self.received_at: float = received_at
        """Monotonic seconds at which the worker took it up."""
        self.lost: bool = False
        """True once the connection is gone: the result cannot be acknowledged any more, and the message is run again
        once this run has ended. A long-running handler looks here now and then, and stops: after `--lost-grace` its
        worker is killed."""

    @property
    def text(self) -> str:
        """The body as UTF-8. Raises UnicodeDecodeError."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body)

    @property
    def headers(self) -> dict[str, Any]:
        """The message's headers; empty when it has none."""
        return dict(self._delivery.properties.headers or {})

    @property
    def message_id(self) -> str | None:
        """The sender's id for the message, if it gave one."""
        return _text(self._delivery.properties.message_id)

    @property
    def correlation_id(self) -> str | None:
        return _text(self._delivery.properties.correlation_id)

    @property
    def content_type(self) -> str | None:
        return _text(self._delivery.properties.content_type)

    @property
    def routing_key(self) -> str:
        return self._delivery.routing_key

    @property
    def redelivered(self) -> bool:
        """Whether the broker has sent this message to somebody before. Sent, not tried: nobody need have begun it."""
        return self._delivery.redelivered

    @property
    def log(self) -> Any:
        """A structlog logger bound to this task: its lines carry `message_id` and `attempt`, and `trace_id` when the
        message belongs to a trace."""
        if self._log is None:
            delivery = self._delivery
            self._log = logs.get_logger(message_id=delivery.name, attempt=self.attempt, **delivery.trace)
        return self._log

    def __repr__(self) -> str:
        return f"<Task {self._delivery.name} attempt={self.attempt} bytes={len(self.body)}>"


def _text(value: str | bytes | None) -> str | None:
    """A short string, which pika gives as bytes when it is not UTF-8: those readable as `\\xff`."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
