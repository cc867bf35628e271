"""What waits for another try is as safe as what waits for its first: the broker may die meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import amqp
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

TASKS = 60


def _kill(node: PrivateNode) -> None:
    node.sync()
    node.kill()
    node.start()


def _restart(node: PrivateNode) -> None:
    node.eval("rabbit:stop()")
    node.eval("rabbit:start()")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("outage", [_kill, _restart], ids=["killed", "restarted"])
def test_f33_tasks_that_wait_for_another_try_survive_the_brokers_end(
    own_node: PrivateNode, runs: Runs, queue_type: str, outage: Callable[[PrivateNode], None]
) -> None:
    """Their time comes while the broker is away: they expire as it starts, before their queue may have a leader."""
    queue = "work"
    with amqp.connection(own_node.url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": queue_type})
    names = [f"t{n}" for n in range(TASKS)]
    amqp.publish(own_node.url, queue, ["0 fails"] * TASKS, ids=names)
    options = ("--workers", "2", "--retry-delay", "2s", "--heartbeat", "2s")
    with supervised("handlers:weather", *options, url=own_node.url, queue=queue, env=runs.env) as pool:
        pool.hear("task.retried", count=TASKS)
        outage(own_node)
        try:
            eventually(lambda: set(runs.lines("done")) >= set(names), timeout=60)
        except AssertionError:
            missing = sorted(set(names) - set(runs.lines("done")))
            held = own_node.ctl("list_queues", "name", "type", "state", "messages", "consumers")
            raise AssertionError(f"{len(missing)} of {TASKS} not done: {missing[:9]}; the queues:\n{held}") from None
        assert pool.stop() == 0
    assert amqp.depth(own_node.url, f"{queue}.dead") == 0
