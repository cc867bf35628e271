"""A message delivered to a worker."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

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

    _UNTRACED: ClassVar[Mapping[str, str]] = {}

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
    def attempt(self) -> int:
        return self._counted(queues.ATTEMPT, 1)

    @property
    def step(self) -> int:
        """Counts the copies that retries and deferrals make of a message."""
        return self.attempt + self.deferred

    @property
    def delivery_count(self) -> int:
        """A quorum queue's count of returns (`x-delivery-count`); 0 on a classic queue."""
        return self._counted("x-delivery-count")

    @property
    def put_back(self) -> int:
        """How often it was put back fresh."""
        return self._counted(queues.PUT_BACK)

    @property
    def came_back(self) -> bool:
        """Another worker may have run it, or run it still: a fresh copy is not marked redelivered."""
        return self.redelivered or self.put_back > 0

    @property
    def deferred(self) -> int:
        """How often its handler raised `Unavailable`."""
        return self._counted(queues.DEFERRED)

    def _counted(self, header: str, least: int = 0) -> int:
        """A number of unknown origin."""
        headers = self.properties.headers
        if not headers:
            return least
        count = headers.get(header, least)
        # pika gives a 64-bit number as an int of its own class (RabbitMQ 4.3 counts in these); a bool is an int, too.
        is_number = isinstance(count, int) and not isinstance(count, bool)
        return count if is_number and least <= count <= _MOST else least
