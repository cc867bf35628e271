"""What `workq check` finds about the broker: facts in, findings out. Pure.

A fact that nobody could find out is None, and leads to a finding that says so; nothing is guessed. Each fix is one line
for a shell, made to be copied. Those that set a policy set one and the same, with every key that is wanted: a queue
obeys one policy only (https://www.rabbitmq.com/docs/policies), so a second would switch the first off.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from supervisor import queues
from supervisor.endpoint import Endpoint
from supervisor.policy import advice, retry
from supervisor.policy.poison import RETURNS_MAX, has_limit, prefetch
from supervisor.settings import Settings
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


# ------------------------------------------------------------------------------------------------------- facts


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
    """What policies say to one of our other queues."""

    policy: Policy | None
    operator: Mapping[str, Any] = field(default_factory=dict)

    @property
    def effective(self) -> dict[str, Any]:
        return {**(self.policy.definition if self.policy else {}), **self.operator}


@dataclass(frozen=True, slots=True)
class Managed:
    """What only the management API tells."""

    url: str
    policy: Policy | None
    """None: it obeys none."""
    operator: Mapping[str, Any] = field(default_factory=dict)
    """The operator policy's definition; its word counts more."""
    delivery_limit: int | None = None
    """As the broker itself reckons it; None where it does not say (before 4.0)."""
    alarms: tuple[str, ...] | None = None
    """`memory on rabbit@a`; None: not ours to see."""
    vhost_connections: int | None = None
    user_connections: int | None = None
    """Limits; None or below 0: there is none."""
    others: Mapping[str, Rule] = field(default_factory=dict)
    """By name: the queues for dead letters and for tasks that wait for another try, whether they exist yet or not."""

    @property
    def effective(self) -> dict[str, Any]:
        return {**(self.policy.definition if self.policy else {}), **self.operator}


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


# ------------------------------------------------------------------------------------------------- findings


def examine(broker: Broker, settings: Settings) -> list[Finding]:
    """Everything that is to be said about the broker."""
    findings = [*_nodes(broker.nodes)]
    if broker.queue is not None:
        ours = _Case(broker, broker.queue, settings)
        findings += [
            *ours.version(),
            *ours.connection(),
            *ours.queue_itself(),
            *ours.queue_arguments(),
            *ours.returns(),
            *ours.prefetched(),
            *ours.dead_letters(),
            *ours.retries(),
            *ours.kept(),
            *ours.acknowledgement(),
            *ours.permissions(),
            *ours.alarms(),
            *ours.limits(),
            *ours.unknown(),
        ]
    return findings


def _nodes(nodes: Sequence[Node]) -> Iterator[Finding]:
    someone = any(node.kind is None for node in nodes)
    for node in nodes:
        if node.kind is not None:
            # One node of a cluster that is down is what a cluster is for; a login it refuses is not.
            away = someone and node.kind in _AWAY
            level = Level.WARNING if away else Level.PROBLEM
            yield Finding(level, "broker", node.reason, _node_fix(node))
        else:
            yield ok("broker", f"{node.endpoint} lets us in")
        if not node.endpoint.tls and not _is_loopback(node.endpoint.host):
            host, vhost = node.endpoint.host, _percent(node.endpoint.vhost)
            yield Finding(
                Level.WARNING,
                "encryption",
                f"{node.endpoint}: password and messages cross the network in the clear",
                f"export WORKQ_URL='amqps://USER:PASSWORD@{host}:5671/{vhost}'",
            )


_AWAY: Final = frozenset({Kind.REFUSED, Kind.UNREACHABLE, Kind.DNS, Kind.TIMEOUT, Kind.LOST, Kind.OPERATOR})


