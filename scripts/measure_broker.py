"""Measures what workers cost a broker: the figures of docs/scaling.md. Boots private nodes; needs nothing else.

    .venv/bin/python scripts/measure_broker.py connections      memory, descriptors and idle CPU by number of workers
    .venv/bin/python scripts/measure_broker.py churn            what it costs when workers come and go
    .venv/bin/python scripts/measure_broker.py throughput       CPU of a task, by type of queue

Processor time is what to look at: it stays the same on a busy machine, and times per second do not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

import pika
from pika.adapters.select_connection import IOLoop

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from supervisor import Publisher  # noqa: E402
from supervisor.amqp import parameters  # noqa: E402
from supervisor.clock import now  # noqa: E402
from supervisor.commands.node import PrivateNode  # noqa: E402
from supervisor.endpoint import Endpoint  # noqa: E402
from tests.cluster import Cluster  # noqa: E402
from tests.supervision import supervised  # noqa: E402

QUEUE: Final = "measured"
STEPS: Final = (50, 200, 500, 1000)
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
        self._endpoint = Endpoint.parse(url)
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
            parameters(self._endpoint, heartbeat=HEARTBEAT, name=f"workq-measured-{len(self._connections)}"),
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
def private_node() -> Iterator[PrivateNode]:
    with tempfile.TemporaryDirectory(prefix="workq-measure-") as place, PrivateNode(Path(place) / "node") as node:
        yield node


# ------------------------------------------------------------------------------------------------- measurements


def connections(args: argparse.Namespace) -> None:
    with private_node() as node:
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
            with Publisher(node.url, QUEUE) as publisher:
                publisher.connect()
            node.eval(f'[rabbit_amqqueue:delete(Q, false, false, <<"me">>) || Q <- rabbit_amqqueue:list(<<"/">>)]')
    with tempfile.TemporaryDirectory(prefix="workq-measure-") as place, Cluster(Path(place)) as cluster:
        with cluster.quorum_queue(QUEUE):
            work("quorum, three replicas", cluster.urls, cluster.nodes, args.workers)


def work(label: str, urls: list[str], nodes: list[PrivateNode], workers: int) -> None:
    """Publish, have it done, and say what each task has cost."""
    pids = [node.pid for node in nodes]
    spent = cpu(*pids)
    with Publisher(urls, QUEUE) as publisher:
        publisher.publish_many("0".ljust(100) for _ in range(TASKS))
    published = cpu(*pids) - spent
    options = ("--workers", str(workers), "--log-level", "warning")
    with supervised("handlers:work", *options, url=",".join(urls), queue=QUEUE) as pool:
        pool.ready(0)
        done = [0.0, 0.0]
        marks: list[tuple[float, float, float, float]] = []
        for least in (TASKS // 10, TASKS):
            while (count := pool.metric("workq_tasks_total", outcome="succeeded")) < least:
                time.sleep(0.05)
            marks.append((now(), count, cpu(*pids), cpu(*pool.pids())))
        del done
        pool.stop()
    (t0, n0, b0, w0), (t1, n1, b1, w1) = marks
    tasks = n1 - n0
    print(
        f"{label:<24} {tasks / (t1 - t0):>6.0f} tasks/s   broker {(b1 - b0) / tasks * 1e6:>4.0f} us   "
        f"workers {(w1 - w0) / tasks * 1e6:>4.0f} us   publishing: broker {published / TASKS * 1e6:>4.0f} us",
        flush=True,
    )


MEASURES: Final = {"connections": connections, "churn": churn, "throughput": throughput}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--queue-type", choices=("classic", "quorum"), default="classic", help="of connections, churn")
    parser.add_argument("--workers", type=int, default=4, help="of throughput (default 4)")
    args = parser.parse_args()
    with private_node() as node:
        version = f"RabbitMQ {node.version}, Erlang {node.eval('erlang:system_info(otp_release)')}"
    print(f"{date.today()}, {version}, pika {pika.__version__}, {os.cpu_count()} cores, {platform.release()}", flush=True)
    MEASURES[args.measure](args)


if __name__ == "__main__":
    main()
