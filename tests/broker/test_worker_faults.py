"""FAULTS, the worker's rows: whoever dies, the message is named, and done by another."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests import amqp
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, gone, retinue, supervised


def test_f01_a_worker_killed_while_idle_is_replaced_and_nothing_is_redelivered(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        pool.ready()
        victim = pool.workers()[1]
        os.kill(victim["pid"], signal.SIGKILL)
        died = pool.hear("worker.exited", slot=1)
        assert died["cause"] == "SIGKILL"
        assert died["message_id"] is None
        assert died["next"] == "restart immediately"
        pool.hear("worker.ready", count=2 + 1)
        status = pool.status()
        assert [worker["state"] for worker in status["workers"]] == ["idle", "idle"]
        assert status["workers"][1]["pid"] != victim["pid"]
        assert status["workers"][1]["restarts"] == 1
        assert status["totals"]["redelivered"] == 0
        assert pool.metric("workq_worker_exits_total", cause="SIGKILL") == 1
        assert pool.stop() == 0


def test_f02_the_message_of_a_worker_killed_in_mid_task_is_named_and_run_by_another(
    broker_url: str, queue: str, runs: Runs
) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        published = time.monotonic()
        amqp.publish(broker_url, queue, ["3"], ids=["precious"])
        runs.hear("began")
        busy = eventually(lambda: [w for w in pool.workers() if w["state"] == "busy"])[0]
        assert busy["message_id"] == "precious"
        os.kill(busy["pid"], signal.SIGKILL)
        died = pool.hear("worker.exited")
        assert (died["slot"], died["cause"], died["message_id"]) == (busy["slot"], "SIGKILL", "precious")
        assert 0 <= died["busy_seconds"] < time.monotonic() - published
        assert "restart immediately" in died["next"]
        assert "has killed 1 of at most 3 workers" in died["next"]
        pool.hear("task.succeeded", message_id="precious")
        assert runs.lines("began") == ["precious"] * 2
        assert runs.lines("done") == ["precious"]
        assert pool.status()["totals"]["redelivered"] == 1
        assert pool.status()["workers"][busy["slot"]]["last_exit"]["message_id"] == "precious"
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ({"exit": 0}, "exit 0"),
        ({"exit": 3}, "exit 3"),
        ({"exit": 75}, "exit 75"),
        ({"kill": "SIGSEGV"}, "SIGSEGV"),
        ({"kill": "SIGKILL"}, "SIGKILL"),
    ],
)
def test_f07_a_worker_that_a_handler_ends_is_a_failure_and_its_message_goes_to_quarantine(
    broker_url: str, typed_queue: str, runs: Runs, order: dict[str, object], cause: str
) -> None:
    queue = typed_queue
    amqp.publish(broker_url, queue, [json.dumps(order)], ids=["killer"])
    amqp.publish(broker_url, queue, ["{}"] * 5, ids=[f"good-{n}" for n in range(5)])
    with supervised("handlers:act", "--workers", "2", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.quarantined", message_id="killer")
        pool.hear("task.succeeded", count=5)
        deaths = pool.named("worker.exited", message_id="killer")
        assert [died["cause"] for died in deaths] == [cause] * 3
        assert runs.lines("began").count("killer") == 3
        eventually(lambda: pool.status()["totals"]["quarantined"] == 1)
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0
    [(_, properties, body)] = amqp.drain(broker_url, f"{queue}.dead")
    assert json.loads(body) == order
    headers = properties.headers or {}
    assert headers["x-workq-reason"] == "crash"
    assert headers["x-workq-cause"] == cause
    assert headers["x-workq-crashes"] == 3
    assert headers["x-workq-queue"] == queue


def test_sys_exit_in_a_handler_is_a_failure_that_kills_nobody(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"sys_exit": 0}), json.dumps({"raise": "KeyboardInterrupt"})])
    with supervised(
        "handlers:act", "--workers", "1", "--retries", "0", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        pool.hear("task.dead_lettered", count=2)
        assert pool.status()["totals"]["failed"] == 2
        assert pool.stop() == 0
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"]
    assert len(amqp.drain(broker_url, f"{queue}.dead")) == 2


def test_f11_all_workers_killed_in_the_same_instant_are_as_many_deaths_and_replacements(
    broker_url: str, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "8", url=broker_url, queue=queue) as pool:
        pool.ready()
        pids = pool.pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        pool.hear("worker.exited", count=8, cause="SIGKILL")
        pool.hear("worker.ready", count=16)
        assert len(set(pool.pids()) - set(pids)) == 8
        assert pool.get("/readyz")[0] == 200
        assert pool.stop() == 0


def test_f13_the_nursery_killed_disturbs_no_task_and_the_next_replacement_still_comes(
    broker_url: str, queue: str, runs: Runs
) -> None:
    amqp.publish(broker_url, queue, ["1.5"] * 2)
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", 2)
        before = pool.pids()
        os.kill(retinue(pool)["workq-nursery"], signal.SIGKILL)
        pool.hear("nursery.exited")
        pool.hear("handler.loaded", count=2)
        pool.hear("task.succeeded", count=2)
        assert pool.pids() == before
        assert len(runs.lines("began")) == 2
        os.kill(before[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        assert pool.stop() == 0


def test_f47_the_supervisor_killed_takes_every_worker_with_it_and_loses_nothing(
    broker_url: str, queue: str, runs: Runs, node: PrivateNode
) -> None:
    amqp.publish(broker_url, queue, ["30"] * 3, ids=["a", "b", "c"])
    with supervised("handlers:work", "--workers", "4", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", 3)
        everyone = [*pool.pids(), *retinue(pool).values()]
        pool.send(signal.SIGKILL)
        assert all(gone(pid, timeout=2.0) for pid in everyone)
    eventually(lambda: amqp.unacked(node, queue) == 0)
    assert amqp.depth(broker_url, queue) == 3


def test_a_worker_that_is_sent_sigterm_itself_finishes_its_task_leaves_and_is_replaced(
    broker_url: str, queue: str, runs: Runs
) -> None:
    amqp.publish(broker_url, queue, ["0.5"], ids=["slow"])
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        [pid] = pool.pids()
        os.kill(pid, signal.SIGTERM)
        pool.hear("worker.exited", cause="drained")
        pool.hear("worker.ready", count=2)
        assert runs.lines("done") == ["slow"]
        assert pool.status()["totals"]["succeeded"] == 1
        assert pool.stop() == 0


def test_the_spare_takes_the_seat_of_a_worker_that_dies_and_another_is_forked_ahead(
    broker_url: str, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        pool.ready()
        for deaths in (1, 2):
            spare = retinue(pool)["workq-spare"]
            os.kill(pool.pids()[0], signal.SIGKILL)
            born = pool.hear("worker.started", count=2 + deaths)
            assert (born["slot"], born["pid"]) == (0, spare)
            pool.hear("worker.ready", count=2 + deaths)
            assert spare == pool.pids()[0]
        amqp.publish(broker_url, queue, ["0"] * 20)
        pool.hear("task.succeeded", count=20, timeout=30)
        assert {(line["slot"], line["pid"]) for line in pool.named("task.succeeded")} <= set(enumerate(pool.pids()))
        assert pool.stop() == 0


def test_a_spare_that_is_killed_is_nobody_s_death_and_the_next_worker_comes_without_it(
    broker_url: str, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.ready()
        spare = retinue(pool)["workq-spare"]
        os.kill(spare, signal.SIGKILL)
        assert gone(spare, timeout=10.0)
        assert pool.named("worker.exited") == []
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=2)
        assert retinue(pool)["workq-spare"] != spare
        assert pool.stop() == 0
