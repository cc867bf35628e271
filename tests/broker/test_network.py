"""FAULTS, the network's rows: reset, silent, slow, sliced, without names; each told apart, and nothing lost."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from supervisor.commands import main
from supervisor.commands.node import Port
from tests import amqp
from tests.cluster import NotPermitted, OtherHost
from tests.node import PrivateNode
from tests.proxy import ACK, DELIVER, Proxy
from tests.strangers import HTTP, listening, resetting
from tests.supervision import Runs, Supervision, eventually, supervised

SECRET = "hunter2-and-more"


@pytest.fixture
def proxy(node: PrivateNode) -> Iterator[Proxy]:
    with Proxy(node.port) as between:
        yield between


def refused(pool: Supervision, kind: str, says: str) -> None:
    """Nobody could consume yet, and why: in the log, in /readyz and in /status."""
    assert says in pool.hear("worker.exited", cause="broker")["because"]
    assert says in pool.hear("broker.refused", kind=kind)["because"]
    code, readiness = pool.get("/readyz")
    assert code == 503
    assert says in readiness
    assert says in pool.status()["readiness"]
    assert pool.get("/healthz")[0] == 200
    everything = json.dumps(pool.events) + "".join(pool.get(path)[1] for path in ("/status", "/readyz", "/metrics"))
    assert SECRET not in everything


def account(node: PrivateNode, queue: str, runs: Runs, ids: list[str], lost: int) -> None:
    """Every message was run to its end, none is left anywhere, and no handler was started more often than a lost
    connection explains."""
    eventually(lambda: amqp.depth(node.url, queue) + amqp.unacked(node, queue) == 0)
    assert set(runs.lines("done")) == set(ids)
    assert len(runs.lines("began")) - len(ids) <= lost
    assert amqp.depth(node.url, f"{queue}.dead") == 0


# -------------------------------------------------------------------------------------------- cut at one frame


@pytest.fixture
def frames(node: PrivateNode) -> Iterator[Proxy]:
    with Proxy(node.port, sees_frames=True) as between:
        yield between


@pytest.mark.parametrize("arrives", [0, 20])
def test_f114_a_connection_cut_before_or_inside_an_acknowledgement_has_its_task_run_once_more(
    frames: Proxy, node: PrivateNode, queue: str, runs: Runs, arrives: int
) -> None:
    with supervised("handlers:work", "--workers", "1", url=frames.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        cut = frames.cut_at(ACK, to_broker=True, at=arrives)
        amqp.publish(node.url, queue, ["0"], ids=["task"])
        assert cut.done.wait(10)
        pool.hear("worker.exited", cause="broker")
        runs.hear("done", 2)
        account(node, queue, runs, ["task"], lost=1)
        assert len(runs.lines("began")) == 2
        assert pool.stop() == 0


@pytest.mark.parametrize("arrives", [1, 30])
def test_f114_a_delivery_cut_inside_its_frame_is_run_once(
    frames: Proxy, node: PrivateNode, queue: str, runs: Runs, arrives: int
) -> None:
    with supervised("handlers:work", "--workers", "1", url=frames.url, queue=queue, env=runs.env) as pool:
        pool.ready()
        cut = frames.cut_at(DELIVER, to_broker=False, at=arrives)
        amqp.publish(node.url, queue, ["0"], ids=["task"])
        assert cut.done.wait(10)
        pool.hear("worker.exited", cause="broker")
        runs.hear("done")
        account(node, queue, runs, ["task"], lost=0)
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------------ reset


def test_f42_idle_workers_whose_connections_are_reset_are_replaced_at_once(proxy: Proxy, queue: str) -> None:
    with supervised("handlers:work", "--workers", "2", url=proxy.url, queue=queue) as pool:
        pool.ready()
        proxy.reset()
        pool.hear("worker.exited", count=2, cause="broker")
        for died in pool.named("worker.exited"):
            assert "Connection reset by peer" in died["because"]
            assert died["message_id"] is None
        pool.hear("worker.ready", count=4)
        assert pool.get("/readyz")[0] == 200
        assert pool.status()["totals"]["redelivered"] == 0
        assert pool.stop() == 0


def test_f42_resets_in_mid_task_lose_nothing_and_cost_one_extra_run_each_at_most(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    ids = [f"task-{number}" for number in range(40)]
    amqp.publish(node.url, queue, ["0.1"] * len(ids), ids=ids)
    lost = 0
    with supervised("handlers:work", "--workers", "4", url=proxy.url, queue=queue, env=runs.env) as pool:
        for begun in (4, 16, 28):
            runs.hear("began", begun)
            lost += proxy.reset()
        eventually(lambda: len(set(runs.lines("done"))) == len(ids))
        account(node, queue, runs, ids, lost)
        totals = pool.status()["totals"]
        # An acknowledgement that the kernel has taken may still never arrive: that success counts, and comes again.
        assert len(ids) <= totals["succeeded"] <= len(ids) + lost
        assert totals["unsettled"] <= lost
        assert 0 < lost <= 12
        assert pool.stop() == 0


def test_connections_that_the_kernel_kills_are_replaced(proxy: Proxy, queue: str) -> None:
    if shutil.which("ss") is None:
        pytest.skip("ss is not installed: apt-get install iproute2")
    with supervised("handlers:work", "--workers", "2", url=proxy.url, queue=queue) as pool:
        pool.ready()
        for connection in proxy.live:
            address, port = connection.client.getpeername()
            killed = subprocess.run(
                ["ss", "--kill", "--no-header", "--tcp", "src", f"{address}:{port}", "dst", f"{address}:{proxy.port}"],
                capture_output=True, text=True,
            )  # fmt: skip
            if killed.returncode or not killed.stdout.strip():
                pytest.skip(
                    f"ss --kill: {killed.stderr.strip() or 'no socket was destroyed: CONFIG_INET_DIAG_DESTROY'}"
                )
        died = pool.hear("worker.exited", count=2, cause="broker")
        assert "connection" in died["because"]
        pool.hear("worker.ready", count=4)
        assert pool.stop() == 0


def test_connections_that_an_operator_closes_are_replaced_and_that_is_said(own_node: PrivateNode) -> None:
    with supervised("handlers:work", "--workers", "2", url=own_node.url, queue="any") as pool:
        pool.ready()
        own_node.eval(
            '[rabbit_networking:close_connection(C, "as an operator") || C <- rabbit_networking:connections()]'
        )
        died = pool.hear("worker.exited", count=2, cause="broker")
        assert "it is shutting down, or an operator closed it" in died["because"]
        assert "as an operator" in died["because"]
        pool.hear("worker.ready", count=4)
        assert pool.stop() == 0


def test_f106_a_front_that_resets_every_connection_keeps_nobody_from_starting_and_from_finding_the_broker(
    proxy: Proxy, queue: str
) -> None:
    """As a load balancer without a backend does. One start tries it often enough to meet the reset at its earliest."""
    proxy.refuse()
    with resetting() as port:
        urls = ",".join(f"amqp://dora:{SECRET}@127.0.0.1:{port}/{number}" for number in range(60))
        with supervised("handlers:work", "--workers", "2", url=f"{urls},{proxy.url}", queue=queue) as pool:
            pool.hear("worker.exited", count=2, cause="broker")
            code, readiness = pool.get("/readyz")
            assert (code, "no worker consumes" in readiness) == (503, True)
            assert pool.hear("broker.refused")["next"].startswith("one worker retries in ")
            proxy.heal()
            pool.ready()
            assert pool.get("/readyz")[0] == 200
            assert {line["cause"] for line in pool.named("worker.exited")} == {"broker"}
            assert SECRET not in json.dumps(pool.events)
            assert pool.stop() == 0


# ---------------------------------------------------------------------------------------------------- silence


@pytest.mark.parametrize("whose", ["both", "ours", "theirs"])
def test_f43_silence_is_noticed_and_what_was_in_hand_is_done(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs, whose: str
) -> None:
    ids = [f"task-{number}" for number in range(12)]
    with supervised(
        "handlers:work", "--workers", "2", "--heartbeat", "1s", url=proxy.url, queue=queue, env=runs.env
    ) as pool:
        pool.ready()
        amqp.publish(node.url, queue, ["0.3"] * len(ids), ids=ids)
        runs.hear("began", 4)
        proxy.silence(to_broker=whose != "theirs", to_client=whose != "ours")
        # The worker hears nothing for two heartbeats; or the broker does, and hangs up, which the worker hears.
        died = pool.hear("worker.exited", count=2, cause="broker", timeout=15)
        # Hung up with something of ours unread on the way, it is a RST.
        said = ("was heard from",) if whose != "ours" else ("is gone", "reset by peer")
        assert any(words in died["because"] for words in said)
        assert pool.get("/readyz")[0] == 503
        proxy.heal()
        eventually(lambda: len(set(runs.lines("done"))) == len(ids))
        account(node, queue, runs, ids, lost=2)
        assert pool.get("/readyz")[0] == 200
        assert pool.stop() == 0


def test_f43_a_firewall_that_forgets_connections_costs_two_heartbeats_and_no_task(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    with supervised(
        "handlers:work", "--workers", "2", "--heartbeat", "1s", url=proxy.url, queue=queue, env=runs.env
    ) as pool:
        pool.ready()
        proxy.forget()
        amqp.publish(node.url, queue, ["0"] * 4, ids=["a", "b", "c", "d"])
        pool.hear("worker.ready", count=4, timeout=15)
        pool.hear("task.succeeded", count=4)
        account(node, queue, runs, ["a", "b", "c", "d"], lost=2)
        assert pool.stop() == 0


def test_f43_a_long_task_is_heard_through_silence_as_lost_and_run_once_more(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    amqp.publish(node.url, queue, ["5"], ids=["long"])
    with supervised(
        "handlers:work", "--workers", "1", "--heartbeat", "1s", url=proxy.url, queue=queue, env=runs.env
    ) as pool:
        runs.hear("began")
        proxy.forget()
        pool.hear("task.unsettled", message_id="long")
        pool.hear("task.succeeded", message_id="long")
        account(node, queue, runs, ["long"], lost=1)
        assert len(runs.lines("began")) == 2
        assert pool.stop() == 0


@pytest.fixture
def other_host() -> Iterator[OtherHost]:
    try:
        with OtherHost() as host:
            yield host
    except NotPermitted as error:
        pytest.skip(str(error))


def test_f43_packets_that_are_dropped_on_the_way_are_noticed_and_a_healed_network_is_found(
    other_host: OtherHost, node: PrivateNode, queue: str, runs: Runs
) -> None:
    with (
        Proxy(node.port, host=other_host.address) as gate,
        supervised(
            "handlers:work", "--workers", "2", "--heartbeat", "1s",
            url=gate.url, queue=queue, env=runs.env, inside=other_host.inside,
        ) as pool,
    ):  # fmt: skip
        pool.ready()
        other_host.cut()
        died = pool.hear("worker.exited", count=2, cause="broker", timeout=15)
        assert "was heard from" in died["because"]
        # From here on even a SYN is lost.
        said = pool.hear("broker.refused", kind="timeout", timeout=40)
        assert "does not answer in time" in said["because"]
        other_host.heal()
        pool.hear("worker.ready", count=4)
        amqp.publish(node.url, queue, ["0"], ids=["after"])
        pool.hear("task.succeeded", message_id="after")
        assert pool.stop() == 0


def test_a_stop_works_while_a_connection_is_tried_that_nobody_answers(other_host: OtherHost) -> None:
    other_host.cut()
    url = f"amqp://dora:{SECRET}@{other_host.address}:5672"
    with supervised("handlers:work", "--workers", "2", url=url, queue="any", inside=other_host.inside) as pool:
        pool.hear("worker.started", count=2)
        eventually(lambda: b"SYN-SENT" in shown(other_host, "ss", "--tcp", "--all"))
        assert pool.stop(timeout=8) == 0
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"] * 2


def shown(host: OtherHost, *command: str) -> bytes:
    return subprocess.run([*host.inside, *command], capture_output=True, check=True).stdout


# ------------------------------------------------------------------------------------------------ slow and sliced


def test_f44_half_a_second_each_way_is_slower_and_nothing_else(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    ids = [f"task-{number}" for number in range(8)]
    amqp.publish(node.url, queue, ["0"] * len(ids), ids=ids)
    proxy.latency(0.5)
    with supervised(
        "handlers:work", "--workers", "4", "--heartbeat", "2s", url=proxy.url, queue=queue, env=runs.env
    ) as pool:
        pool.hear("task.succeeded", count=len(ids), timeout=60)
        proxy.heal()
        account(node, queue, runs, ids, lost=0)
        assert pool.status()["totals"]["worker_exits"] == 0
        assert not [line for line in pool.events if line["level"] in ("warning", "error")]
        assert pool.stop() == 0


def test_f44_one_byte_at_a_time_is_slower_and_nothing_else(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    ids = [f"task-{number}" for number in range(20)]
    amqp.publish(node.url, queue, ["0"] * len(ids), ids=ids)
    proxy.slice(1, pause=0.0005)
    with supervised("handlers:work", "--workers", "2", url=proxy.url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", count=len(ids), timeout=60)
        proxy.heal()
        account(node, queue, runs, ids, lost=0)
        assert pool.status()["totals"]["worker_exits"] == 0
        assert not [line for line in pool.events if line["level"] in ("warning", "error")]
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------------- names


class Names:
    """A name server (RFC 1035) on an address of its own, which knows what it is told, and can fall silent."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.is_silent = False
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        self.socket.bind((self.address, 53))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.known, self.is_silent = {}, True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.address, 53))
        self.thread.join()
        self.socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self.socket.recvfrom(512)
            if not query:
                return
            self.asked += 1
            if not self.is_silent:
                self.socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode())
            at += 1 + size
        question = query[12 : at + 5]
        address = self.known.get(".".join(labels))
        wants_a = query[at + 1 : at + 3] == b"\0\x01"
        flags = b"\x81\x80" if address else b"\x81\x83"  # an answer, recursive; there is no such name
        if not address or not wants_a:
            return query[:2] + flags + b"\0\x01\0\0\0\0\0\0" + question
        record = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04" + socket.inet_aton(address)
        return query[:2] + flags + b"\0\x01\0\x01\0\0\0\0" + question + record


