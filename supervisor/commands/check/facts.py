"""`workq check`'s facts (nodes, queues, policies) and findings, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

from supervisor.endpoint import Endpoint
from supervisor.policy import advice
from supervisor.values import dataclass
from supervisor.vocabulary import Kind


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    """No action needed."""
    WARNING = "warning"
    """Works, but will cause trouble some day."""
    PROBLEM = "problem"
    """Does not work, or loses messages."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    what: str
    """One line. No secret."""
    fix: str = ""
    """A shell line that fixes it, or else shows more; empty: nothing to do."""


FORGETS: Final = "a node that is killed forgets recent acknowledgements, and those tasks run again"
"""Of a classic queue; measured in docs/reliability.md."""


ok = partial(Finding, Level.OK)
note = partial(Finding, Level.NOTE)
warning = partial(Finding, Level.WARNING)
problem = partial(Finding, Level.PROBLEM)


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Node:
    """The result of connecting to one of the nodes of `--url`."""

    endpoint: Endpoint
    kind: Kind | None = None
    """What is wrong; None: connected."""
    reason: str = ""
    product: str = ""
    version: str = ""
    heartbeat: int | None = None
    """Seconds, as agreed."""
    channel_max: int | None = None
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, as seen without changing it."""

    name: str
    exists: bool | None = None
    """None: not visible, see `reason`."""
    kind: Kind | None = None
    reason: str = ""
    ready: int = 0
    consumers: int = 0
    type: str | None = None
    durable: bool | None = None
    auto_delete: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those that are visible. AMQP never shows `x-delivery-limit`, which brokers do not compare."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The queue's policy, or the one it will have when declared."""

    name: str
    priority: int
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """The policies of a queue."""

    policy: Policy | None = None
    """None: no policy."""
    operator: Mapping[str, Any] = field(default_factory=dict)
    """The operator policy's definition, which takes precedence."""

    @property
    def effective(self) -> dict[str, Any]:
        return {**(self.policy.definition if self.policy else {}), **self.operator}


@dataclass(frozen=True, slots=True)
class Managed:
    """Known only from the management API."""

    url: str
    rule: Rule
    delivery_limit: int | None = None
    """From the broker; None if it does not show it (before 4.0)."""
    alarms: tuple[str, ...] | None = None
    """`memory on rabbit@a`; None: not visible to us."""
    vhost_connections: int | None = None
    user_connections: int | None = None
    """Limits; None or below 0: none."""
    others: Mapping[str, Rule] = field(default_factory=dict)
    """By name: the dead-letter and delay queues, whether they exist yet or not."""


@dataclass(frozen=True, slots=True)
class Broker:
    """All facts."""

    nodes: Sequence[Node]
    queue: Queue | None = None
    """None: no connection to any node."""
    dead: Queue | None = None
    delays: Sequence[Queue] = ()
    """Filled only with --no-declare."""
    refusals: Mapping[str, str | None] = field(default_factory=dict)
    """Permission (`configure jobs`, `read jobs`, `write`) -> the broker's refusal; empty: granted; None: not known."""
    blocked: str | None = None
    """Why the broker blocks publishing; empty: it does not; None: not known."""
    managed: Managed | None = None
    unmanaged: str = ""
    """Why there is no management API."""
    unmanaged_fix: str = ""
    consumer_timeout: int | None = None
    """The node's, milliseconds, from rabbitmqctl; 0: none."""

    @property
    def node(self) -> Node | None:
        """The node that was asked everything."""
        return next((node for node in self.nodes if node.kind is None), None)

    @property
    def release(self) -> tuple[int, int] | None:
        return advice.release_of(self.node.version) if self.node and self.node.product == "RabbitMQ" else None
