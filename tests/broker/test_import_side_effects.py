"""FAULTS 64, 65, 67, 68 and 72: what the import of a handler does to its process stops no pool."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.worker.handler import CannotLoad, load
from tests import amqp, handler_modules
from tests.broker.test_handlers import close_connection
from tests.supervision import Runs, Supervision, eventually, supervised

pytestmark = pytest.mark.any_broker

PRELOAD = pytest.mark.parametrize("preload", ["--preload", "--no-preload"])

HANDLE = """
import os, signal, sys, time
from handlers import note

def work(task):
    note("began", task.message_id)
    if task.text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.text == "sleep":
        time.sleep(3600)
    if task.text == "half a second":
        time.sleep(0.5)
    if task.text == "three seconds":
        time.sleep(3)
    note("done", task.message_id)
"""


def pool_of(
    tmp_path: Path, module: str, *options: str, url: str, queue: str, runs: Runs, env: dict[str, str] | None = None
) -> Any:
    """A pool of two whose handler's module begins so."""
    handler_modules.write(tmp_path, "app", module + HANDLE)
    environ = runs.env | {"PYTHONPATH": str(tmp_path)} | (env or {})
    return supervised("app:work", "--workers", "2", *options, url=url, queue=queue, env=environ)


def does_its_work(pool: Supervision, url: str, queue: str, count: int = 4) -> None:
    """It starts, does tasks, replaces a worker that is killed, and drains."""
    amqp.publish(url, queue, ["x"] * count, ids=[f"task-{n}" for n in range(count)])
    pool.ready()
    pool.hear("task.succeeded", count=count)
    os.kill(pool.pids()[0], signal.SIGKILL)
    pool.hear("worker.ready", count=3)
    amqp.publish(url, queue, ["half a second"], ids=["last"])
    eventually(
        lambda: any(w["state"] == "busy" for w in pool.workers()) or pool.named("task.succeeded", message_id="last")
    )
    assert pool.stop() == 0
    assert pool.named("task.succeeded", message_id="last")
    assert [line["cause"] for line in pool.named("worker.exited")] == ["SIGKILL", "drained", "drained"]
    assert not pool.named("nursery.exited")


# ------------------------------------------------------------------------------------------- 64: standard streams

STREAMS = """
import logging, os, sys

class StreamToLogger:
    def write(self, text):
        logging.getLogger("stdout").info(text.rstrip())

def replace(how):
    if how == "logger":
        sys.stdout = sys.stderr = StreamToLogger()
    if how == "none":
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
    if how == "closed":
        sys.stdout.close()
        sys.stderr.close()
    if how == "raises":
        class Raises:
            def __getattribute__(self, name):
                raise SystemError(name)
        sys.stdout = sys.stderr = Raises()
    if how == "descriptors":
        os.closerange(0, 3)

replace(os.environ.get("AT_IMPORT"))

def replacing(task):
    replace(task.text)
    if task.text == "crash":
        work(task)
"""
WAYS = ("logger", "none", "closed", "raises", "descriptors")


@pytest.mark.parametrize(("way", "preload"), [*((way, "--preload") for way in WAYS), ("raises", "--no-preload")])
def test_f64_whatever_the_import_makes_of_the_standard_streams_the_pool_starts_drains_and_a_crash_has_its_stack(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, way: str, preload: str
) -> None:
    pool_ = pool_of(tmp_path, STREAMS, preload, url=broker_url, queue=queue, runs=runs, env={"AT_IMPORT": way})
    with pool_ as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["x", "crash"], ids=["good", "deadly"])
        pool.hear("task.quarantined", message_id="deadly")
        for died in pool.named("worker.exited", cause="SIGSEGV"):
            assert "Fatal Python error: Segmentation fault" in died["output"]
            assert "app.py" in died["output"]
        pool.hear("task.succeeded", message_id="good")
        assert pool.stop() == 0


