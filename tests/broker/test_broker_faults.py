"""FAULTS, the broker's rows: it is away, killed, drained, frozen, out of memory, or has lost our queue."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from supervisor.commands.node import answers
from tests import amqp
from tests.node import PrivateNode
from tests.supervision import Runs, Supervision, eventually, supervised

HEARTBEAT = ("--heartbeat", "1s")


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A node that this module ill-treats."""
    node = PrivateNode(tmp_path_factory.mktemp("patient"))
    try:
        node.start()
        yield node
    finally:
        node.kill()


@pytest.fixture
def broker(patient: PrivateNode) -> Iterator[PrivateNode]:
    """The node, well. What a failed test leaves behind is mended here."""
    if not (patient.alive and answers(patient.port)):
        if patient.alive:
            os.kill(patient.pid, signal.SIGCONT)
        patient.kill()
        patient.start()
    patient.eval("[rabbit_alarm:clear_alarm({resource_limit, What, node()}) || What <- [memory, disk]].")
    yield patient
    if patient.alive:
        os.kill(patient.pid, signal.SIGCONT)


@pytest.fixture
def queue() -> str:
    """The name of a queue that does not exist yet, on a node that nobody keeps."""
    return f"queue-{uuid4().hex[:12]}"


class Door:
    """Stands where a broker should be: takes each connection, says nothing, and after a while throws it out."""

    def __init__(self, port: int, hold: float = 0.4) -> None:
        self.visitors = 0
        self.most = 0
        """Visitors at a time."""
        self._inside = 0
        self._hold = hold
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._guests: list[threading.Thread] = []

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._guests):
            thread.join(5.0)

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._listener.accept()
                with self._lock:
                    self.visitors += 1
                    self._inside += 1
                    self.most = max(self.most, self._inside)
                self._guests.append(threading.Thread(target=self._receive, args=(visitor,), daemon=True))
                self._guests[-1].start()

    def _receive(self, visitor: socket.socket) -> None:
        time.sleep(self._hold)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, socket(7)
        with self._lock:
            self._inside -= 1
        visitor.close()


def freeze(broker: PrivateNode) -> None:
    """SIGSTOP, and wait until each of its threads has stopped (proc(5), /proc/PID/task/TID/stat)."""
    os.kill(broker.pid, signal.SIGSTOP)
    threads = Path(f"/proc/{broker.pid}/task")
    eventually(lambda: all((t / "stat").read_text().rpartition(")")[2].split()[0] == "T" for t in threads.iterdir()))


def lost_connections(pool: Supervision) -> int:
    """Workers that had begun to consume and were sent away, or lost the broker."""
    consumed = {line["pid"] for line in pool.named("worker.ready")}
    return sum(line["pid"] in consumed for line in pool.named("worker.exited", cause="broker"))


def consuming(pool: Supervision) -> int:
    return sum(worker["state"] in ("idle", "busy") for worker in pool.workers())


def assert_all_settled(broker: PrivateNode, queue: str) -> None:
    """Nothing is ready and nothing unacknowledged; a quorum queue counts the latter every few seconds."""
    assert amqp.depth(broker.url, queue) == 0
    eventually(lambda: amqp.unacked(broker, queue) == 0)


def readyz(pool: Supervision, code: int, *words: str) -> None:
    """Wait until /readyz has this code, and all these words."""

    def is_so() -> bool:
        status, body = pool.get("/readyz")
        return status == code and all(word in body for word in words)

    try:
        eventually(is_so)
    except AssertionError:
        raise AssertionError(f"/readyz says {pool.get('/readyz')}; the log:\n{pool.log()}") from None


# ------------------------------------------------------------------------------------------------- 32, 33: away


