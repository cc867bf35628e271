"""`--workers MIN..MAX` against a real broker."""

from __future__ import annotations

import signal
import time

from tests import amqp
from tests.supervision import Runs, eventually, supervised

CALM = 120.0
"""Seconds to wait for what takes the policy most of a minute, on purpose."""
EVERY = 0.6
"""Seconds between two tasks of a load that one worker can take."""


def test_a_backlog_brings_workers_and_its_end_sends_them_home_without_interrupting_a_task(
    broker_url: str, queue: str, runs: Runs
) -> None:
    with supervised("handlers:work", "--workers", "1..4", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready(1)
        started = pool.hear("supervisor.started")
        assert (started["workers"], started["workers_most"]) == (1, 4)
        amqp.publish(broker_url, queue, ["0.1"] * 200, ids=[f"burst-{n}" for n in range(200)])
        grown = pool.hear("supervisor.resized")
        assert 1 < grown["workers"] <= 4
        assert "ready, 1 worker finishes " in grown["because"]
        assert f"1 -> {grown['workers']} workers" in grown["because"]
        most = max(line["workers"] for line in pool.named("supervisor.resized"))
        pool.hear("worker.ready", count=most)
        runs.hear("done", 200)

        # A trickle goes on meanwhile, so that those who are sent home may have something in hand.
        began, published = time.monotonic(), 0

        def is_alone() -> bool:
            nonlocal published
            if time.monotonic() >= began + published * EVERY:
                amqp.publish(broker_url, queue, ["0.2"], ids=[f"later-{published}"])
                published += 1
            return bool(pool.named("supervisor.resized")[-1]["workers"] == 1)

        eventually(is_alone, CALM)
        shrinks = [line for line in pool.named("supervisor.resized") if "no backlog, and " in line["because"]]
        assert len(shrinks) >= most - 1
        runs.hear("done", 200 + published)

        pool.hear("worker.exited", count=most - 1)
        for left in pool.named("worker.exited"):
            assert (left["cause"], left["status"], left["message_id"]) == ("drained", "exit 0", None)
        names = {f"burst-{n}" for n in range(200)} | {f"later-{n}" for n in range(published)}
        for word in ("began", "done"):
            assert sorted(runs.lines(word)) == sorted(names), "each once"
        totals = eventually(lambda: (now := pool.status()["totals"])["succeeded"] == len(names) and now)
        assert totals["redelivered"] == totals["failed"] == totals["retried"] == 0
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0


def test_one_more_and_one_fewer_stay_between_the_least_and_the_most(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1..2", url=broker_url, queue=queue) as pool:
        pool.ready(1)
        pool.send(signal.SIGTTIN)
        assert pool.hear("supervisor.resized")["workers"] == 2
        pool.hear("worker.ready", count=2)
        # One too many is not remembered: the next one fewer is one fewer than the most.
        for number, least_or_most in ((signal.SIGTTIN, 1), (signal.SIGTTOU, 2)):
            pool.send(number)
            pool.send(signal.SIGUSR2)
            pool.hear("supervisor.status", count=least_or_most)
            pool.send(signal.SIGTTOU if number is signal.SIGTTIN else signal.SIGTTIN)
            resized = pool.hear("supervisor.resized", count=1 + least_or_most)
            assert resized["workers"] == least_or_most
        assert [line["workers"] for line in pool.named("supervisor.resized")] == [2, 1, 2]
        assert pool.stop() == 0
