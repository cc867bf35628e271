"""Measures what workers cost a broker: the figures of docs/scaling.md. Boots private nodes; needs nothing else.

    .venv/bin/python scripts/measure_broker.py workers          memory and idle CPU of the workers themselves
    .venv/bin/python scripts/measure_broker.py connections      memory, descriptors and idle CPU by number of workers
    .venv/bin/python scripts/measure_broker.py churn            what it costs when workers come and go
    .venv/bin/python scripts/measure_broker.py throughput       CPU of a task, by type of queue
    .venv/bin/python scripts/measure_broker.py failures         a node, a link, a host goes: how long until work goes on

Processor time is what to look at: it stays the same on a busy machine, and times per second do not.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import pika
import psutil
from pika.adapters.select_connection import IOLoop

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from supervisor import Publisher  # noqa: E402
from supervisor.clock import now  # noqa: E402
from tests import amqp  # noqa: E402
from tests.cluster import Cluster, OtherHost  # noqa: E402
from tests.node import PrivateNode  # noqa: E402
from tests.supervision import Runs, eventually, supervised  # noqa: E402

QUEUE: Final = "measured"
STEPS: Final = (50, 200, 500, 1000)
SMALL_BUFFERS: Final = "tcp_listen_options.sndbuf = 32768\ntcp_listen_options.recbuf = 32768"
HEARTBEAT: Final = 15.0
"""Seconds: the default of workq-supervise."""
AT_ONCE: Final = 25
"""Connections that are being opened at a time; the broker's backlog of connections not yet accepted is 128."""
REST: Final = 6.0
"""Seconds until Erlang's processes have gone to sleep, and given back what they do not need."""
WATCH: Final = 20.0
"""Seconds for which the processor time of idle connections is watched."""
TASKS: Final = 20_000


class Crowd:
    """Connections such as workers have: one channel, prefetch 1, one consumer. All on one loop."""

    def __init__(self, url: str) -> None:
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = int(HEARTBEAT)
        self._loop: Any = IOLoop()
        self._loop.activate_poller()
        self._connections: list[Any] = []
        self._consuming = 0
        self._closed = 0
        self._channels = 0

    def grow(self, size: int) -> None:
        while len(self._connections) < size:
            number = min(AT_ONCE, size - len(self._connections))
            for _ in range(number):
                self._connections.append(self._connect())
            wanted = self._consuming + number
            self._turn(lambda wanted=wanted: self._consuming >= wanted)

    def _connect(self) -> Any:
        return pika.SelectConnection(
            self._parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._consume),
            on_open_error_callback=self._failed,
            on_close_callback=self._ended,
            custom_ioloop=self._loop,
        )

    def _consume(self, channel: Any) -> None:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(QUEUE, lambda *_: None, callback=lambda _: self._count())

    def _count(self) -> None:
        self._consuming += 1

    def add_channels(self) -> None:
        """One more on each connection."""
        for connection in self._connections:
            connection.channel(on_open_callback=self._opened)
        self._turn(lambda: self._channels == len(self._connections))

    def _opened(self, _: Any) -> None:
        self._channels += 1

    def _failed(self, _: Any, error: Any) -> None:
        raise SystemExit(f"a connection was refused: {error!r}")

    def _ended(self, *_: Any) -> None:
        self._closed += 1

    def serve(self, seconds: float) -> None:
        """Keep the connections alive for so long."""
        until = now() + seconds
        self._turn(lambda: now() >= until)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._turn(lambda: self._closed == len(self._connections))
        self._connections.clear()
        self._consuming = self._closed = self._channels = 0

    def _turn(self, until: Callable[[], bool]) -> None:
        while not until():
            self._loop.call_later(0.1, lambda: None)
            self._loop.poll()
            self._loop.process_timeouts()


# ------------------------------------------------------------------------------------------- looking at a broker


