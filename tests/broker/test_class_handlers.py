"""A class as handler: one instance a worker, its `with` around the worker's life."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests import amqp, handler_modules
from tests.supervision import Runs, eventually, supervised

pytestmark = pytest.mark.any_broker

CODE = """
import asyncio, os, socket, time
from handlers import note

class Resizer:
    def __init__(self):
        note("made", os.getpid())

    def __enter__(self):
        note("entered", os.getpid())
        return self

    def __exit__(self, *exc):
        note("left", f"{os.getpid()} {exc}")

    def __call__(self, task):
        note("done", f"{os.getpid()} {task.message_id}")

class Client:
    async def __aenter__(self):
        note("entered", os.getpid())
        self.loop = asyncio.get_running_loop()
        self.beating = asyncio.create_task(self.beat())

    async def __aexit__(self, *exc):
        self.beating.cancel()
        note("left", os.getpid())

    async def beat(self):
        while True:
            note("beat", os.getpid())
            await asyncio.sleep(0.05)

    async def __call__(self, task):
        assert asyncio.get_running_loop() is self.loop
        note("done", task.message_id)

class NeedsDatabase:
    def __init__(self):
        socket.create_connection(("127.0.0.1", int(os.environ["TEST_DATABASE"]))).close()

    def __call__(self, task):
        note("done", task.message_id)

class Broken:
    def __init__(self):
        self.nothing.at_all

    def __call__(self, task):
        pass

class LeavesSlowly:
    def __enter__(self):
        pass

    def __exit__(self, *exc):
        note("leaving", os.getpid())
        time.sleep(600)

    def __call__(self, task):
        note("done", task.message_id)

class LeavesBadly(LeavesSlowly):
    def __exit__(self, *exc):
        raise ValueError("cannot let go")

left_behind = None

async def leaves_something(task):
    global left_behind
    note("done", task.message_id)
    left_behind = asyncio.create_task(Client().beat())

class NotCallable:
    pass

class WantsArguments:
    def __init__(self, url):
        pass

    def __call__(self, task):
        pass

class OnlyEnters:
    def __enter__(self):
        pass

    def __call__(self, task):
        pass

class Generates:
    def __call__(self, task):
        yield
