"""What is to be broken: brokers, a network in front of each, and two supervisors that share a queue.

One supervisor, the *steady* one, lives from the beginning to the end: only of that can be said that its counters agree
with its log, and that it does not grow. The other one, as on another host, is killed, stopped and started at will.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import psutil
from pika.exceptions import AMQPError

from supervisor.commands.node import NodeError, answers
from tests import amqp
from tests.chaos import account, workload
from tests.cluster import Cluster, lookup
from tests.node import PrivateNode
from tests.proxy import Proxy
from tests.supervision import Supervision, eventually, gone

QUEUE: Final = "soak"
HEARTBEAT: Final = 2
RETRIES: Final = 2
STOP_WITHIN: Final = 60.0
"""Seconds from SIGTERM to the supervisor's end: its grace is 30."""
DEATH_WITHIN: Final = 5.0
"""Seconds that workers may outlive their supervisor; the kernel kills them at once."""


class Pool:
    """One of the two supervisors: one process after the other."""

    def __init__(self, bed: Testbed, name: str, workers: int) -> None:
        self.name = name
        self.workers = workers
        self.samples: dict[int, list[account.Sample]] = {}
        self.dropped: dict[int, float] = {}
        self.lives: list[Supervision] = []
        self.was_killed: set[int] = set()
        self.stragglers: list[str] = []
        self._bed = bed

    @property
    def now(self) -> Supervision:
        return self.lives[-1]

    def start(self) -> None:
        bed = self._bed
        environment = {"TEST_RUNS": str(bed.notes.path)}
        self.lives.append(
            Supervision("chaos.tasks:run", *bed.options(self.workers), url=bed.url, queue=QUEUE, env=environment)
        )

    def kill(self) -> list[str]:
        """SIGKILL to the supervisor alone. What its handlers had forked is ended as its unit's cgroup would."""
        workers = self.pids()
        self.was_killed.add(self.now.pid)
        self.now.process.kill()
        self.now.process.wait()
        late = [f"worker {pid} of supervisor {self.now.pid}" for pid in workers if not gone(pid, DEATH_WITHIN)]
        self.stragglers += late
        self.sweep()
        return late

    def kill_host(self) -> None:
        """The supervisor and all its processes at once."""
        everybody = [self.now.pid, *children(self.now.pid)]
        self.was_killed.add(self.now.pid)
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.sweep()
        self.now.process.wait()

    def stop(self) -> int:
        """The exit code. What its handlers had forked is to be gone by then."""
        self.count_dropped()
        self.now.send(signal.SIGTERM)
        try:
            self.now.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.stragglers.append(f"supervisor {self.now.pid}, {STOP_WITHIN:g} s after SIGTERM")
            self.now.process.kill()
        forked = self._bed.notes.children(self.now.pid)
        left = [pid for pid in forked if not gone(pid, DEATH_WITHIN)]
        self.stragglers += [f"process {pid}, forked by a handler of {self.now.pid}" for pid in left]
        self.sweep()
        return self.now.wait()

    def sweep(self) -> None:
        """SIGKILL to what handlers of this life have forked, as the unit's cgroup would end it."""
        for pid in self._bed.notes.children(self.now.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        """Of its workers; none while its health does not answer."""
        with contextlib.suppress(OSError, AssertionError):
            return self.now.pids()
        return []

    def others(self, comm: str) -> list[int]:
        """Children of the supervisor by this name: `workq-nursery`."""
        found = []
        for child in children(self.now.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == comm:
                    found.append(child)
        return found

    def state(self) -> tuple[int, str, list[str]]:
        """What /readyz answers, and the workers' states."""
        try:
            return *self.now.get("/readyz"), [str(worker["state"]) for worker in self.now.workers()]
        except (OSError, AssertionError) as error:
            return 0, str(error), []

    def is_well(self) -> bool:
        ready, _, states = self.state()
        # What a pool that was larger for a while leaves behind is empty slots.
        seated = [state for state in states if state != "empty"]
        return ready == 200 and len(seated) == self.workers and set(seated) <= {"idle", "busy"}

    def sample(self) -> None:
        """Note what the supervisor holds, if all is well."""
        if self.is_well():
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(self.now.pid)
                held = account.Sample(time.time(), process.num_fds(), process.memory_info().rss, self.workers)
                self.samples.setdefault(self.now.pid, []).append(held)
            self.count_dropped()

    def count_dropped(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.dropped[self.now.pid] = self.now.metric("workq_log_lines_dropped_total")

    def metrics(self) -> dict[tuple[str, str], float]:
        """Each sample with one label or none, by its name and the label's value."""
        found = {}
        for line in self.now.get("/metrics")[1].splitlines():
            if match := re.fullmatch(r'(\w+)(?:\{\w+="([^"]*)"\})? (\S+)', line):
                found[match[1], match[2] or ""] = float(match[3])
        return found

    def evidence(self, metrics: dict[tuple[str, str], float]) -> Iterator[account.Supervisor]:
        """Each of its lives. `metrics` are the last one's."""
        for life in self.lives:
            yield account.Supervisor(
                life.pid,
                list(life.events),
                list(life.invalid),
                was_killed=life.pid in self.was_killed,
                dropped=self.dropped.get(life.pid, 0.0),
                metrics=metrics if life is self.now else None,
                samples=self.samples.get(life.pid, []),
            )


class Testbed:
    """A context manager: everything runs inside, and nothing afterwards."""

    def __init__(
        self, directory: Path, *, queue_type: str, workers: int, pace: workload.Pace, is_cluster: bool = False
    ) -> None:
        self.queue_type = queue_type
        self.pace = pace
        self.notes = workload.Notes(directory / "runs")
        self.cluster = Cluster(directory / "cluster") if is_cluster else None
        self.nodes = self.cluster.nodes if self.cluster else [PrivateNode(directory / "node")]
        self.proxies: list[Proxy] = []
        self.steady = Pool(self, "steady", workers)
        self.doomed = Pool(self, "doomed", workers)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._boot()
            for node in self.nodes:
                self.proxies.append(self._stack.enter_context(Proxy(node.port, sees_frames=True)))
            self._stack.callback(self._end)
            for pool in self.pools:
                pool.start()
            eventually(lambda: all(pool.is_well() for pool in self.pools))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _boot(self) -> None:
        """The main queue is the test's own. It is declared, and on disk, before anything happens: a quorum queue that
        is new may go with a node that is killed, whoever declared it."""
        if self.cluster:
            self._stack.enter_context(self.cluster)
            for node in self.nodes:
                node.eval("net_kernel:set_net_ticktime(8, 0)")  # a frozen node is noticed within the run
            self._stack.enter_context(self.cluster.quorum_queue(QUEUE))
            return
        [node] = self.nodes
        self._stack.callback(node.kill)
        node.start()
        with amqp.connection(node.url) as link:
            link.channel().queue_declare(QUEUE, durable=True, arguments={"x-queue-type": self.queue_type})
        node.sync()

    def _end(self) -> None:
        for pool in self.pools:
            for life in pool.lives:
                life.process.kill()
                for child in self.notes.children(life.pid):  # it holds the log open
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                life.end()

    @property
    def pools(self) -> tuple[Pool, Pool]:
        return self.steady, self.doomed

    @property
    def url(self) -> str:
        return ",".join(proxy.url for proxy in self.proxies)

    @property
    def version(self) -> str:
        return self.nodes[0].version

    def options(self, workers: int) -> tuple[str, ...]:
        return (
            "--workers", str(workers), "--heartbeat", f"{HEARTBEAT}s",
            "--retries", str(RETRIES), "--retry-delay", "100ms",
            "--task-timeout", f"{self.pace.task_timeout:g}s", "--max-memory", str(workload.MAX_MEMORY),
            "--control", "off",
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------- the network

    def each_proxy(self, act: Callable[[Proxy], object]) -> None:
        for proxy in self.proxies:
            act(proxy)

    # ---------------------------------------------------------------------------------------------- the broker's word

    def asked(self) -> PrivateNode:
        """The node that knows about the queue."""
        return self.cluster.leader(QUEUE) if self.cluster else self.nodes[0]

    def queues(self) -> list[str]:
        """All of ours, the main one and the dead letters included."""
        names = (
            'string:join([binary_to_list(element(4, amqqueue:get_name(Q))) || Q <- rabbit_amqqueue:list(<<"/">>)], "|")'
        )
        return [name for name in self.asked().eval(names).strip('"').split("|") if name.startswith(QUEUE)]

    def leftovers(self) -> dict[str, int]:
        """Messages by queue: ready, unacknowledged, and on the way from a delay queue; not the dead letters."""
        node = self.asked()
        waiting = [name for name in self.queues() if name != f"{QUEUE}.dead"]
        return {
            name: amqp.depth(node.url, name) + amqp.unacked(node, name) + on_the_way(node, name) for name in waiting
        }

    def is_done(self, confirmed: set[str]) -> bool:
        """Nothing waits anywhere, and what is not done can only be among the dead letters."""
        try:
            self.notes.read()
            dead = amqp.depth(self.asked().url, f"{QUEUE}.dead")
            return len(confirmed - self.notes.done) <= dead and not any(self.leftovers().values())
        except (NodeError, AMQPError, OSError):
            return False  # a node that has only just come back

    def letters(self) -> list[account.Letter]:
        """The dead letters, taken out."""
        found = []
        for _, properties, _ in amqp.drain(self.asked().url, f"{QUEUE}.dead"):
            headers = properties.headers or {}
            reason = headers.get("x-workq-reason", "none of ours")
            found.append(account.Letter(str(properties.message_id), str(reason), str(headers.get("x-workq-cause", ""))))
        return found

    def whole(self) -> None:
        """Everything that runs, runs as it should; the supervisors follow by themselves."""
        for node in self.nodes:
            if node.alive:
                os.kill(node.pid, signal.SIGCONT)
        if self.cluster:
            self.cluster.mend()
        else:
            [node] = self.nodes
            node.start()
            eventually(lambda: answers(node.port))
        self.each_proxy(Proxy.heal)


def on_the_way(node: PrivateNode, queue: str) -> int:
    """Messages that have expired in a quorum queue, and are not known to have arrived where they go. They are neither
    ready nor unacknowledged, and `messages` leaves them out."""
    answer = node.eval(
        f"{{ok, Q}} = {lookup(queue)}, case catch rabbit_amqqueue:info(Q, [messages_dlx]) of "
        "[{messages_dlx, N}] when is_integer(N) -> N; _ -> 0 end"
    )
    return int(answer)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