def cpu(*pids: int) -> float:
    """Seconds of processor time so far (proc(5), stat)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def declare(url: str, queue_type: str) -> None:
    with Publisher(url, QUEUE, queue_type=queue_type) as publisher:
        publisher.connect()


@contextmanager
def private_node(conf: str = "") -> Iterator[PrivateNode]:
    with (
        tempfile.TemporaryDirectory(prefix="workq-measure-") as place,
        PrivateNode(Path(place) / "node", conf=conf) as node,
    ):
        yield node


# ------------------------------------------------------------------------------------------------- measurements


def connections(args: argparse.Namespace) -> None:
    with private_node(SMALL_BUFFERS if args.small_buffers else "") as node:
        declare(node.url, args.queue_type)
        crowd = Crowd(node.url)
        print("connections  erlang memory  resident  descriptors  processes  idle CPU of one core")
        seen: dict[int, tuple[int, int]] = {}

        def look(label: str, size: int) -> None:
            crowd.serve(REST)
            spent, began = cpu(node.pid), now()
            crowd.serve(WATCH)
            share = (cpu(node.pid) - spent) / (now() - began)
            memory = int(node.eval("erlang:memory(total)"))
            count = node.eval("erlang:system_info(process_count)")
            seen[size] = memory, rss(node.pid)
            print(
                f"{label:>11}  {memory / 2**20:>9.1f} MiB  {seen[size][1] / 2**20:>4.0f} MiB  "
                f"{descriptors(node.pid):>11}  {count:>9}  {share:>18.2%}",
                flush=True,
            )

        look("none", 0)
        for size in STEPS:
            crowd.grow(size)
            look(f"{size}", size)
        few, many = STEPS[0], STEPS[-1]
        for number, what in enumerate(("Erlang memory", "resident memory")):
            each = (seen[many][number] - seen[few][number]) / (many - few)
            print(f"each: {each / 1024:.0f} KiB of {what}")
        crowd.add_channels()
        look("+ a channel", -1)
        print(f"each channel more: {(seen[-1][0] - seen[many][0]) / many / 1024:.0f} KiB of Erlang memory")
        crowd.close()
        look("all closed", -2)


def churn(args: argparse.Namespace) -> None:
    with private_node() as node:
        declare(node.url, args.queue_type)
        crowd = Crowd(node.url)
        crowd.grow(AT_ONCE)
        crowd.close()
        rounds, began, spent, own = 0, now(), cpu(node.pid), time.process_time()
        while now() - began < WATCH / 2:
            crowd.grow(AT_ONCE)
            crowd.close()
            rounds += AT_ONCE
        seconds = now() - began
        print(
            f"opened, consuming and closed: {rounds / seconds:.0f} a second; "
            f"broker {(cpu(node.pid) - spent) / rounds * 1000:.1f} ms of CPU each, "
            f"client {(time.process_time() - own) / rounds * 1000:.1f} ms"
        )


def throughput(args: argparse.Namespace) -> None:
    print(f"{args.workers} workers, empty handler, prefetch 1, 100 bytes, persistent, {TASKS} tasks")
    with private_node() as node:
        for queue_type in ("classic", "quorum"):
            declare(node.url, queue_type)
            work(f"{queue_type}, one node", [node.url], [node], args.workers)
            node.eval('[rabbit_amqqueue:delete(Q, false, false, <<"me">>) || Q <- rabbit_amqqueue:list(<<"/">>)]')
    with (
        tempfile.TemporaryDirectory(prefix="workq-measure-") as place,
        Cluster(Path(place)) as cluster,
        cluster.quorum_queue(QUEUE),
    ):
        work("quorum, three replicas", cluster.urls, cluster.nodes, args.workers)


def work(label: str, urls: list[str], nodes: list[PrivateNode], workers: int) -> None:
    """Publish, have it done, and say what each task has cost."""
    pids = [node.pid for node in nodes]
    spent = cpu(*pids)
    with Publisher(urls, QUEUE) as publisher:
        publisher.publish_many("0".ljust(100) for _ in range(TASKS))
    published = cpu(*pids) - spent
    options = ("--workers", str(workers))
    with supervised("handlers:work", *options, url=",".join(urls), queue=QUEUE) as pool:
        pool.hear("worker.ready")
        marks: list[tuple[float, float, float, float]] = []
        for least in (TASKS // 10, TASKS):
            while (count := pool.metric("workq_tasks_total", outcome="succeeded")) < least:
                time.sleep(0.1)
            marks.append((now(), count, cpu(*pids), cpu(*pool.pids())))
        pool.stop()
    (t0, n0, b0, w0), (t1, n1, b1, w1) = marks
    tasks = n1 - n0
    print(
        f"{label:<24} {tasks / (t1 - t0):>6.0f} tasks/s   broker {(b1 - b0) / tasks * 1e6:>4.0f} us   "
        f"workers {(w1 - w0) / tasks * 1e6:>4.0f} us   publishing: broker {published / TASKS * 1e6:>4.0f} us",
        flush=True,
    )


def workers(_: argparse.Namespace) -> None:
    print("workers  memory of all  each worker more  idle CPU of one core: supervisor  workers")
    seen: list[tuple[int, int]] = []
    for size in (1, 16, 64):
        with (
            private_node() as node,
            supervised("handlers:work", "--workers", str(size), url=node.url, queue=QUEUE) as pool,
        ):
            pool.ready()
            time.sleep(REST)
            family = [process.pid for process in psutil.Process(pool.pid).children(recursive=True)]
            memory = sum(psutil.Process(pid).memory_full_info().pss for pid in [pool.pid, *family])
            own, theirs, began = cpu(pool.pid), cpu(*family), now()
            time.sleep(WATCH)
            seconds = now() - began
            seen.append((size, memory))
            more = f"{(memory - seen[0][1]) / (size - 1) / 2**20:.1f} MiB" if size > 1 else ""
            print(
                f"{size:>7}  {memory / 2**20:>9.0f} MiB  {more:>16}  {(cpu(pool.pid) - own) / seconds:>32.2%}  "
                f"{(cpu(*family) - theirs) / seconds:>7.2%}",
                flush=True,
            )
            pool.stop()


def failures(args: argparse.Namespace) -> None:
    """Of a cluster of three with a three-replica quorum queue and tasks of 20 ms."""
    print("strikes                   no task done for  workers moved: first  last   run twice")
    with (
        tempfile.TemporaryDirectory(prefix="workq-measure-") as place,
        OtherHost() as host,
        Cluster(Path(place) / "cluster", host.address) as cluster,
    ):
        for label, strike in (
            ("leader's node killed", PrivateNode.kill),
            ("leader's node drained", cluster.drain),
            ("leader's node cut off", cluster.isolate),
        ):
            with cluster.quorum_queue(QUEUE):
                fail(label, cluster, strike, Runs(Path(place) / label), args.workers)
        with cluster.quorum_queue(QUEUE):
            silence(cluster, host, Runs(Path(place) / "silence"), args.workers)


def fail(label: str, cluster: Cluster, strike: Callable[[PrivateNode], None], runs: Runs, workers: int) -> None:
    """Strike the leader's node, and read in the log what followed."""
    fill(cluster, seconds=10, workers=workers)
    options = ("--workers", str(workers))
    with supervised("handlers:work", *options, url=",".join(cluster.urls), queue=QUEUE, env=runs.env) as pool:
        pool.ready()
        homes = {line["pid"]: cluster.node_of(line["broker"]) for line in pool.named("worker.ready")}
        struck = max(cluster.nodes, key=list(homes.values()).count)
        moving = list(homes.values()).count(struck)
        cluster.lead_from(struck, QUEUE)
        runs.hear("done", 50)
        at = time.time()
        strike(struck)
        pool.hear("worker.ready", count=workers + moving)
        eventually(lambda: amqp.depth(cluster.leader(QUEUE).url, QUEUE) == 0, 60)
        eventually(lambda: len(runs.lines("began")) == len(runs.lines("done")))
        moved = [since(line, at) for line in pool.named("worker.ready")[workers:]]
        ends = [0.0, *(after for line in pool.named("task.succeeded") if (after := since(line, at)) > 0)]
        gap = max(later - earlier for earlier, later in itertools.pairwise(sorted(ends)))
        began = runs.lines("began")
        again = len(began) - len(set(began))
        print(
            f"{label:<24} {gap:>14.2f} s {min(moved):>19.2f} s {max(moved):>5.2f} s {again:>5} of {moving}", flush=True
        )
        pool.stop()


