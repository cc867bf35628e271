"""Handlers: how they are loaded, what they may do, how long they may take."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests import amqp, handler_modules
from tests.supervision import Runs, Supervision, eventually, supervised

# ------------------------------------------------------------------------------------------------- F24: loading


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
@pytest.mark.parametrize(
    ("handler", "error"),
    [
        ("no_such_module:work", "no module named 'no_such_module'"),
        ("handlers:no_such_function", "no_such_function"),
        ("handlers:os.sep", "cannot be called"),
        ("raises:work", "ZeroDivisionError"),
        ("exits:work", "SystemExit"),
    ],
)
def test_f24_a_handler_that_cannot_be_loaded_is_exit_78_with_the_reason_once_and_no_restart(
    broker_url: str, queue: str, tmp_path: Path, preload: str, handler: str, error: str
) -> None:
    handler_modules.write(tmp_path, "raises", handler_modules.RAISES)
    handler_modules.write(tmp_path, "exits", handler_modules.EXITS)
    path = {"PYTHONPATH": str(tmp_path)}
    with supervised(handler, preload, "--workers", "3", url=broker_url, queue=queue, env=path) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.import_failed")
        assert error in failed["because"]
        if handler == "raises:work":
            assert "1 / 0" in failed["exception"]
            assert "supervisor/worker" not in failed["exception"]
        assert len(pool.named("worker.started")) <= (3 if preload == "--no-preload" else 0)
        assert pool.named("supervisor.stopped")[0]["code"] == 78


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_f71_an_import_that_raises_10_mb_is_exit_78_with_its_begin_and_its_end(
    broker_url: str, queue: str, tmp_path: Path, preload: str
) -> None:
    (tmp_path / "wordy.py").write_text('raise ValueError("begin" + "é" * 10_000_000 + "the end")\n')
    path = {"PYTHONPATH": str(tmp_path)}
    with supervised("wordy:work", preload, "--workers", "1", url=broker_url, queue=queue, env=path) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.import_failed")
        assert "ValueError: begin" in failed["because"] and failed["exception"].rstrip().endswith("the end")


LARGE = """
import sys

def down(n):
    if not n:
        raise RecursionError("deep down")
    down(n - 1)

def work(task):
    if task.text == "deep":
        sys.setrecursionlimit(200_000)
        down(100_000)
    if task.text == "text":
        raise ValueError("x" * 10_000_000 + "the end")
    if task.text == "group":
        raise ExceptionGroup("many", [ValueError(number) for number in range(5000)])
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    try:
        down(5000)
    except RecursionError:
        task.log.exception("cycle")
    raise one
