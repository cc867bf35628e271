"""FAULTS 5: the OOM killer of a memory cgroup takes a worker, and is named as the cause."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from supervisor.linux.cgroup import EXPENDABLE
from supervisor.linux.descendants import children
from tests import amqp
from tests.memory_cgroup import memory_cgroup
from tests.supervision import EXECUTED, Runs, Supervision, retinue, supervised

pytestmark = pytest.mark.any_broker

MEBIBYTE = 1 << 20


@contextmanager
def confined(*options: str, url: str, queue: str, runs: Runs) -> Iterator[Supervision]:
    """A supervisor, ready, with everything of it in a memory cgroup of 256 MiB."""
    with memory_cgroup() as group, ExitStack() as birth:
        birth.enter_context(group.inside())
        with supervised("offspring:eat", *options, url=url, queue=queue, env=runs.env, inside=EXECUTED) as pool:
            birth.close()
            pool.ready()
            group.limit(256 * MEBIBYTE)
            yield pool


def test_f05_a_worker_that_the_oom_killer_takes_is_named_so_and_nobody_else_dies(
    broker_url: str, queue: str, runs: Runs
) -> None:
    options = ("--workers", "3", "--max-crashes", "1")
    with confined(*options, url=broker_url, queue=queue, runs=runs) as pool:
        before = pool.pids()
        nursery = retinue(pool)["workq-nursery"]
        amqp.publish(broker_url, queue, ["1024"], ids=["hog"])
        died = pool.hear("worker.exited")
        assert (died["cause"], died["status"], died["message_id"]) == ("OOM", "OOM", "hog")
        pool.hear("task.quarantined", message_id="hog")
        pool.hear("worker.ready", count=4)
        assert len(pool.named("worker.exited")) == 1
        assert set(before) - set(pool.pids()) == {died["pid"]}
        assert nursery in children(pool.pid)
        assert pool.metric("workq_worker_exits_total", cause="OOM") == 1
        amqp.publish(broker_url, queue, ["1"], ids=["modest"])
        pool.hear("task.succeeded", message_id="modest")
        assert pool.stop() == 0
    assert runs.lines("began") == ["hog", "modest"]
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    assert properties.headers is not None
    assert (properties.headers["x-workq-reason"], properties.headers["x-workq-cause"]) == ("crash", "OOM")


def test_f05_every_one_of_many_such_deaths_is_counted_and_an_ordinary_kill_is_not(
    broker_url: str, queue: str, runs: Runs
) -> None:
    options = ("--workers", "1", "--max-crashes", "6")
    with confined(*options, url=broker_url, queue=queue, runs=runs) as pool:
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=2)
        amqp.publish(broker_url, queue, ["1024"], ids=["hog"])
        pool.hear("task.quarantined", message_id="hog")
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.exited", count=8)
        causes = [died["cause"] for died in pool.named("worker.exited")]
        assert causes == ["SIGKILL", *["OOM"] * 6, "SIGKILL"]
        assert pool.stop() == 0


def test_the_oom_killer_is_shown_the_workers_and_not_the_supervisor(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        pool.ready()
        own = int(Path("/proc/self/oom_score_adj").read_text())
        assert adjustment(pool.pid) == own
        everyone = [*pool.pids(), *retinue(pool).values()]
        assert {adjustment(pid) for pid in everyone} == {min(1000, own + EXPENDABLE)}
        assert pool.stop() == 0


def adjustment(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
