"""HUP: new code beside the old, then one worker at a time; code that cannot be loaded changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests import amqp, handler_modules
from tests.supervision import Runs, eventually, supervised

CODE = """
from handlers import note, work as slow
def work(task):
    note("{generation}", task.message_id)
    slow(task)
"""


def test_f50_a_reload_under_load_replaces_every_worker_and_interrupts_no_task(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(generation="old"))
    names = [f"t{n}" for n in range(60)]
    amqp.publish(broker_url, queue, ["0.1"] * 60, ids=names)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "3", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        before = set(pool.pids())
        runs.hear("old", 3)
        handler_modules.write(tmp_path, "app", CODE.format(generation="brand_new"))
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        assert not before & set(pool.pids())
        assert pool.status()["generation"] == 2
        pool.hear("task.succeeded", count=60)
        assert pool.status()["totals"]["redelivered"] == 0
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=7)
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == sorted(runs.lines("done")) == sorted(names)
    assert runs.lines("old") and runs.lines("brand_new")
    assert len(runs.lines("old")) + len(runs.lines("brand_new")) == 60


def test_f50_broken_code_leaves_the_old_generation_running_and_the_error_is_shown(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(generation="old"))
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        before = pool.pids()
        handler_modules.write(tmp_path, "app", "def work(task:\n    this is no Python, whatever its length may be\n")
        pool.send(signal.SIGHUP)
        failed = pool.hear("reload.failed")
        assert "SyntaxError" in failed["because"] and "generation 1 stays" in failed["because"]
        assert "app.py" in failed["exception"]
        amqp.publish(broker_url, queue, ["0"], ids=["after"])
        pool.hear("task.succeeded", message_id="after")
        assert pool.pids() == before
        assert pool.get("/readyz")[0] == 200
        # A replacement still comes, of the code that works.
        os.kill(before[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        # And mended code is taken.
        handler_modules.write(tmp_path, "app", CODE.format(generation="mended_at_last"))
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=3)
        amqp.publish(broker_url, queue, ["0"], ids=["mended"])
        pool.hear("task.succeeded", message_id="mended")
        assert pool.stop() == 0
    assert runs.lines("mended_at_last") == ["mended"]


def test_a_stop_during_a_reload_leaves_nobody_behind(broker_url: str, queue: str, tmp_path: Path) -> None:
    handler_modules.write(tmp_path, "app", "def work(task):\n    pass\n")
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        handler_modules.write(tmp_path, "app", handler_modules.HANGS)
        pool.send(signal.SIGHUP)
        eventually(lambda: any("importing, for ever" in line["line"] for line in pool.named("worker.output")))
        assert pool.stop() == 0
