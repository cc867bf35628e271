"""The queue as it is or as we declare it, and what health says."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pika
import pytest

from tests import amqp
from tests.node import PrivateNode
from tests.supervision import EXECUTED, Runs, eventually, supervised


def declare_plain_durable(url: str, queue: str) -> None:
    """What the tutorial's producer does. Raises when the queue has other arguments."""
    with amqp.connection(url) as link:
        link.channel().queue_declare(queue, durable=True)


def test_a_producers_plain_durable_declaration_agrees_in_either_order(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        pool.ready()
        declare_plain_durable(broker_url, queue)
        assert pool.stop() == 0
    declare_plain_durable(broker_url, queue)
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        pool.ready()
        assert pool.stop() == 0


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_queue_that_exists_is_used_as_it_is_whatever_its_type(
    broker_url: str, queue: str, runs: Runs, kind: str
) -> None:
    with amqp.connection(broker_url) as link:
        arguments = {"x-queue-type": kind, "x-max-length": 1000}
        link.channel().queue_declare(queue, durable=True, arguments=arguments)
    amqp.publish(broker_url, queue, ["0"], ids=["one"])
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", message_id="one")
        assert pool.stop() == 0


def test_an_explicit_type_is_declared_and_one_that_disagrees_is_exit_78(broker_url: str, queue: str) -> None:
    options = ("--workers", "1", "--queue-type", "quorum")
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as pool:
        pool.ready()
        assert pool.stop() == 0
    with supervised("handlers:work", "--queue-type", "classic", url=broker_url, queue=queue) as pool:
        assert pool.wait() == 78
        because = pool.named("supervisor.stopped")[0]["because"]
        assert "classic" in because and "quorum" in because


def test_no_declare_waits_for_a_queue_that_somebody_else_declares(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", "--no-declare", url=broker_url, queue=queue) as pool:
        pool.hear("worker.exited", cause="broker")
        status, body = pool.get("/readyz")
        assert status == 503 and queue in body
        declare_plain_durable(broker_url, queue)
        pool.ready()
        assert pool.get("/readyz")[0] == 200
        assert pool.stop() == 0


def test_f32_a_broker_that_is_down_leaves_the_service_up_and_is_found_when_it_comes(
    own_node: PrivateNode, queue: str
) -> None:
    own_node.stop()
    with supervised("handlers:work", "--workers", "2", url=own_node.url, queue=queue) as pool:
        died = pool.hear("worker.exited", count=4)
        assert died["cause"] == "broker"
        assert "refused" in died["because"]
        assert pool.get("/healthz")[0] == 200
        assert pool.get("/readyz")[0] == 503
        own_node.start()
        pool.ready()
        assert pool.get("/readyz")[0] == 200
        assert pool.stop() == 0


def test_f10_workers_that_die_right_after_every_start_are_slowed_down_and_the_pool_is_degraded(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    mark = tmp_path / "broken"
    mark.touch()
    text = f"""
import os, threading, time
def die():
    while not os.path.exists({str(mark)!r}):
        time.sleep(0.05)
    os._exit(9)
os.register_at_fork(after_in_child=lambda: threading.Timer(0.3, die).start())
def work(task):
    pass
"""
    (tmp_path / "mortal.py").write_text(text)
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("mortal:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("supervisor.degraded", timeout=60)
        assert pool.status()["state"] == "degraded"
        code, body = pool.get("/readyz")
        assert code == 503 and "degraded" in body
        assert pool.get("/healthz")[0] == 200
        mark.unlink()
        pool.hear("supervisor.ready", timeout=60)
        eventually(lambda: pool.get("/readyz")[0] == 200)
        assert pool.stop() == 0


def test_status_and_metrics_have_the_documented_shape_and_agree(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, ["0.01"] * 10 + ["nonsense"])
    with supervised(
        "handlers:work", "--workers", "2", "--retries", "0", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=10)
        pool.hear("task.dead_lettered")
        depth = {"name": queue, "type": "default", "ready": 0, "consumers": 2}
        status = eventually(lambda: (s := pool.status())["queue"] == depth and s)
        assert status["state"] == "running"
        assert {"since", "version", "generation", "recent"} <= status.keys()
        keys = {"slot", "pid", "state", "message_id", "busy_seconds", "rss_bytes", "restarts", "succeeded", "failed"}
        assert all(keys | {"last_exit"} <= worker.keys() for worker in status["workers"])
        eventually(lambda: all(worker["rss_bytes"] > 1_000_000 for worker in pool.workers()))
        assert sum(worker["succeeded"] for worker in status["workers"]) == 10
        totals = status["totals"]
        for outcome in ("succeeded", "failed", "dead_lettered", "quarantined", "unsettled"):
            assert pool.metric("workq_tasks_total", outcome=outcome) == totals[outcome]
        assert totals["succeeded"] == 10 and totals["failed"] == 1
        assert pool.metric("workq_task_seconds_count") == 11
        assert pool.metric("workq_task_seconds_bucket", le="+Inf") == 11
        assert pool.metric("workq_task_seconds_bucket", le="0.005") <= 1
        assert pool.metric("workq_workers", state="idle") == 2
        assert pool.metric("workq_queue_messages_ready") == 0
        assert pool.metric("workq_broker_up") == 1
        assert pool.metric("workq_info", version=status["version"], queue=queue) == 1
        assert re.search("^# HELP workq_tasks_total ", pool.get("/metrics")[1], re.M)
        assert pool.get("/nothing")[0] == 404
        assert all(decision["because"] for decision in status["recent"])
        assert pool.stop() == 0


def test_health_tells_the_truth_while_starting_and_draining(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, ["2"])
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        eventually(lambda: pool.get("/readyz")[0] == 200)
        pool.send(signal.SIGTERM)
        pool.hear("supervisor.stopping")
        code, body = pool.get("/readyz")
        assert code == 503 and "draining" in body
        assert pool.get("/healthz")[0] == 200
        assert pool.status()["state"] == "draining"
        assert pool.wait() == 0


def test_a_default_health_port_that_is_taken_is_no_reason_not_to_work_and_one_asked_for_is_exit_78(
    broker_url: str, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as first:
        taken = first.health.removeprefix("http://")
        with supervised("handlers:work", "--health", taken, url=broker_url, queue=queue) as second:
            assert second.wait() == 78
            assert "--health" in second.named("supervisor.stopped")[0]["because"]
        assert first.ready().stop() == 0


def test_no_password_is_found_in_argv_environ_log_or_health(own_node: PrivateNode, queue: str) -> None:
    secret = "hunter2-%40-secret"
    own_node.ctl("add_user", "carol", "hunter2-@-secret")
    own_node.ctl("set_permissions", "-p", "/", "carol", ".*", ".*", ".*")
    url = own_node.url.replace("guest:guest", f"carol:{secret}")
    options = ("--workers", "2", "--log-level", "debug")
    with supervised("handlers:work", *options, url=url, queue=queue, inside=EXECUTED) as pool:
        pool.ready()
        texts = [pool.get(path)[1] for path in ("/status", "/metrics", "/readyz")]
        for pid in pool.pids():
            texts += [Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ")]
        wrong = url.replace("hunter2", "hunter3")
        with supervised("handlers:work", "--workers", "1", url=wrong, queue=queue) as refused:
            died = refused.hear("worker.exited", cause="broker")
            assert "carol" in died["because"]
            texts.append(refused.log(1000))
        assert pool.stop() == 0
        texts.append(json.dumps(pool.events))
    assert not any("hunter" in text for text in texts)
    assert not pika.__version__.startswith("0")
