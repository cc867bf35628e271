"""`workq check`'s findings about the queue, and those for retries and dead letters. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from supervisor import queues
from supervisor.commands.check.case import Case, spelled
from supervisor.commands.check.facts import FORGETS, Finding, Level, Policy, Rule, note, ok, problem, warning
from supervisor.policy.poison import RETURNS_MAX, prefetch

_FORGETFUL: Final = frozenset({"message-ttl", "expires", "max-length", "max-length-bytes"})
"""Keys of policies, and arguments with x- before them, by which a queue loses what lies in it."""


class QueueCase(Case):
    def queue_itself(self) -> Iterator[Finding]:
        queue, settings = self.queue, self.settings
        if queue.exists is None:
            yield problem("queue", queue.reason, self.look_fix(queue))
            return
        if not queue.exists:
            if settings.declare:
                kind = "the virtual host's default type" if settings.queue_type == "default" else settings.queue_type
                yield note("queue", f"{queue.name} does not exist yet; workers declare it, durable, {kind}")
            else:
                what = f"{queue.name} does not exist, and --no-declare keeps workers from declaring it"
                yield problem("queue", what, self.declare_line(queue.name))
            return
        yield ok("queue", f"{queue.name}: {queue.ready} ready, {queue.consumers} consumers")
        yield from self._type()
        if queue.durable is False:
            what = "it is not durable: a broker restart deletes it with its messages"
            yield warning("queue", what, self.anew())
        if queue.auto_delete:
            what = "it is auto-delete: when the last worker exits, the broker deletes it with its messages"
            yield warning("queue", what, self.anew())

    def _type(self) -> Iterator[Finding]:
        actual, asked = self.queue.type, self.settings.queue_type
        if actual is None:
            what = "not known: the broker tells it to users that may declare the queue, and to the management API"
            yield note("queue type", what, f"rabbitmqctl list_queues {self.vhost_option()}name type")
        elif actual not in ("classic", "quorum"):
            what = f"{self.queue.name} is a {actual}: workers cannot consume it; name a classic or quorum queue"
            yield problem("queue type", what, "export WORKQ_QUEUE=ANOTHER_QUEUE")
        elif asked not in ("default", actual):
            what = f"--queue-type is {asked}, and {self.queue.name} is {actual}: workers refuse to start"
            yield problem("queue type", what, "export WORKQ_QUEUE_TYPE=default")
        elif actual == "classic":
            is_cluster = len(self.broker.nodes) > 1
            away = "it lives on one node of the cluster and is down when that node is; " if is_cluster else ""
            what = f"{self.queue.name} is classic: {away}{FORGETS}"
            yield note("queue type", what, f"{self.anew()} && export WORKQ_QUEUE_TYPE=quorum")
        else:
            yield ok("queue type", actual)

    def queue_arguments(self) -> Iterator[Finding]:
        if not self.queue.exists:
            return
        if self.value(queues.SINGLE) and self.settings.workers.most > 1:
            what = f"it has a single active consumer: one of {self.settings.workers} workers works, the others stand by"
            yield warning("queue", what, "export WORKQ_WORKERS=1")
        if self.value(queues.SINGLE) and self.settings.ready_when == "consuming":
            single = "it has a single active consumer"
            what = f"{single}: while messages wait, hosts that stand by are not ready (/readyz 503)"
            yield note("queue", what, "export WORKQ_READY_WHEN=subscribed")
        if self.drops():
            length = self.value("x-max-length") or self.value("x-max-length-bytes")
            what = f"when it is full (at {length}), the broker silently drops the oldest messages"
            fix = self.anew() if "x-overflow" in self.queue.arguments else self.policy_line()
            yield warning("queue", what, fix)
        if (ttl := self.value("x-message-ttl")) is not None and not self.has_exchange():
            what = f"messages that have waited {spelled(ttl)} are dropped"
            yield note("queue", what, f"rabbitmqctl list_queues {self.vhost_option()}name arguments policy")
        if (expires := self.value("x-expires")) is not None:
            what = f"after {spelled(expires)} without a consumer the broker deletes it with its messages"
            yield warning("queue", what, self.anew() if "x-expires" in self.queue.arguments else "")

    def returns(self) -> Iterator[Finding]:
        """The delivery limit, and what becomes of a message that reaches it."""
        if self.queue.type != "quorum":
            if self.queue.type == "classic":
                yield ok("delivery limit", "a classic queue does not count returns; --max-crashes is the limit")
            return
        limit = self.delivery_limit()
        dropped = f"a message that came back {limit} times is silently dropped"
        if self.has_exchange():
            yield ok("delivery limit", f"{'none' if limit is None else limit}; the queue dead-letters")
            yield from self._exchange_target()
        elif limit is not None and limit <= RETURNS_MAX:
            what = f"{dropped}; workers put one aside, or back uncounted, at {RETURNS_MAX}, too late here"
            yield problem("delivery limit", what, self.policy_line())
        elif limit is not None and not self.has_default_limit():
            what = f"{dropped}: before RabbitMQ 4.0 workers assume no limit; a dead-letter policy keeps it"
            yield warning("delivery limit", what, self.policy_line())
        elif limit is not None:
            told = "" if self.broker.managed else ", unless a policy says otherwise"
            what = f"{dropped}{told}: workers put it aside, or back uncounted, before that, other consumers do not"
            what += "; a dead-letter policy keeps it"
            yield note("delivery limit", what, self.policy_line())
        elif self.broker.managed:
            yield ok("delivery limit", "none")

    def _exchange_target(self) -> Iterator[Finding]:
        """The queue that the broker itself dead-letters into: a missing one drops what comes."""
        dead = self.broker.dead
        ours = self.value("x-dead-letter-exchange") == "" and dead is not None
        if ours and dead and dead.exists is False and self.value("x-dead-letter-routing-key") == dead.name:
            what = f"the broker dead-letters into {dead.name}, which does not exist yet: what it sends there is dropped"
            yield warning("dead letters", what, self.declare_line(dead.name))

    def prefetched(self) -> Iterator[Finding]:
        """Whether `--prefetch` and the delivery limit go together: a worker that dies returns all that it has."""
        wanted = self.settings.prefetch
        if wanted == 1 or self.queue.type != "quorum":
            return
        fix = "export WORKQ_PREFETCH=1"
        counted = "a worker that dies returns all that it has prefetched, and the broker counts each"
        limit = self.delivery_limit()
        if prefetch(wanted, self.node.version, self.queue.type) < wanted:
            used = f"--prefetch {wanted} is used as 1 on this quorum queue"
            yield warning("prefetch", f"{used}: {counted}, with a limit of 20 unless changed", fix)
        elif limit is not None:
            what = f"--prefetch {wanted} on a quorum queue with a delivery limit of {limit}: {counted}, so healthy "
            what += "messages behind those that kill are dropped or dead-lettered unrun"
            yield problem("prefetch", what, fix)
        elif self.broker.managed is None:
            what = f"--prefetch {wanted} needs a quorum queue without delivery limit: {counted}; policies are not known"
            yield note("prefetch", what, f"rabbitmqctl list_policies {self.vhost_option()}".rstrip())
        else:
            yield ok("prefetch", f"{wanted}; the queue has no delivery limit")

    def dead_letters(self) -> Iterator[Finding]:
        dead = self.broker.dead
        if dead is None:
            return
        if dead.exists is None:
            yield problem("dead letters", dead.reason, self.look_fix(dead))
        elif not dead.exists:
            if self.settings.declare:
                yield ok("dead letters", f"none; {dead.name} is declared with the first")
            else:
                what = f"{dead.name} does not exist, and --no-declare keeps workers from declaring it: the first dead "
                what += "letter cannot be published and blocks its worker"
                yield problem("dead letters", what, self.declare_line(dead.name))
        elif dead.ready:
            what = f"{dead.ready} in {dead.name}; look at them, then `workq dead requeue` or `drop`"
            yield warning("dead letters", what, f"workq dead list --queue {shlex.quote(self.queue.name)}")
        else:
            yield ok("dead letters", f"none in {dead.name}")

    def retries(self) -> Iterator[Finding]:
        missing = [queue.name for queue in self.broker.delays if not queue.exists]
        if missing:
            what = f"failed tasks cannot wait for another try: --no-declare, and there is no {', '.join(missing)}"
            yield problem("retries", what, "export WORKQ_DECLARE=true")

    def kept(self) -> Iterator[Finding]:
        """Whether what lies in our other queues stays there: a policy for all queues means them, too."""
        delays = {queues.delay(self.queue.name, ms): ms for ms in queues.LADDER}
        rules = self.broker.managed.others if self.broker.managed else {}
        found: dict[tuple[str, Level, str, str], list[str]] = {}
        dead = self.broker.dead
        for name in (queues.dead(self.queue.name), *delays):
            rule = rules.get(name, Rule())
            own = dead.arguments if dead is not None and dead.name == name else {}
            subject = "retries" if name in delays else "dead letters"
            for harm in self._harms(own, rule, delays.get(name)):
                found.setdefault((subject, *harm), []).append(name)
        for (subject, level, what, fix), names in found.items():
            some = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it"
            yield Finding(level, subject, f"{some}: {what}", fix)

    def _harms(self, own: Mapping[str, Any], rule: Rule, delay: int | None) -> Iterator[tuple[Level, str, str]]:
        """What arguments and policies do to what lies in it for `delay` milliseconds; None: for ever."""
        said = {key: value for key, value in rule.effective.items() if key in _FORGETFUL and isinstance(value, int)}
        theirs = {key: own[f"x-{key}"] for key in _FORGETFUL if isinstance(own.get(f"x-{key}"), int)}
        if rule.operator.keys() & _FORGETFUL:
            by, fix = "an operator policy says so", f"rabbitmqctl list_operator_policies {self.vhost_option()}".rstrip()
        elif said and rule.policy:
            by, fix = f"the policy {rule.policy.name} says so", self._exempting(rule.policy)
        else:
            by, fix = "it was declared so", f"rabbitmqctl list_queues {self.vhost_option()}name arguments"
        for key, value in theirs.items():
            said[key] = min(value, said.get(key, value))  # the smaller one counts
        ttl, expires = said.get("message-ttl"), said.get("expires")
        if expires is not None:
            what = f"after {spelled(expires)} without a consumer, and it never has one, the broker deletes it"
            yield Level.PROBLEM, f"{what} with its messages; {by}", fix
        if ttl is not None and delay is None:
            moved = "x-dead-letter-exchange" in own or "dead-letter-exchange" in rule.effective
            fate = "dead-lettered in their turn" if moved else "dropped"
            what = f"dead letters that have lain there for {spelled(ttl)} are {fate}, unseen by workq dead; {by}"
            yield Level.PROBLEM, what, fix
        elif ttl is not None and delay and ttl < delay:
            yield Level.WARNING, f"tasks come back after {spelled(ttl)}, sooner than they should; {by}", fix
        units = (("max-length", ""), ("max-length-bytes", " bytes"))
        lengths = [f"{said[key]}{unit}" for key, unit in units if key in said]
        if not lengths:
            return
        overflow = own.get("x-overflow", rule.effective.get("overflow"))
        if delay is None and overflow in (None, "drop-head"):
            what = f"when it is full (at {lengths[0]}), the broker silently drops the oldest dead letters; {by}"
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
