"""`workq check`'s findings about the broker, from facts. Pure.

An unknown fact is None, and a finding says so. Each fix is one shell line. Fixes by policy all set the same policy,
with every key that is needed: a queue obeys only one (https://www.rabbitmq.com/docs/policies).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import quote

from supervisor import queues
from supervisor.commands.check.case import HALF_AN_HOUR, Case, delay_of, spelled
from supervisor.commands.check.facts import Broker, Finding, Level, Node, is_loopback, note, ok, problem, warning
from supervisor.commands.check.queue import QueueCase
from supervisor.commands.check.versions import SUPPORT_ENDED, TABLE, TESTED, dotted, tested
from supervisor.policy import advice
from supervisor.settings import Settings
from supervisor.vocabulary import Kind

CHANNELS: Final = 2
"""Of a worker: one to consume, one to ask for the queue's depth."""
CONNECTIONS: Final = 2
"""Of a worker: one to consume, and one to park messages."""


def examine(broker: Broker, settings: Settings) -> list[Finding]:
    """All findings about the broker."""
    findings = [*_nodes(broker.nodes)]
    if broker.queue is not None:
        node, queue = BrokerCase(broker, broker.queue, settings), QueueCase(broker, broker.queue, settings)
        findings += [
            *node.version(),
            *node.connection(),
            *queue.queue_itself(),
            *queue.queue_arguments(),
            *queue.returns(),
            *queue.prefetched(),
            *queue.dead_letters(),
            *queue.retries(),
            *queue.kept(),
            *node.acknowledgement(),
            *node.permissions(),
            *node.alarms(),
            *node.limits(),
            *node.unknown(),
        ]
    return findings


def _nodes(nodes: Sequence[Node]) -> Iterator[Finding]:
    someone = any(node.kind is None for node in nodes)
    for node in nodes:
        if node.kind is not None:
            # A cluster may have a node that is down, but no node should refuse the login.
            away = someone and node.kind in _AWAY
            level = Level.WARNING if away else Level.PROBLEM
            yield Finding(level, "broker", node.reason, _node_fix(node))
        else:
            yield ok("broker", f"{node.endpoint} accepts the login")
        if not node.endpoint.tls and not is_loopback(node.endpoint.host):
            what = f"{node.endpoint}: password and messages are sent over the network unencrypted"
            url = f"amqps://USER:PASSWORD@{node.endpoint.host}:5671/{quote(node.endpoint.vhost, safe='')}"
            yield warning("encryption", what, f"export WORKQ_URL='{url}'")


_AWAY: Final = frozenset({Kind.REFUSED, Kind.UNREACHABLE, Kind.DNS, Kind.TIMEOUT, Kind.LOST, Kind.OPERATOR})


def _node_fix(node: Node) -> str:
    endpoint, kind = node.endpoint, node.kind
    host, user = shlex.quote(endpoint.host), shlex.quote(endpoint.user)
    vhost = shlex.quote(endpoint.vhost)
    grant = f"rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*'"
    match kind:
        case Kind.REFUSED:
            return "systemctl start rabbitmq-server" + ("" if is_loopback(endpoint.host) else f"  # on {host}")
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