@pytest.fixture
def names() -> Iterator[Names]:
    try:
        server = Names()
    except PermissionError:
        pytest.skip("port 53 takes CAP_NET_BIND_SERVICE")
    try:
        yield server
    finally:
        server.close()


def asking(names: Names, directory: Path, timeout: int) -> tuple[str, ...]:
    """Before a command: run it with this name server, and nobody else to ask."""
    resolv, hosts, switch = (directory / name for name in ("resolv.conf", "hosts", "nsswitch.conf"))
    resolv.write_text(f"nameserver {names.address}\noptions timeout:{timeout} attempts:1\n")
    hosts.write_text("127.0.0.1 localhost\n")
    switch.write_text("hosts: files dns\n")
    script = "".join(f"mount --bind {each} /etc/{each.name} && " for each in (resolv, hosts, switch))
    inside = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{script}exec "$0" "$@"')
    tried = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a mount namespace takes CAP_SYS_ADMIN: {tried.stderr.strip()}")
    return inside


def test_f45_a_name_that_is_not_there_is_said_and_looked_up_anew_at_each_attempt(
    names: Names, proxy: Proxy, queue: str, tmp_path: Path
) -> None:
    url = f"amqp://guest:guest@broker.test:{proxy.port}/%2F"
    inside = asking(names, tmp_path, timeout=1)
    with supervised("handlers:work", "--workers", "2", url=url, queue=queue, inside=inside) as pool:
        refused(pool, "dns", f"the host name of amqp://guest:***@broker.test:{proxy.port}/%2F has no address")
        names.known["broker.test"] = "127.0.0.1"
        pool.ready()
        names.known["broker.test"] = "127.0.0.9"  # nobody listens there
        proxy.reset()
        said = pool.hear("broker.refused", kind="refused")
        assert "connection refused by amqp://guest:***@broker.test" in said["because"]
        names.known["broker.test"] = "127.0.0.1"
        pool.hear("worker.ready", count=4)
        assert pool.stop() == 0


