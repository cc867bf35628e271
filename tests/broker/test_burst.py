"""`--burst` ends: with 0 when everything is done, with 75 when the broker is away for too long."""

from __future__ import annotations

from supervisor.commands.node import PrivateNode
from tests import amqp
from tests.supervision import Runs, supervised


def test_f93_a_burst_without_a_broker_exits_with_75_and_says_why(unused_port: int) -> None:
    url = f"amqp://127.0.0.1:{unused_port}"
    options = ("--workers", "2", "--burst", "--burst-wait", "1s")
    with supervised("handlers:work", *options, url=url, queue="q") as pool:
        assert pool.wait() == 75
        stopped = pool.hear("supervisor.stopped")
    assert "--burst-wait" in stopped["because"] and "connection refused" in stopped["because"]


def test_f93_a_broker_that_is_late_and_not_too_late_is_awaited(own_node: PrivateNode, runs: Runs) -> None:
    amqp.publish(own_node.url, "q", ["0", "0"], ids=["a", "b"])
    own_node.sync()
    own_node.kill()
    options = ("--workers", "2", "--burst", "--burst-wait", "60s")
    with supervised("handlers:work", *options, url=own_node.url, queue="q", env=runs.env) as pool:
        pool.hear("broker.refused")
        own_node.start()
        assert pool.wait() == 0
    assert sorted(runs.lines("done")) == ["a", "b"]
