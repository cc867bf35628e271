"""What goes wrong, drawn by dice. Each fault ends before the next begins, and is noted with when it began and ended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from supervisor.commands.node import NodeError
from supervisor.logs import utc
from tests.chaos.account import Fault, Kind
from tests.chaos.testbed import HEARTBEAT, QUEUE, Pool, Testbed
from tests.node import PrivateNode
from tests.proxy import ACK, DELIVER, Cut, Method, Proxy
from tests.supervision import eventually

CUT_WITHIN: Final = 6.0
"""Seconds to wait for the frame at which a connection shall be cut."""


@dataclass(frozen=True, slots=True)
class Nemesis:
    name: str
    weight: int
    kind: Kind
    strike: Callable[[], None]


class Nemeses:
    def __init__(self, bed: Testbed, dice: random.Random, *, syncs: bool = False) -> None:
        """`syncs`: bring the broker's queues to disk before it is killed."""
        self._bed = bed
        self._dice = dice
        self._syncs = syncs
        self.killed: dict[int, float] = {}
        """Workers that were sent a deadly signal here, and when."""
        self.faults: list[Fault] = []
        self.happened: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        """Those that found nothing to strike: no such frame came to be cut."""
        self._has_missed = False
        self.diary: list[str] = []
        self.table = (*self._everywhere(), *(self._in_a_cluster() if bed.cluster else self._on_one_node()))

    def _everywhere(self) -> tuple[Nemesis, ...]:
        workers, supervisor, network = Kind.WORKERS, Kind.SUPERVISOR, Kind.NETWORK
        return (
            Nemesis("worker killed", 30, workers, lambda: self._signal_workers(signal.SIGKILL, 1)),
            Nemesis("all workers killed", 2, workers, lambda: self._signal_workers(signal.SIGKILL, 1000)),
            Nemesis("worker stopped (SIGSTOP)", 2, workers, lambda: self._signal_workers(signal.SIGSTOP, 1)),
            Nemesis("nursery killed", 2, workers, lambda: self._kill_others("workq-nursery")),
            Nemesis("zygote killed", 1, workers, lambda: self._kill_others("workq-zygote")),
            Nemesis("spare worker killed", 3, workers, lambda: self._kill_others("workq-spare")),
            Nemesis("one worker more, then fewer (TTIN, TTOU)", 4, workers, self._scale),
            Nemesis("reload (HUP)", 3, workers, lambda: self._pool().now.send(signal.SIGHUP)),
            Nemesis("log reader stalled", 3, workers, self._stall_log),
            Nemesis("supervisor killed", 4, supervisor, self._kill_supervisor),
            Nemesis("host killed", 3, supervisor, self._kill_host),
            Nemesis("supervisor stopped and started", 2, supervisor, self._restart_supervisor),
            Nemesis("supervisor started during a fault", 3, supervisor, self._start_during_a_fault),
            Nemesis("connections reset", 8, network, lambda: self._each(Proxy.reset)),
            Nemesis("one connection reset", 8, network, self._reset_one),
            Nemesis("silence, both ways", 2, network, lambda: self._silence(to_broker=True, to_client=True)),
            Nemesis("silence towards the broker", 1, network, lambda: self._silence(to_broker=True, to_client=False)),
            Nemesis("silence towards the workers", 1, network, lambda: self._silence(to_broker=False, to_client=True)),
            Nemesis("latency of 300 ms", 2, network, lambda: self._for_a_while(lambda proxy: proxy.latency(0.3), 4.0)),
            Nemesis("one byte at a time", 1, network, lambda: self._for_a_while(lambda proxy: proxy.slice(1), 2.0)),
            Nemesis("new connections refused", 2, network, self._refuse),
            Nemesis("cut exactly before an acknowledgement", 6, network, lambda: self._cut(ACK, to_broker=True)),
            Nemesis("cut between a parking's confirm and the acknowledgement", 6, network, self._cut_after_confirm),
            Nemesis("cut inside a delivery", 4, network, self._cut_inside_a_delivery),
        )  # fmt: skip

    def _on_one_node(self) -> tuple[Nemesis, ...]:
        return (
            Nemesis("connections closed by the operator", 5, Kind.BROKER, self._close_all),
            Nemesis("broker killed", 4, Kind.BROKER_KILLED, lambda: self._kill_node(self._bed.nodes[0])),
            Nemesis("broker stopped and started", 2, Kind.BROKER, self._restart_broker),
            Nemesis("broker frozen", 1, Kind.BROKER, lambda: self._freeze(self._bed.nodes[0], 5.0 * HEARTBEAT)),
            Nemesis("memory alarm", 2, Kind.BROKER, self._alarm),
        )  # fmt: skip

    def _in_a_cluster(self) -> tuple[Nemesis, ...]:
        return (
            Nemesis("connections closed by the operator", 3, Kind.CLUSTER, self._close_all),
            Nemesis("node killed", 5, Kind.CLUSTER, lambda: self._kill_node(self._any_node())),
            Nemesis("leader killed", 5, Kind.CLUSTER, lambda: self._kill_node(self._bed.asked())),
            Nemesis("node cut off from the others", 4, Kind.CLUSTER, lambda: self._isolate(self._any_node())),
            Nemesis("leader cut off from the others", 3, Kind.CLUSTER, lambda: self._isolate(self._bed.asked())),
            Nemesis("node frozen", 3, Kind.CLUSTER, lambda: self._freeze(self._any_node(), 15.0)),
            Nemesis("leader frozen", 2, Kind.CLUSTER, lambda: self._freeze(self._bed.asked(), 15.0)),
        )  # fmt: skip

    def strike(self, name: str | None = None) -> None:
        """One fault, from beginning to end: the named one, or whichever the dice say."""
        if name is None:
            [nemesis] = self._dice.choices(self.table, [each.weight for each in self.table])
        else:
            [nemesis] = [each for each in self.table if each.name == name]
        began, pid = time.time(), self._bed.doomed.now.pid
        self.diary.append(f"{utc()} {nemesis.name} ...")
        self._has_missed = False
        nemesis.strike()
        self.diary.append(f"{utc()} ... {nemesis.name}{', missed' if self._has_missed else ''}")
        self.faults.append(
            Fault(nemesis.name, nemesis.kind, began, time.time(), pid if nemesis.kind is Kind.SUPERVISOR else 0)
        )
        (self.missed if self._has_missed else self.happened)[nemesis.name] += 1

    @property
    def never_drawn(self) -> list[str]:
        return [nemesis.name for nemesis in self.table if not self.happened[nemesis.name]]

    def _pool(self) -> Pool:
        return self._dice.choice(self._bed.pools)

    def _pause(self, least: float, most: float) -> None:
        time.sleep(self._dice.uniform(least, most))

    # ---------------------------------------------------------------------------------------------- processes

    def _signal_workers(self, number: int, count: int) -> None:
        pids = self._pool().pids()
        for pid in self._dice.sample(pids, min(count, len(pids))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                self.killed[pid] = time.time()

    def _kill_others(self, comm: str) -> None:
        for pid in self._pool().others(comm):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _scale(self) -> None:
        pool = self._pool()
        pool.now.send(signal.SIGTTIN)
        self._pause(0.2, 3.0)
        pool.now.send(signal.SIGTTOU)

    def _stall_log(self) -> None:
        """Until the pipe is full, and for some seconds more."""
        pool = self._pool()
        pool.now.stall()
        self._pause(2.0, 6.0)
        pool.now.resume()

    def _kill_supervisor(self) -> None:
        self._bed.doomed.kill()
        self._pause(0.0, 2.0)
        self._bed.doomed.start()

    def _kill_host(self) -> None:
        """Its processes and its connections at the same moment, and without a word to the broker: as when the power
        fails. The broker notices by the heartbeats that do not come."""
        pool = self._bed.doomed
        theirs = {b"-%d-" % pid for pid in pool.pids()}
        for proxy in self._bed.proxies:
            lost = [each for each in proxy.live if any(pid in each.name + b"-" for pid in theirs)]
            if lost:
                proxy.forget(*lost)
        pool.kill_host()
        self._pause(0.0, 3.0 * HEARTBEAT)
        pool.start()

    def _restart_supervisor(self) -> None:
        self._bed.doomed.stop()
        self._bed.doomed.start()

    def _start_during_a_fault(self) -> None:
        """It is started while the network, or every broker, does not do what it should."""
        pool = self._bed.doomed
        pool.kill()
        fault = self._dice.choice(
            (Proxy.refuse, Proxy.silence, lambda proxy: proxy.slice(1, pause=0.001), lambda proxy: proxy.latency(0.5),
             lambda proxy: proxy.cut_after(to_client=self._dice.randrange(2000), reset=True), None)
        )  # fmt: skip
        if fault is None:
            for node in self._bed.nodes:
                os.kill(node.pid, signal.SIGSTOP)
        else:
            self._each(fault)
        pool.start()
        self._pause(0.5, 4.0)
        if fault is None:
            for node in self._bed.nodes:
                os.kill(node.pid, signal.SIGCONT)
        self._each(Proxy.heal)

    # ------------------------------------------------------------------------------------------------- network

    def _each(self, act: Callable[[Proxy], object]) -> None:
        self._bed.each_proxy(act)

    def _for_a_while(self, act: Callable[[Proxy], object], most: float) -> None:
        self._each(act)
        self._pause(0.5, most)
        self._each(Proxy.heal)

    def _reset_one(self) -> None:
        proxy = self._dice.choice(self._bed.proxies)
        if live := proxy.live:
            proxy.reset(self._dice.choice(live))

    def _silence(self, *, to_broker: bool, to_client: bool) -> None:
        self._each(lambda proxy: proxy.silence(to_broker=to_broker, to_client=to_client))
        self._pause(1.0, 4.0 * HEARTBEAT)
        # What a firewall that forgot its connections does: those that were silent never come back.
        self._each(Proxy.reset)
        self._each(Proxy.heal)

    def _refuse(self) -> None:
        self._each(Proxy.refuse)
        self._each(Proxy.reset)
        self._pause(0.5, 3.0)
        self._each(Proxy.heal)

    def _cut(self, method: Method, *, to_broker: bool, at: int = 0, after_confirm: bool = False) -> None:
        """Through one of the proxies: one connection in all."""
        cuts = [
            proxy.cut_at(method, to_broker=to_broker, at=at, after_confirm=after_confirm) for proxy in self._bed.proxies
        ]
        deadline = time.monotonic() + CUT_WITHIN
        while not any(_is_done(cut) for cut in cuts) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._each(Proxy.heal)
        self._has_missed = not any(_is_done(cut) for cut in cuts)

    def _cut_after_confirm(self) -> None:
        self._cut(ACK, to_broker=True, after_confirm=True)

    def _cut_inside_a_delivery(self) -> None:
        """In its method frame, or in the header and the body that come with it."""
        self._cut(DELIVER, to_broker=False, at=self._dice.randrange(1, 60))

    # -------------------------------------------------------------------------------------------------- broker

    def _any_node(self) -> PrivateNode:
        return self._dice.choice(self._bed.nodes)

    def _close_all(self) -> None:
        with contextlib.suppress(NodeError):  # as when one of them has just ended by itself
            self._any_node().eval('rabbit_networking:close_all_connections(<<"an operator">>)')

    def _kill_node(self, node: PrivateNode) -> None:
        if self._syncs:
            node.sync()
        node.kill()
        self._pause(0.0, 3.0)
        node.start()
        self._await_cluster()

    def _restart_broker(self) -> None:
        [node] = self._bed.nodes
        node.eval("rabbit:stop()")
        self._pause(0.0, 2.0)
        node.eval("rabbit:start()")

    def _freeze(self, node: PrivateNode, most: float) -> None:
        os.kill(node.pid, signal.SIGSTOP)
        self._pause(1.0, most)
        os.kill(node.pid, signal.SIGCONT)
        self._await_cluster()

    def _isolate(self, node: PrivateNode) -> None:
        """From the other nodes, not from its clients."""
        assert self._bed.cluster
        self._bed.cluster.isolate(node)
        self._pause(1.0, 8.0)
        self._await_cluster()

    def _await_cluster(self) -> None:
        if self._bed.cluster:
            self._bed.cluster.mend()
            eventually(lambda: self._bed.cluster is None or self._bed.cluster.leader(QUEUE))

    def _alarm(self) -> None:
        [node] = self._bed.nodes
        node.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})")
        self._pause(0.5, 3.0)
        node.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")


def _is_done(cut: Cut) -> bool:
    return cut.done.is_set()