def _node_fix(node: Node) -> str:
    endpoint, kind = node.endpoint, node.kind
    host, user = shlex.quote(endpoint.host), shlex.quote(endpoint.user)
    vhost = shlex.quote(endpoint.vhost)
    grant = f"rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*'"
    match kind:
        case Kind.REFUSED:
            return "systemctl start rabbitmq-server" + ("" if _is_loopback(endpoint.host) else f"  # on {host}")
        case Kind.DNS:
            return f"getent hosts {host}"
        case Kind.AUTHENTICATION:
            return f"rabbitmqctl change_password {user}  # asks for it; unknown user: rabbitmqctl add_user {user}"
        case Kind.VHOST if "not found" in node.reason:
            return f"rabbitmqctl add_vhost {vhost} && {grant}"
        case Kind.VHOST:
            return grant
        case Kind.LIMIT if "user connection limit" in node.reason:
            return f"""rabbitmqctl set_user_limits {user} '{{"max-connections": -1}}'"""
        case Kind.LIMIT:
            return f"""rabbitmqctl set_vhost_limits -p {vhost} '{{"max-connections": -1}}'"""
        case Kind.TLS | Kind.PROTOCOL:
            return f"openssl s_client -connect {host}:{endpoint.port} -servername {host} </dev/null"
        case Kind.SETTINGS:
            return ""
        case _:
            return f"timeout 5 bash -c 'exec 3<>/dev/tcp/{endpoint.host}/{endpoint.port}' && echo open"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def _percent(text: str) -> str:
    return "".join(char if char.isalnum() else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)