"""


def test_f71_failures_of_any_size_are_dead_lettered_with_their_end(broker_url: str, queue: str, tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(LARGE)
    ends = {
        "deep": "RecursionError: deep down",
        "text": "the end",
        "group": "and 4,997 more",
        "cycle": "ValueError: one",
    }
    amqp.publish(broker_url, queue, list(ends), ids=list(ends))
    path = {"PYTHONPATH": str(tmp_path)}
    with supervised("large:work", "--workers", "1", "--retries", "0", url=broker_url, queue=queue, env=path) as pool:
        pool.hear("task.dead_lettered", count=4)
        assert "deep down" in pool.hear("cycle")["exception"]
        assert pool.stop() == 0
        assert len(pool.named("worker.started")) == 1
    letters = {
        properties.message_id: properties.headers for _, properties, _ in amqp.drain(broker_url, f"{queue}.dead")
    }
    assert {name: letters[name]["x-workq-traceback"].rstrip()[-len(end) :] for name, end in ends.items()} == ends


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_f24_an_import_that_hangs_is_given_up_after_the_boot_timeout_and_says_where(
    broker_url: str, queue: str, tmp_path: Path, preload: str
) -> None:
    handler_modules.write(tmp_path, "hangs", handler_modules.HANGS)
    path = {"PYTHONPATH": str(tmp_path)}
    options = (preload, "--workers", "1", "--boot-timeout", "1.5")
    with supervised("hangs:work", *options, url=broker_url, queue=queue, env=path) as pool:
        if preload == "--preload":
            assert pool.wait() == 78
            assert "--boot-timeout" in pool.named("handler.import_failed")[0]["because"]
        else:
            pool.hear("worker.exited", cause="boot_timeout")
            assert pool.stop() in (0, 1)
        assert any("hangs.py" in line["line"] for line in pool.named("worker.output"))


def test_an_import_that_leaves_threads_behind_is_said_once_and_workers_import_for_themselves(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "threaded", handler_modules.THREADED)
    amqp.publish(broker_url, queue, ["0"] * 4)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("threaded:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=4)
        [warned] = pool.named("handler.loaded", level="warning")
        assert warned["preloaded"] is False
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        assert len(pool.named("handler.loaded", level="warning")) == 1
        assert pool.stop() == 0


def test_threads_that_end_before_a_fork_as_openblas_s_do_need_no_import_in_every_worker(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "threaded", handler_modules.FORK_AWARE)
    amqp.publish(broker_url, queue, ["0"] * 4)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("threaded:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=4)
        [loaded] = pool.named("handler.loaded")
        assert (loaded["level"], loaded["preloaded"]) == ("info", True)
        assert pool.stop() == 0
    assert len(runs.lines("imported")) == 1


def test_without_preload_every_worker_imports_for_itself_and_works(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, ["0"] * 4)
    options = ("--workers", "2", "--no-preload")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=4)
        assert pool.stop() == 0


def test_f57_a_module_beside_the_handler_shadows_nothing(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler_modules.write(tmp_path, "json", "raise RuntimeError('shadowed')")
    handler_modules.write(tmp_path, "mine", "def work(task):\n    task.json()\n")
    monkeypatch.chdir(tmp_path)
    amqp.publish(broker_url, queue, ["{}"])
    with supervised("mine:work", "--workers", "1", "--app-dir", ".", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded")
        assert pool.stop() == 0


# --------------------------------------------------------------------------------------------------- outcomes


def test_an_exception_dead_letters_the_message_with_its_evidence_and_everything_the_sender_set(
    broker_url: str, queue: str, runs: Runs
) -> None:
    body = json.dumps({"raise": "ValueError"})
    sent = {
        "correlation_id": "c-7",
        "content_type": "application/json",
        "headers": {"tenant": "blue", "n": 7},
        "expiration": "3600000",
    }
    amqp.publish(broker_url, queue, [body], ids=["bad"], **sent)
    with supervised(
        "handlers:act", "--workers", "1", "--retries", "0", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        failed = pool.hear("task.failed", message_id="bad")
        assert failed["because"] == "ValueError: as told"
        pool.hear("task.dead_lettered", message_id="bad")
        totals = pool.status()["totals"]
        assert (totals["failed"], totals["dead_lettered"], totals["succeeded"]) == (1, 1, 0)
        assert pool.metric("workq_tasks_total", outcome="dead_lettered") == 1
        assert pool.stop() == 0
    assert amqp.depth(broker_url, queue) == 0
    [(_, properties, dead_body)] = amqp.drain(broker_url, f"{queue}.dead")
    headers = properties.headers or {}
    assert dead_body.decode() == body
    assert (properties.message_id, properties.correlation_id, properties.content_type) == (
        "bad",
        "c-7",
        "application/json",
    )
    assert properties.delivery_mode == 2
    assert (headers["tenant"], headers["n"]) == ("blue", 7)
    assert properties.expiration is None
    assert headers["x-workq-expiration"] == "3600000"
    assert headers["x-workq-reason"] == "exception"
    assert headers["x-workq-error"] == "ValueError: as told"
    assert headers["x-workq-attempt"] == 1
    assert headers["x-workq-queue"] == queue
    assert "handlers.py" in headers["x-workq-traceback"]
    assert "supervisor/worker" not in headers["x-workq-traceback"]
    assert headers["x-workq-host"]
    assert headers["x-workq-first-seen"]


def test_reject_dead_letters_with_the_reason_given(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"reject": "no such customer"})])
    with supervised("handlers:act", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.dead_lettered")
        assert pool.stop() == 0
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    headers = properties.headers or {}
    assert (headers["x-workq-reason"], headers["x-workq-error"]) == ("rejected", "no such customer")


def test_f29_a_body_above_max_body_is_dead_lettered_unread(broker_url: str, typed_queue: str, runs: Runs) -> None:
    queue = typed_queue
    amqp.publish(broker_url, queue, ["0" + " " * 2000, "0"], ids=["large", "small"])
    options = ("--workers", "1", "--max-body", "1K")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.dead_lettered", message_id="large")
        pool.hear("task.succeeded", message_id="small")
        assert pool.stop() == 0
    assert runs.lines("began") == ["small"]
    [(_, properties, body)] = amqp.drain(broker_url, f"{queue}.dead")
    assert (properties.headers or {})["x-workq-reason"] == "too_large"
    assert len(body) == 2001


def test_async_handlers_run_and_their_exceptions_are_failures(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path
) -> None:
    amqp.publish(broker_url, queue, ["0.05", "nonsense", "0"], ids=["a", "b", "c"])
    with supervised(
        "handlers:work_async", "--workers", "1", "--retries", "0", url=broker_url, queue=queue, env=runs.env
    ) as pool:
        pool.hear("task.succeeded", count=2)
        pool.hear("task.dead_lettered", message_id="b")
        assert pool.stop() == 0
    assert runs.lines("done") == ["a", "c"]


def test_f14_max_tasks_recycles_a_worker_between_tasks_and_blames_nobody(
    broker_url: str, typed_queue: str, runs: Runs
) -> None:
    queue = typed_queue
    names = [f"t{n}" for n in range(9)]
    amqp.publish(broker_url, queue, ["0"] * 9, ids=names)
    options = ("--workers", "1", "--max-tasks", "3")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", count=9)
        pool.hear("worker.exited", count=3, cause="max_tasks")
        assert pool.status()["totals"]["redelivered"] == 0
        assert pool.stop() == 0
    assert runs.lines("began") == runs.lines("done") == names


def test_f09_a_worker_above_max_memory_is_recycled_between_tasks_and_interrupts_none(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs
) -> None:
    queue = typed_queue
    text = """