class BrokerCase(Case):
    def version(self) -> Iterator[Finding]:
        oldest = dotted(TESTED[0])
        if self.release is None:
            said = f"{self.node.product} {self.node.version}".strip() or "something that does not say what it is"
            yield note("version", f"the broker is {said}; workq-supervise is made for RabbitMQ {oldest}+")
            return
        named = f"RabbitMQ {self.node.version}"
        if self.release < TESTED[0]:
            what = f"{named} is older than {oldest}, the oldest that workq-supervise supports"
            yield warning("version", f"{what} (https://www.rabbitmq.com/docs/upgrade)")
        elif self.release > TESTED[-1]:
            what = f"{named} is newer than what this version of workq-supervise is tested with ({tested()})"
            yield note("version", f"{what}: look for a newer one, and try it before you rely on it")
        elif self.release in SUPPORT_ENDED:
            ended = f"community support for this series ended {SUPPORT_ENDED[self.release]}"
            what = f"{named}: {ended} ({TABLE}); a distribution's or vendor's may continue"
            yield note("version", f"{what} (https://www.rabbitmq.com/docs/upgrade)")
        else:
            yield ok("version", named)

    def connection(self) -> Iterator[Finding]:
        asked, agreed = self.settings.heartbeat, self.node.heartbeat
        if agreed is None or agreed == asked:
            if asked < 5:
                what = f"{asked:g} s is short: a busy host or network is taken for a dead one"
                yield note("heartbeat", what, "export WORKQ_HEARTBEAT=15s")
            else:
                yield ok("heartbeat", f"{asked:g} s")
        elif agreed == 0:
            what = "the broker turned it off: a peer that vanishes is never detected"
            yield warning("heartbeat", what, "rabbitmqctl eval 'application:set_env(rabbit, heartbeat, 60).'")
        else:
            yield note("heartbeat", f"{asked:g} s requested, {agreed} s negotiated")
        most = self.node.channel_max
        if most and most < CHANNELS:
            what = f"the broker allows {most} channels a connection; a worker needs {CHANNELS}"
            yield problem("channels", what, "rabbitmqctl eval 'application:set_env(rabbit, channel_max, 2047).'")

    def alarms(self) -> Iterator[Finding]:
        managed, blocked = self.broker.managed, self.broker.blocked
        # The API's alarms are some seconds old: used if AMQP does not show them, and for the node's name.
        alarms = managed.alarms if managed else None
        if blocked == "" or (blocked is None and alarms == ()):
            yield ok("alarms", "none: the broker takes messages")
        if not blocked and (blocked is not None or not alarms):
            return
        said = ", ".join(alarms or (str(blocked),))
        what = f"the broker has an alarm ({said}) and takes no messages: publishers, retries and dead letters wait"
        what += "; consuming continues"
        if "disk" in said:
            more = "; free disk space on the node, or lower a limit that is too high"
            yield problem("alarms", what + more, "rabbitmqctl set_disk_free_limit 50MB")
        if "memory" in said:
            more = "; drain the backlog, give the node more memory, or raise the watermark"
            yield problem("alarms", what + more, "rabbitmqctl set_vm_memory_high_watermark 0.6")
        if "disk" not in said and "memory" not in said:
            yield problem("alarms", what, "rabbitmq-diagnostics alarms")

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
                yield warning("limits", what, fix)
            else:
                yield ok("limits", f"the {whose} may have {limit} connections")

    def acknowledgement(self) -> Iterator[Finding]:
        subject = "acknowledgement timeout"
        if self.release is not None and self.release >= (4, 3):
            yield ok(subject, f"workers ask for their own ({advice.ARGUMENT}) where the queue has one")
            return
        needed, known = self.needed(), self.consumer_timeout()
        if known is not None and known >= min(needed, advice.LONGEST):
            yield ok(subject, f"{spelled(known)} is enough")
        elif known is not None and self.settings.task_timeout is not None:
            what = f"tasks may take {spelled(needed)}, and the broker redelivers them after "
            yield problem(subject, what + spelled(known), self._timeout_fix())
        elif known is not None:
            what = f"a task longer than {spelled(known)} is run again; --task-timeout is off"
            yield note(subject, what, self._timeout_fix())
        elif needed <= HALF_AN_HOUR:
            yield ok(subject, f"{spelled(needed)} is needed; RabbitMQ's 30 min, unless it was lowered, is enough")
        elif self.settings.task_timeout is not None:
            what = f"tasks may take {spelled(needed)}; the broker's timeout is not known (30 min unless it was raised)"
            what += ", and a longer task is run again"
            yield warning(subject, what, self._timeout_fix())
        else:
            what = "a task longer than the broker's timeout (not known; 30 min unless it was changed) is run again"
            yield note(subject, what, self._timeout_fix())

    def _timeout_fix(self) -> str:
        if self.release is None:
            return ""
        if self.release < (3, 12):
            ms = self.timeout_wanted()
            return f"rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, {ms}).'  # and in rabbitmq.conf"
        return self.policy_line()

    def permissions(self) -> Iterator[Finding]:
        """Permissions that workers need, but do not have."""
        queue, settings, refusals = self.queue, self.settings, self.broker.refusals
        declares = settings.declare and (queue.exists is False or settings.queue_type != "default")
        dead, delay = queues.dead(queue.name), delay_of(settings)
        has_dead = self.broker.dead is not None and bool(self.broker.dead.exists)
        needs: list[tuple[str, str, bool]] = [
            (f"read {queue.name}", "consume", True),
            (f"configure {queue.name}", f"declare {queue.name}", declares),
            ("write", "publish retries and dead letters", True),
            (f"configure {dead}", f"declare {dead}", settings.declare and not has_dead),
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
            what = f"user {user} may not {'; may not '.join(refused)}; the command below grants what workq needs, and "
            what += f"replaces what the user has in this virtual host (rabbitmqctl list_user_permissions {user})"
            yield problem("permissions", what, self._grant())
        elif any(refusal is None for _, refusal in asked):
            doubtful = [purpose for purpose, refusal in asked if refusal is None]
            what = f"not known whether user {user} may {', '.join(doubtful)}"
            look = f"rabbitmqctl list_user_permissions {shlex.quote(user)}"
            yield note("permissions", what, look)
        else:
            yield ok("permissions", f"user {user} may do all that workers do")

    def _grant(self) -> str:
        name = re.escape(self.queue.name)
        ours = rf"^{name}(\.dead|\.delay\.\d+)?$"
        write = rf"^(amq\.default|{name}(\.dead|\.delay\.\d+)?)$"
        words = ("set_permissions", "-p", self.vhost, self.node.endpoint.user, ours, write, ours)
        return "rabbitmqctl " + shlex.join(words)

    def unknown(self) -> Iterator[Finding]:
        if self.broker.managed is None:
            what = "not known: policies (delivery limit, dead-lettering, lengths) and connection limits, since "
            yield note("management", what + self.broker.unmanaged, self.broker.unmanaged_fix)
        else:
            yield ok("management", f"{self.broker.managed.url} answers")
