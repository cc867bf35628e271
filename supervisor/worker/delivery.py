"""A message delivered to a worker."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from supervisor import queues
from supervisor.amqp.properties import Properties

_MOST: Final = 2**31 - 1
"""Anybody can set our headers. The scoreboard has 32 bits for this; a bool or a negative number is not accepted."""


@dataclass(slots=True)
class Delivery:
    """The message in flight."""

    tag: int
    routing_key: str
    redelivered: bool
    properties: Properties
    body: bytes
    name: str
    """The message id, else a digest of body and routing key."""
    exchange: str = ""
    trace_id: str = ""
    """Of its trace, 32 hexadecimal digits; empty if the sender named none."""
    attempt: int = field(init=False, default=1)
    delivery_count: int = field(init=False, default=0)
    """A quorum queue's count of returns (`x-delivery-count`); 0 on a classic queue."""
    put_back: int = field(init=False, default=0)
    """How often it was put back fresh."""
    deferred: int = field(init=False, default=0)
    """How often its handler raised `Unavailable`."""

    _UNTRACED: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        # Once: each of them is asked for several times in a task, and each call costs a microsecond between tasks.
        if headers := self.properties.headers:
            self.attempt = _counted(headers, queues.ATTEMPT, 1)
            self.delivery_count = _counted(headers, "x-delivery-count")
            self.put_back = _counted(headers, queues.PUT_BACK)
            self.deferred = _counted(headers, queues.DEFERRED)

    @property
    def trace(self) -> Mapping[str, str]:
        """`trace_id`, for log lines; empty when it has none."""
        return {"trace_id": self.trace_id} if self.trace_id else self._UNTRACED

    @property
    def is_named(self) -> bool:
        """Whether its name is the message id."""
        return bool(self.name == self.properties.message_id)

    @property
    def checksum(self) -> int:
        """Of the body; 0 when the name is a digest of it."""
        return zlib.crc32(self.body) if self.properties.message_id else 0

    @property
    def step(self) -> int:
        """Counts the copies that retries and deferrals make of a message."""
        return self.attempt + self.deferred

    @property
    def came_back(self) -> bool:
        """Another worker may have run it, or run it still: a fresh copy is not marked redelivered."""
        return self.redelivered or self.put_back > 0


def _counted(headers: Mapping[str, Any], header: str, least: int = 0) -> int:
    """A number of unknown origin."""
    count = headers.get(header, least)
    # pika gives a 64-bit number as an int of its own class (RabbitMQ 4.3 counts in these); a bool is an int, too.
    is_number = isinstance(count, int) and not isinstance(count, bool)
    return count if is_number and least <= count <= _MOST else least
