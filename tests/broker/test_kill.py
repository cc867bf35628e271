"""`workq kill`: the worker that is meant dies, its message is redelivered without blame or dead-lettered, and nothing
else is hit."""

from __future__ import annotations

import getpass
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from supervisor import queues
from supervisor.commands import main
from supervisor.commands.running import Running
from tests import amqp, handler_modules, workq
from tests.supervision import Runs, Supervision, eventually, supervised

GATED = """
import time
from pathlib import Path
from handlers import note

def work(task):
    note("began", task.message_id or task.text)
    while not Path(task.text).exists():
        time.sleep(0.01)
    note("done", task.message_id or task.text)
"""
"""A task is a file's path, and is done once that exists."""


@contextmanager
def gated(
    tmp_path: Path, runs: Runs, url: str, queue: str, *options: str, workers: int = 2
) -> Iterator[tuple[Supervision, str]]:
    """A pool, and the path of its control socket."""
    handler_modules.write(tmp_path, "gated", GATED)
    path, env = str(tmp_path / "control.sock"), runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", str(workers), "--control", path, *options)
    with supervised("gated:work", *options, url=url, queue=queue, env=env) as pool:
        yield pool.ready(), path


def kill(path: str, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["kill", "--control", path, *arguments], env={"WORKQ_CONFIG": None})
    assert done.exit_code == code, done.output
    return done.output


def test_a_killed_worker_s_message_is_redelivered_however_often_and_is_not_blamed(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs
) -> None:
    gate = tmp_path / "gate"
    with gated(tmp_path, runs, broker_url, typed_queue, "--max-crashes", "1") as (pool, path):
        amqp.publish(broker_url, typed_queue, [str(gate), str(gate)], ids=["stuck", "other"])
        runs.hear("began", 2)
        for count in (1, 2):
            said = kill(path, "stuck")
            assert "into stuck, is killed" in said and "redelivered, and not blamed" in said
            runs.hear("began", 2 + count)
        exited = pool.hear("worker.exited", count=2, message_id="stuck")
        assert (exited["cause"], exited["planned"]) == ("operator", True)
        assert exited["by"].startswith(f"workq kill by {getpass.getuser()} (uid ")
        assert "gated.py" in exited["output"] and exited["next"].startswith("restart immediately")
        gate.touch()
        assert sorted(runs.hear("done", 2)) == ["other", "stuck"]
        assert runs.lines("began").count("other") == 1
        assert pool.metric("workq_worker_exits_total", cause="operator") == 2
        assert pool.metric("workq_worker_crashes_total") == 0
        assert pool.stop() == 0
    assert amqp.depth(broker_url, f"{typed_queue}.dead") == 0


def test_with_dead_letter_it_is_found_with_the_reason_and_the_stack_and_another_of_that_id_runs(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs
) -> None:
    gate = tmp_path / "gate"
    with gated(tmp_path, runs, broker_url, typed_queue) as (pool, path):
        amqp.publish(broker_url, typed_queue, [str(gate), str(gate)], ids=["stuck", "other"])
        runs.hear("began", 2)
        assert "stuck is dead-lettered: workq dead show stuck" in kill(path, "--dead-letter", "stuck")
        amqp.publish(broker_url, typed_queue, [str(gate)], ids=["stuck"])
        runs.hear("began", 3)
        gate.touch()
        assert sorted(runs.hear("done", 2)) == ["other", "stuck"]
        assert runs.lines("began").count("stuck") == 2 and runs.lines("began").count("other") == 1
        assert pool.stop() == 0
    ((_, properties, body),) = amqp.drain(broker_url, f"{typed_queue}.dead")
    headers = properties.headers
    assert (properties.message_id, body.decode()) == ("stuck", str(gate))
    assert (headers[queues.REASON], headers[queues.CAUSE]) == ("operator", "operator")
    assert b"gated.py" in headers[queues.EVIDENCE].encode() and "workq kill by" in headers[queues.ERROR]


