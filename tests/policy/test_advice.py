"""What a broker needs for long tasks, by its version."""

from __future__ import annotations

import pytest

from supervisor.endpoint import Endpoint
from supervisor.policy import advice
from supervisor.settings import Settings

PLAIN = Settings(handler="tasks:work", queue="jobs.v2")
BOUNDED = Settings(handler="tasks:work", queue="jobs.v2", task_timeout=7200.0, grace=30.0, prefetch=2)
ELSEWHERE = Settings(handler="tasks:work", url=(Endpoint.parse("amqp://guest:guest@127.0.0.1:5672/shop"),))


@pytest.mark.parametrize(
    ("version", "told", "not_told"),
    [
        ("3.10.8", "set `consumer_timeout = 2147483647` in rabbitmq.conf", "set_policy"),
        ("3.11.28", "application:set_env(rabbit, consumer_timeout, 2147483647)", "set_policy"),
        ("3.12.0", """'^jobs\\.v2$' '{"consumer-timeout":2147483647}'""", "set_env"),
        ("3.13.7", "rabbitmqctl set_policy --apply-to queues", "set_env"),
        ("4.0.5", "rabbitmqctl set_policy --apply-to queues", "set_env"),
        ("4.2.1", "rabbitmqctl set_policy --apply-to queues", "set_env"),
        ("4.3.0", "nothing to set", "set_policy"),
        ("4.3.6+12.gabc", "x-consumer-timeout", "set_policy"),
        ("5.0.0-rc.1", "nothing to set", "set_policy"),
        ("", "the broker's documentation", "set_policy"),
        ("nonsense", "the broker's documentation", "set_env"),
    ],
)
def test_each_version_is_told_what_it_has(version: str, told: str, not_told: str) -> None:
    advised = advice.acknowledgement(version, PLAIN)
    assert told in advised
    assert not_told not in advised
    assert "\n" not in advised


@pytest.mark.parametrize("version", ["", "3.10.8", "3.12.0", "4.2.9"])
def test_a_broker_without_the_argument_is_not_sent_it(version: str) -> None:
    assert advice.consumer_arguments(version, PLAIN) == {}


def test_without_a_task_timeout_a_message_may_stay_unacknowledged_for_years() -> None:
    assert advice.consumer_arguments("4.3.6", PLAIN) == {"x-consumer-timeout": 315_360_000_000}


def test_with_a_task_timeout_it_may_for_all_that_is_prefetched_the_grace_and_a_margin() -> None:
    milliseconds = 1000 * (2 * 7200 + 30 + 3600)
    assert advice.consumer_arguments("4.3.6", BOUNDED) == {"x-consumer-timeout": milliseconds}
    assert f"`consumer_timeout = {milliseconds}`" in advice.acknowledgement("3.10.8", BOUNDED)


def test_a_policy_is_for_the_virtual_host_that_we_use() -> None:
    assert "set_policy -p 'shop' --apply-to" in advice.acknowledgement("4.0.5", ELSEWHERE)
    assert "-p" not in advice.acknowledgement("4.0.5", PLAIN).partition("--apply-to")[0]