def test_f45_a_name_server_that_does_not_answer_is_said(names: Names, tmp_path: Path) -> None:
    names.is_silent = True
    url = f"amqp://dora:{SECRET}@broker.test"
    inside = asking(names, tmp_path, timeout=1)
    with supervised("handlers:work", "--workers", "2", url=url, queue="any", inside=inside) as pool:
        refused(pool, "dns", "the host name of amqp://dora:***@broker.test:5672/%2F has no address: Temporary failure")
        assert pool.stop() == 0


def test_f45_a_stop_works_during_a_look_up_that_hangs(names: Names, tmp_path: Path) -> None:
    names.is_silent = True
    inside = asking(names, tmp_path, timeout=30)
    with supervised("handlers:work", "--workers", "2", url="amqp://broker.test", queue="any", inside=inside) as pool:
        eventually(lambda: names.asked >= 2)
        assert pool.stop(timeout=15) == 0
        assert [died["cause"] for died in pool.named("worker.exited")] == ["drained"] * 2


# ------------------------------------------------------------------------------------------------- told apart


def test_a_port_where_nobody_listens_is_told_as_refused() -> None:
    with supervised("handlers:work", url=f"amqp://dora:{SECRET}@127.0.0.1:{Port().number}", queue="any") as pool:
        refused(pool, "refused", "no broker is running there, or it is still starting")
        assert pool.stop() == 0


