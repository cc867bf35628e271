"""Stopping: signals, grace, exit codes, --burst."""

from __future__ import annotations

import os
import signal

import pytest

from tests import amqp
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f48_a_stop_lets_tasks_in_hand_end_and_leaves_the_rest_untouched(
    broker_url: str, queue: str, runs: Runs, number: int
) -> None:
    amqp.publish(broker_url, queue, ["0.7"] * 6, ids=[f"t{n}" for n in range(6)])
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began", 2)
        assert pool.stop(number) == 0
        assert len(pool.named("worker.exited", cause="drained")) == 2
        assert pool.named("supervisor.stopped")[0]["code"] == 0
    done = runs.lines("done")
    assert runs.lines("began") and sorted(runs.lines("began")) == sorted(done)
    left = amqp.drain(broker_url, queue)
    assert len(left) == 6 - len(done)
    assert not any(method.redelivered for method, _, _ in left)


def test_f48_what_does_not_end_within_the_grace_is_killed_and_the_exit_code_says_so(
    broker_url: str, queue: str, runs: Runs, node: PrivateNode
) -> None:
    amqp.publish(broker_url, queue, ["0.5", "60"], ids=["short", "endless"])
    with supervised(
        "handlers:work", "--workers", "2", "--grace", "4", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        runs.hear("began", 2)
        assert pool.stop() == 1
        assert len(pool.named("worker.exited", cause="drained")) == 1
        killed = pool.named("worker.exited", cause="grace")[0]
        assert killed["message_id"] == "endless"
        assert killed["level"] == "warning"
        because = pool.named("supervisor.stopped")[0]["because"]
        assert because.startswith("SIGTERM; worker ")
        assert because.endswith(" was killed: still running after --grace (4 s); its message endless is redelivered")
    assert runs.lines("done") == ["short"]
    eventually(lambda: amqp.unacked(node, queue) == 0)
    assert [properties.message_id for _, properties, _ in amqp.drain(broker_url, queue)] == ["endless"]


def test_f48_a_handler_that_ignores_sigterm_does_not_hold_up_a_stop(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, [""], ids=["mule"])
    with supervised(
        "handlers:stubborn", "--workers", "1", "--grace", "0.5", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        runs.hear("began")
        assert pool.stop() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f49_a_second_signal_means_now(broker_url: str, queue: str, runs: Runs, number: int) -> None:
    amqp.publish(broker_url, queue, ["60"], ids=["endless"])
    with supervised(
        "handlers:work", "--workers", "2", "--grace", "10m", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        runs.hear("began")
        pool.send(number)
        pool.hear("supervisor.stopping")
        assert pool.get("/readyz")[0] == 503
        assert pool.stop(number) == 1
        assert pool.hear("worker.exited", message_id="endless")["cause"] == "grace"
    assert eventually(lambda: amqp.depth(broker_url, queue)) == 1


def test_burst_leaves_with_0_when_the_queue_is_empty_and_everything_is_settled(
    broker_url: str, queue: str, runs: Runs
) -> None:
    names = [f"t{n}" for n in range(20)]
    amqp.publish(broker_url, queue, ["0.05"] * 20, ids=names)
    with supervised("handlers:work", "--workers", "3", "--burst", url=broker_url, queue=queue, env=runs.env) as pool:
        assert pool.wait() == 0
        assert len(pool.named("task.succeeded")) == 20
    assert sorted(runs.lines("done")) == sorted(names)


def test_burst_does_not_leave_while_a_killed_workers_message_is_still_to_be_done(
    broker_url: str, queue: str, runs: Runs
) -> None:
    amqp.publish(broker_url, queue, ["0.8"], ids=["last"])
    with supervised("handlers:work", "--workers", "1", "--burst", url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert pool.wait() == 0
    assert runs.lines("done") == ["last"]


def test_ttin_and_ttou_add_and_remove_a_worker(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.ready()
        pool.send(signal.SIGTTIN)
        pool.hear("worker.ready", slot=1)
        pool.send(signal.SIGTTOU)
        pool.hear("worker.exited", slot=1, cause="drained")
        eventually(lambda: pool.metric("workq_workers", state="idle") == 1)
        assert pool.stop() == 0


def test_usr1_logs_the_stacks_of_every_worker_and_usr2_the_whole_status(
    broker_url: str, queue: str, runs: Runs
) -> None:
    amqp.publish(broker_url, queue, ["30"])
    with supervised(
        "handlers:work", "--workers", "1", "--grace", "0.2", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        runs.hear("began")
        pool.send(signal.SIGUSR1)
        eventually(lambda: any("in work" in line["line"] for line in pool.named("worker.output", slot=0)))
        pool.send(signal.SIGUSR2)
        assert pool.hear("supervisor.status")["status"]["workers"][0]["state"] == "busy"
        pool.stop()
