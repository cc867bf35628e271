"""The broker's delivery acknowledgement timeout: a message that is not acknowledged within it, 30 minutes by default,
is taken away (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout). By version:

| RabbitMQ | where it is set | when it strikes |
|---|---|---|
| before 3.12 | `consumer_timeout` in rabbitmq.conf, for the node | the channel is closed with 406 |
| 3.12 to 4.2 | there, or by a policy (or an argument of the queue's, which must not change) | the same |
| 4.3 and later, quorum queue | there, by a policy, or **by the consumer: we do it** | the consumer is cancelled |
| 4.3 and later, other types | there is none | never |
"""

from __future__ import annotations

import re
from typing import Final

from supervisor.settings import Settings

ARGUMENT: Final = "x-consumer-timeout"
"""Of basic.consume. Brokers before 4.3 ignore it; later ones refuse it (406) for other than quorum queues."""
NO_LIMIT: Final = 10 * 365 * 86400 * 1000
"""Milliseconds: ten years. There is no value for "never": 0 is at once."""
MARGIN: Final = 3600
"""Seconds beyond what tasks may take, for parking a message while the broker has an alarm."""
_RELEASE: Final = re.compile(r"(\d+)\.(\d+)\.")
LONGEST: Final = 2**31 - 1
"""Milliseconds, 24 days: the longest that every version and every hosting accepts."""


def acknowledgement_ms(settings: Settings) -> int:
    """How long a message may have to stay unacknowledged: those prefetched wait for the ones before them, and all for
    the rate."""
    if settings.task_timeout is None:
        return NO_LIMIT
    held_up = settings.workers.most * settings.prefetch * settings.rate.interval if settings.rate else 0.0
    return round(1000 * (settings.prefetch * settings.task_timeout + held_up + settings.grace + MARGIN))


def consumer_arguments(version: str, settings: Settings) -> dict[str, int]:
    """What to consume with, so that long tasks are left alone; empty where the broker has no such argument."""
    release = release_of(version)
    return {ARGUMENT: acknowledgement_ms(settings)} if release is not None and release >= (4, 3) else {}


def acknowledgement(version: str, settings: Settings) -> str:
    """What a broker of this version means for long tasks, and what to do about it; one line."""
    release = release_of(version)
    if release is not None and release >= (4, 3):
        return f"nothing to set: workers consume with {ARGUMENT} where the queue has a timeout (quorum queues)"
    limit = "a task longer than the broker's acknowledgement timeout (30 min unless it was changed) is run again"
    return f"{limit}; {remedy(version, settings)}"


def remedy(version: str, settings: Settings) -> str:
    """How the timeout is raised on a broker of this version."""
    release = release_of(version)
    ms = min(acknowledgement_ms(settings), LONGEST)
    node = f"`consumer_timeout = {ms}` in rabbitmq.conf"
    if release is None:
        return f"to raise it, see {node}, or the broker's documentation"
    if release < (3, 12):
        now = f"`rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, {ms}).'`"
        return f"this version has it for the whole node only: set {node}, and at once by {now}"
    definition, pattern, vhost = f'{{"consumer-timeout":{ms}}}', re.escape(settings.queue), settings.url[0].vhost
    where = "" if vhost == "/" else f"-p '{vhost}' "
    policy = f"rabbitmqctl set_policy {where}--apply-to queues workq-timeout '^{pattern}$' '{definition}'"
    one = "a queue obeys one policy: if it has one, add the key there"
    return f"raise it for this queue by `{policy}` ({one}), or set {node}"


def release_of(version: str) -> tuple[int, int] | None:
    """`3.10.8` -> (3, 10); None when it is no RabbitMQ's."""
    found = _RELEASE.match(version)
    return (int(found[1]), int(found[2])) if found else None
