"""More than one machine: a cluster of three, supervisors that know nothing of each other, and whatever dies of it."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import pytest

from supervisor.commands.node import answers
from supervisor.publisher import NotSent, Publisher, PublishError, Refused
from tests import amqp
from tests.cluster import Cluster, NotPermitted, OtherHost
from tests.node import PrivateNode
from tests.supervision import PATIENCE, Runs, Supervision, eventually, supervised

WORKERS = 12
"""So many that three nodes share them: all twelve on one is a chance of one in 177,147."""
HEARTBEAT = ("--heartbeat", "1s")
PACE = 0.02
"""Seconds between two tasks that are published while others are done."""


@pytest.fixture(scope="module")
def other_host() -> Iterator[OtherHost | str]:
    """Or the reason why there is none."""
    try:
        with OtherHost() as host:
            yield host
    except NotPermitted as why:
        yield str(why)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, other_host: OtherHost | str) -> Iterator[Cluster]:
    address = other_host.address if isinstance(other_host, OtherHost) else None
    with Cluster(tmp_path_factory.mktemp("cluster"), address) as nodes:
        yield nodes


@pytest.fixture
def shared_queue(cluster: Cluster) -> Iterator[str]:
    """A quorum queue with three replicas."""
    with cluster.quorum_queue(f"queue-{uuid4().hex[:12]}") as name:
        yield name


class Producer(threading.Thread):
    """Publishes one task after the other, each until it is confirmed, whatever happens to the nodes meanwhile."""

    def __init__(self, urls: list[str], queue: str) -> None:
        super().__init__(daemon=True)
        self._publisher = Publisher(urls, queue, connect_timeout=5.0, declare=False)
        self._weights = random.Random(0)
        self._enough = threading.Event()
        self.confirmed: list[str] = []
        self.doubtful: Counter[str] = Counter()
        """How often nobody can tell whether a task was published: then it is published again."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def prefill(self, count: int) -> None:
        """Before it is started: so many at once."""
        ids = [f"task-{number}" for number in range(count)]
        self._publisher.publish_many((self._weight(), {"message_id": each}) for each in ids)
        self.confirmed += ids

    def run(self) -> None:
        number = len(self.confirmed)
        while not self._enough.wait(PACE):
            self._publish(f"task-{number}")
            number += 1
        self._publisher.close()

    def _publish(self, name: str) -> None:
        while True:
            try:
                self._publisher.publish(self._weight(), message_id=name, timeout=5.0)
            except (NotSent, Refused):
                self._enough.wait(0.05)
            except PublishError:
                self.doubtful[name] += 1
            else:
                self.confirmed.append(name)
                return

    def _weight(self) -> str:
        return f"{self._weights.uniform(0.03, 0.06):.4f}"

    def stop(self) -> None:
        self._enough.set()
        self.join(PATIENCE)
        assert not self.is_alive(), "the last task is never confirmed"


def urls(nodes: list[str]) -> list[str]:
    return [word for url in nodes for word in ("--url", url)]


def homes(pool: Supervision) -> dict[int, str]:
    """Where the workers that are there now consume, by pid."""
    workers = [worker["pid"] for worker in pool.workers() if worker["state"] in ("idle", "busy")]
    return {pid: pool.hear("worker.ready", pid=pid)["broker"] for pid in workers}


def lost_connections(pools: list[Supervision]) -> int:
    """Lives of workers that consumed and did not leave of their own will."""
    return sum(
        line["pid"] in {ready["pid"] for ready in pool.named("worker.ready")}
        for pool in pools
        for line in pool.named("worker.exited")
    )


def balance(cluster: Cluster, queue: str, runs: Runs, producer: Producer) -> int:
    """Everything confirmed is done and the queue is empty. Returns how many runs were not the first of their message,
    without those of messages that may have been published twice."""
    confirmed = set(producer.confirmed)
    eventually(lambda: confirmed <= set(runs.lines("done")))
    leader = cluster.leader(queue)
    eventually(lambda: amqp.depth(leader.url, queue) == 0)
    # A quorum queue counts what is unacknowledged every five seconds only.
    eventually(lambda: amqp.unacked(leader, queue) == 0)
    assert amqp.depth(leader.url, f"{queue}.dead") == 0
    began = Counter(runs.lines("began"))
    assert set(began) <= confirmed | set(producer.doubtful)
    return sum(max(0, times - 1 - producer.doubtful[name]) for name, times in began.items())


