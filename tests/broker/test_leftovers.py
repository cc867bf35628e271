"""What handlers start, and what a worker's death leaves of it: FAULTS 4, 8, 20, 21."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from supervisor.linux.descendants import children
from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import Runs, Supervision, eventually, gone, retinue, supervised

pytestmark = pytest.mark.any_broker

IMPORTS_A_SERVER = """
import subprocess, os
from handlers import note
note("server", subprocess.Popen(["sleep", "600"]).pid)
def work(task):
    pass
"""


@contextmanager
def family(handler: str, *options: str, url: str, queue: str, runs: Runs, path: str = "") -> Iterator[Supervision]:
    """A supervisor. When the test fails, what its handlers started is ended here, not by what is being tested."""
    env = {**runs.env, **({"PYTHONPATH": path} if path else {})}
    with supervised(handler, *options, url=url, queue=queue, env=env) as pool:
        try:
            yield pool
        except BaseException:
            if pool.process.poll() is None:
                pool.send(signal.SIGSTOP)
            lost = [*children(pool.pid), *noted(runs)]
            for pid in lost:
                lost += children(pid)
            for pid in lost:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise


def noted(runs: Runs) -> list[int]:
    """The pids that handlers told of."""
    return [int(line.split()[-1]) for word in ("child", "server") for line in runs.lines(word)]


def started(runs: Runs, name: str) -> list[int]:
    """The pids of what the handler started for this message."""
    runs.hear("started")
    eventually(lambda: name in runs.lines("started"))
    return [int(line.split()[1]) for line in runs.lines("child") if line.startswith(name + " ")]


def is_alive(pid: int) -> bool:
    return not gone(pid, timeout=0)


def busy_with(pool: Supervision, message_id: str) -> int:
    return int(next(worker["pid"] for worker in pool.workers() if worker["message_id"] == message_id))


# ------------------------------------------------------------------------------------------------- F20: leftovers


@pytest.mark.parametrize("kind", ["same group", "own group", "own session", "forked", "daemon", "nested"])
def test_f20_what_a_dead_worker_leaves_behind_is_gone_before_its_slot_restarts(
    broker_url: str, queue: str, runs: Runs, kind: str
) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"start": [kind], "sleep": 600})], ids=["m"])
    with family("offspring:leave", "--workers", "1", url=broker_url, queue=queue, runs=runs) as pool:
        left = started(runs, "m")
        assert left
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert pool.hear("worker.exited")["cause"] == "SIGKILL"
        # The next worker gets the message, which shows that the broker has seen the connection close.
        pool.hear("task.succeeded", message_id="m")
        assert runs.lines("survivor") == []
        assert all(gone(pid, timeout=5) for pid in left)
        assert_only_ours(pool)
        assert pool.stop() == 0


def test_f20_a_death_is_noticed_while_a_forked_child_holds_the_output_and_the_connection(
    broker_url: str, queue: str, runs: Runs, node: PrivateNode
) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"start": ["forked"], "sleep": 600})], ids=["m"])
    with family("offspring:leave", "--workers", "1", url=broker_url, queue=queue, runs=runs) as pool:
        [child] = started(runs, "m")
        [worker] = pool.pids()
        assert sockets(child) & sockets(worker)
        os.kill(worker, signal.SIGKILL)
        pool.hear("worker.ready", count=2)
        pool.hear("task.succeeded", message_id="m")
        assert pool.stop() == 0
    eventually(lambda: amqp.unacked(node, queue) == 0)
    assert amqp.depth(broker_url, queue) == 0


def sockets(pid: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        found.add(os.readlink(fd))
    return {name for name in found if name.startswith("socket:")}


def test_f20_only_the_dead_workers_are_killed_also_when_a_living_one_has_daemons(
    broker_url: str, queue: str, runs: Runs
) -> None:
    order = json.dumps({"start": ["same group", "own group", "own session", "daemon"], "sleep": 600})
    amqp.publish(broker_url, queue, [order] * 2, ids=["a", "b"])
    options = ("--workers", "2", "--grace", "0.2")
    with family("offspring:leave", *options, url=broker_url, queue=queue, runs=runs) as pool:
        of_a, of_b = started(runs, "a"), started(runs, "b")
        assert len(of_a) == len(of_b) == 4
        os.kill(busy_with(pool, "a"), signal.SIGKILL)
        pool.hear("task.succeeded", message_id="a")
        assert all(gone(pid, timeout=5) for pid in of_a)
        assert all(is_alive(pid) for pid in of_b)
        assert pool.stop() == 1
        assert all(gone(pid, timeout=0) for pid in of_b)


def test_f20_a_worker_that_leaves_of_its_own_will_takes_its_own_along_too(
    broker_url: str, queue: str, runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"start": ["own session", "daemon"]})], ids=["m"])
    options = ("--workers", "1", "--max-tasks", "1")
    with family("offspring:leave", *options, url=broker_url, queue=queue, runs=runs) as pool:
        left = started(runs, "m")
        pool.hear("worker.ready", count=2)
        assert all(gone(pid, timeout=5) for pid in left)
        assert pool.stop() == 0


def test_what_a_living_worker_sets_free_is_reaped_when_it_ends(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"start": ["daemon"]})] * 10, ids=[f"m{n}" for n in range(10)])
    with family("offspring:leave", "--workers", "2", url=broker_url, queue=queue, runs=runs) as pool:
        pool.hear("task.succeeded", count=10)
        before = pool.pids()
        daemons = [int(line.split()[1]) for line in runs.lines("child")]
        assert len(daemons) == 10
        assert all(is_alive(pid) for pid in daemons)
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)
        assert_only_ours(pool)
        assert pool.pids() == before
        assert pool.stop() == 0


def assert_only_ours(pool: Supervision) -> None:
    """The supervisor's children are its workers, the nursery and the spare: no orphan, and no zombie."""
    retinue(pool)


