"""FAULTS 59 to 61 and 63: nothing is acknowledged that has not run, whatever kind of callable the handler is and
whatever it returns or raises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.worker import handler as loader
from tests import amqp, handler_modules
from tests.supervision import Runs, supervised

pytestmark = pytest.mark.any_broker

KINDS = '''
"""One handler, whose messages say what it returns."""
import asyncio, contextlib, functools, itertools, multiprocessing.pool, threading, types
from concurrent.futures import ThreadPoolExecutor
from handlers import note

POOL = None

def started(task):
    """Work that runs elsewhere; the handler's own pool, made after the fork."""
    global POOL
    POOL = POOL or ThreadPoolExecutor(1)
    return POOL

async def run(task, fail=None):
    await asyncio.sleep(0.01)
    if fail:
        raise ValueError(fail)
    note("ran", task.message_id)

def in_a_thread(task, fail=None):
    if fail:
        raise ValueError(fail)
    note("ran", task.message_id)

class Awaitable:
    def __init__(self, task):
        self.task = task
    def __await__(self):
        return run(self.task).__await__()

class SelfAwaitable(Awaitable):
    def __await__(self):
        yield from run(self.task).__await__()
        return self

class Called:
    async def __call__(self, task):
        await run(task)

class Meta(type):
    def __call__(cls, task):
        return run(task)

class ByMeta(metaclass=Meta):
    pass

class Static:
    @staticmethod
    async def run(task):
        await run(task)
    @classmethod
    async def class_run(cls, task):
        await run(task)

@types.coroutine
def old_style(task):
    yield from run(task).__await__()

def plain_wrapper(function):
    def wrapper(task):
        return function(task)
    return wrapper

@functools.wraps(run)
def wraps(*args, **kwargs):
    return run(*args, **kwargs)

async def forgets_to_await(task):
    return run(task)

def ensure_future(task):
    return asyncio.get_event_loop_policy().new_event_loop().create_task(run(task))

def failing_future(task):
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.call_later(0.01, future.set_exception, ValueError("later"))
    return future

def in_a_running_loop(task):
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    made = threading.Event()
    futures = []
    def make():
        futures.append(loop.create_task(run(task)))
        made.set()
    loop.call_soon_threadsafe(make)
    made.wait()
    return futures[0]

def generator(task):
    note("ran", task.message_id)
    yield

async def async_generator(task):
    note("ran", task.message_id)
    yield

@contextlib.contextmanager
def context(task):
    note("ran", task.message_id)
    yield

@contextlib.asynccontextmanager
async def async_context(task):
    note("ran", task.message_id)
    yield

def ended_generator(task):
    work = generator(task)
    list(work)
    return work

def begun_generator(task):
    work = generator(task)
    next(work)
    return work

def decorator_factory(times):
    def decorate(function):
        def wrapper(*args):
            return function(*args)
        return wrapper
    return decorate

def done(value):
    def work(task):
        note("ran", task.message_id)
        return value
    return work

class Liar:
    @property
    def __class__(self):
        raise RuntimeError("outside of a request")

DONE = {
    "decorated": plain_wrapper(run), "twice decorated": plain_wrapper(plain_wrapper(run)), "wraps": wraps,
    "lambda": lambda task: run(task), "partial": functools.partial(run, fail=None), "object": Called(),
    "bound": Called().__call__, "metaclass": ByMeta, "static": Static.run, "class method": Static.class_run,
    "old style": old_style, "awaitable": Awaitable, "awaitable that returns itself": SelfAwaitable,
    "awaited too late": forgets_to_await, "partial of a decorated": functools.partial(plain_wrapper(run)),
    "task": ensure_future, "task in a thread": in_a_running_loop,
    "thread": lambda task: started(task).submit(in_a_thread, task),
    "coroutine in a thread": lambda task: started(task).submit(run, task),
    "pool": lambda task: multiprocessing.pool.ThreadPool(1).apply_async(in_a_thread, (task,)),
    "ended generator": ended_generator,
    "true": done(True), "number": done(7), "text": done("ok"), "list": done([1]), "an object": done(object()),
    "an iterator": done(iter([1])), "a class": done(dict), "an error": done(ValueError("not raised")),
    "a proxy": done(Liar()), "nothing": done(None),
}
FAILED = {
    "raises": functools.partial(run, fail="later"), "decorated raises": lambda task: run(task, "later"),
    "future raises": failing_future, "thread raises": lambda task: started(task).submit(in_a_thread, task, "later"),
    "cancelled": lambda task: run_cancelled(task),
    "two arguments": lambda *args: run(), "system exit": lambda task: system_exit(task),
}
NEVER_RUN = {
    "generator": generator, "decorated generator": plain_wrapper(generator),
    "partial of a generator": functools.partial(generator),
    "generator in a coroutine": lambda task: returns(generator(task)),
    "async generator": async_generator, "context manager": context, "async context manager": async_context,
    "map": lambda task: map(in_a_thread, [task]), "filter": lambda task: filter(in_a_thread, [task]),
    "starmap": lambda task: itertools.starmap(in_a_thread, [[task]]),
    "decorator without parentheses": decorator_factory(in_a_thread),
    "partial returned": lambda task: functools.partial(run, task),
    "method returned": lambda task: Called().__call__,
}