from handlers import work as slow
kept = []
def work(task):
    if task.message_id == "fat":
        kept.append(bytearray(b"x") * 150_000_000)
    slow(task)
"""
    handler_modules.write(tmp_path, "hungry", text)
    amqp.publish(broker_url, queue, ["2", "0", "0"], ids=["fat", "a", "b"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised(
        "hungry:work", "--workers", "1", "--max-memory", "120M", url=broker_url, queue=queue, env=env
    ) as pool:
        pool.hear("task.succeeded", count=3)
        pool.hear("worker.drain", slot=0)
        pool.hear("worker.exited", cause="memory")
        assert pool.stop() == 0
    assert runs.lines("began") == runs.lines("done") == ["fat", "a", "b"]


def test_f09_a_worker_past_twice_max_memory_is_killed_and_its_message_blamed(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs
) -> None:
    queue = typed_queue
    text = """
import time
def work(task):
    kept = bytearray(b"x") * 400_000_000
    time.sleep(600)
"""
    handler_modules.write(tmp_path, "bloated", text)
    amqp.publish(broker_url, queue, ["0"], ids=["bloat"])
    options = ("--workers", "1", "--max-memory", "120M", "--max-crashes", "1")
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("bloated:work", *options, url=broker_url, queue=queue, env=env) as pool:
        died = pool.hear("worker.exited", cause="memory")
        assert died["message_id"] == "bloat"
        pool.hear("task.quarantined", message_id="bloat")
        assert pool.stop() == 0


@pytest.mark.parametrize(("limit", "preload"), [("70M", "--preload"), ("70M", "--no-preload"), ("120M", "--preload")])
def test_f76_a_memory_limit_below_what_the_import_takes_blames_no_message_and_replaces_nobody(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs, limit: str, preload: str
) -> None:
    text = """