def test_what_an_import_starts_serves_every_worker_and_ends_with_the_supervisor(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "serving", IMPORTS_A_SERVER)
    path = str(Path(__file__).resolve().parents[1])
    options = ("--workers", "1", "--app-dir", str(tmp_path))
    with family("serving:work", *options, url=broker_url, queue=queue, runs=runs, path=path) as pool:
        pool.ready()
        [server] = map(int, runs.lines("server"))
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=2)
        assert is_alive(server)
        assert pool.stop() == 0
        assert gone(server, timeout=0)


# --------------------------------------------------------------------------------------- F21: what shall just work


@pytest.mark.parametrize(
    "order",
    [
        {"way": "subprocess"},
        {"way": "pool", "with": "fork"},
        {"way": "pool", "with": "spawn"},
        {"way": "pool", "with": "forkserver"},
        {"way": "terminate"},
        {"way": "executor", "with": "fork"},
        {"way": "executor", "with": "spawn"},
        {"way": "kept executor"},
        {"way": "threads"},
        {"way": "asyncio"},
        # After a second the heartbeat thread pumps, and a fork takes place beside it.
        {"way": "pool", "with": "fork", "sleep": 1.5},
        {"way": "executor", "with": "fork", "sleep": 1.5},
    ],
    ids=lambda order: " ".join(map(str, order.values())),
)
def test_f21_a_handler_may_use(broker_url: str, queue: str, runs: Runs, order: dict[str, object]) -> None:
    amqp.publish(broker_url, queue, [json.dumps(order)] * 3, ids=["a", "b", "c"])
    options = ("--workers", "1", "--task-timeout", "20", "--grace", "10")
    with family("offspring:use", *options, url=broker_url, queue=queue, runs=runs) as pool:
        pool.hear("task.succeeded", count=3)
        assert pool.status()["totals"]["redelivered"] == 0
        assert pool.stop() == 0
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"]
    done = [line.split() for line in runs.lines("done")]
    assert sorted(name for name, _ in done) == ["a", "b", "c"]
    assert len({pid for _, pid in done}) == 1
    assert amqp.depth(broker_url, queue) == 0


def test_f21_a_child_that_returns_raises_or_exits_is_no_second_worker(broker_url: str, queue: str, runs: Runs) -> None:
    ends = [{"end": "return"}, {"end": "raise"}, *({"end": "exit", "code": code} for code in (0, 3, None, "text"))]
    amqp.publish(broker_url, queue, map(json.dumps, ends), ids=map(str, range(len(ends))))
    with family("offspring:fork_and", "--workers", "1", url=broker_url, queue=queue, runs=runs) as pool:
        pool.hear("task.succeeded", count=len(ends))
        eventually(lambda: any(line["line"].startswith("a child's last") for line in pool.named("worker.output")))
        pool.hear("worker.output", line="ValueError: in the child")
        [worker] = pool.pids()
        assert pool.stop() == 0
        assert len(pool.named("task.succeeded")) == len(ends)
        assert not pool.named("task.failed")
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"]
    assert runs.lines("status") == ["return 0", "raise 1", "exit 0", "exit 3", "exit 0", "exit 1"]
    assert runs.lines("atexit") == [str(worker)] * len(ends)
    assert amqp.depth(broker_url, queue) == 0


# -------------------------------------------------------------------------------------------- F8: hangs at its exit


@pytest.mark.parametrize(
    ("what", "grace", "cause", "code"), [("thread", "6", "drained", 0), ("atexit", "1", "grace", 1)]
)
def test_f08_a_worker_that_would_hang_at_its_exit_is_gone_within_the_grace(
    broker_url: str, queue: str, runs: Runs, what: str, grace: str, cause: str, code: int
) -> None:
    amqp.publish(broker_url, queue, [what], ids=["m"])
    options = ("--workers", "1", "--grace", grace)
    with family("offspring:hang_at_exit", *options, url=broker_url, queue=queue, runs=runs) as pool:
        pool.hear("task.succeeded", message_id="m")
        [worker] = pool.pids()
        assert pool.stop(timeout=10) == code
        assert gone(worker, timeout=0)
        assert [died["cause"] for died in pool.named("worker.exited")] == [cause]
    assert amqp.depth(broker_url, queue) == 0


# ------------------------------------------------------------------------------------------------ F4: a crash in C


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_f04_a_crash_in_c_leaves_its_stack_in_the_log_and_with_the_quarantined_message(
    broker_url: str, queue: str, runs: Runs, kind: str
) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    amqp.publish(broker_url, queue, ["boom"], ids=["m"])
    with family("offspring:read_at_zero", "--workers", "1", url=broker_url, queue=queue, runs=runs) as pool:
        died = pool.hear("worker.exited", message_id="m")
        assert died["cause"] == "SIGSEGV"
        assert_is_the_stack(died["output"])
        pool.hear("task.quarantined", message_id="m")
        assert pool.stop() == 0
        assert [died["cause"] for died in pool.named("worker.exited", message_id="m")] == ["SIGSEGV"] * 3
    [(_, properties, body)] = amqp.drain(broker_url, f"{queue}.dead")
    assert body == b"boom"
    assert properties.headers is not None
    assert properties.headers["x-workq-cause"] == "SIGSEGV"
    assert_is_the_stack(properties.headers["x-workq-evidence"])


def assert_is_the_stack(text: str) -> None:
    assert "Fatal Python error: Segmentation fault" in text
    assert "in string_at" in text
    assert "in read_at_zero" in text