def test_an_address_to_which_no_way_leads_is_told_as_unreachable(other_host: OtherHost) -> None:
    url = f"amqp://dora:{SECRET}@203.0.113.1"  # RFC 5737; there is no route out of that host
    with supervised("handlers:work", "--workers", "1", url=url, queue="any", inside=other_host.inside) as pool:
        said = pool.hear("broker.refused", kind="unreachable")
        assert "no route to amqp://dora:***@203.0.113.1" in said["because"]
        assert SECRET not in json.dumps(pool.events)
        assert pool.stop() == 0


def test_a_broker_that_accepts_and_says_nothing_is_told_as_a_timeout_and_a_stop_works_meanwhile(proxy: Proxy) -> None:
    proxy.silence()
    url = f"amqp://dora:{SECRET}@127.0.0.1:{proxy.port}"
    with supervised("handlers:work", "--workers", "1", url=url, queue="any") as pool:
        refused(pool, "timeout", "does not answer in time: a firewall, or a broker that hangs or is starting")
        eventually(lambda: len(proxy.connections) > 1 and proxy.live)
        assert pool.stop(timeout=8) == 0


def test_something_else_that_listens_there_is_told_as_that() -> None:
    with listening(HTTP, hang_up=True) as port:
        url = f"amqp://dora:{SECRET}@127.0.0.1:{port}"
        with supervised("handlers:work", "--workers", "1", url=url, queue="any") as pool:
            refused(pool, "protocol", "does not answer in AMQP 0-9-1; is the port right (5672)")
            assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------- idle timeouts