from handlers import work
LARGE = bytearray(b"x") * 150_000_000
"""
    handler_modules.write(tmp_path, "large", text)
    # Long enough for the supervisor to look at its size in the middle of it.
    amqp.publish(broker_url, typed_queue, ["1.5", "1.5", "0", "0"], ids=["a", "b", "c", "d"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--max-memory", limit, "--max-crashes", "1", "--burst", preload)
    with supervised("large:work", *options, url=broker_url, queue=typed_queue, env=env) as pool:
        assert pool.wait() == 0
        [said] = pool.named("worker.memory_limit_too_small")
        assert f"--max-memory {limit} is less than the" in said["because"]
        assert not pool.named("worker.hung")
        assert not pool.named("worker.exited", cause="memory")
    assert sorted(runs.lines("began")) == sorted(runs.lines("done")) == ["a", "b", "c", "d"]
    assert amqp.depth(broker_url, f"{typed_queue}.dead") == 0


def test_f17_a_task_past_its_timeout_is_killed_with_its_stack_as_evidence_and_blamed(
    broker_url: str, typed_queue: str, runs: Runs
) -> None:
    queue = typed_queue
    amqp.publish(broker_url, queue, ["600"], ids=["endless"])
    options = ("--workers", "1", "--task-timeout", "1s", "--max-crashes", "1")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        died = pool.hear("worker.exited", cause="timeout")
        assert died["message_id"] == "endless"
        pool.hear("task.quarantined", message_id="endless")
        assert pool.stop() == 0
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    headers = properties.headers or {}
    assert headers["x-workq-cause"] == "timeout"
    assert "in work" in headers["x-workq-evidence"]


# ------------------------------------------------------------------------------------------------- F19: long


@pytest.mark.parametrize("handler", ["handlers:work", "handlers:spin", "handlers:work_async"])
def test_f19_a_task_of_five_heartbeats_keeps_its_connection_and_is_acknowledged_once(
    broker_url: str, typed_queue: str, runs: Runs, handler: str
) -> None:
    queue = typed_queue
    amqp.publish(broker_url, queue, ["5.5"], ids=["long"])
    options = ("--workers", "1", "--heartbeat", "1s")
    with supervised(handler, *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", message_id="long")
        assert not pool.named("worker.exited")
        assert pool.status()["totals"]["redelivered"] == 0
        assert pool.stop() == 0
    assert runs.lines("began") == runs.lines("done") == ["long"]
    assert amqp.depth(broker_url, queue) == 0


def test_f23_a_task_that_ends_after_its_connection_was_lost_is_unsettled_and_told_so_and_run_again(
    broker_url: str, typed_queue: str, tmp_path: Path, node: object
) -> None:
    queue = typed_queue
    text = """
import time
from handlers import note
def work(task):
    note("began", task.message_id)
    for _ in range(600):
        if task.redelivered or task.lost:
            break
        time.sleep(0.05)
    note("lost" if task.lost else "done", task.message_id)
