"""More than one machine, on one: a RabbitMQ cluster of three nodes on loopback; another host that can be cut off."""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from supervisor.commands.node import Port, answers
from tests import amqp
from tests.node import PrivateNode
from tests.supervision import eventually

NAMES = ("c1", "c2", "c3")
NOWHERE = "02:00:00:00:de:ad"
"""A hardware address that nobody has."""


class NotPermitted(Exception):
    """This machine does not let us have network namespaces; the message says what it refused."""


# ---------------------------------------------------------------------------------------------------- the cluster


class Cluster:
    """Three nodes that know each other. Break what you like; `mend` makes it whole again.

    `address`: one more of this machine's addresses for the nodes to listen on, for clients on another host.
    """

    def __init__(self, directory: Path, address: str | None = None) -> None:
        self.nodes: list[PrivateNode] = []
        self._epmd = Port()
        self._far = [Port() for _ in NAMES]
        self._address = address
        self._isolated: PrivateNode | None = None
        self._stack = ExitStack()
        cookie = secrets.token_hex(16)
        # In a minority, stop serving: https://www.rabbitmq.com/docs/partitions. (With Khepri there is nothing to set.)
        conf = "cluster_partition_handling = pause_minority\n"
        for name, far in zip(NAMES, self._far, strict=True):
            # guest may come from that other host, too; on its network there is nobody else.
            more = f"listeners.tcp.2 = {address}:{far.number}\nloopback_users = none\n" if address else ""
            node = PrivateNode(
                directory / name,
                nodename=f"{name}@localhost",
                epmd=self._epmd.number,
                cookie=cookie,
                conf=conf + more,
            )
            self.nodes.append(node)

    def __enter__(self) -> Self:
        try:
            epmd = ["epmd", "-port", str(self._epmd.number), "-address", "127.0.0.1"]
            self._stack.callback(end, daemon(*epmd))
            for node in self.nodes:
                self._stack.callback(node.kill)
            eventually(lambda: is_open(self._epmd.number))
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.start()
            for node in self.nodes[1:]:
                self._join(node)
            self.await_whole()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _join(self, node: PrivateNode) -> None:
        first = self.nodes[0].nodename
        node.eval("rabbit:stop()")
        # Before 3.12 there was no rabbit_db_cluster; from 4.3 on there is no rabbit_mnesia.
        node.eval(
            f"case code:ensure_loaded(rabbit_db_cluster) of {{module, M}} -> ok = M:join('{first}', disc); "
            f"_ -> ok = rabbit_mnesia:join_cluster('{first}', disc) end"
        )
        node.eval("ok = rabbit:start()")

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def far_urls(self) -> list[str]:
        """The same nodes, as the other host reaches them."""
        return [f"amqp://guest:guest@{self._address}:{far.number}/%2F" for far in self._far]

    def node_of(self, broker: str) -> PrivateNode:
        """The node that a supervisor's log calls so."""
        ports = zip(self.nodes, self._far, strict=True)
        [node] = [node for node, far in ports if f":{node.port}/" in broker or f":{far.number}/" in broker]
        return node

    def await_whole(self) -> None:
        """Until every node takes clients and has two running neighbours."""
        running = "length([N || N <- nodes(), rpc:call(N, rabbit, is_running, []) =:= true])"
        eventually(lambda: all(answers(node.port) and node.eval(running) == "2" for node in self.nodes))

    def mend(self) -> None:
        """Whatever a test has done: every node runs, is revived, and sees the others."""
        for node in self.nodes:
            node.start()
            self.rejoin(node)
            if node.eval("rabbit_maintenance:is_being_drained_local_read(node())") == "true":
                self.revive(node)
        self.await_whole()

    # ---------------------------------------------------------------------------------------------- quorum queues

    @contextmanager
    def quorum_queue(self, name: str) -> Iterator[str]:
        """A quorum queue with a replica on each node. At the end the cluster is mended, and the queue deleted with its
        kin."""
        arguments: dict[str, object] = {"x-queue-type": "quorum", "x-quorum-initial-group-size": len(self.nodes)}
        if version(self.nodes[0]) >= [4, 3]:
            # By default, what a lost node's consumers held stays theirs for a minute: they may come back.
            arguments["x-consumer-disconnected-timeout"] = 1000
        with amqp.connection(self.nodes[0].url) as link:
            link.channel().queue_declare(name, durable=True, arguments=arguments)
        for node in self.nodes:
            node.sync()
        try:
            yield name
        finally:
            self.mend()
            amqp.delete(self.nodes[0], name)

    def leader(self, queue: str) -> PrivateNode:
        """The node of the queue's leader, when there is one."""

        def found() -> list[PrivateNode]:
            asked = next(node for node in self.nodes if node is not self._isolated and answers(node.port))
            answer = asked.eval(f"{{ok, Q}} = {lookup(queue)}, [{{_, N}}] = rabbit_amqqueue:info(Q, [leader]), N")
            return [node for node in self.nodes if node.alive and node.nodename == answer.strip("'")]

        [node] = eventually(found)
        return node

    def lead_from(self, node: PrivateNode, queue: str) -> None:
        """Move the queue's leader to this node."""
        if self.leader(queue) is not node:
            there = f"'{node.nodename}'"
            node.eval(f"{{ok, Q}} = {lookup(queue)}, rabbit_quorum_queue:transfer_leadership(Q, {there})")
        eventually(lambda: self.leader(queue) is node)

    # ------------------------------------------------------------------------------- what happens to nodes but death

    def drain(self, node: PrivateNode) -> None:
        """Maintenance, as `rabbitmq-upgrade drain` begins it."""
        node.eval("ok = rabbit_maintenance:drain()")

    def revive(self, node: PrivateNode) -> None:
        """The end of it, as `rabbitmq-upgrade revive` says it."""
        node.eval("ok = rabbit_maintenance:revive()")

    def isolate(self, node: PrivateNode) -> None:
        """Cut a node off from the other nodes, not from its clients: they take each other's cookie no more."""
        self._isolated = node
        node.eval(f"[erlang:set_cookie(N, stranger) || N <- {self._others(node)}]")
        node.eval(f"[erlang:disconnect_node(N) || N <- {self._others(node)}]")

    def rejoin(self, node: PrivateNode) -> None:
        """Undo `isolate`; they find each other by themselves."""
        self._isolated = None
        node.eval(f"[erlang:set_cookie(N, erlang:get_cookie()) || N <- {self._others(node)}]")

    def _others(self, node: PrivateNode) -> str:
        return "[" + ", ".join(f"'{other.nodename}'" for other in self.nodes if other is not node) + "]"


