"""`supervisor.testing`: a handler's tests, without a broker and without a process."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

import supervisor
from supervisor import Publisher, Reject, Retry, Task, testing

ROOT = Path(__file__).parents[2]


def test_a_task_made_by_hand_has_what_it_was_given() -> None:
    made = testing.task(
        '{"width": 12}',
        headers={"tenant": "a"},
        message_id="one",
        correlation_id="two",
        content_type="application/json",
        queue="pictures",
        attempt=2,
    )
    assert isinstance(made, Task)
    assert made.body == b'{"width": 12}' and made.json() == {"width": 12}
    assert (made.headers, made.message_id, made.correlation_id) == ({"tenant": "a"}, "one", "two")
    assert (made.content_type, made.queue, made.routing_key) == ("application/json", "pictures", "pictures")
    assert (made.attempt, made.redelivered, made.lost) == (2, True, False)
    assert repr(made) == "<Task one attempt=2 bytes=13>"


def test_what_a_message_does_not_have_is_named() -> None:
    unknown: Any = {"message_ids": "one", "priority": 3}
    with pytest.raises(TypeError, match="a message has no message_ids, priority; it has headers, message_id, "):
        testing.task("x", **unknown)
    with pytest.raises(TypeError, match=r"a task is complete: give attempt to testing\.task"):
        testing.run(print, testing.task("x"), attempt=2)


def test_a_task_without_anything_is_a_first_try_of_nothing() -> None:
    made = testing.task()
    assert (made.body, made.headers, made.message_id, made.attempt, made.redelivered) == (b"", {}, None, 1, False)
    with pytest.raises(ValueError, match="counts from 1"):
        testing.task(attempt=0)


@pytest.mark.parametrize("body", [{"a": 1}, [1], None, 5])
def test_a_body_that_is_no_text_is_refused_in_words(body: Any) -> None:
    with pytest.raises(TypeError, match=r"a body is text or bytes, and a \w+ is given: json.dumps\(\)"):
        testing.run(print, body)
    with pytest.raises(TypeError, match="a body is text or bytes"):
        Publisher("amqp://127.0.0.1:1", "mails").publish(body)
    assert testing.task(bytearray(b"x")).body == b"x"  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", ["1m", None, [1]])
def test_a_delay_or_priority_that_is_no_number_is_refused_in_words(delay: Any) -> None:
    publisher = Publisher("amqp://127.0.0.1:1", "mails")
    with pytest.raises(TypeError, match=r"a delay is a number of seconds from 0 to 86400 \(24 h\), and .* is given"):
        publisher.publish("", delay=delay)
    with pytest.raises(TypeError, match="a priority is a number from 0 to 255, and '3' is given"):
        publisher.publish("", priority="3")  # type: ignore[arg-type]


class AsyncSetUp:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass

    def __call__(self, task: Task) -> None:
        pass


@pytest.mark.filterwarnings("error")
def test_in_a_running_loop_run_says_what_to_do_instead_of_blaming_the_handler() -> None:
    async def work(task: Task) -> None:
        pass

    async def tests() -> None:
        for handler in (work, lambda task: work(task), AsyncSetUp):
            with pytest.raises(RuntimeError, match=r"running event loop.*asyncio\.to_thread") as raised:
                testing.run(handler)
            assert raised.value.__cause__ is None
            assert await asyncio.to_thread(testing.run, handler) == testing.Done()
        assert testing.run(lambda task: None) == testing.Done()

    asyncio.run(tests())


def decorated(how: str) -> Any:
    """A coroutine function behind a decorator that is none itself."""
    ran = []

    async def work(task: Task) -> None:
        ran.append(task.text)

    @functools.wraps(work)
    def wrapper(*args: Any) -> Any:
        if how == "runs":
            return asyncio.run(work(*args))
        made = work(*args)
        if how == "returns":
            return made
        if how == "closes":
            made.close()
        return None

    wrapper.ran = ran  # type: ignore[attr-defined]
    return wrapper


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_task_whose_coroutine_a_decorator_drops_has_failed() -> None:
    handler = decorated("drops")

    class Called:
        __call__ = functools.wraps(handler)(lambda self, task: handler(task))

    for each in (handler, Called):
        failed = testing.run(each, "one")
        assert isinstance(failed, testing.Failed)
        assert "never awaited: nothing of it has run" in failed.error
        assert "in decorated.<locals>.work" in failed.traceback
    assert handler.ran == []


@pytest.mark.parametrize("how", ["runs", "returns"])
def test_a_decorator_that_has_the_coroutine_run_is_fine(how: str) -> None:
    handler = decorated(how)
    assert testing.run(handler, "one") == testing.Done()
    assert handler.ran == ["one"]


def test_how_a_handler_ended_is_a_value() -> None:
    def handler(task: Task) -> None:
        if task.text == "odd":
            raise ValueError("12 is odd")
        if task.text == "later":
            raise Retry("busy", delay=30)
        if task.text == "never":
            raise Reject("no such customer")
        if task.text == "exit":
            sys.exit(3)
        task.log.info("noted")

    assert testing.run(handler) == testing.Done()
    failed = testing.run(handler, "odd")
    assert failed == testing.Failed("ValueError: 12 is odd")
    assert isinstance(failed, testing.Failed) and failed.traceback.endswith("ValueError: 12 is odd\n")
    assert __file__ in failed.traceback and "/supervisor/worker/" not in failed.traceback
    assert testing.run(handler, "later") == testing.Retried(30)
    assert testing.run(handler, "never") == testing.Rejected("no such customer")
    assert testing.run(handler, "exit") == testing.Failed("SystemExit: 3")
    assert testing.run(handler, testing.task("never")) == testing.Rejected("no such customer")


def test_what_has_not_run_has_failed_here_too() -> None:
    ran = []

    async def handler(task: Task) -> None:
        await asyncio.sleep(0)
        ran.append(task.text)

    assert testing.run(handler, "coroutine") == testing.Done()
    assert testing.run(functools.partial(handler), "partial") == testing.Done()
    assert ran == ["coroutine", "partial"]
    generator = testing.run(lambda task: (each for each in [task]))
    assert isinstance(generator, testing.Failed) and "nothing of it has run" in generator.error


def test_what_a_worker_refuses_is_refused() -> None:
    with pytest.raises(TypeError, match="a handler is called with one"):
        testing.run(lambda: None)  # type: ignore[arg-type, misc]


def test_both_names_lead_to_it() -> None:
    import workq

    assert workq.testing is supervisor.testing is testing
    assert {"Task", "Retry", "Reject", "Unavailable", "SoftTimeout", "Publisher", "testing", "once"} < set(
        workq.__all__
    )
    assert set(workq.__all__) == set(supervisor.__all__)
    assert all(getattr(workq, name) is getattr(supervisor, name) for name in supervisor.__all__)


def test_the_fixture_boots_a_broker_and_pytest_imports_nothing_of_ours_without_it(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(
        "import sys\n"
        "def test_nothing_is_imported():\n"
        "    ours = {name for name in sys.modules if name.split('.')[0] in ('supervisor', 'pika', 'workq')}\n"
        "    assert ours <= {'supervisor', 'supervisor.version', 'supervisor.pytest_plugin'}, ours\n"
        "def test_a_broker(workq_broker):\n"
        "    from supervisor import Publisher\n"
        "    with Publisher(workq_broker.url, 'jobs') as publisher:\n"
        "        assert publisher.publish('one')\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("WORKQ_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


TYPED = """
from supervisor import Publisher, Reject, Retry, SoftTimeout, Task, Unavailable, once, testing
import sqlite3