class _Case:
    """One queue of one broker that let us in."""

    def __init__(self, broker: Broker, queue: Queue, settings: Settings) -> None:
        assert broker.node is not None
        self.broker = broker
        self.node = broker.node
        self.queue = queue
        self.settings = settings
        self.release = broker.release
        self.vhost = self.node.endpoint.vhost
        self.wanted = self._wanted()

    # ------------------------------------------------------------------------------------ the broker itself

    def version(self) -> Iterator[Finding]:
        if self.release is None:
            said = f"{self.node.product} {self.node.version}".strip() or "something that does not say what it is"
            yield Finding(Level.NOTE, "version", f"the broker is {said}; workq-supervise is made for RabbitMQ 3.10+")
            return
        if self.release < (3, 10):
            what = f"RabbitMQ {self.node.version} is older than 3.10, the oldest that workq-supervise is tried with"
            yield Finding(Level.WARNING, "version", f"{what} (https://www.rabbitmq.com/docs/upgrade)")
        elif self.release in _SUPPORT_ENDED:
            what = (
                f"RabbitMQ {self.node.version}: community support for this series ended in "
                f"{_SUPPORT_ENDED[self.release]}; a distribution's or vendor's may go on"
            )
            yield Finding(Level.NOTE, "version", f"{what} (https://www.rabbitmq.com/docs/upgrade)")
        else:
            yield ok("version", f"RabbitMQ {self.node.version}")

    def connection(self) -> Iterator[Finding]:
        asked, agreed = self.settings.heartbeat, self.node.heartbeat
        if agreed is None or agreed == asked:
            if asked < 5:
                what = f"{asked:g} s is short: a busy host or network is taken for a dead one"
                yield Finding(Level.NOTE, "heartbeat", what, "export WORKQ_HEARTBEAT=15s")
            else:
                yield ok("heartbeat", f"{asked:g} s")
        elif agreed == 0:
            what = "the broker switched it off: nobody notices a peer that vanished without a word"
            yield Finding(
                Level.WARNING, "heartbeat", what, "rabbitmqctl eval 'application:set_env(rabbit, heartbeat, 60).'"
            )
        else:
            yield Finding(Level.NOTE, "heartbeat", f"{asked:g} s was asked for, {agreed} s was agreed")
        most = self.node.channel_max
        if most and most < CHANNELS:
            what = f"the broker allows {most} channels a connection; a worker needs {CHANNELS}"
            yield Finding(
                Level.PROBLEM, "channels", what, "rabbitmqctl eval 'application:set_env(rabbit, channel_max, 2047).'"
            )

    def alarms(self) -> Iterator[Finding]:
        managed, blocked = self.broker.managed, self.broker.blocked
        # What the API says of alarms is some seconds old; it counts where AMQP does not tell, and names the node.
        alarms = managed.alarms if managed else None
        if blocked == "" or (blocked is None and alarms == ()):
            yield ok("alarms", "none: the broker takes messages")
        if not blocked and (blocked is not None or not alarms):
            return
        said = ", ".join(alarms or (str(blocked),))
        what = (
            f"the broker has an alarm ({said}) and takes no messages: publishers, retries and dead letters wait; "
            "consuming goes on"
        )
        if "disk" in said:
            more = "; free disk space on the node, or lower a limit that is too high"
            yield Finding(Level.PROBLEM, "alarms", what + more, "rabbitmqctl set_disk_free_limit 50MB")
        if "memory" in said:
            more = "; have the backlog worked off, give the node more memory, or raise the mark"
            yield Finding(Level.PROBLEM, "alarms", what + more, "rabbitmqctl set_vm_memory_high_watermark 0.6")
        if "disk" not in said and "memory" not in said:
            yield Finding(Level.PROBLEM, "alarms", what, "rabbitmq-diagnostics alarms")

    def limits(self) -> Iterator[Finding]:
        managed = self.broker.managed
        if managed is None:
            return
        needed = CONNECTIONS * self.settings.workers.most
        user, vhost = shlex.quote(self.node.endpoint.user), shlex.quote(self.vhost)
        value = shlex.quote(json.dumps({"max-connections": 2 * needed}))
        for limit, whose, fix in (
            (managed.user_connections, "user", f"rabbitmqctl set_user_limits {user} {value}"),
            (managed.vhost_connections, "virtual host", f"rabbitmqctl set_vhost_limits -p {vhost} {value}"),
        ):
            if limit is None or limit < 0:
                continue
            if limit < needed:
                what = f"the {whose} may have {limit} connections, {self.settings.workers.most} workers need {needed}"
                yield Finding(Level.WARNING, "limits", what, fix)
            else:
                yield ok("limits", f"the {whose} may have {limit} connections")

    # --------------------------------------------------------------------------------------------- the queue

    def queue_itself(self) -> Iterator[Finding]:
        queue, settings = self.queue, self.settings
        if queue.exists is None:
            yield Finding(Level.PROBLEM, "queue", queue.reason, self._look_fix(queue))
            return
        if not queue.exists:
            if settings.declare:
                kind = "the virtual host's default type" if settings.queue_type == "default" else settings.queue_type
                yield Finding(
                    Level.NOTE, "queue", f"{queue.name} does not exist yet; workers declare it, durable, {kind}"
                )
            else:
                what = f"{queue.name} does not exist, and --no-declare keeps workers from declaring it"
                yield Finding(Level.PROBLEM, "queue", what, self._declare_line(queue.name))
            return
        yield ok("queue", f"{queue.name}: {queue.ready} ready, {queue.consumers} consumers")
        yield from self._type()
        if queue.durable is False:
            what = "it is not durable: a restart of the broker deletes it, messages and all"
            yield Finding(Level.WARNING, "queue", what, self._anew())
        if queue.auto_delete:
            what = "it is auto-delete: when the last worker leaves, the broker deletes it, messages and all"
            yield Finding(Level.WARNING, "queue", what, self._anew())

    def _type(self) -> Iterator[Finding]:
        actual, asked = self.queue.type, self.settings.queue_type
        if actual is None:
            what = "not known: the broker tells it to users that may declare the queue, and to the management API"
            yield Finding(Level.NOTE, "queue type", what, f"rabbitmqctl list_queues {self._p()}name type")
        elif actual not in ("classic", "quorum"):
            what = f"{self.queue.name} is a {actual}: workers cannot consume it; name a classic or quorum queue"
            yield Finding(Level.PROBLEM, "queue type", what, "export WORKQ_QUEUE=ANOTHER_QUEUE")
        elif asked not in ("default", actual):
            what = f"--queue-type is {asked}, and {self.queue.name} is {actual}: workers refuse to start"
            yield Finding(Level.PROBLEM, "queue type", what, "export WORKQ_QUEUE_TYPE=default")
        elif actual == "classic" and len(self.broker.nodes) > 1:
            what = (
                f"{self.queue.name} is classic: it lives on one node of the cluster and is away when that is; {FORGETS}"
            )
            yield Finding(Level.NOTE, "queue type", what, f"{self._anew()} && export WORKQ_QUEUE_TYPE=quorum")
        elif actual == "classic":
            what = f"{self.queue.name} is classic: {FORGETS}"
            yield Finding(Level.NOTE, "queue type", what, f"{self._anew()} && export WORKQ_QUEUE_TYPE=quorum")
        else:
            yield ok("queue type", actual)

    def queue_arguments(self) -> Iterator[Finding]:
        if not self.queue.exists:
            return
        if self._value(queues.SINGLE) and self.settings.workers.most > 1:
            what = f"it has a single active consumer: one of {self.settings.workers} workers works, the others stand by"
            yield Finding(Level.WARNING, "queue", what, "export WORKQ_WORKERS=1")
        if self._value(queues.SINGLE) and self.settings.ready_when == "consuming":
            what = (
                "it has a single active consumer: while messages wait, hosts that stand by are not ready (/readyz 503)"
            )
            yield Finding(Level.NOTE, "queue", what, "export WORKQ_READY_WHEN=subscribed")
        if self._drops():
            length = self._value("x-max-length") or self._value("x-max-length-bytes")
            what = f"when it is full (at {length}), the broker drops the oldest messages without a word to publishers"
            fix = self._anew() if "x-overflow" in self.queue.arguments else self._policy_line()
            yield Finding(Level.WARNING, "queue", what, fix)
        if (ttl := self._value("x-message-ttl")) is not None and not self._has_exchange():
            what = f"messages that have waited {_seconds(ttl)} are dropped"
            yield Finding(Level.NOTE, "queue", what, f"rabbitmqctl list_queues {self._p()}name arguments policy")
        if (expires := self._value("x-expires")) is not None:
            what = f"after {_seconds(expires)} without a consumer the broker deletes it, messages and all"
            yield Finding(Level.WARNING, "queue", what, self._anew() if "x-expires" in self.queue.arguments else "")

    def _drops(self) -> bool:
        limited = any(self._value(f"x-max-length{unit}") is not None for unit in ("", "-bytes"))
        return limited and self._value("x-overflow") in (None, "drop-head")

    def returns(self) -> Iterator[Finding]:
        """The delivery limit, and what becomes of a message that reaches it."""
        if self.queue.type != "quorum":
            if self.queue.type == "classic":
                yield ok("delivery limit", "a classic queue counts no returns; --max-crashes is the fence")
            return
        limit = self._delivery_limit()
        if self._has_exchange():
            yield ok("delivery limit", f"{'none' if limit is None else limit}; the queue dead-letters")
            yield from self._exchange_target()
        elif limit is not None and limit <= RETURNS_MAX:
            what = (
                f"a message that came back {limit} times is dropped without a word; workers put one aside, or back "
                f"uncounted, at {RETURNS_MAX}, too late here"
            )
            yield Finding(Level.PROBLEM, "delivery limit", what, self._policy_line())
        elif limit is not None and not self._has_default_limit():
            what = (
                f"a message that came back {limit} times is dropped without a word: before RabbitMQ 4.0 workers reckon "
                "with no limit; a dead-letter policy keeps it"
            )
            yield Finding(Level.WARNING, "delivery limit", what, self._policy_line())
        elif limit is not None:
            told = "" if self.broker.managed else ", unless a policy says otherwise"
            what = (
                f"a message that came back {limit} times is dropped without a word{told}: workers put it aside, or "
                "back uncounted, before that, other consumers do not; a dead-letter policy keeps it"
            )
            yield Finding(Level.NOTE, "delivery limit", what, self._policy_line())
        elif self.broker.managed:
            yield ok("delivery limit", "none")

    def _delivery_limit(self) -> int | None:
        """None: none, or none that is known."""
        managed = self.broker.managed
        if managed and managed.delivery_limit is not None:
            limit: Any = managed.delivery_limit
        else:
            limit = self._value("x-delivery-limit")
        if limit is None and self._has_default_limit():
            return 20  # https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
        return limit if isinstance(limit, int) and limit >= 0 else None

    def _has_default_limit(self) -> bool:
        return has_limit(self.node.version)

    def prefetched(self) -> Iterator[Finding]:
        """Whether `--prefetch` and the delivery limit go together: a worker that dies returns all that it has."""
        wanted = self.settings.prefetch
        if wanted == 1 or self.queue.type != "quorum":
            return
        fix = "export WORKQ_PREFETCH=1"
        counted = "a worker that dies returns all that it has prefetched, and the broker counts each"
        limit = self._delivery_limit()
        if prefetch(wanted, self.node.version, self.queue.type) < wanted:
            what = (
                f"--prefetch {wanted} is used as 1 on this quorum queue: {counted}, with a limit of 20 unless changed"
            )
            yield Finding(Level.WARNING, "prefetch", what, fix)
        elif limit is not None:
            what = f"--prefetch {wanted} on a quorum queue with a delivery limit of {limit}: {counted}, so healthy "
            what += "messages behind those that kill are dropped or dead-lettered unrun"
            yield Finding(Level.PROBLEM, "prefetch", what, fix)
        elif self.broker.managed is None:
            what = f"--prefetch {wanted} needs a quorum queue without delivery limit: {counted}; policies are not known"
            yield Finding(Level.NOTE, "prefetch", what, f"rabbitmqctl list_policies {self._p()}".rstrip())
        else:
            yield ok("prefetch", f"{wanted}; the queue has no delivery limit")

    def _has_exchange(self) -> bool:
        return self._value("x-dead-letter-exchange") is not None

    def _exchange_target(self) -> Iterator[Finding]:
        """The queue that the broker itself dead-letters into: a missing one drops what comes."""
        dead = self.broker.dead
        ours = self._value("x-dead-letter-exchange") == "" and dead is not None
        if ours and dead and dead.exists is False and self._value("x-dead-letter-routing-key") == dead.name:
            what = f"the broker dead-letters into {dead.name}, which does not exist yet: what it sends there is dropped"
            yield Finding(Level.WARNING, "dead letters", what, self._declare_line(dead.name))

    def dead_letters(self) -> Iterator[Finding]:
        dead = self.broker.dead
        if dead is None:
            return
        if dead.exists is None:
            yield Finding(Level.PROBLEM, "dead letters", dead.reason, self._look_fix(dead))
        elif not dead.exists:
            if self.settings.declare:
                yield ok("dead letters", f"none; {dead.name} is declared with the first")
            else:
                what = f"{dead.name} does not exist, and --no-declare keeps workers from declaring it: the first dead "
                what += "letter cannot be put aside and keeps its worker busy"
                yield Finding(Level.PROBLEM, "dead letters", what, self._declare_line(dead.name))
        elif dead.ready:
            what = f"{dead.ready} in {dead.name}; look at them, then `workq dead requeue` or `drop`"
            yield Finding(
                Level.WARNING, "dead letters", what, f"workq dead list --queue {shlex.quote(self.queue.name)}"
            )
        else:
            yield ok("dead letters", f"none in {dead.name}")

    def retries(self) -> Iterator[Finding]:
        missing = [queue.name for queue in self.broker.delays if not queue.exists]
        if missing:
            what = f"failed tasks cannot wait for another try: --no-declare, and there is no {', '.join(missing)}"
            yield Finding(Level.PROBLEM, "retries", what, "export WORKQ_DECLARE=true")

    def kept(self) -> Iterator[Finding]:
        """Whether what lies in our other queues stays there: a policy for all queues means them, too."""
        delays = {queues.delay(self.queue.name, ms): ms for ms in retry.LADDER}
        rules = self.broker.managed.others if self.broker.managed else {}
        found: dict[tuple[str, Level, str, str], list[str]] = {}
        dead = self.broker.dead
        for name in (queues.dead(self.queue.name), *delays):
            rule = rules.get(name, Rule(None))
            own = dead.arguments if dead is not None and dead.name == name else {}
            subject = "retries" if name in delays else "dead letters"
            for harm in self._harms(own, rule, delays.get(name)):
                found.setdefault((subject, *harm), []).append(name)
        for (subject, level, what, fix), names in found.items():
            some = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it"
            yield Finding(level, subject, f"{some}: {what}", fix)

    def _harms(self, own: Mapping[str, Any], rule: Rule, delay: int | None) -> Iterator[tuple[Level, str, str]]:
        """What the arguments and the policies of one of them do to what lies in it. `delay`: for how long it may,
        milliseconds; None: for ever."""
        said = {key: value for key, value in rule.effective.items() if key in _FORGETFUL and isinstance(value, int)}
        theirs = {key: own[f"x-{key}"] for key in _FORGETFUL if isinstance(own.get(f"x-{key}"), int)}
        if rule.operator.keys() & _FORGETFUL:
            by, fix = "an operator policy says so", f"rabbitmqctl list_operator_policies {self._p()}".rstrip()
        elif said and rule.policy:
            by, fix = f"the policy {rule.policy.name} says so", self._exempting(rule.policy)
        else:
            by, fix = "it was declared so", f"rabbitmqctl list_queues {self._p()}name arguments"
        said = {
            key: min(value for value in (said.get(key), theirs.get(key)) if value is not None)
            for key in said.keys() | theirs.keys()
        }  # the smaller one counts
        ttl, expires = said.get("message-ttl"), said.get("expires")
        if expires is not None:
            what = (
                f"after {_seconds(expires)} without a consumer, and it never has one, the broker deletes it, messages "
            )
            yield Level.PROBLEM, f"{what}and all; {by}", fix
        if ttl is not None and delay is None:
            moved = "x-dead-letter-exchange" in own or "dead-letter-exchange" in rule.effective
            fate = "dead-lettered in their turn" if moved else "dropped"
            what = f"dead letters that have lain there for {_seconds(ttl)} are {fate}, unseen by workq dead; {by}"
            yield Level.PROBLEM, what, fix
        elif ttl is not None and delay is not None and ttl < delay:
            yield Level.WARNING, f"tasks come back after {_seconds(ttl)}, sooner than they should; {by}", fix
        lengths = [
            f"{said[key]}{unit}" for key, unit in (("max-length", ""), ("max-length-bytes", " bytes")) if key in said
        ]
        if not lengths:
            return
        overflow = own.get("x-overflow", rule.effective.get("overflow"))
        if delay is None and overflow in (None, "drop-head"):
            what = f"when it is full (at {lengths[0]}), the broker drops the oldest dead letters without a word; {by}"
            yield Level.PROBLEM, what, fix
        else:
            what = f"when it is full (at {lengths[0]}), the next message cannot be put there and keeps its worker busy"
            yield Level.NOTE, f"{what}; {by}", fix

    def _exempting(self, policy: Policy) -> str:
        """A policy for all our other queues, of a higher priority and without what makes them forget."""
        name = f"workq-{self.queue.name}-kept"
        rules = self.broker.managed.others.values() if self.broker.managed else ()
        obeyed = [rule.policy for rule in rules if rule.policy is not None and rule.policy.name != name]
        priority = max((each.priority for each in obeyed), default=policy.priority) + 1
        kept = {key: value for key, value in policy.definition.items() if key not in _FORGETFUL}
        # A policy may not be empty. This says what happens when a queue without a limit is full.
        definition = json.dumps(kept or {"overflow": "reject-publish"})
        words = ["set_policy", "-p", self.vhost, "--priority", str(priority), "--apply-to", "queues", name]
        pattern = rf"^{re.escape(self.queue.name)}\.(dead|delay\.\d+)$"
        return "rabbitmqctl " + shlex.join([*words, pattern, definition])

    # ------------------------------------------------------------------------------- acknowledgement timeout

    def acknowledgement(self) -> Iterator[Finding]:
        subject = "acknowledgement timeout"
        if self.release is not None and self.release >= (4, 3):
            yield ok(subject, f"workers ask for their own ({advice.ARGUMENT}) where the queue has one")
            return
        needed, known = self._needed(), self._consumer_timeout()
        if known is not None and known >= min(needed, NEVER):
            yield ok(subject, f"{_seconds(known)} is enough")
        elif known is not None and self.settings.task_timeout is not None:
            what = f"tasks may take {_seconds(needed)}, and the broker takes them away, to be run again, after "
            yield Finding(Level.PROBLEM, subject, what + _seconds(known), self._timeout_fix())
        elif known is not None:
            what = f"a task longer than {_seconds(known)} is run again; --task-timeout is off"
            yield Finding(Level.NOTE, subject, what, self._timeout_fix())
        elif needed <= HALF_AN_HOUR:
            yield ok(subject, f"{_seconds(needed)} is needed; RabbitMQ's 30 min, unless it was lowered, is enough")
        elif self.settings.task_timeout is not None:
            what = (
                f"tasks may take {_seconds(needed)}; the broker's timeout is not known (30 min unless it was raised), "
            )
            what += "and a longer task is run again"
            yield Finding(Level.WARNING, subject, what, self._timeout_fix())
        else:
            what = "a task longer than the broker's timeout (not known; 30 min unless it was changed) is run again"
            yield Finding(Level.NOTE, subject, what, self._timeout_fix())

    def _needed(self) -> int:
        """Milliseconds that a message may have to stay unacknowledged, without any margin."""
        settings = self.settings
        if settings.task_timeout is None:
            return advice.NO_LIMIT
        return round(1000 * (settings.prefetch * settings.task_timeout + settings.grace))

    def _consumer_timeout(self) -> int | None:
        """Milliseconds; None: not known."""
        has_own = self.release is not None and self.release >= (3, 12)
        own = self._value("x-consumer-timeout") if has_own else None
        if isinstance(own, int):
            return own
        of_node = self.broker.consumer_timeout
        known = self.broker.managed is not None or not has_own
        return (of_node or NEVER) if of_node is not None and known else None

    def _timeout_fix(self) -> str:
        if self.release is None:
            return ""
        if self.release < (3, 12):
            ms = self._timeout_wanted()
            return f"rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, {ms}).'  # and in rabbitmq.conf"
        return self._policy_line()

    def _timeout_wanted(self) -> int:
        return min(advice.acknowledgement_ms(self.settings), NEVER)

    # --------------------------------------------------------------------------------------------- permissions

    def permissions(self) -> Iterator[Finding]:
        """What the workers will do, and the broker would refuse."""
        queue, settings, refusals = self.queue, self.settings, self.broker.refusals
        declares = settings.declare and (queue.exists is False or settings.queue_type != "default")
        dead, delay = queues.dead(queue.name), delay_of(settings)
        needs: list[tuple[str, str, bool]] = [
            (f"read {queue.name}", "consume", True),
            (f"configure {queue.name}", f"declare {queue.name}", declares),
            ("write", "publish retries and dead letters", True),
            (
                f"configure {dead}",
                f"declare {dead}",
                settings.declare and not (self.broker.dead and self.broker.dead.exists),
            ),
        ]
        if settings.retries and settings.declare:
            needs += [
                (f"configure {delay}", f"declare {delay} and its like", True),
                (f"read {delay}", f"declare {delay}, which dead-letters", True),
            ]
        asked = [(purpose, refusals.get(key)) for key, purpose, is_needed in needs if is_needed]
        refused = [purpose for purpose, refusal in asked if refusal]
        user = self.node.endpoint.user
        if refused:
            what = f"user {user} may not {'; may not '.join(refused)}; the line below is all that workq needs, and "
            what += f"replaces what the user has in this virtual host (rabbitmqctl list_user_permissions {user})"
            yield Finding(Level.PROBLEM, "permissions", what, self._grant())
        elif any(refusal is None for _, refusal in asked):
            doubtful = [purpose for purpose, refusal in asked if refusal is None]
            what = f"not known whether user {user} may {', '.join(doubtful)}"
            look = f"rabbitmqctl list_user_permissions {shlex.quote(user)}"
            yield Finding(Level.NOTE, "permissions", what, look)
        else:
            yield ok("permissions", f"user {user} may do all that workers do")

    def _grant(self) -> str:
        name = re.escape(self.queue.name)
        ours = rf"^{name}(\.dead|\.delay\.\d+)?$"
        write = rf"^(amq\.default|{name}(\.dead|\.delay\.\d+)?)$"
        words = ("set_permissions", "-p", self.vhost, self.node.endpoint.user, ours, write, ours)
        return "rabbitmqctl " + shlex.join(words)

    # ------------------------------------------------------------------------------------------ what is unknown

    def unknown(self) -> Iterator[Finding]:
        if self.broker.managed is None:
            what = "not known: policies (delivery limit, dead-lettering, lengths) and connection limits, since "
            yield Finding(Level.NOTE, "management", what + self.broker.unmanaged, self.broker.unmanaged_fix)
        else:
            yield ok("management", f"{self.broker.managed.url} answers")

    # -------------------------------------------------------------------------------------------------- lines

    def _value(self, argument: str) -> Any:
        """An argument of the queue's, or what a policy says in its stead."""
        value = self.queue.arguments.get(argument)
        if value is None and self.broker.managed:
            value = self.broker.managed.effective.get(argument.removeprefix("x-"))
        return value

    def _wanted(self) -> dict[str, Any]:
        """Every key that this queue's policy should have, for one reason or another."""
        wanted: dict[str, Any] = {}
        if self.queue.type == "quorum" and not self._has_exchange():
            limit = self._delivery_limit()
            if limit is not None:
                dead = queues.dead(self.queue.name)
                wanted |= {"dead-letter-exchange": "", "dead-letter-routing-key": dead}
        if self.release is not None and (3, 12) <= self.release < (4, 3):
            known = self._consumer_timeout()
            if (HALF_AN_HOUR if known is None else known) < min(self._needed(), NEVER):
                wanted["consumer-timeout"] = self._timeout_wanted()
        if self.queue.exists and self._drops():
            wanted["overflow"] = "reject-publish"
        return wanted

    def _policy_line(self) -> str:
        policy = self.broker.managed.policy if self.broker.managed else None
        name = f"workq-{self.queue.name}"
        priority = 0 if policy is None else policy.priority + (policy.name != name)
        definition = {**(policy.definition if policy else {}), **self.wanted}
        words = ["set_policy", "-p", self.vhost, "--priority", str(priority), "--apply-to", "queues", name]
        line = "rabbitmqctl " + shlex.join([*words, f"^{re.escape(self.queue.name)}$", json.dumps(definition)])
        if self.broker.managed:
            return line
        return f"{line}  # a queue obeys one policy: if it has one, add the keys there (rabbitmqctl list_policies)"

    def _anew(self) -> str:
        """Arguments cannot be changed: the queue goes, if it is empty and unused, and workers declare it anew."""
        name = self.queue.name
        if self.queue.type != "quorum":
            return "rabbitmqctl " + shlex.join(("delete_queue", "-p", self.vhost, name, "--if-empty", "--if-unused"))
        # A quorum queue knows neither flag; its counts lag by seconds, so its producers had better be stopped.
        listing = shlex.join(("list_queues", "-s", "-p", self.vhost, "name", "messages", "consumers"))
        row = f"printf '%s\\t0\\t0' {shlex.quote(name)}"
        delete = shlex.join(("delete_queue", "-p", self.vhost, name))
        return f'rabbitmqctl {listing} | grep -qxF "$({row})" && rabbitmqctl {delete}'

    def _declare_line(self, name: str) -> str:
        """rabbitmqctl has no command for it."""
        resource = f"rabbit_misc:r({_binary(self.vhost)}, queue, {_binary(name)})"
        return "rabbitmqctl eval " + shlex.quote(
            f'rabbit_amqqueue:declare({resource}, true, false, [], none, <<"workq">>).'
        )

    def _look_fix(self, queue: Queue) -> str:
        if queue.kind is Kind.UNAVAILABLE:
            return "rabbitmqctl cluster_status"
        return f"rabbitmqctl list_queues {self._p()}name exclusive owner_pid exclusive_consumer_pid"

    def _p(self) -> str:
        return "" if self.vhost == "/" else f"-p {shlex.quote(self.vhost)} "