def test_f32_a_broker_that_is_down_at_the_start_is_said_once_and_found_within_seconds_of_its_return(
    broker: PrivateNode, queue: str, runs: Runs
) -> None:
    amqp.publish(broker.url, queue, ["0"] * 4, ids="abcd")
    broker.stop()
    with supervised("handlers:work", "--workers", "4", url=broker.url, queue=queue, env=runs.env) as pool:
        said = pool.hear("broker.refused", kind="refused")
        assert "connection refused by amqp://guest:***@127.0.0.1" in said["because"] and "one worker" in said["next"]
        pool.hear("worker.exited", count=8, cause="broker")
        assert pool.get("/healthz") == (200, "ok\n")
        code, body = pool.get("/readyz")
        assert code == 503 and "no worker consumes: connection refused by" in body and body.count("\n") == 1
        assert pool.metric("workq_broker_up") == 0
        broker.start()
        began = time.monotonic()
        pool.ready()
        assert time.monotonic() - began < 15.0, "the longest backoff is 5 s"
        assert pool.named("broker.connected")[0]["seconds"] > 0.5
        pool.hear("task.succeeded", count=4)
        readyz(pool, 200, "4 of 4 workers consume\n")
        assert len(pool.named("broker.refused")) == 1
        assert pool.stop() == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_f33_a_broker_killed_in_mid_task_and_started_again_costs_at_most_one_extra_run_a_worker(
    broker: PrivateNode, queue: str, runs: Runs, kind: str
) -> None:
    names = [f"t{n}" for n in range(20)]
    with amqp.connection(broker.url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    amqp.publish(broker.url, queue, ["2.5"] * 4 + ["0.05"] * 16, ids=names)
    broker.sync()
    with supervised("handlers:work", "--workers", "4", url=broker.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", 4)
        broker.kill()
        lost = pool.hear("broker.lost")
        assert lost["level"] == "error"
        pool.hear("worker.orphaned", count=4)  # all were in the middle of a task
        readyz(pool, 503, "no worker consumes: ")
        pool.hear("task.unsettled", count=4)
        pool.hear("broker.refused")
        broker.start()
        eventually(lambda: len(set(runs.lines("done"))) == 20)
        eventually(lambda: consuming(pool) == 4)
        assert pool.get("/readyz") == (200, "4 of 4 workers consume\n")
        assert pool.stop() == 0
        assert len(pool.named("broker.lost")) == len(pool.named("broker.connected")) - 1 == 1
        began = runs.lines("began")
        assert len(began) - len(set(began)) <= lost_connections(pool) == 4
    assert_all_settled(broker, queue)


def test_f33_one_of_eight_workers_at_a_time_tries_a_broker_that_is_away_and_then_all_consume(
    broker: PrivateNode, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "8", url=broker.url, queue=queue) as pool:
        pool.ready()
        broker.kill()
        with Door(broker.port) as door:
            eventually(lambda: door.visitors >= 4)
        assert door.most == 1
        broker.start()
        back = pool.hear("broker.connected", count=2)
        assert "the others follow" in back["because"] and back["seconds"] > 1.0
        pool.hear("worker.ready", count=16)
        readyz(pool, 200, "8 of 8 workers consume\n")
        assert amqp.consumers(broker.url, queue) == 8
        refused = pool.named("worker.exited", level="warning")
        assert len(refused) <= 8 + 3, "the news of each loss and each kind of refusal; the rest is info"
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------ 34: shut by its people


def _stop_app(broker: PrivateNode) -> Callable[[], Any]:
    broker.eval("rabbit:stop().")
    return lambda: broker.eval("rabbit:start().")


def _drain(broker: PrivateNode) -> Callable[[], Any]:
    """What `rabbitmq-upgrade drain` does: listeners and connections are closed, and the node stays."""
    broker.eval("rabbit_maintenance:drain().")
    return lambda: broker.eval("rabbit_maintenance:revive().")


def _close_connections(broker: PrivateNode) -> Callable[[], Any]:
    broker.eval('[rabbit_networking:close_connection(Each, "by hand") || Each <- rabbit_networking:connections()].')
    return lambda: None


@pytest.mark.parametrize("shut", [_stop_app, _drain, _close_connections])
def test_f34_a_broker_that_its_people_shut_is_tried_again_and_is_no_error_of_configuration(
    broker: PrivateNode, queue: str, runs: Runs, shut: Callable[[PrivateNode], Callable[[], Any]]
) -> None:
    amqp.publish(broker.url, queue, ["2.5"] * 3, ids="abc")
    with supervised("handlers:work", "--workers", "3", url=broker.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", 3)
        reopen = shut(broker)
        try:
            lost = pool.hear("worker.orphaned")
            assert "shutting down, or an operator closed it" in lost["because"]
        finally:
            reopen()
        pool.hear("worker.ready", count=6)
        pool.hear("worker.exited", count=3)
        assert {line["status"] for line in pool.named("worker.exited")} == {"exit 75"}
        eventually(lambda: set(runs.lines("done")) == set("abc") and amqp.unacked(broker, queue) == 0)
        readyz(pool, 200, "3 of 3 workers consume\n")
        assert pool.stop() == 0
        # Not where a stand-in consumes before the last connection is closed: then the broker was never lost.
        assert {line["kind"] for line in pool.named("broker.lost")} <= {"closed_by_operator"}
        assert len(runs.lines("began")) - 3 <= lost_connections(pool) == 3
    assert amqp.depth(broker.url, queue) == 0


# ---------------------------------------------------------------------------------------------------- 35: frozen


def test_f35_a_frozen_broker_is_noticed_by_heartbeat_and_said_while_a_task_runs_and_is_used_when_it_thaws(
    broker: PrivateNode, queue: str, runs: Runs
) -> None:
    amqp.publish(broker.url, queue, ["5", "5"], ids="ab")
    with supervised("handlers:work", "--workers", "3", *HEARTBEAT, url=broker.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", 2)
        freeze(broker)
        lost = pool.hear("broker.lost", kind="heartbeat")
        assert not runs.lines("done"), "the heartbeat thread has noticed it, long before the handlers came to their end"
        assert "nothing was heard from" in lost["because"]
        readyz(pool, 503, "no worker consumes: nothing was heard from ")
        assert pool.get("/healthz")[0] == 200
        pool.hear("task.unsettled", count=2)
        os.kill(broker.pid, signal.SIGCONT)
        pool.hear("task.succeeded", count=2)
        eventually(lambda: consuming(pool) == 3)
        assert pool.stop() == 0
        assert len(runs.lines("began")) - 2 <= lost_connections(pool)
    assert_all_settled(broker, queue)


@pytest.mark.parametrize("bodies", [[], ["1.0"]], ids=["idle", "busy"])
def test_f35_a_stop_works_while_the_broker_is_frozen_and_nobody_has_noticed_it(
    broker: PrivateNode, queue: str, runs: Runs, bodies: list[str]
) -> None:
    amqp.publish(broker.url, queue, bodies, ids="a")
    options = ("--workers", "2", "--heartbeat", "60s", "--grace", "3s")
    with supervised("handlers:work", *options, url=broker.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", len(bodies))
        freeze(broker)
        began = time.monotonic()
        code = pool.stop()
        assert time.monotonic() - began < 3.0 + 5.0
        if not bodies:
            # Nobody had anything in hand, so nobody has to be killed for it.
            assert code == 0
            assert {line["cause"] for line in pool.named("worker.exited")} == {"broker"}
        else:
            assert code == 1  # everything settled would be 0
            assert runs.lines("done") == ["a"]
            assert len(pool.named("task.unsettled", message_id="a")) == 1
    os.kill(broker.pid, signal.SIGCONT)
    eventually(lambda: amqp.unacked(broker, queue) == 0)
    assert amqp.depth(broker.url, queue) == len(bodies)


def test_f35_a_stop_works_while_workers_connect_to_a_frozen_broker(broker: PrivateNode, queue: str) -> None:
    freeze(broker)
    with supervised("handlers:work", "--workers", "2", "--grace", "60s", url=broker.url, queue=queue) as pool:
        eventually(lambda: [worker["state"] for worker in pool.workers()] == ["connecting"] * 2)
        began = time.monotonic()
        assert pool.stop() == 0
        assert time.monotonic() - began < 10.0, "far less than the grace, and than the 15 s that connecting may take"


# -------------------------------------------------------------------------------------------- 36: the queue is gone


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_f36_a_queue_deleted_under_its_consumers_is_said_declared_anew_and_consumed(
    broker: PrivateNode, queue: str, runs: Runs, kind: str
) -> None:
    with amqp.connection(broker.url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    amqp.publish(broker.url, queue, ["3.0"], ids=["in-hand"])
    with supervised("handlers:work", "--workers", "3", url=broker.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began")
        amqp.delete(broker, queue)
        sent_away = pool.hear("worker.exited", count=2, level="warning")
        assert f"the broker cancelled the consumer: was queue '{queue}' deleted" in sent_away["because"]
        anew = pool.hear("queue.declared")
        assert anew["level"] == "warning" and queue in anew["because"]
        pool.hear("worker.ready", count=6)
        amqp.publish(broker.url, queue, ["0"] * 3, ids="xyz")
        pool.hear("task.succeeded", count=3)
        pool.hear("task.unsettled", message_id="in-hand")
        assert amqp.consumers(broker.url, queue) == 3
        readyz(pool, 200, "3 of 3 workers consume\n")
        assert pool.stop() == 0
    assert runs.lines("began") == ["in-hand", *runs.lines("began")[1:]]
    assert sorted(runs.lines("done")) == ["in-hand", "x", "y", "z"]


def test_f36_without_leave_to_declare_a_deleted_queue_is_waited_for_with_backoff_and_consumed_when_it_is_back(
    broker: PrivateNode, queue: str, runs: Runs
) -> None:
    amqp.publish(broker.url, queue, [])
    options = ("--workers", "3", "--no-declare")
    with supervised("handlers:work", *options, url=broker.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        assert [line["level"] for line in pool.named("queue.taken")] == ["info"]
        amqp.delete(broker, queue)
        pool.hear("broker.lost", kind="cancelled")
        missing = pool.hear("broker.refused", kind="missing_queue")
        assert queue in missing["because"] and "declare it" in missing["because"]
        readyz(pool, 503, "there is no such queue", queue)
        # 0.2 s, doubling, less a half at most: three at once would have been thirty.
        pool.hear("worker.exited", count=3 + 4)
        exits = [datetime.fromisoformat(line["timestamp"]) for line in pool.named("worker.exited")]
        assert (exits[6] - exits[2]).total_seconds() > 0.5
        amqp.publish(broker.url, queue, ["0"] * 3, ids="xyz")
        pool.hear("worker.ready", count=6)
        pool.hear("task.succeeded", count=3)
        assert len(pool.named("broker.refused")) == 1
        assert not pool.named("queue.declared")
        readyz(pool, 200, "3 of 3 workers consume\n")
        assert pool.stop() == 0


# --------------------------------------------------------------------------------------------------- 38: an alarm


@pytest.fixture(params=["memory", "disk"])
def alarm(request: pytest.FixtureRequest, broker: PrivateNode) -> Callable[[bool], None]:
    """Sets and clears it."""

    def switch(is_on: bool) -> None:
        resource = f"{{resource_limit, {request.param}, node()}}"
        call = f"set_alarm({{{resource}, []}})" if is_on else f"clear_alarm({resource})"
        broker.eval(f"rabbit_alarm:{call}.")

    return switch


def test_f38_under_an_alarm_tasks_and_acknowledgements_go_on_and_parking_waits_and_says_so(
    broker: PrivateNode, queue: str, runs: Runs, alarm: Callable[[bool], None]
) -> None:
    names = [f"t{n}" for n in range(20)]
    amqp.publish(broker.url, queue, [json.dumps({"raise": "ValueError"})], ids=["bad"])
    amqp.publish(broker.url, queue, ["{}"] * 20, ids=names)
    options = ("--workers", "2", "--retries", "0", *HEARTBEAT)
    alarm(True)
    with supervised("handlers:act", *options, url=broker.url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", count=20)
        blocked = pool.hear("broker.blocked")
        assert "memory or disk alarm" in blocked["because"] and "1 message waits" in blocked["because"]
        assert blocked["level"] == "warning"
        eventually(lambda: amqp.unacked(broker, queue) == 1)
        readyz(pool, 200, "2 of 2 workers consume; the broker has a memory or disk alarm")
        assert "alarm" in pool.status()["readiness"]
        busy = [worker for worker in pool.workers() if worker["state"] == "busy"]
        assert len(busy) == 1 and busy[0]["slot"] == blocked["slot"]
        # Longer than heartbeats would bear if nobody served the connection that waits.
        time.sleep(3.5)
        assert not pool.named("worker.exited") and not pool.named("task.dead_lettered")
        alarm(False)
        pool.hear("task.dead_lettered", message_id="bad")
        pool.hear("broker.unblocked")
        readyz(pool, 200, "2 of 2 workers consume\n")
        assert pool.stop() == 0
    assert runs.lines("began").count("bad") == 1
    assert [properties.message_id for _, properties, _ in amqp.drain(broker.url, f"{queue}.dead")] == ["bad"]
    assert amqp.depth(broker.url, queue) == 0


@pytest.mark.parametrize("retries", ["0", "3"], ids=["dead letter", "retry"])
def test_f38_a_stop_ends_within_the_grace_while_parking_is_blocked_and_nothing_is_lost(
    broker: PrivateNode, queue: str, runs: Runs, retries: str
) -> None:
    amqp.publish(broker.url, queue, [json.dumps({"raise": "ValueError"})], ids=["bad"])
    memory = "{resource_limit, memory, node()}"
    broker.eval(f"rabbit_alarm:set_alarm({{{memory}, []}}).")
    options = ("--workers", "2", "--retries", retries, "--retry-delay", "100ms", "--grace", "2s")
    with supervised("handlers:act", *options, url=broker.url, queue=queue, env=runs.env) as pool:
        pool.hear("broker.blocked")
        began = time.monotonic()
        assert pool.stop() == 1, "a message was in hand, and could not be settled"
        assert time.monotonic() - began < 2.0 + 5.0
    broker.eval(f"rabbit_alarm:clear_alarm({memory}).")
    eventually(lambda: amqp.unacked(broker, queue) == 0)
    # At least once: what the killed worker had handed to the kernel may have arrived as well.
    assert amqp.depth(broker.url, queue) + amqp.depth(broker.url, f"{queue}.dead") >= 1
    with supervised("handlers:act", "--burst", *options, url=broker.url, queue=queue, env=runs.env) as pool:
        assert pool.wait() == 0
    assert {properties.message_id for _, properties, _ in amqp.drain(broker.url, f"{queue}.dead")} == {"bad"}