"""


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "app", CODE)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_f62_each_worker_makes_one_instance_and_its_with_brackets_the_workers_life(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, preload: str
) -> None:
    # However they are shared out, two workers reach their limit: one, and two others one task short of it, do 43.
    amqp.publish(broker_url, queue, [""] * 44, ids=[f"task-{number}" for number in range(44)])
    options = ("--workers", "2", "--max-tasks", "15")
    with supervised("app:Resizer", *options, preload, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        runs.hear("done", 44)
        pool.hear("worker.exited", cause="max_tasks", count=2)
        eventually(lambda: [worker["state"] for worker in pool.workers()] == ["idle"] * 2)
        assert pool.stop() == 0
        workers = {str(line["pid"]) for line in pool.named("worker.ready")}
    assert Counter(runs.lines("made")) == Counter(runs.lines("entered")) == Counter(workers)
    assert Counter(runs.lines("left")) == Counter(f"{pid} (None, None, None)" for pid in workers)
    assert {line.split()[0] for line in runs.lines("done")} <= workers


def test_a_killed_worker_tears_nothing_down(broker_url: str, queue: str, env: dict[str, str], runs: Runs) -> None:
    with supervised("app:Resizer", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        [killed] = pool.pids()
        os.kill(killed, signal.SIGKILL)
        pool.hear("worker.ready", count=2)
        assert pool.stop() == 0
    assert len(runs.lines("entered")) == 2
    assert [line.split()[0] for line in runs.lines("left")] == [runs.lines("entered")[1]]


@pytest.mark.parametrize("handler", ["app:Client", "app:leaves_something"])
def test_the_event_loop_runs_between_tasks(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, handler: str
) -> None:
    with supervised(handler, "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, [""], ids=["one"])
        runs.hear("done")
        beats = len(runs.lines("beat"))
        runs.hear("beat", beats + 20)
        amqp.publish(broker_url, queue, [""], ids=["two"])
        runs.hear("done", 2)
        assert pool.stop() == 0
        assert not pool.named("worker.output")
    assert len(runs.lines("left")) == (handler == "app:Client")


def test_what_a_set_up_needs_comes_up_later_and_nothing_is_consumed_until_then(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [""] * 20, ids=[f"task-{number}" for number in range(20)])
    with socket.socket() as database:
        database.bind(("127.0.0.1", 0))
        env |= {"TEST_DATABASE": str(database.getsockname()[1])}
        options = ("--workers", "2", "--retries", "0")
        with supervised("app:NeedsDatabase", *options, url=broker_url, queue=queue, env=env) as pool:
            failed = pool.hear("handler.setup_failed", count=2)
            assert failed["level"] == "warning" and failed["next"].startswith("retried in ")
            first = pool.named("handler.setup_failed")[0]
            assert "app:NeedsDatabase cannot be set up: ConnectionRefusedError" in first["because"]
            assert "create_connection" in first["exception"]
            code, why = pool.get("/readyz")
            assert code == 503 and "cannot be set up yet" in why and "ConnectionRefusedError" in why
            assert amqp.depth(broker_url, queue) == 20
            database.listen()
            runs.hear("done", 20)
            assert pool.get("/readyz")[0] == 200
            assert pool.stop() == 0
            assert not pool.named("task.dead_lettered")


def test_a_set_up_whose_code_is_wrong_ends_the_start(broker_url: str, queue: str, env: dict[str, str]) -> None:
    with supervised("app:Broken", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.setup_failed")
        assert failed["level"] == "error" and "AttributeError" in failed["because"]
        assert "self.nothing.at_all" in failed["exception"]


def test_a_reload_whose_set_up_fails_leaves_the_old_workers(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, tmp_path: Path
) -> None:
    with supervised("app:Resizer", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        handler_modules.write(tmp_path, "app", CODE.replace('note("made", os.getpid())', "self.nothing.at_all"))
        pool.send(signal.SIGHUP)
        failed = pool.hear("reload.failed")
        assert "cannot be set up" in failed["because"] and "AttributeError" in failed["because"]
        eventually(lambda: [worker["state"] for worker in pool.workers()] == ["idle"] * 2)
        amqp.publish(broker_url, queue, [""], ids=["one"])
        runs.hear("done")
        assert pool.stop() == 0


def test_a_tear_down_has_the_grace(broker_url: str, queue: str, env: dict[str, str], runs: Runs) -> None:
    options = ("--workers", "1", "--grace", "1")
    with supervised("app:LeavesSlowly", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        assert pool.stop() == 1
        assert pool.hear("worker.exited")["cause"] == "grace"
    assert len(runs.lines("leaving")) == 1


def test_a_tear_down_that_raises_is_said(broker_url: str, queue: str, env: dict[str, str]) -> None:
    with supervised("app:LeavesBadly", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        assert pool.stop() == 0
        failed = pool.hear("handler.teardown_failed")
        assert "ValueError: cannot let go" in failed["because"] and "__exit__" in failed["exception"]


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        ("app:NotCallable", "is a class whose instances cannot be called: give it a method __call__(self, task)"),
        ("app:WantsArguments", "gives it no arguments: missing a required argument: 'url'"),
        ("app:OnlyEnters", "has only one of __enter__ and __exit__"),
        ("app:Generates", "app:Generates.__call__ is a generator function"),
    ],
)
def test_a_class_that_cannot_be_a_handler_is_refused(
    broker_url: str, queue: str, env: dict[str, str], handler: str, why: str
) -> None:
    with supervised(handler, "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 78
        assert why in pool.named("handler.import_failed")[0]["because"]
