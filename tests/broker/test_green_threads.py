"""FAULT 66: a handler's module that replaces the standard library's threads, sockets and waits by green ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from supervisor.commands.check.surroundings import import_handler
from supervisor.settings import Settings
from tests import amqp, handler_modules
from tests.supervision import Runs, supervised

pytestmark = pytest.mark.any_broker

ALL = "from gevent import monkey\nmonkey.patch_all()\n"
SOME = "from gevent import monkey\nmonkey.patch_all(thread=False, select=False)\n"
SOCKETS = "from gevent import monkey\nmonkey.patch_socket()\n"
EVENTLET = "import eventlet\neventlet.monkey_patch()\n"

HANDLE = """
import time
from handlers import note

def work(task):
    note("began", task.message_id)
    kind, _, seconds = task.text.partition(" ")
    until = time.monotonic() + float(seconds or 0)
    if kind == "spin":
        while time.monotonic() < until:
            pass
    if kind == "sleep":
        time.sleep(float(seconds))
    if kind == "raise":
        raise ValueError("as told")
    note("done", task.message_id)

def start_green(task):
    import gevent
    return gevent.spawn(work, task)
"""


@pytest.mark.parametrize(
    ("module", "seconds"),
    [(ALL, 4.0), (SOME, 0.1), (SOCKETS, 0.1), (EVENTLET, 0.1)],
    ids=["all", "no threads, no select", "sockets", "eventlet"],
)
def test_f66_green_threads_made_at_import_are_noticed_and_tasks_short_long_and_failing_are_done(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, module: str, seconds: float
) -> None:
    handler_modules.write(tmp_path, "app", module + HANDLE)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--heartbeat", "1s", "--retries", "1", "--retry-delay", "100ms")
    # By its name, so that it is looked up.
    url = broker_url.replace("127.0.0.1", "localhost")
    with supervised("app:work", *options, url=url, queue=queue, env=env) as pool:
        bodies = ["x", "raise", f"sleep {seconds}", f"spin {seconds}"]
        amqp.publish(broker_url, queue, bodies, ids=["short", "bad", "sleeps", "spins"])
        for name in ("short", "sleeps", "spins"):
            pool.hear("task.succeeded", message_id=name)
        pool.hear("task.dead_lettered", message_id="bad")
        assert not pool.named("worker.exited"), "connections are kept meanwhile, for several heartbeats"
        if module != SOCKETS:
            [loaded] = pool.named("handler.loaded", level="warning")
            assert "replaced functions of the standard library (" in loaded["because"]
            assert "each worker imports the handler itself" in loaded["because"]
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == ["bad", "bad", "short", "sleeps", "spins"]


def test_f66_workq_check_says_that_each_worker_imports_such_a_module(tmp_path: Path) -> None:
    handler_modules.write(tmp_path, "app", ALL + "def work(task): ...\n")
    imported = import_handler(Settings(handler="app:work", app_dir=str(tmp_path)))
    assert not imported.error and "os.fork" in imported.replaced


def test_f66_a_greenlet_that_is_returned_is_waited_for(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    handler_modules.write(tmp_path, "app", ALL + HANDLE)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    amqp.publish(broker_url, queue, ["sleep 0.1", "raise"], ids=["good", "bad"])
    options = ("--workers", "1", "--retries", "0", "--burst")
    with supervised("app:start_green", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
        assert pool.named("task.succeeded", message_id="good")
        assert pool.named("task.dead_lettered", message_id="bad")
    assert runs.lines("done") == ["good"]
