"""Messages that kill: named, quarantined with evidence, and stopped from killing a fourth."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pika
import pytest

from supervisor import queues
from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import Runs, Supervision, eventually, supervised

KILLERS = """
import ctypes, os, signal, sys, time
from handlers import note

def work(task):
    note("began", task.message_id)
    match task.json().get("do"):
        case "segv":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit 0":
            os._exit(0)
        case "exit 3":
            os._exit(3)
        case "raise":
            raise ValueError("as told")
        case "sleep":
            time.sleep(10_000)
        case "gil":
            ctypes.PyDLL(None).sleep(10_000)  # PyDLL keeps the GIL
        case "deaf":
            signal.signal(signal.SIGABRT, signal.SIG_IGN)
            ctypes.PyDLL(None).sleep(10_000)
    note("done", task.message_id)
"""
CAUSES = {
    "segv": "SIGSEGV",
    "kill": "SIGKILL",
    "exit 0": "exit 0",
    "exit 3": "exit 3",
    "sleep": "timeout",
    "gil": "timeout",
}


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "killers", KILLERS)
    return runs.env | {"PYTHONPATH": str(tmp_path)}


def dead_letters(url: str, queue: str) -> dict[str, pika.BasicProperties]:
    return {properties.message_id: properties for _, properties, _ in amqp.drain(url, f"{queue}.dead")}


@pytest.mark.timeout(240)
def test_f25_f26_seven_kinds_of_killer_end_in_quarantine_and_two_hundred_good_tasks_complete(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs
) -> None:
    queue = typed_queue
    good = [f"good-{n}" for n in range(200)]
    tasks = [(name, "{}") for name in good] + [(kind, json.dumps({"do": kind})) for kind in [*CAUSES, "raise"]]
    random.Random(7).shuffle(tasks)
    amqp.publish(broker_url, queue, [body for _, body in tasks], ids=[name for name, _ in tasks])
    options = ("--workers", "4", "--task-timeout", "1", "--retries", "1", "--retry-delay", "100ms")
    with supervised("killers:work", *options, url=broker_url, queue=queue, env=env) as pool:
        eventually(lambda: amqp.depth(broker_url, f"{queue}.dead") == 7, timeout=120)
        pool.hear("task.succeeded", count=200)
        eventually(lambda: [worker["state"] for worker in pool.workers()] == ["idle"] * 4)
        totals = pool.status()["totals"]
        assert (totals["succeeded"], totals["quarantined"], totals["dead_lettered"]) == (200, 6, 1)
        assert pool.stop() == 0
    began = Counter(runs.lines("began"))
    assert set(runs.lines("done")) == set(good)
    dead = dead_letters(broker_url, queue)
    assert set(dead) == {*CAUSES, "raise"}
    for kind, cause in CAUSES.items():
        headers = dead[kind].headers or {}
        assert began[kind] == 3
        assert (headers["x-workq-reason"], headers["x-workq-crashes"], headers["x-workq-cause"]) == ("crash", 3, cause)
        assert headers["x-workq-host"] and headers["x-workq-first-seen"]
        evidence = str(headers["x-workq-evidence"])
        assert len(re.findall(rf"^death \d: [\dT:.-]+Z worker \d \(pid \d+\): {cause}$", evidence, re.M)) == 3
    assert began["raise"] == 2
    assert (dead["raise"].headers or {})["x-workq-reason"] == "exception"
    for kind in ("segv", "sleep", "gil"):
        evidence = str((dead[kind].headers or {})["x-workq-evidence"])
        assert "killers.py" in evidence and "in work" in evidence, kind
    assert amqp.depth(broker_url, queue) == 0


def test_f18_a_handler_that_keeps_the_gil_and_ignores_sigabrt_is_killed_all_the_same(
    broker_url: str, typed_queue: str, env: dict[str, str], runs: Runs
) -> None:
    queue = typed_queue
    amqp.publish(broker_url, queue, [json.dumps({"do": "deaf"})], ids=["deaf"])
    options = ("--workers", "1", "--task-timeout", "500ms", "--max-crashes", "1")
    with supervised("killers:work", *options, url=broker_url, queue=queue, env=env) as pool:
        died = pool.hear("worker.exited", message_id="deaf")
        assert (died["cause"], died["status"]) == ("timeout", "SIGKILL")
        pool.hear("task.quarantined", message_id="deaf")
        assert pool.stop() == 0


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt", "RecursionError", "MemoryError", "GeneratorExit"])
def test_f16_whatever_a_handler_raises_is_a_failure_and_never_a_success(
    broker_url: str, typed_queue: str, tmp_path: Path, what: str
) -> None:
    queue = typed_queue
    text = f"""
