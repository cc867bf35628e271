"""What `workq check` has found out, as values: nodes, queues, policies. And what it says of them: findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from supervisor.endpoint import Endpoint
from supervisor.policy import advice
from supervisor.vocabulary import Kind


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing has to be done."""
    WARNING = "warning"
    """Works, and will hurt some day."""
    PROBLEM = "problem"
    """Does not work, or loses messages."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    what: str
    """One line. No secret."""
    fix: str = ""
    """One line for a shell that mends it, or shows more where there is no such line; empty where nothing is to do."""


FORGETS: Final = "a node that is killed forgets recent acknowledgements, and those tasks run again"
"""Of a classic queue: docs/reliability.md has the measurement."""


def ok(subject: str, what: str) -> Finding:
    return Finding(Level.OK, subject, what)


def note(subject: str, what: str, fix: str = "") -> Finding:
    return Finding(Level.NOTE, subject, what, fix)


def warning(subject: str, what: str, fix: str = "") -> Finding:
    return Finding(Level.WARNING, subject, what, fix)


def problem(subject: str, what: str, fix: str = "") -> Finding:
    return Finding(Level.PROBLEM, subject, what, fix)


@dataclass(frozen=True, slots=True)
class Node:
    """What one of the nodes of `--url` said to a connection."""

    endpoint: Endpoint
    kind: Kind | None = None
    """What is wrong; None: it let us in."""
    reason: str = ""
    product: str = ""
    version: str = ""
    heartbeat: int | None = None
    """Seconds, as agreed."""
    channel_max: int | None = None
    """0: as many as one likes."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What could be seen of a queue without touching it."""

    name: str
    exists: bool | None = None
    """None: it cannot be looked at, see `reason`."""
    kind: Kind | None = None
    reason: str = ""
    ready: int = 0
    consumers: int = 0
    type: str | None = None
    durable: bool | None = None
    auto_delete: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those that could be read. AMQP alone never shows `x-delivery-limit`: brokers do not compare it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy that the queue obeys, or will when it is declared."""

    name: str
    priority: int
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """What policies say to a queue."""

    policy: Policy | None = None
    """None: it obeys none."""
    operator: Mapping[str, Any] = field(default_factory=dict)
    """The operator policy's definition; its word counts more."""

    @property
    def effective(self) -> dict[str, Any]:
        return {**(self.policy.definition if self.policy else {}), **self.operator}


@dataclass(frozen=True, slots=True)
class Managed:
    """What only the management API tells."""

    url: str
    rule: Rule
    delivery_limit: int | None = None
    """As the broker itself reckons it; None where it does not say (before 4.0)."""
    alarms: tuple[str, ...] | None = None
    """`memory on rabbit@a`; None: not ours to see."""
    vhost_connections: int | None = None
    user_connections: int | None = None
    """Limits; None or below 0: there is none."""
    others: Mapping[str, Rule] = field(default_factory=dict)
    """By name: the queues for dead letters and for tasks that wait for another try, whether they exist yet or not."""


@dataclass(frozen=True, slots=True)
class Broker:
    """All that could be found out."""

    nodes: Sequence[Node]
    queue: Queue | None = None
    """None: no node let us in."""
    dead: Queue | None = None
    delays: Sequence[Queue] = ()
    """Asked for only where we must not declare them."""
    refusals: Mapping[str, str | None] = field(default_factory=dict)
    """What was tried (`configure jobs`, `read jobs`, `write`) -> the broker's no; empty: it may; None: not known."""
    blocked: str | None = None
    """Why the broker takes no messages for now; empty: it takes them; None: not known."""
    managed: Managed | None = None
    unmanaged: str = ""
    """Why there is no management API."""
    unmanaged_fix: str = ""
    consumer_timeout: int | None = None
    """The node's, milliseconds, when rabbitmqctl was asked; 0: it has none."""

    @property
    def node(self) -> Node | None:
        """The one that was asked everything."""
        return next((node for node in self.nodes if node.kind is None), None)

    @property
    def release(self) -> tuple[int, int] | None:
        return advice.release_of(self.node.version) if self.node and self.node.product == "RabbitMQ" else None
