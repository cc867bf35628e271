"""One queue on a reachable broker: what is known of it, and the lines that change it."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, Final

from supervisor import queues
from supervisor.commands.check.facts import Broker, Queue
from supervisor.policy import advice, retry
from supervisor.policy.poison import has_limit
from supervisor.settings import Settings
from supervisor.vocabulary import Kind

HALF_AN_HOUR: Final = 1_800_000
"""Milliseconds: RabbitMQ's default `consumer_timeout`."""


class Case:
    def __init__(self, broker: Broker, queue: Queue, settings: Settings) -> None:
        assert broker.node is not None
        self.broker = broker
        self.node = broker.node
        self.queue = queue
        self.settings = settings
        self.release = broker.release
        self.vhost = self.node.endpoint.vhost
        self.wanted = self.wanted_keys()

    def value(self, argument: str) -> Any:
        """A queue argument, or the policy's value for it."""
        value = self.queue.arguments.get(argument)
        if value is None and self.broker.managed:
            value = self.broker.managed.rule.effective.get(argument.removeprefix("x-"))
        return value

    def wanted_keys(self) -> dict[str, Any]:
        """All keys that this queue's policy should have."""
        wanted: dict[str, Any] = {}
        if self.queue.type == "quorum" and not self.has_exchange():
            limit = self.delivery_limit()
            if limit is not None:
                dead = queues.dead(self.queue.name)
                wanted |= {"dead-letter-exchange": "", "dead-letter-routing-key": dead}
        if self.release is not None and (3, 12) <= self.release < (4, 3):
            known = self.consumer_timeout()
            if (HALF_AN_HOUR if known is None else known) < min(self.needed(), advice.LONGEST):
                wanted["consumer-timeout"] = self.timeout_wanted()
        if self.queue.exists and self.drops():
            wanted["overflow"] = "reject-publish"
        return wanted

    def drops(self) -> bool:
        limited = any(self.value(f"x-max-length{unit}") is not None for unit in ("", "-bytes"))
        return limited and self.value("x-overflow") in (None, "drop-head")

    def has_exchange(self) -> bool:
        return self.value("x-dead-letter-exchange") is not None

    def delivery_limit(self) -> int | None:
        """None: none, or not known."""
        limit: Any = self.broker.managed.delivery_limit if self.broker.managed else None
        if limit is None:
            limit = self.value("x-delivery-limit")
        if limit is None and self.has_default_limit():
            return 20  # https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
        return limit if isinstance(limit, int) and limit >= 0 else None

    def has_default_limit(self) -> bool:
        return has_limit(self.node.version)

    def needed(self) -> int:
        """Milliseconds that a message may stay unacked, without margin."""
        settings = self.settings
        if settings.task_timeout is None:
            return advice.NO_LIMIT
        return round(1000 * (settings.prefetch * settings.task_timeout + settings.grace))

    def consumer_timeout(self) -> int | None:
        """Milliseconds; None: not known."""
        has_own = self.release is not None and self.release >= (3, 12)
        own = self.value("x-consumer-timeout") if has_own else None
        if isinstance(own, int):
            return own
        of_node = self.broker.consumer_timeout
        known = self.broker.managed is not None or not has_own
        return (of_node or advice.LONGEST) if of_node is not None and known else None

    def timeout_wanted(self) -> int:
        return min(advice.acknowledgement_ms(self.settings), advice.LONGEST)

    def policy_line(self) -> str:
        policy = self.broker.managed.rule.policy if self.broker.managed else None
        name = f"workq-{self.queue.name}"
        priority = 0 if policy is None else policy.priority + (policy.name != name)
        definition = {**(policy.definition if policy else {}), **self.wanted}
        words = ["set_policy", "-p", self.vhost, "--priority", str(priority), "--apply-to", "queues", name]
        line = "rabbitmqctl " + shlex.join([*words, f"^{re.escape(self.queue.name)}$", json.dumps(definition)])
        if self.broker.managed:
            return line
        return f"{line}  # a queue obeys one policy: if it has one, add the keys there (rabbitmqctl list_policies)"

    def anew(self) -> str:
        """Arguments cannot be changed: delete the queue, if it is empty and unused, and workers declare it again."""
        name = self.queue.name
        if self.queue.type != "quorum":
            return "rabbitmqctl " + shlex.join(("delete_queue", "-p", self.vhost, name, "--if-empty", "--if-unused"))
        # A quorum queue supports neither flag, and its counts lag by seconds, so stop its producers first.
        listing = shlex.join(("list_queues", "-s", "-p", self.vhost, "name", "messages", "consumers"))
        row = f"printf '%s\\t0\\t0' {shlex.quote(name)}"
        delete = shlex.join(("delete_queue", "-p", self.vhost, name))
        return f'rabbitmqctl {listing} | grep -qxF "$({row})" && rabbitmqctl {delete}'

    def declare_line(self, name: str) -> str:
        """rabbitmqctl has no command for it."""
        resource = f"rabbit_misc:r({_binary(self.vhost)}, queue, {_binary(name)})"
        return "rabbitmqctl eval " + shlex.quote(
            f'rabbit_amqqueue:declare({resource}, true, false, [], none, <<"workq">>).'
        )

    def look_fix(self, queue: Queue) -> str:
        if queue.kind is Kind.UNAVAILABLE:
            return "rabbitmqctl cluster_status"
        return f"rabbitmqctl list_queues {self.vhost_option()}name exclusive owner_pid exclusive_consumer_pid"

    def vhost_option(self) -> str:
        return "" if self.vhost == "/" else f"-p {shlex.quote(self.vhost)} "


def _binary(text: str) -> str:
    """An Erlang binary, safe for any text."""
    if re.fullmatch(r"[\w./-]*", text, re.ASCII):
        return f'<<"{text}">>'
    return f"<<{','.join(map(str, text.encode()))}>>"


def delay_of(settings: Settings) -> str:
    """The delay queue of the first retry."""
    return queues.delay(settings.queue, queues.step(retry.backoff(1, settings.retry_delay)))


def delays_of(settings: Settings) -> list[str]:
    """Every delay queue that failed tasks will want, by our own choice of delays."""
    return [queues.delay(settings.queue, ms) for ms in retry.steps(settings.retries, settings.retry_delay)]


def spelled(ms: int) -> str:
    """Milliseconds, in readable units."""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * length or ms == length:
            return f"{ms / length:g} {unit}" if ms % length == 0 else f"{ms / length:.1f} {unit}"
    return f"{ms / 1000:g} s"