_FORGETFUL: Final = frozenset({"message-ttl", "expires", "max-length", "max-length-bytes"})
"""Keys of policies, and arguments with x- before them, by which a queue loses what lies in it."""
CHANNELS: Final = 2
"""A worker's: one that consumes, one that asks for the queue's depth."""
CONNECTIONS: Final = 2
"""A worker's: one that consumes, and one that parks messages once there is one to park."""
HALF_AN_HOUR: Final = 1_800_000
"""Milliseconds: RabbitMQ's `consumer_timeout` where nobody has changed it."""
NEVER: Final = 2**31 - 1
"""Milliseconds, 24 days: as good as none, and what every version accepts."""

_SUPPORT_ENDED: Final = {
    (3, 10): "2022-09",
    (3, 11): "2023-06",
    (3, 12): "2024-02",
    (3, 13): "2024-09",
    (4, 0): "2025-04",
    (4, 1): "2026-01",
}
"""https://endoflife.date/rabbitmq. Series that are not listed are not judged."""


def delay_of(settings: Settings) -> str:
    """The delay queue of the first retry."""
    return queues.delay(settings.queue, retry.step(retry.backoff(1, settings.retry_delay)))


def delays_of(settings: Settings) -> list[str]:
    """Every delay queue that failed tasks will want, by our own choice of delays."""
    return [queues.delay(settings.queue, ms) for ms in retry.steps(settings.retries, settings.retry_delay)]


def _seconds(ms: int) -> str:
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * length or ms == length:
            return f"{ms / length:g} {unit}" if ms % length == 0 else f"{ms / length:.1f} {unit}"
    return f"{ms / 1000:g} s"


def _binary(text: str) -> str:
    """An Erlang binary that no character can break out of."""
    if re.fullmatch(r"[\w./-]*", text, re.ASCII):
        return f'<<"{text}">>'
    return f"<<{','.join(map(str, text.encode()))}>>"