"""
    handler_modules.write(tmp_path, "patient", text)
    runs = Runs(tmp_path / "runs")
    amqp.publish(broker_url, queue, ["x"], ids=["slow"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("patient:work", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        runs.hear("began")
        name = f"-{pool.pids()[0]}-0"
        close_connection(node, name)
        pool.hear("task.unsettled", message_id="slow")
        pool.hear("worker.exited", cause="broker")
        pool.hear("task.succeeded", message_id="slow")
        totals = pool.status()["totals"]
        assert (totals["unsettled"], totals["succeeded"]) == (1, 1)
        assert pool.stop() == 0
    assert runs.lines("lost") == runs.lines("done") == ["slow"]


def close_connection(node: object, ending: str) -> None:
    """Have the broker close the connection whose name ends so (320, as an operator would)."""
    erlang = (
        '[rabbit_networking:close_connection(Pid, <<"test">>) || Pid <- rabbit_networking:connections(), '
        "[{client_properties, P}] <- [rabbit_reader:info(Pid, [client_properties])], "
        '{<<"connection_name">>, longstr, N} <- P, '
        f'binary:longest_common_suffix([N, <<"{ending}">>]) =:= {len(ending)}].'
    )
    node.eval(erlang)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- F22: output


def test_f22_what_a_handler_prints_becomes_tagged_events(broker_url: str, queue: str, runs: Runs) -> None:
    amqp.publish(broker_url, queue, [json.dumps({"print": 'hello "world"\x1b[31m'})])
    with supervised("handlers:act", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("worker.output", slot=0, line='hello "world"\x1b[31m')
        pool.hear("worker.output", slot=0, line='hello "world"\x1b[31m on stderr')
        assert pool.stop() == 0
        assert pool.process.stdout is not None
        assert pool.process.stdout.read() == b""


def test_f22_a_handler_that_prints_a_hundred_megabytes_slows_itself_and_not_the_supervisor(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    text = """
import os
from handlers import note
def work(task):
    note("began", task.message_id)
    block = (b"x" * 999 + b"\\n") * 1000 + b"\\x00\\xff binary \\x1b[2J\\n"
    for _ in range(100 if task.message_id == "loud" else 0):
        os.write(1, block)
    note("done", task.message_id)
"""
    handler_modules.write(tmp_path, "loud", text)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("loud:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["x"], ids=["loud"])
        runs.hear("began")
        amqp.publish(broker_url, queue, ["x"] * 5, ids=[f"quiet-{n}" for n in range(5)])
        pool.hear("task.succeeded", count=5)
        assert "loud" not in runs.lines("done"), "not loud enough to slow it down"
        assert pool.get("/healthz")[0] == 200
        assert pool.get("/status")[0] == 200
        pool.hear("task.succeeded", message_id="loud", timeout=60)
        assert any(line.get("suppressed_lines") for line in pool.named("worker.output"))
        assert pool.stop() == 0
        assert all(len(line.get("line", "")) <= 8300 for line in pool.named("worker.output"))


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_f30_forged_log_fields_are_escaped(broker_url: str, queue: str, log_format: str, runs: Runs) -> None:
    forged = 'id"}\n{"level":"info","event":"forged"}\r\x1b[2J\x1b]0;title\x07\x9b31m'
    amqp.publish(broker_url, queue, ["0"], ids=[forged])
    options = ("--workers", "1", "--burst", "--log-format", log_format)
    pool = Supervision("handlers:work", *options, url=broker_url, queue=queue, env=runs.env)
    try:
        assert pool.wait() == 0
    finally:
        pool.end()
    if log_format == "json":
        assert not pool.invalid
        assert not pool.named("forged")
        assert pool.named("task.succeeded", message_id=forged)
    else:
        text = "".join(pool.invalid)
        assert "task.succeeded" in text
        assert not any(control in text for control in ("\x1b", "\x9b", "\x07", "\r"))
        assert not any(line.lstrip().startswith('{"level"') for line in text.splitlines())


def test_a_record_of_60_kb_from_eight_workers_at_once_yields_whole_lines(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    text = """
import logging, time
log = logging.getLogger("mine")
def work(task):
    log.warning("x" * 60000, extra={"n": int(task.text)})
    task.log.info("handler.said", text="y" * 60000, n=int(task.text))
    time.sleep(0.05)
"""
    handler_modules.write(tmp_path, "wordy", text)
    path = {"PYTHONPATH": str(tmp_path)}
    amqp.publish(broker_url, queue, [str(n) for n in range(80)])
    with supervised("wordy:work", "--workers", "8", url=broker_url, queue=queue, env=path) as pool:
        pool.hear("task.succeeded", count=80)
        assert pool.stop() == 0
        said = pool.named("handler.said")
        assert sorted(line["n"] for line in said) == list(range(80))
        assert all(line["role"] == "worker" and line["message_id"] and line["attempt"] == 1 for line in said)
        stdlib = [line for line in pool.events if line.get("logger") == "mine"]
        assert sorted(line["n"] for line in stdlib) == list(range(80))
        assert all(len(json.dumps(line)) <= 33_000 for line in pool.events)
    eventually(lambda: not pool.invalid)
