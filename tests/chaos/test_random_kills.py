"""Workers are killed at random while thousands of tasks are done. The account must balance, by set arithmetic."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests import amqp
from tests.node import PrivateNode
from tests.supervision import Runs, Supervision, eventually, supervised

TASKS = 2000
KILLS = 40
"""At least."""


class Killer(threading.Thread):
    """SIGKILLs a random worker every 100 to 300 ms until told to stop. The seed is printed, to be repeated."""

    def __init__(self, pool: Supervision) -> None:
        super().__init__(daemon=True)
        self._pool = pool
        self._enough = threading.Event()
        self.seed = random.randrange(2**32)
        self.killed: list[int] = []

    def run(self) -> None:
        dice = random.Random(self.seed)
        while not self._enough.wait(dice.uniform(0.1, 0.3)):
            # Nobody twice: the dead takes a second SIGKILL, too, until it is reaped.
            pids = [pid for pid in self._pool.pids() if pid not in self.killed]
            if not pids:
                continue
            pid = dice.choice(pids)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # the status was older than its death
            self.killed.append(pid)

    def stop(self) -> None:
        self._enough.set()
        self.join()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_f12_two_thousand_tasks_under_random_kills_lose_nothing(
    broker_url: str, queue: str, tmp_path: Path, node: PrivateNode, queue_type: str
) -> None:
    runs = Runs(tmp_path / "runs")
    published = [f"task-{n}" for n in range(TASKS)]
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": queue_type})
    weights = random.Random(TASKS)
    amqp.publish(broker_url, queue, [f"{weights.uniform(0.01, 0.04):.4f}" for _ in published], ids=published)
    with supervised("handlers:work", "--workers", "4", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        killer = Killer(pool)
        print(f"seed {killer.seed}")
        killer.start()
        eventually(lambda: len(killer.killed) >= KILLS or set(runs.lines("done")) == set(published), timeout=120)
        eventually(lambda: set(runs.lines("done")) == set(published), timeout=120)
        killer.stop()
        kills = len(killer.killed)
        assert kills >= KILLS, "too quick for this many kills: give it more tasks"

        # Everybody is replaced, and nothing is in flight any more.
        pool.hear("worker.exited", count=kills)
        eventually(lambda: [worker["state"] for worker in pool.workers()] == ["idle"] * 4)
        # Too many who were killed with nothing in hand degrade the pool, for a while.
        eventually(lambda: pool.get("/readyz")[0] == 200)
        # A quorum queue counts what is unacknowledged every five seconds only.
        eventually(lambda: amqp.unacked(node, queue) == 0)
        assert amqp.depth(broker_url, queue) == 0
        assert amqp.depth(broker_url, f"{queue}.dead") == 0

        # Every death is told once, and names its message if it had one.
        deaths = [line for line in pool.named("worker.exited") if line["cause"] == "SIGKILL"]
        assert Counter(line["pid"] for line in deaths) == Counter(killer.killed)
        named = [line["message_id"] for line in deaths if line["message_id"] is not None]
        assert set(named) <= set(published)

        # lost 0, and at most one extra run for a kill: of what the killed worker had in hand, which its death names, or
        # of what it had just acknowledged: RabbitMQ can return that to a quorum queue.
        began, done = Counter(runs.lines("began")), Counter(runs.lines("done"))
        assert set(done) == set(published)
        extra = Counter({name: count - 1 for name, count in began.items() if count > 1})
        last = {line["pid"]: line["message_id"] for line in pool.named("task.succeeded")}
        empty_handed = [last.get(line["pid"]) for line in deaths if line["message_id"] is None]
        assert not extra - Counter(named) - Counter(empty_handed), "an extra run that no death explains"

        # Health agrees. A worker killed between the acknowledgement and the end of the count is a `settling` death.
        status = pool.status()
        settling = sum(1 for line in deaths if line.get("settling"))
        succeeded = status["totals"]["succeeded"]
        assert TASKS - settling <= succeeded <= done.total()
        assert sum(worker["succeeded"] for worker in status["workers"]) == succeeded
        assert pool.metric("workq_tasks_total", outcome="succeeded") == succeeded
        assert TASKS - settling <= pool.metric("workq_task_seconds_count") <= succeeded
        assert pool.metric("workq_worker_exits_total", cause="SIGKILL") == status["totals"]["worker_exits"] == kills
        # Who was killed before it consumed is no restart that came to its end.
        assert pool.metric("workq_worker_restart_seconds_count") == len(pool.named("worker.ready")) - 4
        assert pool.stop() == 0
