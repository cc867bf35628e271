"""A retry or a dead letter is confirmed, and the acknowledgement after it is lost: the message comes back beside its
copy, and is not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.proxy import ACK, Proxy
from tests.supervision import Runs, eventually, supervised

FAILS = json.dumps({"raise": "ValueError"})

KILLED_BEFORE_ITS_ACK = """
import os, signal
from supervisor.worker.consumer import Consumer
from handlers import act

ack = Consumer.ack

def once(what):
    try:
        os.close(os.open(f"{os.environ['TEST_RUNS']}.{what}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def die_the_first_time(self, delivery):
    if once("ack"):
        os.kill(os.getpid(), signal.SIGKILL)
    ack(self, delivery)

Consumer.ack = die_the_first_time
"""

KILLED_WHEN_TOLD = """
import os, signal
from supervisor.worker.settling import Settling
from killed import act, once

told = Settling.acknowledge_parked

def die_the_first_time(self, delivery):
    if once("told"):
        os.kill(os.getpid(), signal.SIGKILL)
    told(self, delivery)

Settling.acknowledge_parked = die_the_first_time
"""

PARKS_SLOWLY = """
import os, time
from pathlib import Path
from typing import Any
from supervisor.worker.parking import Parking
from killed import act, once
from handlers import note

park = Parking.park

def when_told(self, *arguments):
    note("parking", os.getpid())
    if once("park"):
        while not Path(os.environ["TEST_RUNS"] + ".go").exists():
            time.sleep(0.01)
    park(self, *arguments)

Parking.park = when_told
"""


@pytest.fixture
def frames(node: PrivateNode) -> Iterator[Proxy]:
    with Proxy(node.port, sees_frames=True) as between:
        yield between


def written(place: Path, runs: Runs, **modules: str) -> dict[str, str]:
    """These handler modules, where a supervisor with this environment finds them."""
    for name, text in modules.items():
        handler_modules.write(place, name, text)
    return runs.env | {"PYTHONPATH": os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])}


def dead(node: PrivateNode, queue: str) -> int:
    return amqp.depth(node.url, f"{queue}.dead")


@pytest.mark.parametrize("retries", [2, 0])
def test_f109_a_lost_acknowledgement_does_not_double_the_tries(
    frames: Proxy, node: PrivateNode, typed_queue: str, runs: Runs, retries: int
) -> None:
    """It is the one of the first retry that is lost; with no retries, that of the dead letter."""
    options = ("--workers", "2", "--retries", str(retries), "--retry-delay", "0.1")
    with supervised("handlers:act", *options, url=frames.url, queue=typed_queue, env=runs.env) as pool:
        pool.ready()
        cut = frames.cut_at(ACK, to_broker=True, after_confirm=True)
        amqp.publish(node.url, typed_queue, [FAILS], ids=["task"])
        assert cut.done.wait(10)
        assert pool.hear("task.already_parked", message_id="task")["attempt"] == 1
        pool.hear("task.dead_lettered")
        eventually(lambda: dead(node, typed_queue) == 1)
        totals = pool.status()["totals"]
        assert (totals["failed"], totals["retried"], totals["dead_lettered"]) == (retries + 1, retries, 1)
        assert pool.stop() == 0
    assert runs.lines("began") == ["task"] * (retries + 1)
    assert amqp.depth(node.url, typed_queue) == 0
    assert dead(node, typed_queue) == 1


def test_f109_nor_does_a_worker_that_is_killed_before_its_acknowledgement(
    node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    env = written(tmp_path, runs, killed=KILLED_BEFORE_ITS_ACK)
    options = ("--workers", "2", "--retries", "1", "--retry-delay", "0.1")
    with supervised("killed:act", *options, url=node.url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(node.url, queue, [FAILS], ids=["task"])
        pool.hear("worker.exited", cause="SIGKILL", settling=True)
        pool.hear("task.already_parked", message_id="task")
        pool.hear("task.dead_lettered")
        assert pool.stop() == 0
    assert runs.lines("began") == ["task"] * 2
    assert dead(node, queue) == 1


def test_nor_does_one_that_is_killed_when_it_has_been_told_so(
    node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    """The next one is told."""
    env = written(tmp_path, runs, killed=KILLED_BEFORE_ITS_ACK, told=KILLED_WHEN_TOLD)
    options = ("--workers", "2", "--retries", "1", "--retry-delay", "0.1")
    with supervised("told:act", *options, url=node.url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(node.url, queue, [FAILS], ids=["task"])
        pool.hear("worker.exited", cause="SIGKILL", count=2)
        pool.hear("task.already_parked", message_id="task")
        pool.hear("task.dead_lettered")
        assert pool.stop() == 0
    assert runs.lines("began") == ["task"] * 2
    assert dead(node, queue) == 1


def holders(status: dict[str, Any]) -> list[Any]:
    """Of a message: also who runs on without a connection, and has no slot any more."""
    return [worker for worker in status["workers"] if worker["state"] == "busy"] + status["orphans"]


def test_nor_does_the_loss_of_the_connection_while_a_message_that_is_not_run_is_parked(
    frames: Proxy, node: PrivateNode, queue: str, tmp_path: Path, runs: Runs
) -> None:
    """Who gets it next waits until the first one has parked it, or has not."""
    env = written(tmp_path, runs, killed=KILLED_BEFORE_ITS_ACK, slow=PARKS_SLOWLY)
    options = ("--workers", "2", "--max-body", "1K")
    with supervised("slow:act", *options, url=frames.url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(node.url, queue, ["x" * 2000], ids=["large"])
        eventually(lambda: runs.lines("parking"))
        frames.reset()
        eventually(lambda: len(holders(pool.status())) == 2)
        Path(f"{runs.path}.go").touch()
        pool.hear("task.already_parked", message_id="large")
        assert pool.stop() == 0
    assert len(runs.lines("parking")) == 1
    assert dead(node, queue) == 1


def test_f109_a_second_message_of_the_same_id_is_run_like_any_other(
    frames: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    options = ("--workers", "2", "--retries", "1", "--retry-delay", "0.1")
    with supervised("handlers:act", *options, url=frames.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        cut = frames.cut_at(ACK, to_broker=True, after_confirm=True)
        amqp.publish(node.url, queue, [FAILS], ids=["twin"])
        assert cut.done.wait(10)
        pool.hear("task.already_parked", message_id="twin")
        amqp.publish(node.url, queue, [FAILS], ids=["twin"])
        pool.hear("task.dead_lettered", count=2)
        assert pool.stop() == 0
    assert runs.lines("began") == ["twin"] * 4
    assert dead(node, queue) == 2