def dig(n):
    return dig(n + 1)
def work(task):
    if {what!r} == "RecursionError":
        dig(0)
    raise {what}("as told")
"""
    handler_modules.write(tmp_path, "odd", text)
    amqp.publish(broker_url, queue, ["x"], ids=["odd"])
    options = ("--workers", "1", "--retries", "0")
    with supervised("odd:work", *options, url=broker_url, queue=queue, env={"PYTHONPATH": str(tmp_path)}) as pool:
        pool.hear("task.dead_lettered", message_id="odd")
        assert pool.status()["totals"]["succeeded"] == 0
        assert not pool.named("worker.exited")
        assert pool.stop() == 0
    assert what in str((dead_letters(broker_url, queue)["odd"].headers or {})["x-workq-error"])


def test_f03_a_death_between_the_handlers_return_and_the_ack_loses_nothing_and_costs_one_extra_run(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs
) -> None:
    # The very instant is chosen by replacing the acknowledgement of the first run by a SIGKILL.
    text = """
import os, signal
from handlers import note
from supervisor.worker.consumer import Consumer
def work(task):
    note("began", task.message_id)
    if not task.redelivered:
        Consumer.ack = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
    handler_modules.write(tmp_path, "unlucky", text)
    amqp.publish(broker_url, typed_queue, ["x"], ids=["one"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("unlucky:work", "--workers", "1", url=broker_url, queue=typed_queue, env=env) as pool:
        died = pool.hear("worker.exited", cause="SIGKILL")
        assert (died["message_id"], died["settling"]) == ("one", True)
        pool.hear("task.succeeded", message_id="one")
        assert pool.status()["totals"]["succeeded"] == 1
        assert pool.stop() == 0
    assert runs.lines("began") == ["one", "one"]
    assert amqp.depth(broker_url, typed_queue) == 0


def test_f06_an_idle_worker_that_is_stopped_is_noticed_killed_and_replaced_before_the_broker_would(
    broker_url: str, queue: str
) -> None:
    with supervised("handlers:work", "--workers", "1", "--heartbeat", "5s", url=broker_url, queue=queue) as pool:
        pool.ready()
        [pid] = pool.pids()
        os.kill(pid, signal.SIGSTOP)
        hung = pool.hear("worker.hung")
        assert hung["cause"] == "hung" and "SIGSTOP" in hung["because"]
        died = pool.hear("worker.exited", cause="hung")
        assert died["status"] == "SIGKILL"
        pool.hear("worker.ready", count=2)
        assert pool.stop() == 0


def test_f06_a_loop_that_is_stuck_while_idle_is_noticed_and_its_stack_is_logged(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    text = """
import ctypes, os, threading, time
def clog():
    while not os.path.exists(os.environ["TEST_GO"]):
        time.sleep(0.01)
    ctypes.PyDLL(None).sleep(10_000)  # PyDLL keeps the GIL: nobody else in the process turns
def work(task):
    threading.Thread(target=clog, daemon=True).start()
"""
    handler_modules.write(tmp_path, "clogged", text)
    amqp.publish(broker_url, queue, ["x"], ids=["long-done"])
    env = {"PYTHONPATH": str(tmp_path), "TEST_GO": str(tmp_path / "go")}
    with supervised(
        "clogged:work", "--workers", "1", "--heartbeat", "5s", url=broker_url, queue=queue, env=env
    ) as pool:
        pool.hear("task.succeeded", message_id="long-done")
        (tmp_path / "go").touch()
        died = pool.hear("worker.exited", cause="hung")
        assert (died["status"], died["message_id"]) == ("SIGABRT", None)
        assert "in clog" in died["output"]
        pool.hear("worker.ready", count=2)
        assert pool.stop() == 0


TWINS = """
import os, signal
from handlers import note

def work(task):
    if task.headers.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    note("done", task.headers["name"])
"""


@pytest.mark.parametrize("message_id", ["same", "schlüssel"], ids=["an id", "an id that is not UTF-8"])
def test_f120_one_id_for_different_bodies_and_only_the_one_that_kills_is_quarantined(
    broker_url: str, typed_queue: str, tmp_path: Path, runs: Runs, message_id: str
) -> None:
    queue = typed_queue
    handler_modules.write(tmp_path, "twins", TWINS)
    page = bytes(range(256)) * 800
    half = len(page) // 2
    killer = page[:half] + b"K 12 21" + page[half:]
    innocent = {
        "another first byte": b"!" + killer[1:],
        "another byte in the middle": page[:half] + b"k 12 21" + page[half:],
        "another last byte": killer[:-1] + b"!",
        "digits swapped twice": killer.replace(b"12 21", b"21 12"),
        "one byte more": killer + b"\0",
        "the beginning": killer[:1024],
        "nothing": b"",
    }
    # Latin-1 on the wire: pika encodes text as UTF-8, and bytes as they are.
    identity: Any = message_id if message_id.isascii() else message_id.encode("latin-1")
    with amqp.connection(broker_url) as link:
        channel = link.channel()
        for name, body in {"killer": killer, **innocent}.items():
            headers = {"name": name, "kill": name == "killer"}
            properties = pika.BasicProperties(message_id=identity, headers=headers, delivery_mode=2)
            channel.basic_publish("", queue, body, properties)
        # Delivered before, all of them: else nobody asks whether they may run.
        for _ in range(1 + len(innocent)):
            eventually(lambda: channel.basic_get(queue)[0])
        channel.basic_nack(0, multiple=True, requeue=True)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--max-crashes", "2", "--log-level", "debug")
    with supervised("twins:work", *options, url=broker_url, queue=queue, env=env) as pool:
        runs.hear("done", len(innocent))
        pool.hear("task.quarantined")
        eventually(lambda: pool.status()["totals"]["succeeded"] == len(innocent))
        assert pool.stop() == 0
        shown = {line["message_id"] for line in pool.events if line.get("message_id")}
        assert len(pool.named("worker.exited", cause="SIGKILL")) == 2
        assert pool.named("task.verdict")
    # People see the id, or the digest that `workq dead` shows for one that is not text.
    assert shown == {message_id if message_id.isascii() else queues.digest(message_id.encode("latin-1"), queue)}
    assert set(runs.lines("done")) == set(innocent)
    [(_, _, body)] = amqp.drain(broker_url, f"{queue}.dead")
    assert body == killer


@pytest.mark.parametrize(
    "headers",
    [
        {queues.PUT_BACK: True},
        {queues.PUT_BACK: 1, queues.ATTEMPT: True},
        {queues.PUT_BACK: 1, "x-delivery-count": True},
        {queues.PUT_BACK: 1, "x-delivery-count": -1},
    ],
)
def test_a_header_of_ours_in_which_the_sender_wrote_no_count_kills_no_worker(
    broker_url: str, queue: str, runs: Runs, headers: dict[str, Any]
) -> None:
    amqp.publish(broker_url, queue, ["0"], ids=["one"], headers=headers)
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("done", 1)
        eventually(lambda: pool.status()["totals"]["succeeded"] == 1)
        assert pool.stop() == 0
        assert {line["cause"] for line in pool.named("worker.exited")} == {"drained"}


@pytest.mark.parametrize("end", ["supervisor killed", "grace", "connection lost"])
def test_innocent_tasks_are_blamed_for_nothing(
    broker_url: str, typed_queue: str, runs: Runs, node: PrivateNode, end: str
) -> None:
    """A killed supervisor, a killing by the grace, a lost connection: each costs a run, none a mark."""
    queue = typed_queue
    amqp.publish(broker_url, queue, ["20"], ids=["innocent"])
    options = ("--workers", "2", "--max-crashes", "1", "--grace", "200ms")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began")
        if end == "connection lost":
            # The one with the task keeps it in hand, and the idle one is replaced and gets the message.
            node.eval('[rabbit_networking:close_connection(P, <<"test">>) || P <- rabbit_networking:connections()].')
            runs.hear("began", 2)
        pool.send(signal.SIGKILL if end == "supervisor killed" else signal.SIGTERM)
        pool.wait()
        assert not pool.named("task.quarantined")
        assert not any("has killed" in line["next"] for line in pool.named("worker.exited"))
    eventually(lambda: amqp.depth(broker_url, queue) == 1)
    assert amqp.depth(broker_url, f"{queue}.dead") == 0


class Killer(threading.Thread):
    """Kills a random worker now and then, until told to stop."""

    def __init__(self, pool: Supervision, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self._pool = pool
        self._dice = dice
        self._enough = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while not self._enough.wait(self._dice.uniform(0.2, 0.5)):
            pids = self._pool.pids()
            if not pids:
                continue
            try:
                os.kill(self._dice.choice(pids), signal.SIGKILL)
                self.kills += 1
            except ProcessLookupError:
                pass  # the status was older than its death

    def stop(self) -> None:
        self._enough.set()
        self.join()


@pytest.mark.timeout(300)
def test_a_thousand_tasks_with_five_percent_killers_and_random_kills_on_top_balance(
    broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    kinds = ["segv", "kill", "exit 0", "exit 3"]
    names = [f"t{n}" for n in range(1000)]
    deadly = {name: kinds[n // 20 % 4] for n, name in enumerate(names) if n % 20 == 0}
    amqp.publish(broker_url, queue, [json.dumps({"do": deadly.get(name)}) for name in names], ids=names)
    with supervised("killers:work", "--workers", "4", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        killer = Killer(pool, random.Random(5))
        killer.start()
        eventually(lambda: pool.status()["queue"]["ready"] == 0, timeout=200)
        killer.stop()
        eventually(lambda: amqp.depth(broker_url, f"{queue}.dead") >= len(deadly), timeout=100)
        eventually(lambda: set(runs.lines("done")) | set(deadly) == set(names), timeout=100)
        eventually(lambda: all(worker["state"] == "idle" for worker in pool.workers()))
        assert pool.stop() == 0
    dead = Counter(properties.message_id for _, properties, _ in amqp.drain(broker_url, f"{queue}.dead"))
    began = Counter(runs.lines("began"))
    assert amqp.depth(broker_url, queue) == 0
    assert set(dead) == set(deadly)
    assert set(runs.lines("done")) == set(names) - set(deadly)
    # No killer had more than three victims; a kill from outside while one of them ran counts as its victim.
    worst = max(deadly, key=lambda name: began[name])
    story = [line for line in pool.events if worst in json.dumps(line)]
    assert began[worst] <= 3, story
    extra = sum(count - 1 for name, count in began.items() if name not in deadly)
    assert extra <= killer.kills
    assert dead.total() - len(dead) <= killer.kills


def test_a_dead_letters_evidence_has_the_output_of_its_own_task_only_and_the_stack_without_our_frames(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    text = """
import ctypes, os
def work(task):
    os.write(1, f"says {task.message_id}\\n".encode())
    if task.text == "die":
        ctypes.string_at(0)
"""
    handler_modules.write(tmp_path, "chatty", text)
    amqp.publish(broker_url, queue, [*["x"] * 40, "die"], ids=[*(f"good-{n}" for n in range(40)), "killer"])
    options = ("--workers", "1", "--max-crashes", "1")
    with supervised("chatty:work", *options, url=broker_url, queue=queue, env={"PYTHONPATH": str(tmp_path)}) as pool:
        died = pool.hear("worker.exited", message_id="killer")
        pool.hear("task.quarantined", message_id="killer")
        logged = [str(line["line"]) for line in pool.named("worker.output")]
        assert pool.stop() == 0
    evidence = str((dead_letters(broker_url, queue)["killer"].headers or {})["x-workq-evidence"])
    for told in (evidence, died["output"]):
        assert told.startswith("says killer\nFatal Python error: Segmentation fault")
        assert "good-" not in told
    main = re.search(r"Current thread .*\n((?:  .*\n)+)", evidence)
    assert main is not None
    assert re.search(r"chatty.py.* in work\n  … frames of workq-supervise, .*\n\Z", main[1]), main[1]
    assert sum(line.startswith("says good-") for line in logged) == 40
    assert not any("worker/handler.py" in line for line in logged)