def test_f64_a_handler_that_replaces_the_standard_streams_is_done_and_its_worker_drains(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", STREAMS + HANDLE)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "5", "--max-tasks", "1")
    with supervised("app:replacing", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, WAYS, ids=WAYS)
        for way in WAYS:
            pool.hear("task.succeeded", message_id=way)
        pool.hear("worker.exited", cause="max_tasks", status="exit 0", count=5)
        assert pool.stop() == 0


# ---------------------------------------------------------------------------------------------------- 65: signals

IGNORES = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
"""
LEAVES = """
import signal, sys
signal.signal(signal.SIGCHLD, lambda *_: sys.exit("a child has ended"))
"""
REAPS_IN_C = """
import ctypes, signal
# What a library in C does that reaps all children by itself: sigaction(2) with SA_NOCLDWAIT; not by Python's signal.
libc = ctypes.CDLL(None)

class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]

assert libc.sigaction(signal.SIGCHLD, ctypes.byref(Action(None, (ctypes.c_ulong * 16)(), 2, None)), None) == 0
"""


@pytest.mark.parametrize("module", [IGNORES, LEAVES, REAPS_IN_C], ids=["ignores", "leaves", "reaps in C"])
def test_f65_whatever_the_import_does_with_sigchld_workers_start_are_replaced_and_drain(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, module: str
) -> None:
    with pool_of(tmp_path, module, url=broker_url, queue=queue, runs=runs) as pool:
        does_its_work(pool, broker_url, queue)
        if module != REAPS_IN_C:
            [said] = pool.named("handler.side_effects")
            assert "SIGCHLD: kept in workers, undone in the process that forks them" in said["because"]


def test_f65_a_worker_handles_sigchld_as_its_module_wants_it_and_does_not_die_of_sigpipe(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    module = """
import signal
from handlers import note
def reap(*_): pass
signal.signal(signal.SIGCHLD, reap)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
def look(task):
    note("handler", signal.getsignal(signal.SIGCHLD).__name__)
    note("handler", signal.getsignal(signal.SIGPIPE).name)
"""
    handler_modules.write(tmp_path, "app", module)
    amqp.publish(broker_url, queue, ["x"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:look", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    assert runs.lines("handler") == ["reap", "SIG_IGN"]


SIGNALS = """
import signal, socket, sys

def leave(*_):
    sys.exit("asked to")

ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGUSR1, signal.SIGALRM):
    signal.signal(number, leave)