@contextmanager
def goes_on_without_its_leader(
    cluster: Cluster, queue: str, runs: Runs, strike: Callable[[PrivateNode], None]
) -> Iterator[tuple[Supervision, PrivateNode]]:
    """Strike the node of the queue's leader while tasks run and are published. Every worker that was connected there
    goes on elsewhere, and the account balances.

    A connection between nodes counts, too: a leader that loses sight of another node takes back what was delivered
    there. Of nodes that lose each other one after the other, that may be any of them.
    """
    producer = Producer(cluster.urls, queue)
    producer.prefill(300)
    options = ("--workers", str(WORKERS), *HEARTBEAT, *urls(cluster.urls))
    with supervised("handlers:work", *options, url="amqp://nobody", queue=queue, env=runs.env) as pool:
        pool.ready()
        before = homes(pool)
        assert len(before) == WORKERS
        assert len(set(before.values())) > 1, "not shuffled"
        struck = cluster.node_of(before[min(before)])
        cluster.lead_from(struck, queue)
        moving = {pid for pid, broker in before.items() if cluster.node_of(broker) is struck}
        with producer:
            runs.hear("done", 50)
            strike(struck)
            eventually(lambda: len(producer.confirmed) >= 350)
            pool.hear("worker.ready", count=WORKERS + len(moving))
            producer.stop()
            extra = balance(cluster, queue, runs, producer)
        exits = pool.named("worker.exited")
        assert {line["pid"] for line in exits} == moving
        assert {line["cause"] for line in exits} == {"broker"}
        assert extra <= (WORKERS if strike == cluster.isolate else len(moving))
        after = homes(pool)
        assert len(after) == WORKERS
        assert struck not in {cluster.node_of(broker) for broker in after.values()}
        assert set(before) - moving <= set(after), "a worker with a good connection was disturbed"
        yield pool, struck
        assert pool.stop() == 0


def test_f41_the_leaders_node_killed_moves_its_workers_to_the_others_and_loses_nothing(
    cluster: Cluster, shared_queue: str, runs: Runs
) -> None:
    with goes_on_without_its_leader(cluster, shared_queue, runs, PrivateNode.kill):
        pass


def test_f41_a_node_drained_for_maintenance_moves_its_workers_and_has_new_ones_when_it_is_revived(
    cluster: Cluster, shared_queue: str, runs: Runs
) -> None:
    with goes_on_without_its_leader(cluster, shared_queue, runs, cluster.drain) as (pool, drained):
        assert not answers(drained.port)
        cluster.revive(drained)
        for reload in range(1, 6):  # Workers stay where they are until there is a reason to go. 1 reload in 130 misses.
            pool.send(signal.SIGHUP)
            pool.hear("reload.finished", count=reload)
            if drained in {cluster.node_of(broker) for broker in homes(pool).values()}:
                return
        raise AssertionError("nobody comes back to the node")


@pytest.mark.rabbitmq(below="4.3")
def test_f41_a_node_cut_off_from_the_others_stops_serving_and_its_workers_move(
    cluster: Cluster, shared_queue: str, runs: Runs
) -> None:
    with goes_on_without_its_leader(cluster, shared_queue, runs, cluster.isolate) as (_, isolated):
        assert not answers(isolated.port)
        cluster.rejoin(isolated)
        cluster.await_whole()


@pytest.mark.rabbitmq(at_least="4.3")
def test_f41_a_node_cut_off_from_the_others_keeps_its_workers_waiting_and_the_others_lose_nothing(
    cluster: Cluster, shared_queue: str, runs: Runs
) -> None:
    queue = shared_queue
    producer = Producer(cluster.urls, queue)
    producer.prefill(300)
    options = ("--workers", str(WORKERS), *HEARTBEAT, *urls(cluster.urls))
    with supervised("handlers:work", *options, url="amqp://nobody", queue=queue, env=runs.env) as pool:
        pool.ready()
        isolated = cluster.node_of(min(homes(pool).values()))
        cluster.lead_from(isolated, queue)
        with producer:
            runs.hear("done", 50)
            cluster.isolate(isolated)
            eventually(lambda: len(producer.confirmed) >= 350)
        assert answers(isolated.port)
        assert balance(cluster, queue, runs, producer) <= WORKERS
        cluster.rejoin(isolated)
        cluster.await_whole()
        assert pool.stop() == 0


@pytest.mark.timeout(180)
def test_f52_f43_three_supervisors_share_a_queue_though_one_is_killed_one_cut_off_and_a_node_dies(
    cluster: Cluster, shared_queue: str, other_host: OtherHost | str, tmp_path: Path
) -> None:
    if isinstance(other_host, str):
        pytest.skip(f"no network of its own for another host: {other_host}")
    queue, runs = shared_queue, Runs(tmp_path / "runs")
    producer = Producer(cluster.urls, queue)
    producer.prefill(600)
    options = ("--workers", "4", *HEARTBEAT)
    near, far = [*options, *urls(cluster.urls)], [*options, *urls(cluster.far_urls)]
    common = {"url": "amqp://nobody", "queue": queue, "env": runs.env}
    with (
        supervised("handlers:work", *near, **common) as steady,
        supervised("handlers:work", *near, **common) as killed,
        supervised("handlers:work", *far, **common, inside=other_host.inside) as cut,
        producer,
    ):
        everybody = [steady, killed, cut]
        for pool in everybody:
            pool.ready()
            pool.hear("task.succeeded", count=10)
        assert amqp.consumers(cluster.urls[0], queue) == 12

        killed.send(signal.SIGKILL)
        other_host.cut()
        runs.hear("done", 200)
        leader = cluster.leader(queue)
        leader.kill()
        # The broker has given up on those who fell silent: what they had in hand is done by others.
        cut.hear("worker.exited", count=4, cause="broker")
        producer.stop()
        other_host.heal()
        cut.hear("worker.ready", count=8)

        killed.wait()
        extra = balance(cluster, queue, runs, producer)
        assert extra <= 4 + lost_connections(everybody)
        # A dead node's consumers count until it is back: they might be alive, on the other side of a partition.
        cluster.mend()
        eventually(lambda: amqp.consumers(cluster.urls[0], queue) == 8)
        assert cut.stop() == 0
        assert steady.stop() == 0
