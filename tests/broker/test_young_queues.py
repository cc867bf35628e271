"""A quorum queue is not safe to use as soon as it is declared: those for retries and dead letters are declared before
they are needed, and what had to be declared later is used when it has settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

FAILS_ONCE = """
import supervisor
from handlers import note
def work(task):
    order = task.json()
    note(f"try-{task.attempt}", task.message_id)
    if order.get("reject"):
        raise supervisor.Reject("as told")
    if task.attempt == 1:
        if "delay" in order:
            raise supervisor.Retry("not yet", delay=order["delay"])
        raise ConnectionError("the first try")
    note("done", task.message_id)
"""


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "once", FAILS_ONCE)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("order", [{}, {"delay": 4}], ids=["step of --retry-delay", "step of Retry(delay=)"])
def test_f108_a_first_retry_survives_a_broker_that_is_killed_at_once(
    own_node: PrivateNode, env: dict[str, str], runs: Runs, order: dict[str, int]
) -> None:
    """Not a word is synced before the kill: what the broker confirmed is what it has to keep."""
    queue, names = "work", [f"t{n}" for n in range(8)]
    amqp.publish(own_node.url, queue, [json.dumps(order)] * len(names), ids=names)
    options = ("--workers", "2", "--retry-delay", "2s", "--heartbeat", "2s")
    with supervised("once:work", *options, url=own_node.url, queue=queue, env=env) as pool:
        pool.hear("task.retried", count=len(names))
        own_node.kill()
        own_node.start()
        eventually(lambda: set(runs.lines("done")) == set(names), timeout=40)
        assert pool.stop() == 0


def test_f108_a_first_dead_letter_survives_where_the_default_type_is_quorum(
    own_node: PrivateNode, env: dict[str, str]
) -> None:
    own_node.ctl("add_vhost", "q", "--default-queue-type", "quorum")
    own_node.ctl("set_permissions", "-p", "q", "guest", ".*", ".*", ".*")
    url, queue, names = own_node.url.removesuffix("%2F") + "q", "work", [f"t{n}" for n in range(4)]
    amqp.publish(url, queue, [json.dumps({"reject": True})] * len(names), ids=names)
    with supervised("once:work", "--workers", "2", "--heartbeat", "2s", url=url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", count=len(names))
        own_node.kill()
        own_node.start()
        pool.hear("broker.connected", count=2)
        assert pool.stop() == 0
    dead = amqp.drain(url, f"{queue}.dead")
    assert {properties.message_id for _, properties, _ in dead} == set(names)


def test_f92_the_first_use_of_a_delay_queue_by_four_workers_at_once_is_no_trouble(
    broker_url: str, queue: str, env: dict[str, str]
) -> None:
    """Four tasks fail in the same moment, and none of their delay queues has been there before."""
    names = [f"t{n}" for n in range(12)]
    delays = [{}, {}, {}, {}, *[{"delay": 2}] * 4, *[{"delay": 9}] * 4]
    options = ("--workers", "4", "--retry-delay", "500ms")
    with supervised("once:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, [json.dumps(order) for order in delays], ids=names)
        pool.hear("task.succeeded", count=8, attempt=2)
        pool.hear("task.retried", count=len(names))
        assert not pool.named("task.parking_failed")
        assert pool.stop() == 0


def test_f108_a_user_who_may_not_configure_our_queues_works_and_is_told_once(
    node: PrivateNode, broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    user = f"carol-{queue}"
    account, words = amqp.binary(user), f'<<"/">>, {amqp.binary(f"^{queue}$")}, <<".*">>, <<".*">>, <<"test">>'
    node.eval(f'rabbit_auth_backend_internal:add_user({account}, <<"pw">>, <<"test">>)')
    try:
        node.eval(f"rabbit_auth_backend_internal:set_permissions({account}, {words})")
        url = broker_url.replace("guest:guest", f"{user}:pw")
        amqp.publish(broker_url, queue, ["0"] * 3, ids=["a", "b", "c"])
        with supervised("handlers:work", "--workers", "2", url=url, queue=queue, env=env) as pool:
            pool.ready()
            pool.hear("task.succeeded", count=3)
            refused = pool.hear("queue.not_declared")
            assert f"{queue}." in refused["because"] and user in refused["because"]
            assert pool.stop() == 0
        assert len(pool.named("queue.not_declared")) == 1
    finally:
        node.eval(f'rabbit_auth_backend_internal:delete_user({account}, <<"test">>)')


def test_f116_what_was_deleted_under_a_running_pool_is_declared_again_and_nothing_is_lost(
    broker_url: str, queue: str, env: dict[str, str]
) -> None:
    options = ("--workers", "1", "--retry-delay", "100ms")
    with supervised("once:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        for round_ in (1, 2):
            orders = [json.dumps({}), json.dumps({"reject": True})]
            amqp.publish(broker_url, queue, orders, ids=[f"late-{round_}", f"dead-{round_}"])
            pool.hear("task.succeeded", message_id=f"late-{round_}")
            pool.hear("task.dead_lettered", message_id=f"dead-{round_}")
            with amqp.connection(broker_url) as link:
                for name in (f"{queue}.dead", f"{queue}.delay.100"):
                    link.channel().queue_delete(name)
        assert not pool.named("task.parking_failed")
        assert pool.stop() == 0