for number in (signal.SIGPIPE, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""


@PRELOAD
def test_f65_whatever_signals_the_import_handles_or_blocks_workers_drain_and_tell_their_stacks(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, node: object, preload: str
) -> None:
    options = (preload, "--task-timeout", "5", "--max-crashes", "1")
    with pool_of(tmp_path, SIGNALS, *options, url=broker_url, queue=queue, runs=runs) as pool:
        pool.ready()
        # SIGABRT and SIGUSR1: the stacks.
        pool.send(signal.SIGUSR1)
        for slot in (0, 1):
            eventually(
                lambda slot=slot: any("most recent call" in o["line"] for o in pool.named("worker.output", slot=slot))
            )
        amqp.publish(broker_url, queue, ["sleep"], ids=["endless"])
        died = pool.hear("worker.exited", cause="timeout")
        assert "in work" in died["output"] and died["status"] == "SIGABRT"
        pool.hear("worker.ready", count=3)
        # SIGTERM, sent to the worker itself.
        os.kill(pool.pids()[0], signal.SIGTERM)
        pool.hear("worker.exited", cause="drained")
        pool.hear("worker.ready", count=4)
        amqp.publish(broker_url, queue, ["three seconds"], ids=["interrupted"])
        runs.hear("began", 2)
        busy = next(worker for worker in pool.workers() if worker["state"] == "busy")
        close_connection(node, f"-{busy['pid']}-{busy['slot']}")
        assert pool.hear("worker.exited", pid=busy["pid"])["cause"] == "broker"
        pool.hear("task.succeeded", message_id="interrupted")
        assert pool.stop() == 0


def test_f65_a_timer_set_at_import_does_not_end_the_nursery(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    module = "import signal\nsignal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)\n"
    with pool_of(tmp_path, module, url=broker_url, queue=queue, runs=runs) as pool:
        pool.ready()
        assert "it set a timer" in pool.hear("handler.side_effects")["because"]
        does_its_work(pool, broker_url, queue)


# -------------------------------------------------------------------------------------------------- 67: processes

SUBREAPER = """
import ctypes
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
"""
FORKS = {
    "sys.exit": "sys.exit(0)",
    "raises": "raise ValueError('in the child')",
    "falls through": "pass",
}
FORK = """
import os, sys, time
from handlers import note
if os.fork() == 0:
    note("forked", os.getpid())
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.02)
    {end}
"""


def test_f67_a_child_subreaper_made_at_import_is_undone_and_said_and_the_supervisor_lives(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with pool_of(tmp_path, SUBREAPER, url=broker_url, queue=queue, runs=runs) as pool:
        does_its_work(pool, broker_url, queue)
        [said] = pool.named("handler.side_effects")
        assert "child subreaper" in said["because"] and said["role"] == "nursery"


@pytest.mark.parametrize("end", FORKS)
def test_f67_a_process_forked_at_import_that_ends_later_is_no_second_nursery(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, end: str
) -> None:
    go = tmp_path / "go"
    module = FORK.format(end=FORKS[end])
    with pool_of(tmp_path, module, url=broker_url, queue=queue, runs=runs, env={"GO": str(go)}) as pool:
        pool.ready()
        assert "a process it started keeps running" in pool.hear("handler.side_effects")["because"]
        [child] = runs.lines("forked")
        go.touch()
        eventually(lambda: "\nState:\tZ" in Path(f"/proc/{child}/status").read_text())
        does_its_work(pool, broker_url, queue)
        assert len(pool.named("handler.loaded")) == 1
        assert not pool.named("handler.import_failed")
        if end == "raises":
            assert any("in the child" in line["line"] for line in pool.named("worker.output", source="nursery"))
    assert not Path(f"/proc/{child}").exists()


def test_f67_a_process_forked_at_import_without_preload_is_no_second_worker(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    go = tmp_path / "go"
    go.touch()
    module = FORK.format(end="pass")
    options = ("--no-preload",)
    with pool_of(tmp_path, module, *options, url=broker_url, queue=queue, runs=runs, env={"GO": str(go)}) as pool:
        does_its_work(pool, broker_url, queue)
        assert amqp.consumers(broker_url, queue) == 0


def test_f67_an_import_that_changes_directory_mask_and_group_is_none_of_our_business(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    module = 'import os\nos.chdir("/")\nos.umask(0o777)\nos.setpgid(0, 0) if os.getpgid(0) != os.getpid() else None\n'
    with pool_of(tmp_path, module, url=broker_url, queue=queue, runs=runs) as pool:
        does_its_work(pool, broker_url, queue)


def test_f67_an_import_that_closes_descriptors_of_ours_is_exit_78_and_says_so(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with pool_of(tmp_path, "import os\nos.closerange(3, 1024)\n", url=broker_url, queue=queue, runs=runs) as pool:
        assert pool.wait() == 78
        assert (
            "the import closed descriptors that are not its own" in pool.named("handler.import_failed")[0]["exception"]
        )


# --------------------------------------------------------------------------------------------------- 68: look-ups

LOOKUPS = """
class Lazy:
    def __getattr__(self, name):
        raise RuntimeError(f"settings are not configured: {name}")

class Exits:
    def __getattr__(self, name):
        raise SystemExit(f"no {name}")

class Deep:
    @property
    def work(self):
        return None.work

class Call:
    @property
    def __call__(self):
        raise RuntimeError("no call today")

class CallMissing:
    @property
    def __call__(self):
        raise AttributeError("no call today")

class NoClass:
    @property
    def __class__(self):
        raise RuntimeError("working outside of a request")
    def __call__(self, task):
        pass

class NoDirectory:
    def __getattribute__(self, name):
        raise RuntimeError(f"unbound: {name}")
    def __call__(self, task):
        pass

lazy, exits, deep, call, call_missing, no_class, unbound = (
    Lazy(), Exits(), Deep(), Call(), CallMissing(), NoClass(), NoDirectory()
)

def __getattr__(name):
    if name == "imaginary":
        raise LookupError("nothing by that name")
    raise AttributeError(name)
"""
REFUSED = {
    "lazy.work": "looking up 'lazy.work' in it raised RuntimeError: settings are not configured: work",
    "exits.work": "looking up 'exits.work' in it raised SystemExit: no work",
    "imaginary": "looking up 'imaginary' in it raised LookupError: nothing by that name",
    "deep.work": "has no 'deep.work': 'NoneType' object has no attribute 'work'",
    "call": "looking up 'call' in it raised RuntimeError: no call today",
    "call_missing": "has no 'call_missing': no call today",
    "unbound": "looking up 'unbound' in it raised RuntimeError: unbound: __call__",
}


@pytest.mark.parametrize("path", REFUSED)
def test_f68_a_look_up_that_raises_is_an_error_of_the_load_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    handler_modules.write(tmp_path, "lookups", LOOKUPS)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "lookups", raising=False)
    with pytest.raises(CannotLoad) as failed:
        load(f"lookups:{path}", str(tmp_path))
    del sys.modules["lookups"]
    assert REFUSED[path] in failed.value.error
    assert "lookups.py" in failed.value.traceback and "supervisor/worker" not in failed.value.traceback


@pytest.mark.parametrize(("path", "preload"), [("lazy.work", "--preload"), ("call", "--no-preload")])
def test_f68_a_look_up_that_raises_is_exit_78_with_that_error_and_its_traceback(
    broker_url: str, queue: str, tmp_path: Path, path: str, preload: str
) -> None:
    handler_modules.write(tmp_path, "app", LOOKUPS)
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised(f"app:{path}", "--workers", "1", preload, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.import_failed")
        assert REFUSED[path] in failed["because"]
        assert "app.py" in failed["exception"] and "supervisor/worker" not in failed["exception"]
        assert not pool.named("nursery.exited")


def test_f68_a_handler_whose_class_cannot_be_asked_for_works(broker_url: str, queue: str, tmp_path: Path) -> None:
    handler_modules.write(tmp_path, "app", LOOKUPS)
    amqp.publish(broker_url, queue, ["x"])
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("app:no_class", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
        assert pool.named("task.succeeded")


# ------------------------------------------------------------------------------------- 72: what nobody foresaw


@pytest.mark.parametrize(
    "sabotage",
    [
        "import supervisor.worker.consumer as c\nc.Consumer.next = lambda self: 1 / 0\n",
        "import supervisor.worker.settling as s\ns.settle = lambda *_: 1 / 0\n",
        "import sys, supervisor.worker.main as m\nsys.stderr = None\n"
        "m.Consumer.open = lambda *_, **__: sys.exit('bye')\n",
    ],
    ids=["between tasks", "after a task", "SystemExit without a stderr"],
)
def test_f72_an_error_in_a_worker_that_nobody_foresaw_is_exit_70_with_its_traceback_as_evidence(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, sabotage: str
) -> None:
    amqp.publish(broker_url, queue, ["x"], ids=["one"])
    with pool_of(tmp_path, sabotage, url=broker_url, queue=queue, runs=runs) as pool:
        died = pool.hear("worker.exited", cause="exit 70")
        assert died["status"] == "exit 70"
        assert "Traceback" in died["output"]
        assert ("ZeroDivisionError" if "1 / 0" in sabotage else "SystemExit: bye") in died["output"]
        assert pool.stop() in (0, 1)


def test_f72_an_error_in_the_thread_that_keeps_the_connection_is_no_secret(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    sabotage = "import supervisor.worker.heartbeats as h\nh.Baton._take_over = lambda *_: 1 / 0\n"
    with pool_of(tmp_path, sabotage, url=broker_url, queue=queue, runs=runs) as pool:
        died = pool.hear("worker.exited", cause="exit 70")
        assert "ZeroDivisionError" in died["output"]
        assert pool.stop() in (0, 1)


def test_f72_an_error_in_the_nursery_that_nobody_foresaw_is_told_with_its_traceback(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with pool_of(tmp_path, "import gc\ngc.freeze = lambda: 1 / 0\n", url=broker_url, queue=queue, runs=runs) as pool:
        assert pool.wait() == 78
        died = pool.named("nursery.exited")
        assert died and all("exit 70" in line["because"] for line in died)
        assert all("ZeroDivisionError" in line["output"] for line in died)
        [failed] = pool.named("handler.import_failed")
        assert "ZeroDivisionError" in failed["exception"] and "died three times" in failed["because"]


def test_f72_an_import_that_kills_its_process_leaves_its_stack_in_the_log(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with pool_of(tmp_path, "import ctypes\nctypes.string_at(0)\n", url=broker_url, queue=queue, runs=runs) as pool:
        assert pool.wait() == 78
        assert "Segmentation fault" in pool.named("handler.import_failed")[0]["exception"]