def lookup(queue: str) -> str:
    return f'rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, {amqp.binary(queue)}))'


def version(node: PrivateNode) -> list[int]:
    return [int(number) for number in node.version.split(".")[:2]]


# -------------------------------------------------------------------------------------------------- another host


class OtherHost:
    """A network of its own (network_namespaces(7)), joined to this machine's by a cable (veth(4)) that can be cut.

    Its addresses are of the range set aside for such tests (RFC 2544). All of it goes when its process does.
    """

    def __init__(self) -> None:
        net = random.randrange(0, 2**17, 4)
        self.address, self._there = (str_address(net + host) for host in (1, 2))
        self._cable = f"wq{secrets.token_hex(4)}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Raises NotPermitted."""
        try:
            host = daemon("unshare", "--net", "sleep", "infinity")
            self._stack.callback(end, host)
            self.inside = ("nsenter", f"--net=/proc/{host.pid}/ns/net")
            """Before a command: run it there, as the same process."""
            ours = os.readlink("/proc/self/ns/net")
            eventually(lambda: host.poll() is not None or os.readlink(f"/proc/{host.pid}/ns/net") != ours)
            if host.poll() is not None:
                raise NotPermitted("unshare --net: a network namespace takes CAP_SYS_ADMIN")
            run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "cable", "netns", str(host.pid))
            self._stack.callback(run, "ip", "link", "del", self._cable)
            run("ip", "address", "add", f"{self.address}/30", "dev", self._cable)
            run("ip", "link", "set", self._cable, "up")
            run(*self.inside, "ip", "address", "add", f"{self._there}/30", "dev", "cable")
            run(*self.inside, "ip", "link", "set", "cable", "up")
            run(*self.inside, "ip", "link", "set", "lo", "up")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut(self) -> None:
        """From now on every packet is lost on the way, in both directions, and nobody is told: each side sends to a
        hardware address that is not the other's."""
        run("ip", "neighbour", "replace", self._there, "lladdr", NOWHERE, "dev", self._cable, "nud", "permanent")
        run(
            *self.inside,
            "ip",
            "neighbour",
            "replace",
            self.address,
            "lladdr",
            NOWHERE,
            "dev",
            "cable",
            "nud",
            "permanent",
        )

    def heal(self) -> None:
        run("ip", "neighbour", "del", self._there, "dev", self._cable)
        run(*self.inside, "ip", "neighbour", "del", self.address, "dev", "cable")


def str_address(host: int) -> str:
    return f"198.{18 + host // 2**16}.{host // 2**8 % 2**8}.{host % 2**8}"


# -------------------------------------------------------------------------------------------------- processes


def daemon(*command: str) -> subprocess.Popen[bytes]:
    """A process that ends with this one's thread, whatever happens to it."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def run(*command: str) -> None:
    """Raises NotPermitted with what it said."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotPermitted(str(error)) from None
    if done.returncode != 0:
        raise NotPermitted(f"{' '.join(command)}: {done.stderr.strip()}")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