def silence(cluster: Cluster, host: OtherHost, runs: Runs, workers: int) -> None:
    """A host that is cut off in mid-task: when is what it held done elsewhere, and when is it back?"""
    heartbeat = ("--heartbeat", "2s")
    options = ("--workers", str(workers), *heartbeat)
    far = ",".join(cluster.far_urls)
    with (
        supervised("handlers:work", *options, url=far, queue=QUEUE, env=runs.env, inside=host.inside) as cut,
        Publisher(cluster.urls, QUEUE) as publisher,
    ):
        cut.ready()
        publisher.publish_many(("60", {"message_id": f"held-{number}"}) for number in range(workers))
        runs.hear("began", workers)
        with supervised("handlers:work", *options, url=",".join(cluster.urls), queue=QUEUE, env=runs.env) as pool:
            pool.ready()
            at = now()
            host.cut()
            runs.hear("began", workers + 1)
            first = now() - at
            runs.hear("began", 2 * workers)
            last = now() - at
            host.heal()
            print(f"a host silent, heartbeat 2 s: what it held is begun elsewhere after {first:.1f}-{last:.1f} s")


def fill(cluster: Cluster, seconds: int, workers: int) -> None:
    tasks = seconds * workers * 50
    with Publisher(cluster.urls, QUEUE) as publisher:
        publisher.publish_many(("0.02", {"message_id": f"task-{number}"}) for number in range(tasks))


def since(line: dict[str, Any], at: float) -> float:
    """Seconds from `at` (of the wall clock, as the log's times) to a line of the log."""
    return datetime.fromisoformat(line["timestamp"]).timestamp() - at


MEASURES: Final = {
    "workers": workers,
    "connections": connections,
    "churn": churn,
    "throughput": throughput,
    "failures": failures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--queue-type", choices=("classic", "quorum"), default="classic", help="of connections, churn")
    parser.add_argument("--small-buffers", action="store_true", help="of connections: sockets with 32 KiB of buffers")
    parser.add_argument("--workers", type=int, default=4, help="of throughput, failures (default 4)")
    args = parser.parse_args()
    with private_node() as node:
        version = f"RabbitMQ {node.version}, Erlang {node.eval('erlang:system_info(otp_release)')}"
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}"
    print(f"{date.today()}, {version}, pika {pika.__version__}, {machine}", flush=True)
    MEASURES[args.measure](args)


if __name__ == "__main__":
    main()