async def returns(value):
    return value

async def run_cancelled(task):
    raise asyncio.CancelledError

async def system_exit(task):
    raise SystemExit(0)

def handle(task):
    kinds = {"done": DONE, "failed": FAILED, "never": NEVER_RUN, "begun": {"begun": begun_generator}}[task.text]
    return kinds[task.message_id](task)
'''


@pytest.fixture
def path(tmp_path: Path, runs: Runs) -> dict[str, str]:
    return runs.env | {"PYTHONPATH": str(tmp_path)}


def names(tmp_path: Path, table: str) -> list[str]:
    """The keys of a table in KINDS."""
    namespace: dict[str, object] = {}
    exec(compile(KINDS.replace("from handlers import note", "note = print"), "kinds", "exec"), namespace)
    found = namespace[table]
    assert isinstance(found, dict)
    return list(found)


def test_f59_whatever_awaitable_or_future_a_handler_returns_is_run_before_it_is_acknowledged(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, path: dict[str, str]
) -> None:
    handler_modules.write(tmp_path, "kinds", KINDS)
    done, failed = names(tmp_path, "DONE"), names(tmp_path, "FAILED")
    amqp.publish(broker_url, queue, ["done"] * len(done), ids=done)
    amqp.publish(broker_url, queue, ["failed"] * len(failed), ids=failed)
    options = ("--workers", "2", "--retries", "0", "--burst")
    with supervised("kinds:handle", *options, url=broker_url, queue=queue, env=path) as pool:
        assert pool.wait() == 0
        assert {line["message_id"] for line in pool.named("task.succeeded")} == set(done)
        assert {line["message_id"] for line in pool.named("task.dead_lettered")} == set(failed)
        assert "ValueError: later" in pool.named("task.failed", message_id="future raises")[0]["because"]
        assert not pool.named("worker.exited", level="warning")
    assert sorted(runs.lines("ran")) == sorted(done)
    for _, properties, _ in amqp.drain(broker_url, f"{queue}.dead"):
        if "raises" in str(properties.message_id):
            headers = properties.headers or {}
            assert headers["x-workq-error"] == "ValueError: later"
            assert "Traceback" in headers["x-workq-traceback"]


def test_f60_what_a_handler_returns_unrun_is_a_failure_that_is_retried_and_dead_lettered(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, path: dict[str, str]
) -> None:
    handler_modules.write(tmp_path, "kinds", KINDS)
    never = names(tmp_path, "NEVER_RUN")
    amqp.publish(broker_url, queue, ["never"] * len(never), ids=never)
    amqp.publish(broker_url, queue, ["begun"], ids=["begun"])
    options = ("--workers", "2", "--retries", "1", "--retry-delay", "100ms", "--burst")
    with supervised("kinds:handle", *options, url=broker_url, queue=queue, env=path) as pool:
        assert pool.wait() == 0
        assert not pool.named("task.succeeded")
        assert len(pool.named("task.retried")) == len(never) + 1
    dead = {str(each.message_id): each.headers or {} for _, each, _ in amqp.drain(broker_url, f"{queue}.dead")}
    assert dead.keys() == {*never, "begun"}
    assert all(": nothing of it has run" in dead[name]["x-workq-error"] for name in never)
    assert dead["generator"]["x-workq-error"] == "the handler returned a generator: nothing of it has run"
    assert 'kinds.py", line' in dead["generator"]["x-workq-traceback"]
    assert "in generator" in dead["generator"]["x-workq-traceback"]
    assert "it has not run to its end" in dead["begun"]["x-workq-error"]
    assert runs.lines("ran") == ["begun"] * 2


# -------------------------------------------------------------------------------------------------------- at load

SHAPES = """
import contextlib, functools, types
from handlers import note

class Task:
    def one(self, task): note("ran", task.message_id)
    def two(self, task, other): pass
    @staticmethod
    def static(task): note("ran", task.message_id)
    @staticmethod
    def yields(task): yield
    @classmethod
    def of_class(cls, task): note("ran", task.message_id)
    def __call__(self, task): note("ran", task.message_id)

class Mute:
    def work(self, task): note("ran", task.message_id)

class Async:
    async def __call__(self, task): note("ran", task.message_id)

class Yields:
    def __call__(self, task): yield

class AsyncYields:
    async def __call__(self, task): yield

def one(task): note("ran", task.message_id)
def defaults(task, db=None, *, secret="hunter2"): note("ran", task.message_id)
def all_of_it(*args, **kwargs): note("ran", args[0].message_id)
def positional(task, /): note("ran", task.message_id)
def none(): pass
def callback(ch, method, properties, body): pass
def open_end(task, other, *rest): pass
def keyword(task, *, db): pass
def keywords(*, db, cache="hunter2"): pass
def generator(task): yield
async def async_generator(task): yield
async def coroutine(task): note("ran", task.message_id)

@types.coroutine
def old_style(task):
    yield from coroutine(task).__await__()

def supplies(function):
    @functools.wraps(function)
    def wrapper(task):
        return function(task, "session")
    return wrapper

@supplies
def supplied(task, session): note("ran", task.message_id)

def passes(function):
    @functools.wraps(function)
    def wrapper(ch, method, properties, body):
        return function(body)
    return wrapper

@passes
def demands(task): pass

def says(function):
    import inspect
    def wrapper(task):
        note("ran", task.message_id)
    wrapper.__signature__ = inspect.signature(function)
    return wrapper

said = says(callback)
instance, async_instance, yields, async_yields = Task(), Async(), Yields(), AsyncYields()
static = staticmethod(one)
static_yields = staticmethod(generator)
partial, partial_async = functools.partial(defaults, db=1), functools.partial(coroutine)
partial_two = functools.partial(callback, 1)
partial_keyword = functools.partial(open_end, task=1)
partial_yields = functools.partial(functools.partial(generator))
cached = functools.lru_cache(maxsize=1)(one)
short = lambda task: note("ran", task.message_id)
length = [].append

class Unreadable:
    @property
    def __signature__(self): raise RuntimeError("no signature")
    def __call__(self, task): note("ran", task.message_id)

class Lies:
    __signature__ = "not a signature"
    def __call__(self, task): note("ran", task.message_id)

unreadable, lies = Unreadable(), Lies()
"""

ACCEPTED = (
    "one", "defaults", "all_of_it", "positional", "coroutine", "old_style", "supplied", "said", "instance", "partial",
    "async_instance", "static", "partial_async", "cached", "short", "length", "unreadable", "lies", "instance.one",
    "Task", "Async", "Task.static", "Task.of_class", "print", "instance.__call__",
)  # fmt: skip

REFUSED = {
    "callback": "takes 4 arguments; a handler is called with one, the task: "
    "callback(ch, method, properties, body) should be callback(task)",
    "none": "takes no arguments; a handler is called with one, the task: none() should be none(task)",
    "open_end": "takes at least 2 arguments; ",
    "keyword": "needs the argument db by keyword; a handler is called with one, the task: keyword(task, *, db) should",
    "keywords": "needs the argument db by keyword; a handler is called with one, the task: keywords(*, db, cache=...)",
    "demands": "takes 4 arguments; ",
    "partial_two": "takes 3 arguments; ",
    "partial_keyword": "needs the argument other by keyword; ",
    "Task.two": "takes 3 arguments; ",
    "instance.two": "takes 2 arguments; ",
    "Task.one": "takes 2 arguments; a handler is called with one, the task: one(self, task) should be one(task)",
    "Mute": "is a class whose instances cannot be called: ",
    "generator": "is a generator function (it has a yield): ",
    "async_generator": "is an async generator function (it has a yield): ",
    "yields": "is a generator function",
    "async_yields": "is an async generator function",
    "Task.yields": "is a generator function",
    "static_yields": "is a generator function",
    "partial_yields": "is a generator function",
}


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of callables of all shapes, which both this process and a worker can import."""
    name = f"shapes_{tmp_path.name.replace('-', '_')}"
    handler_modules.write(tmp_path, name, SHAPES + "\nprint = print\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(Path(__file__).parents[1])])
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("shape", ACCEPTED)
def test_f61_a_callable_that_takes_the_task_alone_or_cannot_be_asked_is_loaded(
    shapes: str, tmp_path: Path, shape: str
) -> None:
    assert callable(loader.find(f"{shapes}:{shape}", str(tmp_path)))


@pytest.mark.parametrize("shape", REFUSED)
def test_f61_a_callable_that_cannot_take_exactly_one_argument_or_runs_nothing_is_refused_at_load(
    shapes: str, tmp_path: Path, shape: str
) -> None:
    with pytest.raises(loader.CannotLoad) as refused:
        loader.load(f"{shapes}:{shape}", str(tmp_path))
    assert f"{shapes}:{shape} {REFUSED[shape]}" in refused.value.error
    assert "hunter2" not in refused.value.error


@pytest.mark.parametrize(
    ("shape", "preload"), [("callback", "--preload"), ("generator", "--no-preload"), ("Mute", "--preload")]
)
def test_f60_f61_what_cannot_be_a_handler_is_exit_78_in_one_line_and_no_message_is_taken(
    broker_url: str, queue: str, tmp_path: Path, path: dict[str, str], shape: str, preload: str
) -> None:
    handler_modules.write(tmp_path, "shapes", SHAPES)
    amqp.publish(broker_url, queue, ["x"])
    options = ("--workers", "1", preload)
    with supervised(f"shapes:{shape}", *options, url=broker_url, queue=queue, env=path) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.import_failed")
        assert f"shapes:{shape} {REFUSED[shape]}" in failed["because"]
        assert "exception" not in failed
    assert amqp.depth(broker_url, queue) == 1


def test_f61_workq_check_says_why_a_callable_cannot_be_a_handler(tmp_path: Path) -> None:
    handler_modules.write(tmp_path, "shapes", SHAPES)
    program = str(Path(sys.executable).with_name("workq"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    environ |= {"PYTHONPATH": str(Path(__file__).parents[1]), "WORKQ_HEALTH": "off", "WORKQ_URL": "amqp://127.0.0.1:1"}
    for shape in ("callback", "generator"):
        done = subprocess.run(
            [program, "check", "--json", "--management", "off", "--app-dir", str(tmp_path), f"shapes:{shape}"],
            env=environ,
            capture_output=True,
            text=True,
        )
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        [handler] = [each for each in findings if each["subject"] == "handler"]
        assert (done.returncode, handler["level"]) == (1, "problem")
        assert f"shapes:{shape} {REFUSED[shape]}" in handler["what"]
        assert not handler["fix"], "the import is not what is wrong"


# ----------------------------------------------------------------------------------------- 63: Retry and Reject

ASKS = """
import decimal, enum, json
from supervisor import Reject, Retry
from handlers import note

class Bare(Retry):
    def __init__(self, code):
        self.code = code

class BareReject(Reject):
    def __init__(self, code):
        self.code = code

class Mute(Retry):
    def __str__(self):
        raise SystemExit("mute")

class MuteReject(Reject):
    def __str__(self):
        raise SystemExit("mute")

class NoText(Reject):
    def __str__(self):
        return 7

class MuteError(Exception):
    def __str__(self):
        raise SystemExit("mute")

class Lazy(Retry):
    @property
    def delay(self):
        raise LookupError("no delay today")
    def __init__(self):
        pass

class Soon(Retry):
    def __init__(self, delay):
        self.delay = delay

class Strange(Reject):
    @property
    def __class__(self):
        raise SystemExit("nobody")

ASK = {
    "bare": lambda: Bare(7), "mute": lambda: Mute("x"), "retry": lambda: Retry("x"), "zero": lambda: Retry(delay=0),
    "decimal": lambda: Retry(delay=decimal.Decimal("0.05")), "none": lambda: Soon(None),
    "bare reject": lambda: BareReject(7), "mute reject": lambda: MuteReject("x"), "no text": lambda: NoText(),
    "strange": lambda: Strange("x"),
    "mute error": lambda: MuteError("x"), "lazy": lambda: Lazy(), "soon": lambda: Retry(delay="soon"),
    "set soon": lambda: Soon("soon"), "nan": lambda: Retry(delay=float("nan")), "set nan": lambda: Soon(float("nan")),
    "true": lambda: Retry(delay=True), "negative": lambda: Retry(delay=-1), "set object": lambda: Soon(object()),
    "minus infinity": lambda: Soon(float("-inf")), "digits": lambda: Soon("5"),
    "huge negative": lambda: Soon(-(10**400)),
    "infinity": lambda: Retry(delay=float("inf")), "huge": lambda: Retry(delay=10**400), "year": lambda: Soon(3e7),
}

def handle(task):
    raise ASK[task.message_id]()
"""
RETRIED = ("bare", "mute", "retry", "zero", "decimal", "none")
REJECTED = ("bare reject", "mute reject", "no text", "strange")
RAISED = (
    "mute error", "lazy", "soon", "set soon", "nan", "set nan", "true", "negative", "set object", "minus infinity",
    "digits", "huge negative",
)  # fmt: skip
A_DAY_LATER = ("infinity", "huge", "year")


def test_f63_whatever_a_subclass_of_retry_or_reject_does_the_worker_lives_and_the_task_has_failed(
    broker_url: str, queue: str, tmp_path: Path, path: dict[str, str]
) -> None:
    handler_modules.write(tmp_path, "asks", ASKS)
    ids = [*RETRIED, *REJECTED, *RAISED, *A_DAY_LATER]
    amqp.publish(broker_url, queue, ["x"] * len(ids), ids=ids)
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "100ms")
    with supervised("asks:handle", *options, url=broker_url, queue=queue, env=path) as pool:
        for name in (*RETRIED, *REJECTED, *RAISED):
            pool.hear("task.dead_lettered", message_id=name)
        for name in A_DAY_LATER:
            assert "try 2 of 2 in 86400 s" in pool.hear("task.retried", message_id=name)["because"]
        assert not pool.named("task.succeeded")
        assert not pool.named("worker.exited")
        assert not {line["message_id"] for line in pool.named("task.retried")} & set(REJECTED)
        assert pool.stop() == 0
    dead = {str(each.message_id): each.headers or {} for _, each, _ in amqp.drain(broker_url, f"{queue}.dead")}
    assert dead.keys() == {*RETRIED, *REJECTED, *RAISED}
    assert {dead[name]["x-workq-reason"] for name in REJECTED} == {"rejected"}
    assert {dead[name]["x-workq-reason"] for name in (*RETRIED, *RAISED)} == {"exception"}
    for name in RAISED:
        assert "asks.py" in dead[name]["x-workq-traceback"], name
    for name in ("soon", "set soon", "nan", "set nan", "true", "negative", "digits"):
        assert "ValueError: a delay is a number of seconds from 0: got " in dead[name]["x-workq-error"]
    for name in ("mute", "mute reject", "no text"):
        assert "whose __str__ raises" in dead[name]["x-workq-error"]
        assert "x-workq-traceback" in dead[name]
    assert "SystemExit: mute" in dead["mute reject"]["x-workq-traceback"]
    assert dead["mute error"]["x-workq-error"].startswith("MuteError (its text cannot")
    assert "LookupError: no delay today" in dead["lazy"]["x-workq-error"]
    assert dead["bare reject"]["x-workq-error"] == "7"
