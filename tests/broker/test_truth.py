"""Readiness is the broker's truth: a worker that believes it consumes, and does not, is found and replaced."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import amqp
from tests.supervision import HERE, Runs, Supervision, eventually, supervised

DEAF = """
import gc

import handlers
from supervisor.worker.consumer import Consumer


def work(task):
    '''The body is seconds to sleep. `deaf`: cancel the consumer behind its worker's back, as a bug of ours would.'''
    if task.text != "deaf":
        return handlers.work(task)
    [consumer] = [found for found in gc.get_objects() if isinstance(found, Consumer)]
    consumer.subscription.channel.basic_cancel(consumer._name)
    handlers.note("deaf", task.message_id)
"""

SOON = """
import supervisor.policy.looks

supervisor.policy.looks.DEPTH_EVERY = 0.5
"""
"""A look at the queue at every sample, once a second, rather than at every fifth."""


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    (tmp_path / "deaf.py").write_text(DEAF)
    return {**runs.env, "PYTHONPATH": f"{tmp_path}:{HERE}"}


@pytest.fixture
def soon(tmp_path: Path, env: dict[str, str]) -> dict[str, str]:
    """The same, with a supervisor that looks more often."""
    (tmp_path / "sitecustomize.py").write_text(SOON)
    return env


def seconds_passed(pool: Supervision, looks: int) -> None:
    """Wait until the supervisor has taken so many samples more: one a second, each with a look at the queue."""
    time.sleep(looks)
    assert pool.get("/healthz")[0] == 200


def test_a_worker_that_the_broker_gives_nothing_is_named_and_replaced_while_the_other_works_on(
    broker_url: str, queue: str, runs: Runs, env: dict[str, str]
) -> None:
    names = [f"t{n}" for n in range(24)]
    with supervised("deaf:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["deaf"], ids=["behind"])
        deaf = pool.hear("task.succeeded", message_id="behind")["slot"]
        eventually(lambda: amqp.consumers(broker_url, queue) == 1)
        assert pool.get("/readyz") == (200, "2 of 2 workers consume\n"), "nobody knows yet"
        before = pool.workers()[deaf]["pid"]
        amqp.publish(broker_url, queue, ["0.8"] * 24, ids=names)
        doubt = pool.hear("worker.not_consuming")
        assert (doubt["slot"], doubt["pid"]) == (deaf, before)
        # Whichever comes to three looks first.
        idle, uncounted = "messages wait in the queue, but an idle worker gets none", "the broker counts 1 consumer"
        assert doubt["level"] == "error" and (idle in doubt["because"] or uncounted in doubt["because"])
        died = pool.hear("worker.exited", slot=deaf)
        assert (died["cause"], died["status"], died["message_id"]) == ("not consuming", "exit 0", None)
        eventually(lambda: amqp.consumers(broker_url, queue) == 2)
        pool.hear("task.succeeded", count=25)
        done_by = {line["slot"] for line in pool.named("task.succeeded") if line["message_id"] != "behind"}
        assert done_by == {0, 1}
        assert len(pool.named("worker.exited")) == 1
        eventually(lambda: pool.get("/readyz") == (200, "2 of 2 workers consume\n"))
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == sorted(runs.lines("done")) == sorted(names)
    assert amqp.depth(broker_url, queue) == 0


def test_readiness_is_false_while_the_only_worker_is_given_nothing(
    broker_url: str, queue: str, runs: Runs, soon: dict[str, str]
) -> None:
    amqp.publish(broker_url, queue, ["deaf"], ids=["behind"])
    with supervised("deaf:work", "--workers", "1", url=broker_url, queue=queue, env=soon) as pool:
        pool.hear("task.succeeded", message_id="behind")
        amqp.publish(broker_url, queue, ["0"] * 3, ids="abc")
        pool.hear("worker.not_consuming", slot=0)
        code, body = pool.get("/readyz")
        assert code == 503 and "3 messages wait in the queue, but an idle worker" in body
        pool.hear("task.succeeded", count=4)
        eventually(lambda: pool.get("/readyz") == (200, "1 of 1 workers consume\n"))
        assert pool.stop() == 0
    assert runs.lines("done") == ["a", "b", "c"]


def test_a_consumer_that_the_broker_no_longer_counts_is_found_on_an_empty_queue_too(
    broker_url: str, queue: str, soon: dict[str, str]
) -> None:
    amqp.publish(broker_url, queue, ["deaf"], ids=["behind"])
    with supervised("deaf:work", "--workers", "2", url=broker_url, queue=queue, env=soon) as pool:
        pool.hear("task.succeeded", message_id="behind")
        doubt = pool.hear("worker.not_consuming")
        assert "the broker counts 1 consumers, but 2 of our workers believe they consume" in doubt["because"]
        eventually(lambda: amqp.consumers(broker_url, queue) == 2)
        eventually(lambda: pool.get("/readyz") == (200, "2 of 2 workers consume\n"))
        assert pool.stop() == 0


@pytest.fixture
def single(broker_url: str, queue: str) -> None:
    """The queue has a single active consumer."""
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-single-active-consumer": True})


@pytest.mark.usefixtures("single")
def test_f124_the_idle_workers_beside_the_active_one_are_not_replaced_and_take_over(
    broker_url: str, queue: str, runs: Runs, soon: dict[str, str]
) -> None:
    with supervised("handlers:work", "--workers", "3", url=broker_url, queue=queue, env=soon) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["0.2"] * 400)
        said = pool.hear("queue.single_active_consumer")
        assert said["level"] == "info" and "stand by" in said["because"]
        for _ in range(2):
            active = pool.hear("task.succeeded", count=len(pool.named("task.succeeded")) + 1)
            os.kill(active["pid"], signal.SIGKILL)
            pool.hear("worker.exited", cause="SIGKILL", slot=active["slot"])
            seconds_passed(pool, looks=4)
        assert len(pool.named("queue.single_active_consumer")) == 1
        assert not pool.named("worker.not_consuming")
        assert {line["cause"] for line in pool.named("worker.exited")} == {"SIGKILL"}
        assert pool.get("/readyz") == (200, "3 of 3 workers consume\n")
        assert pool.stop() == 0


@pytest.mark.usefixtures("single")
def test_f124_a_standby_host_is_ready_when_the_operator_says_so_is_not_thrashed_and_takes_over(
    broker_url: str, queue: str, runs: Runs, soon: dict[str, str], tmp_path: Path
) -> None:
    settings = tmp_path / "workq.toml"
    settings.touch()
    options = ("--workers", "2", "--config", str(settings))
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=soon) as active:
        active.ready()
        amqp.publish(broker_url, queue, ["0.2"] * 400)
        with supervised("handlers:work", *options, url=broker_url, queue=queue, env=soon) as standby:
            standby.hear("queue.single_active_consumer")
            eventually(lambda: standby.get("/readyz")[0] == 503)
            assert "on standby" in standby.get("/readyz")[1]
            assert "--ready-when subscribed" in standby.get("/readyz")[1]
            settings.write_text('ready_when = "subscribed"\n')
            standby.send(signal.SIGHUP)
            standby.hear("reload.finished")
            eventually(lambda: standby.get("/readyz")[1].startswith("2 of 2 workers consume; on standby"))
            assert standby.get("/readyz")[0] == 200
            assert not standby.named("worker.not_consuming") and not active.named("worker.not_consuming")
            assert active.get("/readyz") == (200, "1 of 1 workers consume\n")
            assert active.stop() == 0
            standby.hear("task.succeeded", count=3)
            eventually(lambda: standby.get("/readyz") == (200, "2 of 2 workers consume\n"))
            assert standby.stop() == 0
    assert len(runs.lines("began")) == len(runs.lines("done"))


def test_a_busy_pool_with_long_tasks_and_a_backlog_is_never_doubted(
    broker_url: str, queue: str, runs: Runs, soon: dict[str, str]
) -> None:
    amqp.publish(broker_url, queue, ["6"] * 2 + ["0.3"] * 30)
    with supervised("handlers:work", "--workers", "3", url=broker_url, queue=queue, env=soon) as pool:
        pool.hear("task.succeeded", count=32)
        eventually(lambda: pool.metric("workq_queue_messages_ready") == 0)
        seconds_passed(pool, looks=3)
        assert not pool.named("worker.not_consuming") and not pool.named("worker.exited")
        assert pool.stop() == 0
    assert len(runs.lines("began")) == 32
