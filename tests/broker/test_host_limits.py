"""Out of descriptors, out of processes: the supervisor goes on with what it has, and says which limit to raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.parent.descriptors import PER_WORKER
from tests import amqp, handler_modules
from tests.cpu_cgroup import cpu_cgroup
from tests.pids_cgroup import pids_cgroup
from tests.supervision import Runs, Supervision, eventually, retinue, supervised

pytestmark = pytest.mark.any_broker

WORKQ = str(Path(sys.executable).with_name("workq"))


def scale(control: Path, workers: int) -> None:
    subprocess.run([WORKQ, "scale", "--control", str(control), str(workers)], check=True, timeout=30)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def at_rest(pool: Supervision) -> int:
    """How many descriptors the supervisor has, when the next worker has been forked ahead."""
    retinue(pool)
    return descriptors(pool.pid)


# ------------------------------------------------------------------------------------------------- descriptors


def test_f74_the_limit_on_descriptors_is_raised_as_workers_are_added(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    control = tmp_path / "control.sock"
    options = ("--workers", "1", "--control", str(control))
    inside = ("prlimit", "--nofile=60:4096")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=inside) as pool:
        pool.ready()
        before = min(at_rest(pool) for _ in range(3))  # a client of health's may still have one
        scale(control, 25)
        pool.hear("worker.ready", count=25)
        eventually(lambda: at_rest(pool) == before + 24 * PER_WORKER)
        assert descriptors(pool.pid) > 60
        assert not pool.named("worker.start_failed")
        assert pool.stop() == 0


def test_f74_out_of_descriptors_the_workers_there_are_work_and_the_log_names_the_limit(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    control = tmp_path / "control.sock"
    options = ("--workers", "2", "--control", str(control))
    inside = ("prlimit", "--nofile=50:50")
    amqp.publish(broker_url, queue, ["1", "0.1", "0.1"], ids=["long", "b", "c"])
    with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=inside, env=runs.env) as pool:
        pool.ready()
        runs.hear("began")
        scale(control, 30)
        failed = pool.hear("worker.start_failed", count=2)
        assert "limit is 50 descriptors" in failed["because"]
        assert "LimitNOFILE" in failed["because"]
        pool.hear("task.succeeded", message_id="long")
        assert pool.named("worker.exited") == []
        code, text = pool.get("/readyz")
        assert code == 200 and "LimitNOFILE" in text
        scale(control, 2)
        assert pool.status()["trouble"] is None
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.exited", cause="SIGKILL")
        amqp.publish(broker_url, queue, ["0"], ids=["after"])
        pool.hear("task.succeeded", message_id="after")
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == sorted(runs.lines("done")) == ["after", "b", "c", "long"]


def ready_without(pool: Supervision, word: str) -> str | None:
    try:
        code, text = pool.get("/readyz")
    except OSError:
        return None
    return text if code == 200 and word not in text else None


# --------------------------------------------------------------------------------------------------- processes


def test_f75_at_the_limit_on_processes_a_reload_fails_and_the_old_generation_stays(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "app", "from handlers import work\n")
    env = {"PYTHONPATH": str(tmp_path)}
    with (
        pids_cgroup() as group,
        supervised("app:work", "--workers", "2", url=broker_url, queue=queue, env=env, inside=group.inside) as pool,
    ):
        pool.ready()
        before = sorted(pool.pids())
        nursery = retinue(pool)["workq-nursery"]
        group.limit(1)
        pool.send(signal.SIGHUP)
        failed = pool.hear("reload.failed")
        assert "pids.max" in failed["because"] and "generation 1 stays" in failed["because"]
        assert sorted(pool.pids()) == before
        os.kill(nursery, signal.SIGKILL)
        refused = pool.hear("nursery.start_failed", count=2)
        assert "TasksMax" in refused["because"]
        code, text = pool.get("/readyz")
        assert code == 200 and "pids.max" in text
        amqp.publish(broker_url, queue, ["0"], ids=["meanwhile"])
        pool.hear("task.succeeded", message_id="meanwhile")
        group.limit(None)
        pool.hear("handler.loaded", count=2)
        os.kill(before[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=3)
        assert pool.stop() == 0


def test_f75_a_fork_that_is_refused_is_tried_again_by_one_worker_for_all(broker_url: str, queue: str) -> None:
    options = ("--workers", "4")
    with (
        pids_cgroup() as group,
        supervised("handlers:work", *options, url=broker_url, queue=queue, inside=group.inside) as pool,
    ):
        pool.ready()
        retinue(pool)
        group.limit(1)
        for pid in pool.pids()[:3]:
            os.kill(pid, signal.SIGKILL)
        failed = pool.hear("worker.start_failed")
        assert "pids.max" in failed["because"]
        pool.hear("worker.start_failed", count=3)
        assert "pids.max" in pool.get("/readyz")[1]
        group.limit(None)
        pool.hear("worker.ready", count=7)
        eventually(lambda: ready_without(pool, "pids.max"))
        assert pool.stop() == 0


def test_f75_a_supervisor_that_may_start_nothing_gives_up_in_words(broker_url: str, queue: str) -> None:
    with pids_cgroup() as group:
        group.limit(1)
        with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, inside=group.inside) as pool:
            assert pool.wait() == 1
            assert "pids.max" in pool.hear("supervisor.stopped", code=1)["because"]
            assert "pids.max" in pool.hear("health.failed")["because"]


def test_f75_workers_start_when_there_is_a_process_for_them_again(broker_url: str, queue: str) -> None:
    """A handler without preload: the nursery is alive and forks later, so the limit can fall in between."""
    options = ("--workers", "1")
    with (
        pids_cgroup() as group,
        supervised("handlers:work", *options, url=broker_url, queue=queue, inside=group.inside) as pool,
    ):
        group.limit(4)  # the supervisor with its thread, zygote, nursery: no worker
        assert "pids.max" in pool.hear("worker.start_failed")["because"]
        group.limit(None)
        pool.ready()
        eventually(lambda: ready_without(pool, "pids.max"))
        assert pool.stop() == 0


# --------------------------------------------------------------------------------------------------- CPU quotas


def test_f83_workers_auto_is_as_many_as_the_quota_of_a_cgroup_above_is_worth_and_the_log_says_so(
    broker_url: str, queue: str
) -> None:
    options = ("--workers", "auto", "--burst")
    with cpu_cgroup() as group:
        group.limit(0.5)
        with supervised("handlers:work", *options, url=broker_url, queue=queue, inside=group.inside) as pool:
            assert pool.wait() == 0
            [started] = pool.named("supervisor.started")
            assert started["workers"] == started["workers_most"] == 1
            assert started["workers_by"] == "auto: the cgroup's CPU quota of 0.5"
