"""FAULTS, what stands between a message and the place where it is put away: another queue, or a resource of our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.proxy import Proxy
from tests.supervision import Runs, eventually, supervised

EXHAUSTED = """
import os, resource, threading
from handlers import note

def work(task):
    note("began", task.message_id)
    if not os.path.exists(os.environ["TEST_RELIEF"]):
        match task.text:
            case "descriptors":
                free = os.dup(0)
                os.close(free)
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            case "threads":
                # There is no room for another thread's stack, of 8 MiB.
                with open("/proc/self/statm") as statm:
                    used = int(statm.read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 1024 * 1024, resource.RLIM_INFINITY))
    raise ValueError("as told")

def deep(task, depth=400):
    if depth:
        return deep(task, depth - 1) + 1
    raise ValueError("at the bottom: " + 2000 * "x")
"""


@pytest.fixture
def env(tmp_path: Path, runs: Runs) -> dict[str, str]:
    handler_modules.write(tmp_path, "exhausted", EXHAUSTED)
    return runs.env | {"PYTHONPATH": str(tmp_path), "TEST_RELIEF": str(tmp_path / "relief")}


# ------------------------------------------------------------------------------------- 78: the reason is our own


@pytest.mark.parametrize(("what", "says"), [("descriptors", "Too many open files"), ("threads", "no thread")])
def test_f78_parking_that_fails_for_want_of_a_resource_costs_a_worker_and_blames_no_message(
    what: str, says: str, broker_url: str, queue: str, env: dict[str, str], runs: Runs
) -> None:
    amqp.publish(broker_url, queue, [what], ids=["innocent"])
    options = ("--workers", "1", "--retries", "0", "--max-crashes", "1")
    by_name = broker_url.replace("127.0.0.1", "localhost")  # which takes a thread to look up
    with supervised("exhausted:work", *options, url=by_name, queue=queue, env=env) as pool:
        died = pool.hear("worker.exited", count=2, cause="local")
        assert says in died["because"]
        assert died["message_id"] is None  # it is put down, unsettled, before the worker leaves
        assert "restart in" in died["next"]
        assert says in pool.hear("task.unsettled", message_id="innocent")["because"]
        Path(env["TEST_RELIEF"]).touch()
        pool.hear("task.dead_lettered", message_id="innocent")
        assert not pool.named("task.quarantined")
        assert pool.stop() == 0
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    headers: dict[str, Any] = properties.headers or {}
    assert headers["x-workq-reason"] == "exception"
    assert "x-workq-crashes" not in headers


# ---------------------------------------------------------------------------- 107: the broker hangs up meanwhile


def test_f107_connections_that_an_operator_closes_while_messages_are_parked_blame_no_message(
    own_node: PrivateNode, env: dict[str, str]
) -> None:
    ids = [f"task-{number}" for number in range(300)]
    amqp.publish(own_node.url, "jobs", ["fails"] * len(ids), ids=ids)
    options = ("--workers", "4", "--retries", "1", "--retry-delay", "50ms", "--max-crashes", "1")
    with supervised("exhausted:work", *options, url=own_node.url, queue="jobs", env=env) as pool:
        for closed in range(1, 13):
            pool.hear("worker.ready", count=closed)
            own_node.eval('[rabbit_networking:close_connection(C, "") || C <- rabbit_networking:connections()].')
            pool.hear("worker.exited", count=closed)

        def done() -> bool:
            return {line["message_id"] for line in pool.named("task.dead_lettered")} == set(ids)

        eventually(done, timeout=60)
        assert {line["cause"] for line in pool.named("worker.exited")} == {"broker"}
        assert not pool.named("task.quarantined")
        assert not pool.named("worker.output")
        assert pool.stop() == 0
    # Twice, when the acknowledgement was lost; and never for another reason.
    dead = amqp.drain(own_node.url, "jobs.dead")
    assert {properties.message_id for _, properties, _ in dead} == set(ids)
    assert {(properties.headers or {})["x-workq-reason"] for _, properties, _ in dead} == {"exception"}


# ------------------------------------------------------------------------------------- 119: a broker with small frames


# From 4.1 on RabbitMQ wants 8 KiB before it knows who comes, and lets in nobody when its own frame_max is less.
@pytest.mark.parametrize("frame_max", [pytest.param(4096, marks=pytest.mark.rabbitmq(below="4.1")), 8192])
def test_f119_where_frames_are_small_what_is_parked_is_cut_to_fit_and_the_end_of_the_traceback_stays(
    frame_max: int, own_node: PrivateNode, env: dict[str, str]
) -> None:
    heavy = {"sent-by": "s" * 1000, "note": "n" * 1500}  # as much as a sender has room for
    amqp.publish(own_node.url, "jobs", ["plain"], ids=["plain"])
    amqp.publish(own_node.url, "jobs", ["heavy"], ids=["heavy"], headers=heavy, correlation_id="c" * 255)
    amqp.publish(own_node.url, "jobs", ["full"], ids=["full"], headers={"sent-by": "me", "note": "f" * 9000})
    own_node.eval(f"application:set_env(rabbit, frame_max, {frame_max}).")
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "50ms")
    with supervised("exhausted:deep", *options, url=own_node.url, queue="jobs", env=env) as pool:
        pool.hear("task.dead_lettered", count=3, attempt=2)
        assert not pool.named("worker.exited")
        assert not pool.named("task.parking_failed")
        assert pool.stop() == 0
    own_node.eval("application:set_env(rabbit, frame_max, 131072).")
    dead = {properties.message_id: properties for _, properties, _ in amqp.drain(own_node.url, "jobs.dead")}
    assert dead.keys() == {"plain", "heavy", "full"}
    for properties in dead.values():
        assert (properties.headers or {})["x-workq-reason"] == "exception"
        assert (properties.headers or {})["x-workq-attempt"] == 2
        assert (properties.headers or {})["x-workq-error"].startswith("ValueError: at the bottom")
    plain, full, loaded = (dead[name].headers or {} for name in ("plain", "full", "heavy"))
    assert plain["x-workq-traceback"].rstrip().endswith("xxx")
    assert heavy.items() <= loaded.items()
    assert dead["heavy"].correlation_id == "c" * 255
    assert full["sent-by"] == "me" and "note" not in full and "note (9" in full["x-workq-dropped"]


# --------------------------------------------------------------- 116, 122: the queue that it is to lie in is not there


def test_f116_a_dead_letter_queue_that_is_deleted_under_the_workers_is_declared_again_at_the_first_return(
    broker_url: str, node: PrivateNode, queue: str, env: dict[str, str]
) -> None:
    options = ("--workers", "2", "--retries", "1", "--retry-delay", "50ms")
    with supervised("exhausted:work", *options, url=broker_url, queue=queue, env=env) as pool:
        for deleted in range(3):
            ids = [f"{deleted}-{number}" for number in range(4)]
            amqp.publish(broker_url, queue, ["fails"] * 4, ids=ids)
            pool.hear("task.dead_lettered", count=4 * deleted + 4)
            eventually(lambda: amqp.unacked(node, queue) == 0)
            with amqp.connection(broker_url) as link:
                for line in pool.named("task.retried"):
                    assert "try 2 of 2" in line["because"]
                for name in (f"{queue}.dead", f"{queue}.delay.50", f"{queue}.delay.100"):
                    link.channel().queue_delete(name)
        # Two workers declare it at once, and 3.10 may tell the second one that the queue's node is down: it begins.
        assert all("home node" in line["because"] for line in pool.named("task.parking_failed"))
        assert pool.stop() == 0


def test_f116_f122_without_leave_to_declare_a_pool_that_cannot_park_is_not_ready_and_says_why(
    broker_url: str, queue: str, env: dict[str, str]
) -> None:
    with amqp.connection(broker_url) as link:
        for name in (queue, f"{queue}.dead"):
            link.channel().queue_declare(name, durable=True)
    amqp.publish(broker_url, queue, ["fails"] * 3, ids=["first", "second", "third"])
    options = ("--workers", "2", "--retries", "0", "--no-declare")
    with supervised("exhausted:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        pool.hear("task.dead_lettered", count=3)
        assert pool.get("/readyz")[0] == 200
        with amqp.connection(broker_url) as link:
            link.channel().queue_delete(f"{queue}.dead")
        amqp.publish(broker_url, queue, ["fails"] * 3, ids=["fourth", "fifth", "sixth"])
        blocked = pool.hear("parking.blocked")
        assert f"{queue}.dead" in blocked["because"]
        eventually(lambda: pool.get("/readyz")[0] == 503)
        says = pool.get("/readyz")[1]
        assert "no worker accepts tasks" in says and f"{queue}.dead" in says
        assert pool.status()["ready"] is False
        # When it failed, and not when it is settled.
        assert pool.status()["totals"]["failed"] == 5
        eventually(lambda: pool.metric("workq_parking_blocked_seconds") > 0)
        assert pool.metric("workq_ready") == 0
        with amqp.connection(broker_url) as link:
            link.channel().queue_declare(f"{queue}.dead", durable=True)
        pool.hear("parking.unblocked")
        pool.hear("task.dead_lettered", count=6)
        eventually(lambda: pool.get("/readyz")[0] == 200)
        assert pool.metric("workq_parking_blocked_seconds") == 0
        assert pool.status()["totals"]["failed"] == pool.status()["totals"]["dead_lettered"] == 6
        assert pool.stop() == 0
    assert len(amqp.drain(broker_url, f"{queue}.dead")) == 3


def test_f122_a_broker_that_confirms_nothing_is_said_before_anybody_gives_up(
    broker_url: str, node: PrivateNode, queue: str, env: dict[str, str]
) -> None:
    amqp.publish(broker_url, queue, ["fails"], ids=["first"])
    with (
        Proxy(node.port) as proxy,
        supervised(
            "exhausted:work",
            "--workers",
            "1",
            "--retries",
            "0",
            "--heartbeat",
            "60s",
            url=proxy.url,
            queue=queue,
            env=env,
        ) as pool,
    ):
        pool.hear("task.dead_lettered", message_id="first")
        [_, parking] = proxy.live
        proxy.forget(parking)
        amqp.publish(broker_url, queue, ["fails"], ids=["second"])
        assert "confirmed nothing" in pool.hear("parking.blocked")["because"]
        eventually(lambda: pool.get("/readyz")[0] == 503)
        assert not pool.named("task.parking_failed")
        proxy.reset(parking)
        pool.hear("task.dead_lettered", message_id="second")
        eventually(lambda: pool.get("/readyz")[0] == 200)
        assert pool.stop() == 0


# --------------------------------------------------------------- 118: larger than the broker takes by now


def limit_size(node: PrivateNode, size: int) -> None:
    node.eval(f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size}).")


def workq_dead(*arguments: str, url: str) -> subprocess.CompletedProcess[bytes]:
    workq = str(Path(sys.executable).with_name("workq"))
    return subprocess.run(
        [workq, "dead", *arguments[:1], "--url", url, "--queue", "jobs", *arguments[1:]], capture_output=True
    )


def test_f118_what_is_larger_than_the_broker_takes_is_put_away_in_parts_while_the_others_flow(
    own_node: PrivateNode, env: dict[str, str]
) -> None:
    url = own_node.url
    large = "".join(map(str, range(60_000)))[:250_000]  # no two parts of it are alike
    amqp.publish(url, "jobs", [large], ids=["raises"], headers={"sent-by": "me"}, correlation_id="c")
    amqp.publish(url, "jobs", [large[1:]])
    amqp.publish(url, "jobs", [2 * large], ids=["over --max-body"])
    amqp.publish(url, "jobs", ["fails"] * 5, ids=[f"small-{number}" for number in range(5)])
    limit_size(own_node, 100_000)
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "50ms", "--max-body", "300000")
    with supervised("exhausted:work", *options, url=url, queue="jobs", env=env) as pool:
        pool.hear("task.dead_lettered", count=8)
        split = {line["message_id"]: line for line in pool.named("task.parked_in_parts")}
        assert {(line["size"], line["parts"]) for line in split.values()} == {(250_000, 3), (249_999, 3), (500_000, 5)}
        raised = pool.hear("task.dead_lettered", message_id="raises")
        assert raised["because"].startswith("ValueError: as told; it cannot be retried: ")
        assert "max_message_size" in raised["because"]
        assert pool.get("/readyz") == (200, "1 of 1 workers consume\n")
        assert not pool.named("worker.exited") and not pool.named("task.parking_failed")
        assert pool.status()["totals"]["dead_lettered"] == 8
        assert pool.stop() == 0
    assert amqp.depth(url, "jobs") == 0
    assert amqp.depth(url, "jobs.dead") == 5 + 3 + 3 + 5
    assert workq_dead("show", "--body", "raises", url=url).stdout == large.encode()
    assert workq_dead("show", "--body", "over --max-body", url=url).stdout == 2 * large.encode()
    [nameless] = split.keys() - {"raises", "over --max-body"}
    assert workq_dead("show", "--body", nameless, url=url).stdout == large[1:].encode()
    refused = workq_dead("requeue", "raises", url=url)
    assert refused.returncode == 1 and b"larger than the broker takes" in refused.stderr
    assert workq_dead("requeue", "small-0", url=url).returncode == 0
    assert workq_dead("drop", "raises", nameless, url=url).returncode == 0
    left = [properties for _, properties, _ in amqp.drain(url, "jobs.dead")]
    assert sorted(properties.message_id for properties in left) == ["over --max-body"] * 5 + [
        f"small-{number}" for number in range(1, 5)
    ]
