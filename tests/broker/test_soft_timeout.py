"""`--soft-timeout`: an exception in the handler, before the kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import amqp, handler_modules
from tests.supervision import Runs, eventually, supervised

pytestmark = pytest.mark.any_broker

CODE = """
import asyncio, contextlib, signal, time
from handlers import note
from supervisor import SoftTimeout

def sleeps(task):
    if task.text == "short":
        return note("done", task.message_id)
    try:
        time.sleep(600)
    finally:
        note("finally", task.message_id)

def computes(task):
    while True:
        pass

async def awaits(task):
    if task.text == "short":
        return note("done", task.message_id)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note("cancelled", task.message_id)
        raise

def goes_on(task):
    try:
        time.sleep(600)
    except SoftTimeout:
        note("caught", task.message_id)
    time.sleep(600)

def comes_to_an_end(task):
    try:
        time.sleep(600)
    except SoftTimeout as error:
        note("done", error)

alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))

def has_signals_of_its_own(task):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with contextlib.suppress(SoftTimeout):
        time.sleep(600)
    note("alarms", len(alarms))

def close_calls(task):
    # Ends as the limit does, now a little before, now a little after.
    time.sleep(float(task.text))
"""


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "app", CODE)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize(("handler", "noted"), [("sleeps", "finally"), ("computes", None), ("awaits", "cancelled")])
def test_the_handler_is_interrupted_and_the_next_task_has_its_whole_time(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs, handler: str, noted: str | None
) -> None:
    amqp.publish(broker_url, queue, ["long", "long", "short"], ids=["first", "second", "third"])
    options = ("--workers", "1", "--soft-timeout", "300ms", "--retries", "0")
    with supervised(f"app:{handler}", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", count=2)
        [first, second, *_] = pool.named("task.failed")
        assert first["because"] == "SoftTimeout: the task has run for 0.3 s (--soft-timeout)"
        assert [first["message_id"], second["message_id"]] == ["first", "second"]
        assert f"in {handler}" in first["exception"] and "/supervisor/worker/" not in first["exception"]
        if noted is not None:
            assert runs.hear(noted, 2) == ["first", "second"]
            assert runs.hear("done") == ["third"]
        assert not pool.named("worker.hung")
        assert pool.stop() == 0


def test_a_handler_that_catches_it_may_come_to_an_end(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [""])
    options = ("--workers", "1", "--soft-timeout", "100ms")
    with supervised("app:comes_to_an_end", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.succeeded")
        assert pool.stop() == 0
    assert runs.lines("done") == ["the task has run for 0.1 s (--soft-timeout)"]


def test_a_handler_that_catches_it_and_goes_on_meets_the_task_timeout(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [""], ids=["one"])
    options = ("--workers", "1", "--soft-timeout", "100ms", "--task-timeout", "1s", "--max-crashes", "1")
    with supervised("app:goes_on", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.hear("worker.exited")["cause"] == "timeout"
        pool.hear("task.quarantined", message_id="one")
        assert pool.stop() == 0
    assert runs.lines("caught") == ["one"]


def test_a_handlers_own_signals_work(broker_url: str, queue: str, env: dict[str, str], runs: Runs) -> None:
    amqp.publish(broker_url, queue, [""])
    options = ("--workers", "1", "--soft-timeout", "300ms")
    with supervised("app:has_signals_of_its_own", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.succeeded")
        assert pool.stop() == 0
    assert runs.lines("alarms") == ["1"]


def test_it_is_never_raised_but_in_the_handler_however_close_the_call(
    broker_url: str, queue: str, env: dict[str, str]
) -> None:
    """A thousand tasks end within two milliseconds of the limit: each has either succeeded or failed by it."""
    limit, tasks = 0.02, 1000
    bodies = [f"{limit - 0.001 + 0.002 * number / tasks:.6f}" for number in range(tasks)]
    amqp.publish(broker_url, queue, bodies)
    options = ("--workers", "4", "--soft-timeout", "20ms", "--retries", "0")
    with supervised("app:close_calls", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("supervisor.ready")

        def ended() -> bool:
            totals = pool.status()["totals"]
            return bool(totals["succeeded"] + totals["dead_lettered"] == tasks)

        eventually(ended, timeout=60)
        totals = pool.status()["totals"]
        pool.hear("task.failed", count=totals["failed"])  # what a full pipe held up is still to come
        failed = pool.named("task.failed")
        assert {line["because"] for line in failed} == {"SoftTimeout: the task has run for 0.02 s (--soft-timeout)"}
        assert all("in close_calls" in line["exception"] for line in failed)
        assert totals["succeeded"] > 0 and totals["failed"] == len(failed) > 0
        assert not pool.named("worker.exited") and not pool.named("worker.output")
        assert pool.stop() == 0