class Resizer:
    def __enter__(self) -> "Resizer":
        self.mails = Publisher("amqp://127.0.0.1", "mails")
        return self

    def __exit__(self, *exc: object) -> None:
        self.mails.close()

    def __call__(self, task: Task) -> None:
        try:
            self.mails.publish(task.body, delay=30, priority=5)
        except SoftTimeout:
            raise Unavailable("mails", retry_after=3)

def resize(task: Task) -> None:
    if task.json()["width"] < 0:
        raise Reject("negative")
    raise Retry("busy", delay=1.5)

async def fetch(task: Task) -> None:
    with once(sqlite3.connect("x"), task) as first:
        task.log.info(task.text, first=first)

def test_resize() -> None:
    assert testing.run(resize, "{}", headers={"a": 1}, attempt=2) == testing.Retried(1.5)
    testing.run(Resizer, "x")
    result = testing.run(fetch, testing.task("x", message_id="1"))
    if isinstance(result, testing.Failed):
        print(result.error.upper(), result.traceback)
"""


def test_mypy_accepts_handlers_and_their_tests(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "app.py"],
        cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.fixture
def pyright() -> Path:
    """pyright as a wheel, with a node of its own: 60 MB to fetch, once; too many for everybody's environment."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workq-supervise"
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "pyright" / "bin" / "basedpyright"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            venv.create(cache / "pyright", with_pip=True, clear=True)
            pip = [cache / "pyright" / "bin" / "pip", "install", "--quiet", "basedpyright"]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                program.unlink(missing_ok=True)
                pytest.skip(f"pyright cannot be installed: {done.stderr.strip()[-200:]}")
    return program


@pytest.mark.timeout(300)
def test_pyright_accepts_handlers_and_their_tests(pyright: Path, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(TYPED)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [pyright, "--pythonpath", sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
