"""The private node keeps its promises: it boots, keeps data, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import supervisor
from supervisor.commands.node import NodeError, find_installation
from tests import amqp
from tests.node import PrivateNode

ROOT = Path(supervisor.__file__).parents[1]


def test_answers_amqp(broker_url: str, queue: str) -> None:
    amqp.publish(broker_url, queue, [b"one", b"two"], ids=["1", "2"], content_type="text/plain")
    assert amqp.depth(broker_url, queue) == 2
    taken = amqp.drain(broker_url, queue)
    assert [(p.message_id, p.content_type, p.delivery_mode, body) for _, p, body in taken] == [
        ("1", "text/plain", 2, b"one"),
        ("2", "text/plain", 2, b"two"),
    ]
    assert amqp.depth(broker_url, queue) == 0


def test_counts_consumers_and_what_they_hold(node: PrivateNode, queue: str) -> None:
    amqp.publish(node.url, queue, [b"held", b"waits"])
    with amqp.connection(node.url) as link:
        channel = link.channel()
        channel.basic_qos(prefetch_count=1)
        next(channel.consume(queue))
        assert amqp.consumers(node.url, queue) == 1
        assert amqp.unacked(node, queue) == 1
        assert amqp.depth(node.url, queue) == 1


def test_queues_of_a_test_are_deleted_with_their_kin_only(node: PrivateNode, queue: str) -> None:
    kin, stranger = [queue, f"{queue}.dead", f"{queue}.delay.1000"], f"{queue}2"
    for name in [*kin, stranger]:
        amqp.publish(node.url, name, [b"x"])
    amqp.delete(node, queue)
    assert [amqp.depth(node.url, name) for name in [*kin, stranger]] == [0, 0, 0, 1]
    amqp.delete(node, stranger)


def test_eval_returns_what_erlang_says(node: PrivateNode) -> None:
    assert node.eval("lists:sum([1, 2, 3]).") == "6"
    assert node.eval("rabbit_misc:version()") == f'"{node.version}"'
    assert node.eval("list_to_integer(os:getpid())") == str(node.pid)
    with pytest.raises(NodeError, match="badarith"):
        node.eval("1 / 0.")


def test_a_booting_node_does_not_load_what_only_erlang_itself_lists(node: PrivateNode) -> None:
    """RabbitMQ 3.10 loads each listed module, to look for boot steps. What is needed comes: see test_tls."""
    assert node.eval("code:is_loaded('OTP-PUB-KEY')") == "false"


def test_ctl_reaches_this_node(node: PrivateNode, queue: str) -> None:
    amqp.publish(node.url, queue, [b"x"])
    assert queue in node.ctl("list_queues", "--quiet", "name").split()


def test_kill_and_restart_keeps_persistent_messages(own_node: PrivateNode) -> None:
    amqp.publish(own_node.url, "kept", [f"{number}" for number in range(1000)])
    own_node.sync()
    port, pid = own_node.port, own_node.pid
    own_node.kill()
    assert not own_node.alive
    own_node.start()
    assert (own_node.port, own_node.pid != pid) == (port, True)
    assert [int(body) for _, _, body in amqp.drain(own_node.url, "kept")] == list(range(1000))


def test_two_nodes_side_by_side_share_nothing_and_a_stop_leaves_no_process(
    node: PrivateNode, own_node: PrivateNode, queue: str
) -> None:
    amqp.publish(node.url, queue, [b"x"])
    assert (amqp.depth(node.url, queue), amqp.depth(own_node.url, queue)) == (1, 0)
    with pytest.raises(NodeError, match="another private node"):
        PrivateNode(own_node.directory).start()

    family = [own_node.pid, *(child.pid for child in psutil.Process(own_node.pid).children(recursive=True))]
    assert len(family) > 1  # erl_child_setup at least
    with watched(family) as ended:
        own_node.stop()
        assert ended() == family
    assert amqp.depth(node.url, queue) == 1


def test_dies_with_its_parent(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from tests.node import PrivateNode
        node = PrivateNode(Path(sys.argv[1]))
        node.start()
        print(node.pid, flush=True)
        sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "node"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            with watched([pid]) as ended:
                parent.kill()
                assert ended() == [pid]
        finally:
            parent.kill()


def test_broker_run_prints_a_usable_url_and_removes_its_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from supervisor.commands import main; main(prog_name='workq')", "broker", "run"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as workq:
        try:
            assert workq.stdout is not None
            line = next(line for line in workq.stdout if "export " in line)
            shell = subprocess.run(
                ["sh", "-c", f'{line}\nprintf %s "$WORKQ_URL"'], capture_output=True, text=True, check=True
            )
            amqp.publish(shell.stdout, "mine", [b"x"])
            assert amqp.depth(shell.stdout, "mine") == 1
            assert [place.name[:13] for place in tmp_path.iterdir()] == ["workq-broker-"]
            workq.send_signal(signal.SIGTERM)
            assert workq.wait(60) == 0
        finally:
            workq.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_rabbitmq_is_said_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKQ_RABBITMQ_HOME", str(tmp_path))
    with pytest.raises(NodeError, match=re.escape("apt-get install --no-install-recommends rabbitmq-server")):
        PrivateNode(tmp_path / "node")


def test_another_system_s_rabbitmq_runs_in_a_mount_namespace_of_its_own_and_the_pid_is_the_broker_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This very system, as if it were another one. (scripts/test --rabbitmq has the whole suite run on real ones.)
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "usr").symlink_to(find_installation().usr or "/usr")
    monkeypatch.setenv("WORKQ_RABBITMQ_HOME", str(tmp_path / "system"))
    there = find_installation()
    assert there.usr == tmp_path / "system" / "usr"
    tried = subprocess.run(there.command("true"), capture_output=True, text=True)
    if "not permitted" in tried.stderr:
        pytest.skip(tried.stderr)
    mounts = Path("/proc/self/mountinfo").read_text()
    nodes = [PrivateNode(tmp_path / name) for name in ("one", "two")]
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.start()
            assert node.eval("list_to_integer(os:getpid())") == str(node.pid)
            assert os.readlink(f"/proc/{node.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        assert Path("/proc/self/mountinfo").read_text() == mounts
        os.kill(nodes[0].pid, signal.SIGKILL)
        assert nodes[0].wait(30)
        assert nodes[1].eval("1 + 1") == "2"
    finally:
        for node in nodes:
            node.kill()


def test_a_directory_that_another_system_s_usr_would_hide_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "usr").symlink_to(find_installation().usr or "/usr")
    monkeypatch.setenv("WORKQ_RABBITMQ_HOME", str(tmp_path))
    with pytest.raises(NodeError, match="choose another directory"):
        PrivateNode(Path("/usr/local/node"))


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="fetching is apt's business")
def test_a_rabbitmq_that_cannot_be_fetched_is_said_without_the_password_and_leaves_nothing(tmp_path: Path) -> None:
    env = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "WORKQ_DEBIAN_MIRROR": "http://me:secret@127.0.0.1:9/debian",
    }
    tried = subprocess.run([ROOT / "scripts" / "rabbitmq", "newest"], env=env, capture_output=True, text=True)
    assert (tried.returncode, tried.stdout) == (1, "")
    assert "debian: " in tried.stderr and "127.0.0.1:9" in tried.stderr
    assert "secret" not in tried.stderr
    assert [path.name for path in (tmp_path / "workq-supervise").iterdir()] == ["lock"]


def test_a_taken_port_is_said_before_the_boot(node: PrivateNode, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=f"port {node.port} on 127.0.0.1 cannot be had"):
        PrivateNode(tmp_path / "node", port=node.port).start()


@contextmanager
def watched(pids: list[int]) -> Iterator[Callable[[], list[int]]]:
    """Processes that are not our children. Yields a function that waits until all have ended, 30 s at most, and returns
    those that did; whoever lives on is killed at the end."""
    descriptors = {os.pidfd_open(pid): pid for pid in pids}

    def ended() -> list[int]:
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        gone: set[int] = set()
        while len(gone) < len(descriptors) and (ready := poll.poll(30_000)):
            for descriptor, _ in ready:
                poll.unregister(descriptor)
                gone.add(descriptors[descriptor])
        return [pid for pid in pids if pid in gone]

    try:
        yield ended
    finally:
        for descriptor in descriptors:
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(descriptor)