def test_a_worker_killed_before_it_could_dead_letter_the_message_leaves_that_to_the_next_one(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    full = {"x-max-length": 0, "x-overflow": "reject-publish"}
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(f"{queue}.dead", durable=True, arguments=full)
    with gated(tmp_path, runs, broker_url, queue, workers=1) as (pool, path):
        amqp.publish(broker_url, queue, [str(tmp_path / "gate")], ids=["stuck"])
        runs.hear("began")
        said = kill(path, "--dead-letter", "--timeout", "3", "stuck", code=1)
        assert "stuck is not dead-lettered yet" in said
        pool.hear("task.parking_failed")
        with amqp.connection(broker_url) as link:
            link.channel().queue_delete(f"{queue}.dead")
            link.channel().queue_declare(f"{queue}.dead", durable=True)
        kill(path, "0")
        eventually(lambda: amqp.depth(broker_url, f"{queue}.dead") == 1)
        assert runs.lines("began") == ["stuck"]
        assert pool.stop() == 0


def test_whoever_means_nobody_or_more_than_one_is_told_so_and_nothing_is_done(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    gate = tmp_path / "gate"
    with gated(tmp_path, runs, broker_url, queue, workers=4) as (pool, path):
        amqp.publish(broker_url, queue, [str(gate)] * 3, ids=["twin", "twin", "1"])
        runs.hear("began", 3)
        busy = {worker["slot"]: worker["message_id"] for worker in pool.workers()}
        idle = next(slot for slot, name in busy.items() if name is None)
        first, second = (slot for slot, name in busy.items() if name == "twin")
        table = [
            (["nobody"], "no worker here has a message nobody in flight"),
            (["twin"], f"2 messages with the id twin are in flight, in slot {first} (pid"),
            (["1"], "1 is a slot, and the id of a message in flight in slot"),
            (["9"], "there is no slot 9: the slots are 0 to 3"),
            (["--slot", "twin"], "there is no slot twin"),
            (["--id", "2"], "no worker here has a message 2 in flight"),
            (["--dead-letter", "--slot", str(idle)], "has no message in flight that could be dead-lettered"),
        ]
        for arguments, words in table:
            said = kill(path, *arguments, code=1)
            assert words in said and said.endswith("nothing was done\n"), said
        assert "Give --slot or --id, but not both" in kill(path, "--slot", "--id", "1", code=2)
        assert not pool.named("worker.exited")
        assert f"worker {second} " in kill(path, "--slot", str(second))
        assert "into 1, is killed" in kill(path, "--id", "1")
        gate.touch()
        assert sorted(runs.hear("done", 3)) == ["1", "twin", "twin"]
        assert pool.stop() == 0


def test_an_idle_worker_is_replaced_and_an_empty_slot_has_none_to_kill(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with gated(tmp_path, runs, broker_url, queue) as (pool, path):
        assert "with no message in flight, is killed" in kill(path, "0")
        exited = pool.hear("worker.exited")
        assert (exited["slot"], exited["cause"], exited["message_id"]) == (0, "operator", None)
        pool.hear("worker.ready", count=3)
        workq.run("scale", "--control", path, "1")
        pool.hear("worker.exited", slot=1)
        assert "slot 1 has no worker (empty)" in kill(path, "1", code=1)
        for body in ("{}", '{"target": 1}', '{"target": "0", "kind": "x"}', '{"target": "0", "at_once": 1}'):
            answer = Running(path).wish("/kill", json.loads(body))
            assert not answer["ok"] and 'expected {"target"' in answer["because"]
        assert pool.stop() == 0


def test_a_message_without_an_id_goes_by_its_name_in_status(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with gated(tmp_path, runs, broker_url, queue) as (pool, path):
        amqp.publish(broker_url, queue, [str(tmp_path / "gate")])
        runs.hear("began")
        (name,) = (worker["message_id"] for worker in pool.workers() if worker["message_id"])
        assert f"{name} is dead-lettered" in kill(path, "--dead-letter", name)
        assert len(runs.lines("began")) == 1
        assert pool.stop() == 0


RESTLESS = """
import threading, time
from handlers import note

def beside():
    while True:
        time.sleep(0.0001)

def work(task):
    for _ in range(8):
        threading.Thread(target=beside, daemon=True).start()
    note("began", task.message_id)
    while True:
        time.sleep(0.0001)
"""


def test_the_abort_is_for_the_main_thread_or_that_would_go_on_with_other_tasks(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "restless", RESTLESS)
    path, env = str(tmp_path / "control.sock"), runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("restless:work", "--workers", "1", "--control", path, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["x"], ids=["busy"])
        for count in range(1, 6):
            runs.hear("began", count)
            kill(path, "busy", *(["--dead-letter"] if count == 5 else []))
            output = pool.hear("worker.exited", count=count, message_id="busy")["output"]
            current = output.partition("Current thread ")[2].partition("\n\n")[0]
            assert " in work\n" in current, output
        assert pool.stop() == 0


def test_a_timeout_of_nought_is_not_the_default(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr("supervisor.commands.kill.time", SimpleNamespace(sleep=wait))
    with gated(tmp_path, runs, broker_url, queue) as (_, path):
        amqp.publish(broker_url, queue, [str(tmp_path / "gate")], ids=["stuck"])
        runs.hear("began", 1)
        assert "not waiting any longer" in kill(path, "--dead-letter", "--timeout", "0", "stuck", code=1)


def test_the_line_that_it_shows_runs_for_an_id_like_an_option_too(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with gated(tmp_path, runs, broker_url, queue) as (pool, path):
        amqp.publish(broker_url, queue, [str(tmp_path / "gate")], ids=["--dead"])
        runs.hear("began")
        assert "--dead is dead-lettered: workq dead show -- --dead" in kill(path, "--dead-letter", "--", "--dead")
        assert pool.stop() == 0
    out, _ = workq.run("dead", "show", "--url", broker_url, "--queue", queue, "--", "--dead")
    assert "--dead" in out


def test_while_tasks_fly_by_only_the_message_that_is_named_loses_its_worker(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    """Each is over in a millisecond: most have gone by when the request comes, and the worker has another."""
    gate = tmp_path / "gate"
    gate.touch()
    names = [f"task-{n}" for n in range(300)]
    with gated(tmp_path, runs, broker_url, queue) as (pool, path):
        amqp.publish(broker_url, queue, [str(gate)] * len(names), ids=names)
        supervisor, killed = Running(path), set()
        # Not counted by `succeeded`: who is killed after its ack may not have counted the task.
        while len(killed) < 8 and set(runs.lines("done")) != set(names):  # each kill takes a moment, for the stacks
            for worker in supervisor.status()["workers"]:
                if (name := worker["message_id"]) is not None and supervisor.wish("/kill", {"target": name})["ok"]:
                    killed.add(name)
        eventually(lambda: set(runs.lines("done")) == set(names) and amqp.depth(broker_url, queue) == 0)
        eventually(lambda: all(worker["state"] == "idle" for worker in pool.workers()))
        began = Counter(runs.lines("began"))
        assert {name for name, count in began.items() if count > 1} <= killed
        assert {line["message_id"] for line in pool.named("worker.exited")} == killed
        assert began.keys() == set(names) and pool.stop() == 0
