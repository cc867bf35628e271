"""Workers are killed and the broker is, in the middle of a canary: it comes to an end, and nothing is lost."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests import amqp, handler_modules, workq
from tests.chaos.test_random_kills import Killer
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised

CODE = """
from handlers import note, work as wait
def work(task):
    note("{name}", task.message_id)
    wait(task)
"""
TASKS = 300
KILLS = 8
"""At least."""


@pytest.mark.timeout(240)
def test_a_canary_amid_kills_and_a_broker_that_dies_comes_to_an_end_and_loses_nothing(
    tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(name="old"))
    control = str(tmp_path / "control.sock")
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "4", "--control", control, "--max-crashes", "1000")
    published = [f"task-{n}" for n in range(TASKS)]
    weights = random.Random(TASKS)
    with (
        PrivateNode(tmp_path / "node") as node,
        supervised("app:work", *options, url=node.url, queue="chaos", env=env) as pool,
    ):
        pool.ready()
        handler_modules.write(tmp_path, "app", CODE.format(name="brand_new"))
        workq.run("reload", "--control", control, "--canary", "50%", "--for", "10s", "--no-wait")
        amqp.publish(node.url, "chaos", [f"{weights.uniform(0.01, 0.05):.4f}" for _ in published], ids=published)
        killer = Killer(pool)
        print(f"seed {killer.seed}")
        killer.start()
        eventually(lambda: len(killer.killed) >= KILLS // 2)
        assert pool.status()["reload"]["state"] in ("canary", "failed")
        node.kill()
        # Who had just been forked may be refused before the others have noticed.
        eventually(lambda: pool.named("broker.lost") or pool.named("broker.refused"))
        node.start()
        eventually(lambda: len(killer.killed) >= KILLS, timeout=60)
        killer.stop()
        eventually(lambda: set(runs.lines("done")) == set(published), timeout=60)
        # It has passed, or has crashed too often in a row: the dice decide. But it has ended, and with one generation.
        ended = eventually(lambda: (reload := pool.status()["reload"])["ended_at"] and reload, timeout=90)
        generation = {"finished": 2, "failed": 1}[ended["state"]]
        eventually(lambda: [worker["generation"] for worker in pool.workers() if worker["pid"]] == [generation] * 4)
        assert pool.status()["generation"] == generation
        assert ended["error"] is None or "the canary is rolled back: " in ended["error"]
        eventually(lambda: pool.get("/readyz")[0] == 200, timeout=60)
        eventually(lambda: amqp.depth(node.url, "chaos") == 0)
        assert amqp.depth(node.url, "chaos.dead") == 0
        # Another canary is not held up by what has happened to the first.
        workq.run("reload", "--control", control, "--canary", "50%", "--for", "1h", "--no-wait")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    assert set(runs.lines("done")) == set(published)
    assert runs.lines("brand_new") and runs.lines("old")
