"""A message that a worker was given."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from supervisor import queues
from supervisor.amqp.properties import Properties

_MOST: Final = 2**31 - 1
"""Anybody can write our headers. A larger number is somebody's joke, and the scoreboard has 32 bits for it; a bool, or
a number below zero, is none that the supervisor accepts."""


@dataclass(slots=True)
class Delivery:
    """The message in hand."""

    tag: int
    routing_key: str
    redelivered: bool
    properties: Properties
    body: bytes
    name: str
    """The message id, else a digest of body and routing key."""
    exchange: str = ""
    trace_id: str = ""
    """Of the trace that it belongs to, as 32 hexadecimal digits; empty when its sender named none."""

    _UNTRACED: ClassVar[Mapping[str, str]] = {}

    @property
    def trace(self) -> Mapping[str, str]:
        """`trace_id`, for what is logged about it; nothing when it belongs to no trace."""
        return {"trace_id": self.trace_id} if self.trace_id else self._UNTRACED

    @property
    def is_named(self) -> bool:
        """Whether its name is the message id."""
        return bool(self.name == self.properties.message_id)

    @property
    def checksum(self) -> int:
        """Of the body; 0 when the name is a digest of that already."""
        return zlib.crc32(self.body) if self.properties.message_id else 0

    @property
    def attempt(self) -> int:
        return self._counted(queues.ATTEMPT, 1)

    @property
    def step(self) -> int:
        """Which of the copies it is that retries and deferrals make of a message, one after the other."""
        return self.attempt + self.deferred

    @property
    def delivery_count(self) -> int:
        """How often a quorum queue says it came back (`x-delivery-count`); 0 on a classic queue, which does not
        count."""
        return self._counted("x-delivery-count")

    @property
    def put_back(self) -> int:
        """How often it was put back fresh."""
        return self._counted(queues.PUT_BACK)

    @property
    def deferred(self) -> int:
        """How often what its handler needs was away."""
        return self._counted(queues.DEFERRED)

    def _counted(self, header: str, least: int = 0) -> int:
        """A number that somebody has written, the sender perhaps."""
        count = (self.properties.headers or {}).get(header, least)
        return count if type(count) is int and least <= count <= _MOST else least
