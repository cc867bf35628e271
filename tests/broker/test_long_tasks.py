"""Tasks that outlast what the broker has patience for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

PATIENT = """
import os, time
from handlers import note
def work(task):
    note("began", task.message_id)
    until = time.monotonic() + (8 if task.redelivered else 60)
    while time.monotonic() < until and not task.lost:
        time.sleep(0.02)
    if not task.lost:
        note("done", task.message_id)
        return
    note("lost", task.message_id)
    while not os.path.exists(os.environ["TEST_RUNS"] + ".go"):
        time.sleep(0.02)
"""
"""The first run works until it is told that its result is lost, and then until the test lets it go; the second one
takes eight seconds."""


def have_patience(node: PrivateNode, milliseconds: int) -> None:
    """Set the delivery acknowledgement timeout of channels to come."""
    node.eval(f"application:set_env(rabbit, consumer_timeout, {milliseconds}).")


def lose_patience(node: PrivateNode) -> None:
    """Have the broker look for late acknowledgements now: it does so once a minute, and on a channel that is quiet
    (hibernating) not even that."""
    node.eval("[Channel ! tick || Channel <- rabbit_channel:list_local()].")


@pytest.fixture(params=["classic", "quorum"])
def impatient_queue(request: pytest.FixtureRequest, own_node: PrivateNode) -> str:
    """A queue of either type, of a broker that waits two seconds for an acknowledgement. From 4.3 on it would be the
    worker that says how long: see test_versions."""
    have_patience(own_node, 2000)
    with amqp.connection(own_node.url) as link:
        link.channel().queue_declare("long", durable=True, arguments={"x-queue-type": request.param})
    return "long"


@pytest.mark.rabbitmq(below="4.3")
def test_f39_an_acknowledgement_timeout_is_named_with_the_advice_and_nothing_is_lost(
    own_node: PrivateNode, impatient_queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "patient", PATIENT)
    url, queue = own_node.url, impatient_queue
    amqp.publish(url, queue, ["0"], ids=["long"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("patient:work", "--workers", "1", url=url, queue=queue, env=env) as pool:
        runs.hear("began")
        eventually(lambda: lose_patience(own_node) or runs.lines("lost"))
        have_patience(own_node, 600_000)
        runs.path.with_name("runs.go").touch()
        assert "consumer_timeout" in pool.hear("task.unsettled", message_id="long")["because"]
        left = pool.hear("worker.exited", cause="broker")
        assert "2000 ms" in left["because"]
        assert "`consumer_timeout = 2147483647` in rabbitmq.conf" in left["because"]
        # What took two seconds too long now takes eight, and is done.
        pool.hear("task.succeeded", message_id="long")
        totals = pool.status()["totals"]
        assert (totals["unsettled"], totals["succeeded"], totals["redelivered"]) == (1, 1, 1)
        assert pool.stop() == 0
        assert len(pool.named("worker.exited", cause="broker")) == 1
    assert runs.lines("lost") == runs.lines("done") == ["long"]
    assert runs.lines("began") == ["long"] * 2
    assert amqp.depth(url, queue) == 0
    eventually(lambda: amqp.unacked(own_node, queue) == 0)  # a quorum queue counts every few seconds


@pytest.mark.rabbitmq(below="4.3")
def test_a_message_taken_back_goes_to_another_worker_when_its_first_handler_has_used_up_its_grace(
    own_node: PrivateNode, impatient_queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "patient", PATIENT)
    url, queue = own_node.url, impatient_queue
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--grace", "1", "--lost-grace", "1")
    with supervised("patient:work", *options, url=url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(url, queue, ["0"], ids=["long"])
        runs.hear("began")
        eventually(lambda: lose_patience(own_node) or runs.lines("lost"))
        runs.hear("began", 2)
        [died] = pool.named("worker.exited")
        assert (died["cause"], died["status"], died["message_id"]) == ("broker", "SIGKILL", "long")


def test_f19_the_broker_s_version_and_what_it_needs_for_long_tasks_is_said_once(
    node: PrivateNode, broker_url: str, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "3", url=broker_url, queue=queue) as pool:
        pool.ready()
        said = pool.hear("broker.connected")
        assert said["version"] == node.version
        assert "consumer_timeout" in said["because"] or "x-consumer-timeout" in said["because"]
        assert pool.stop() == 0
        assert len(pool.named("broker.connected")) == 1
