"""`workq try`: a handler in the foreground."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import handler_modules, workq
from tests.terminal import terminal

CODE = """
import asyncio
from supervisor import Reject, Retry, Unavailable

def works(task):
    print("ran", task.text, task.headers, task.message_id, task.attempt, task.queue)
    task.log.info("picture.resized", width=12)

async def awaits(task):
    await asyncio.sleep(0)

def fails(task):
    raise ValueError("12 is odd")

def asks(task):
    raise Retry("busy", delay=30)

def rejects(task):
    raise Reject("no such customer")

def lacks(task):
    raise Unavailable("database", retry_after=10)

def breaks(task):
    width = 12
    breakpoint()
    print("went on")

tries = 0

def now_and_then(task):
    global tries
    tries += 1
    if tries % 4 == 0:
        raise ValueError(tries)

def generates(task):
    yield
"""


@pytest.fixture
def app(tmp_path: Path) -> str:
    handler_modules.write(tmp_path, "app", CODE)
    return str(tmp_path)


def test_a_handler_runs_once_and_what_a_supervisor_would_do_is_told(app: str) -> None:
    out, err = workq.run(
        "try", "app:works", "cat.jpg", "--app-dir", app, "--header", "tenant=a", "--id", "one", "--attempt", "2"
    )
    ran, told = out.splitlines()
    assert ran == "ran cat.jpg {'tenant': 'a'} one 2 task_queue"
    assert told.startswith("succeeded: it would be acknowledged (")
    assert "picture.resized" in err and "width=12" in err
    out, _ = workq.run("try", "app:awaits", "x", "--app-dir", app)
    assert out.startswith("succeeded")


def test_a_failure_is_told_with_its_traceback_and_what_would_follow(app: str) -> None:
    out, err = workq.run("try", "app:fails", "x", "--app-dir", app, code=1)
    assert out.startswith("retried: ValueError: 12 is odd; try 2 of 4 in 1 s (")
    assert err.startswith("Traceback") and 'raise ValueError("12 is odd")' in err and "/supervisor/" not in err
    out, _ = workq.run("try", "app:fails", "x", "--app-dir", app, "--attempt", "4", code=1)
    assert out.startswith("dead-lettered: ValueError: 12 is odd (")
    out, _ = workq.run("try", "app:fails", "x", code=1, env={"WORKQ_APP_DIR": app, "WORKQ_RETRIES": "0"})
    assert out.startswith("dead-lettered")
    out, _ = workq.run("try", "app:asks", "x", "--app-dir", app, code=1)
    assert out.startswith("retried: busy; try 2 of 4 in 30 s (")
    out, _ = workq.run("try", "app:rejects", "x", "--app-dir", app, code=1)
    assert out.startswith("dead-lettered: no such customer (")


def test_what_fails_now_and_then_is_run_often(app: str) -> None:
    out, err = workq.run("try", "app:now_and_then", "x", "--app-dir", app, "--times", "20", code=1)
    assert out.splitlines()[-1].startswith("15 of 20 succeeded, ")
    assert err.count("Traceback") == 5


def test_a_body_may_be_a_file(app: str, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"dog.jpg")
    out, _ = workq.run("try", "app:works", "--file", str(tmp_path / "body"), "--app-dir", app)
    assert out.startswith("ran dog.jpg ")
    _, err = workq.run("try", "app:works", "--app-dir", app, code=2)
    assert "one body is needed: BODY, or --file PATH" in err
    _, err = workq.run("try", "app:works", "x", "--file", str(tmp_path / "body"), "--app-dir", app, code=2)
    assert "one body is needed" in err


def test_what_cannot_be_loaded_is_refused_as_a_supervisor_refuses_it(app: str) -> None:
    _, err = workq.run("try", "app:nothing", "x", "--app-dir", app, code=78)
    assert "has no 'nothing'" in err
    _, err = workq.run("try", "app:generates", "x", "--app-dir", app, code=78)
    assert "is a generator function" in err


@pytest.mark.parametrize("handler", ["app", "", "app:", "app works"])
def test_a_handler_without_a_function_is_told_how_to_be_named(app: str, handler: str) -> None:
    _, err = workq.run("try", handler, "x", "--app-dir", app, code=78)
    assert err.startswith(f"Error: nothing was run. The handler is {handler!r}")
    assert err.endswith("expected module:function, such as tasks:resize\n")
    assert ("it names no function, write app:FUNCTION" in err) == (handler == "app")


def test_breakpoint_has_the_terminal(app: str) -> None:
    with terminal("try", "app:breaks", "x", "--app-dir", app) as shown:
        shown.see(r"\(Pdb\)")
        shown.press("p width * 2\n")
        shown.see("^24$")
        shown.press("c\n")
        shown.see("^went on$")
        shown.see("^succeeded")
        assert shown.process.wait(60) == 0


def test_what_raised_can_be_debugged_where_it_did(app: str) -> None:
    with terminal("try", "app:fails", "x", "--app-dir", app, "--pdb") as shown:
        shown.see(r"\(Pdb\)")
        shown.press("p task.text\n")
        shown.see("^'x'$")
        shown.press("q\n")
        shown.see("^retried: ValueError: 12 is odd")
        assert shown.process.wait(60) == 1


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        ("asks", "retried: busy; "),
        ("rejects", "dead-lettered: no such "),
        ("lacks", "deferred: database; not counted "),
    ],
)
def test_what_a_handler_asks_for_is_nothing_to_debug(app: str, handler: str, told: str) -> None:
    out, err = workq.run("try", f"app:{handler}", "x", "--app-dir", app, "--pdb", code=1)
    assert out.startswith(told) and not err
