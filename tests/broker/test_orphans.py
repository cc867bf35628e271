"""Workers whose connection is lost while their handlers run on: each gives its slot on, and no message runs beside
itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import amqp, handler_modules
from tests.broker.test_handlers import close_connection
from tests.node import PrivateNode
from tests.proxy import Proxy
from tests.supervision import Runs, Supervision, eventually, supervised

ALONE = """
import fcntl, os, signal, time
from handlers import note
def work(task):
    # The kernel gives the lock back when the process is gone, however that came about.
    lock = os.open(os.environ["TEST_RUNS"] + "." + task.message_id, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("twice", task.message_id)
    note("began", task.message_id)
    order = task.text.split()
    until = time.monotonic() + float(order[0])
    if task.redelivered and "once" in order:
        until = 0
    while time.monotonic() < until and not (task.lost and "heeds" in order):
        time.sleep(0.02)
    if "kills" in order:
        os.kill(os.getpid(), signal.SIGKILL)
    note("lost" if task.lost else "done", task.message_id)
    os.close(lock)
"""
"""A handler that notices when the same message is run beside it."""


@pytest.fixture
def proxy(node: PrivateNode) -> Iterator[Proxy]:
    with Proxy(node.port) as between:
        yield between


def alone(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "alone", ALONE)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


def done(pool: Supervision, word: str = "succeeded") -> float:
    return float(pool.status()["totals"][word])


def test_f110_a_lost_connection_under_long_tasks_stops_nothing_and_no_message_runs_beside_itself(
    proxy: Proxy, node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    env = alone(tmp_path, runs) | {"WORKQ_LOST_GRACE": "2s"}
    with supervised("alone:work", "--workers", "4", url=proxy.url, queue=queue, env=env) as pool:
        pool.ready()
        bodies = {"heeds-0": "60 once heeds", "heeds-1": "60 once heeds", "deaf-0": "60 once", "deaf-1": "60 once"}
        amqp.publish(node.url, queue, list(bodies.values()), ids=list(bodies))
        runs.hear("began", 4)
        before = pool.status()
        proxy.reset()
        pool.hear("worker.orphaned", count=4)
        pool.hear("worker.ready", count=8)
        status = pool.status()
        assert pool.get("/readyz")[0] == 200
        assert {orphan["slot"] for orphan in status["orphans"]} <= {0, 1, 2, 3}
        assert {worker["pid"] for worker in status["workers"]}.isdisjoint(w["pid"] for w in before["workers"])
        # Two handlers look at `task.lost` and return; two have to be killed, for which nobody is blamed.
        assert sorted(runs.hear("lost", 2)) == ["heeds-0", "heeds-1"]
        exits = [pool.hear("worker.exited", count=4, cause="broker"), *pool.named("worker.exited", cause="broker")]
        assert {died["next"] for died in exits} == {"none: its slot has been refilled"}
        assert {died["message_id"] for died in exits if died["status"] == "SIGKILL"} == {"deaf-0", "deaf-1"}
        pool.hear("task.succeeded", count=4)
        assert sorted(runs.lines("done")) == sorted(bodies)
        assert runs.lines("twice") == []
        totals = pool.status()["totals"]
        assert (totals["succeeded"], totals["quarantined"], totals["unsettled"]) == (4, 0, 2)
        assert sum(worker["succeeded"] for worker in pool.workers()) == 4
        assert pool.metric("workq_worker_crashes_total") == 0
        assert pool.stop() == 0


def test_f110_totals_are_kept_when_a_slot_changes_pages_and_back(
    proxy: Proxy, node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    env = alone(tmp_path, runs)
    with supervised("alone:work", "--workers", "1", url=proxy.url, queue=queue, env=env) as pool:
        for number in range(2):
            amqp.publish(node.url, queue, ["60 once heeds"], ids=[f"task-{number}"])
            eventually(lambda number=number: f"task-{number}" in runs.lines("began"))
            proxy.reset()
            pool.hear("task.succeeded", count=number + 1)
            assert done(pool) == pool.workers()[0]["succeeded"] == pool.metric("workq_tasks_total", outcome="succeeded")
        assert (done(pool), done(pool, "unsettled")) == (2, 2)
        eventually(lambda: not pool.status()["orphans"])
        assert pool.stop() == 0
    assert runs.lines("twice") == []


def test_f110_a_slot_whose_stand_in_loses_its_connection_too_gives_up_its_older_orphan(
    node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    env = alone(tmp_path, runs)
    with supervised("alone:work", "--workers", "2", url=node.url, queue=queue, env=env) as pool:
        pool.ready()
        first = lose_while_it_runs(node, queue, runs, pool, "task-0")
        pool.hear("worker.orphaned", pid=first["pid"])
        # The other worker is given its message, and waits for the orphan. The stand-in has the next one.
        eventually(lambda: pool.workers()[1 - first["slot"]]["state"] == "busy")
        pool.hear("worker.ready", slot=first["slot"], count=2)
        again = lose_while_it_runs(node, queue, runs, pool, "task-1")
        assert again["slot"] == first["slot"]
        killed = pool.hear("worker.exited", message_id="task-0")
        assert (killed["pid"], killed["status"], killed["cause"]) == (first["pid"], "SIGKILL", "broker")
        assert [orphan["pid"] for orphan in pool.status()["orphans"]] == [again["pid"]]
        pool.hear("task.succeeded", message_id="task-0")
        assert runs.lines("twice") == []


def lose_while_it_runs(node: PrivateNode, queue: str, runs: Runs, pool: Supervision, message_id: str) -> dict[str, Any]:
    """Have a worker run this message, and the broker close its connection. That worker, as /status showed it."""
    amqp.publish(node.url, queue, ["60 once"], ids=[message_id])
    eventually(lambda: message_id in runs.lines("began"))
    worker: dict[str, Any] = eventually(
        lambda: next((worker for worker in pool.workers() if worker["message_id"] == message_id), None)
    )
    close_connection(node, f"-{worker['pid']}-{worker['slot']}")
    return worker


def test_a_drain_ends_orphans_within_the_grace_and_a_worker_that_waits_for_one_hands_its_message_back(
    proxy: Proxy, node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    env = alone(tmp_path, runs)
    amqp.publish(node.url, queue, ["60"], ids=["long"])
    with supervised("alone:work", "--workers", "1", "--grace", "4", url=proxy.url, queue=queue, env=env) as pool:
        runs.hear("began")
        proxy.reset()
        pool.hear("worker.ready", count=2)
        eventually(lambda: pool.workers()[0]["state"] == "busy")  # it asks
        assert pool.stop() == 1, "something had to be killed"
        assert {died["cause"] for died in pool.named("worker.exited")} == {"broker", "drained"}
    assert runs.lines("began") == ["long"]
    eventually(lambda: amqp.depth(node.url, queue) == 1)


def test_f77_a_message_whose_connections_are_cut_kills_no_more_than_max_crashes(
    node: PrivateNode, proxy: Proxy, typed_queue: str, tmp_path: Path, runs: Runs
) -> None:
    """Each of its runs takes so long that another could begin before it kills its worker."""
    env = alone(tmp_path, runs)
    options = ("--workers", "5", "--max-crashes", "1")
    with supervised("alone:work", *options, url=proxy.url, queue=typed_queue, env=env) as pool:
        pool.ready()
        amqp.publish(node.url, typed_queue, ["3.5 kills"], ids=["killer"])
        runs.hear("began")
        proxy.reset()
        pool.hear("task.quarantined", message_id="killer")
        assert len(pool.named("worker.exited", cause="SIGKILL", message_id="killer")) == 1
        assert pool.stop() == 0
    assert runs.lines("began") == ["killer"]