def test_f125_an_idle_timeout_below_the_heartbeat_is_named_once_and_a_reload_with_a_lower_one_ends_it(
    proxy: Proxy, queue: str, tmp_path: Path
) -> None:
    settings = tmp_path / "workq.toml"
    settings.write_text('heartbeat = "15s"\n')
    proxy.close_idle(2.4)
    options = ("--workers", "2", "--config", str(settings))
    with supervised("handlers:work", *options, url=proxy.url, queue=queue) as pool:
        named = pool.hear("broker.idle_timeout")
        said = r"between us and the broker closes idle connections after 2\.\d s: lower --heartbeat below 1\.\d s"
        assert re.search(said, named["because"])
        ends = len(pool.named("worker.exited"))
        pool.hear("worker.exited", count=2, level="info")
        # One may have asked for the queue's depth as its connection was closed, which so was not idle.
        assert [line["level"] for line in pool.named("worker.exited")[ends:]].count("warning") <= 1
        assert len(pool.named("broker.idle_timeout")) == 1
        assert named["because"] in pool.get("/readyz")[1]
        address = pool.health.removeprefix("http://")
        command = ["check", "--json", "--management", "off", "--url", proxy.url, "--queue", queue, "--health", address]
        found = [json.loads(line) for line in CliRunner().invoke(main, command).stdout.splitlines()]
        assert [line["level"] for line in found if named["because"] in line["what"]] == ["warning"]
        settings.write_text('heartbeat = "1s"\n')
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        eventually(lambda: pool.get("/readyz") == (200, "2 of 2 workers consume\n"))
        assert pool.stop() == 0


def test_f125_a_task_that_runs_again_for_an_idle_timeout_is_named_as_well(
    proxy: Proxy, node: PrivateNode, queue: str, runs: Runs
) -> None:
    proxy.close_idle(2.4)
    options = ("--workers", "1", "--lost-grace", "0")
    with supervised("handlers:work", *options, url=proxy.url, queue=queue, env=runs.env) as pool:
        amqp.publish(node.url, queue, ["60"], ids=["long"])
        named = pool.hear("broker.idle_timeout")
        assert "a task that takes longer runs again" in named["because"]
        assert len(runs.lines("began")) >= 3
        proxy.close_idle(None)
        pool.send(signal.SIGKILL)
        pool.wait()
