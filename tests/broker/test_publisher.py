"""The producing side against a real broker: what was confirmed is there, and what is not there was not confirmed."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika
import pytest

from supervisor.amqp.errors import Kind, Trouble, explain
from supervisor.endpoint import Endpoint
from supervisor.publisher import (
    Blocked,
    NotSent,
    Options,
    Publisher,
    Refused,
    Unconfirmed,
    Unroutable,
)
from tests import amqp
from tests.node import PrivateNode
from tests.supervision import eventually

PASSWORD = "open%20sesame-7319"
GREEN_EVENTLET = "import eventlet; from eventlet import spawn, sleep; eventlet.monkey_patch()"
SECRETS = (PASSWORD, "open sesame-7319")


def bodies(url: str, queue: str) -> list[bytes]:
    return [body for _method, _properties, body in amqp.drain(url, queue)]


def queue_type(node: PrivateNode, queue: str) -> str:
    name = f'rabbit_misc:r(<<"/">>, queue, {amqp.binary(queue)})'
    return node.eval(f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), amqqueue:get_type(Q).")


def keep_queues(node: PrivateNode) -> None:
    """RabbitMQ 3.10 confirms messages when they are on disk, but writes a new queue's definition a moment after it has
    said declare-ok: one declared just before a SIGKILL is gone, and its messages with it."""
    node.eval("mnesia:sync_log().")


def trouble(url: str | Endpoint, queue: str = "q", **options: Any) -> Trouble:
    with Publisher(url, queue, **options) as publisher, pytest.raises(NotSent) as raised:
        publisher.publish("never sent")
    assert raised.value.trouble is not None
    assert "\n" not in raised.value.reason
    return raised.value.trouble


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------------------------------------- one message


def test_a_message_is_persistent_and_has_the_id_that_was_returned(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        first = publisher.publish("grüße")
        publisher.publish(b"\x00\xff", message_id="mine", headers={"k": "v"})
    (_, one, body), (_, two, other) = amqp.drain(broker_url, queue)
    assert (one.delivery_mode, one.message_id, body) == (2, first, "grüße".encode())
    assert (two.delivery_mode, two.message_id, two.headers, other) == (2, "mine", {"k": "v"}, b"\x00\xff")


def test_properties_go_as_they_came_with_headers_added(broker_url: str, queue: str) -> None:
    given = pika.BasicProperties(
        headers={"old": [1, {"deep": None}]}, correlation_id="c", content_type="text/x", priority=3, delivery_mode=1
    )
    with Publisher(broker_url, queue) as publisher:
        assert publisher.publish(b"", properties=given, headers={"x-workq-reason": "crash"}) == ""
    [(_, came, body)] = amqp.drain(broker_url, queue)
    assert came.headers == {"old": [1, {"deep": None}], "x-workq-reason": "crash"}
    assert (came.correlation_id, came.content_type, came.priority, came.message_id) == ("c", "text/x", 3, None)
    assert (came.delivery_mode, body) == (2, b"")
    assert (given.headers, given.delivery_mode) == ({"old": [1, {"deep": None}]}, 1)


def test_confirmed_messages_survive_a_killed_broker(own_node: PrivateNode) -> None:
    with Publisher(own_node.url, "kept") as publisher:
        publisher.connect()
        keep_queues(own_node)
        for body in ("a", "b", "c"):
            publisher.publish(body)
    own_node.kill()
    own_node.start()
    assert bodies(own_node.url, "kept") == [b"a", b"b", b"c"]


def test_a_message_for_a_deleted_queue_is_unroutable_not_lost(node: PrivateNode, broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        publisher.publish("there")
        amqp.delete(node, queue)
        with pytest.raises(Unroutable, match=queue) as raised:
            publisher.publish("nowhere")
        assert (raised.value.failed, raised.value.pending, raised.value.confirmed) == ((0,), (), 0)


def test_a_full_queue_refuses(broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    with Publisher(broker_url, queue) as publisher:
        publisher.publish("fits")
        with pytest.raises(Refused, match="full"):
            for _ in range(3):
                publisher.publish("too much")


def test_a_message_that_closes_the_channel_is_refused_and_the_next_goes_through(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        with pytest.raises(Refused, match="user_id"):
            publisher.publish("x", properties=pika.BasicProperties(user_id="somebody else"))
        publisher.publish("next")
    assert bodies(broker_url, queue) == [b"next"]


def test_a_header_that_amqp_cannot_carry_is_the_callers_error(broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue) as publisher:
        with pytest.raises(ValueError, match="AMQP cannot carry"):
            publisher.publish("x", headers={"k": object()})
        publisher.publish("next")
    assert bodies(broker_url, queue) == [b"next"]


@pytest.mark.parametrize(
    "patched",
    ["from gevent import monkey, spawn, sleep; monkey.patch_all()", GREEN_EVENTLET],
    ids=["gevent", "eventlet"],
)
@pytest.mark.parametrize("patches_first", [True, False])
def test_in_a_program_of_green_threads_the_others_run_while_it_waits(
    broker_url: str, queue: str, patched: str, patches_first: bool
) -> None:
    ours = "from supervisor import Publisher; import supervisor.publisher"
    script = "\n".join(
        (
            *((patched, ours) if patches_first else (ours, patched)),
            "turns = 0",
            "def other():",
            "    global turns",
            "    while True:",
            "        turns += 1",
            "        sleep(0)",
            "spawn(other)",
            f"with Publisher({broker_url.replace('127.0.0.1', 'localhost')!r}, {queue!r}) as publisher:",
            "    publisher.publish('x')",
            "print(turns > 0)",
        )
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert bodies(broker_url, queue) == [b"x"]


# ----------------------------------------------------------------------------------------------- the queue


def test_a_queue_that_exists_keeps_its_type_and_arguments(node: PrivateNode, broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 7}
        link.channel().queue_declare(queue, durable=True, arguments=arguments)
    with Publisher(broker_url, queue) as publisher:
        publisher.publish("x")
    assert queue_type(node, queue) == "rabbit_quorum_queue"
    assert amqp.depth(broker_url, queue) == 1


def test_the_type_asked_for_is_declared(node: PrivateNode, broker_url: str, queue: str) -> None:
    with Publisher(broker_url, queue, queue_type="quorum") as publisher:
        publisher.publish("x")
    assert queue_type(node, queue) == "rabbit_quorum_queue"


@pytest.mark.parametrize("plain_first", [True, False])
def test_a_plain_producers_declaration_agrees_with_ours_in_either_order(
    broker_url: str, queue: str, plain_first: bool
) -> None:
    def plain() -> None:
        with amqp.connection(broker_url) as link:
            channel = link.channel()
            channel.queue_declare(queue, durable=True)
            channel.basic_publish("", queue, b"plain")
            channel.queue_declare(queue, durable=True)

    if plain_first:
        plain()
    with Publisher(broker_url, queue) as publisher:
        publisher.publish("ours")
    if not plain_first:
        plain()
    assert set(bodies(broker_url, queue)) == {b"plain", b"ours"}


def test_an_explicit_type_that_the_queue_has_not_is_an_error_of_settings(broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True)
    found = trouble(broker_url, queue, queue_type="quorum")
    assert (found.kind, found.permanent) == (Kind.MISMATCH, True)
    assert "x-queue-type" in found.reason


def test_without_leave_to_declare_a_missing_queue_stays_missing(broker_url: str, queue: str) -> None:
    found = trouble(broker_url, queue, declare=False)
    assert (found.kind, found.permanent) == (Kind.MISSING, False)
    with amqp.connection(broker_url) as link:
        assert amqp.look(link, queue) is None


# -------------------------------------------------------------------------------------------- many messages


def test_twenty_thousand_arrive_once_each_and_in_order(broker_url: str, queue: str) -> None:
    seen: list[int] = []
    with Publisher(broker_url, queue) as publisher:
        count = publisher.publish_many(
            (str(number) for number in range(20_000)), on_confirmed=lambda position, _id: seen.append(position)
        )
    assert count == 20_000
    assert sorted(seen) == list(range(20_000))
    assert bodies(broker_url, queue) == [str(number).encode() for number in range(20_000)]


def test_no_more_than_the_window_is_ever_in_flight(broker_url: str, queue: str) -> None:
    drawn = confirmed = most = 0

    def messages() -> Iterator[str]:
        nonlocal drawn, most
        for _ in range(500):
            most = max(most, drawn - confirmed)
            drawn += 1
            yield "x"

    def note(_position: int, _id: str) -> None:
        nonlocal confirmed
        confirmed += 1

    with Publisher(broker_url, queue) as publisher:
        publisher.publish_many(messages(), window=10, on_confirmed=note)
    assert 1 < most <= 10


def test_a_none_settles_what_is_in_flight_before_the_next_is_drawn(broker_url: str, queue: str) -> None:
    confirmed: list[int] = []

    def messages() -> Iterator[str | None]:
        yield "a"
        yield "b"
        yield None
        assert confirmed == [0, 1]
        yield "c"

    with Publisher(broker_url, queue) as publisher:
        assert publisher.publish_many(messages(), on_confirmed=lambda position, _id: confirmed.append(position)) == 3


def test_an_iterable_that_fails_comes_through_with_everything_sent_before_confirmed(
    broker_url: str, queue: str
) -> None:
    def messages() -> Iterator[str]:
        yield from ("a", "b")
        raise LookupError("no more")

    confirmed: list[int] = []
    with Publisher(broker_url, queue) as publisher, pytest.raises(LookupError):
        publisher.publish_many(messages(), on_confirmed=lambda position, _id: confirmed.append(position))
    assert confirmed == [0, 1]
    assert bodies(broker_url, queue) == [b"a", b"b"]


def test_one_unroutable_message_among_many_is_named_by_its_position(broker_url: str, queue: str) -> None:
    messages = [("a", Options()), ("b", Options(routing_key=f"{queue}.nobody")), ("c", Options())]
    with Publisher(broker_url, queue) as publisher, pytest.raises(Unroutable) as raised:
        publisher.publish_many(messages)
    assert (raised.value.failed, raised.value.confirmed, raised.value.pending) == ((1,), 2, ())
    assert bodies(broker_url, queue) == [b"a", b"c"]


def test_a_broker_killed_midway_leaves_doubt_only_about_what_was_in_flight(own_node: PrivateNode) -> None:
    confirmed: set[int] = set()

    def messages() -> Iterator[str]:
        """Between its freezing and its death one message is sent: it at least is in flight."""
        frozen = False
        for number in range(100_000):
            if frozen and own_node.alive:
                own_node.kill()
            elif len(confirmed) > 2000 and not frozen:
                os.kill(own_node.pid, signal.SIGSTOP)
                frozen = True
            yield str(number)

    with Publisher(own_node.url, "q") as publisher:
        publisher.connect()
        keep_queues(own_node)
        with pytest.raises(Unconfirmed) as raised:
            publisher.publish_many(messages(), on_confirmed=lambda position, _id: confirmed.add(position))
    error = raised.value
    assert error.confirmed == len(confirmed) > 2000
    assert 0 < len(error.pending) <= 1000
    assert set(range(error.sent)) == confirmed | set(error.pending)
    assert not confirmed & set(error.pending)
    own_node.start()
    there = {int(body) for body in bodies(own_node.url, "q")}
    assert confirmed <= there <= confirmed | set(error.pending)


def test_an_idle_publisher_connects_again_after_the_broker_was_restarted(own_node: PrivateNode) -> None:
    with Publisher(own_node.url, "q") as publisher:
        publisher.publish("before")
        keep_queues(own_node)
        own_node.kill()
        own_node.start()
        publisher.publish("after")
    assert bodies(own_node.url, "q") == [b"before", b"after"]


def test_a_publisher_that_has_missed_its_heartbeats_connects_again_and_is_in_no_doubt(own_node: PrivateNode) -> None:
    """The broker's own heartbeats are still to be read, in front of the end."""
    with Publisher(own_node.url, "q", heartbeat=1) as publisher:
        publisher.publish("before")
        eventually(lambda: own_node.eval("length(rabbit_networking:connections())") == "0")
        publisher.publish("after")
    assert bodies(own_node.url, "q") == [b"before", b"after"]


def test_a_frozen_broker_leaves_the_message_unconfirmed_and_close_does_not_hang(own_node: PrivateNode) -> None:
    with Publisher(own_node.url, "q") as publisher:
        publisher.publish("before")
        before = descriptors()
        os.kill(own_node.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, own_node.pid, os.WSTOPPED | os.WNOWAIT)  # its last thread may still be running
        try:
            with pytest.raises(Unconfirmed, match="confirmed nothing") as raised:
                publisher.publish("doubtful", timeout=0.5)
        finally:
            os.kill(own_node.pid, signal.SIGCONT)
        assert raised.value.pending == (0,)
        assert descriptors() < before


def test_an_alarm_blocks_and_its_end_unblocks(own_node: PrivateNode) -> None:
    with Publisher(own_node.url, "q") as publisher:
        publisher.connect()
        own_node.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).")
        with pytest.raises(Blocked, match="alarm"):
            for _ in range(10):
                publisher.publish("x", timeout=1)
        own_node.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")
        publisher.publish("goes through")
    assert b"goes through" in bodies(own_node.url, "q")


# ------------------------------------------------------------------------------------------ errors in words


def test_a_broker_shut_down_by_its_operator_is_told_apart(own_node: PrivateNode) -> None:
    link = pika.BlockingConnection(pika.URLParameters(own_node.url))
    own_node.eval("rabbit:stop().")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as raised:
        while True:
            link.process_data_events(time_limit=60)
    found = explain(raised.value, Endpoint.parse(own_node.url))
    assert (found.kind, found.permanent) == (Kind.OPERATOR, False)


def test_a_port_where_nothing_listens_is_refused(unused_port: int) -> None:
    found = trouble(f"amqp://user:{PASSWORD}@127.0.0.1:{unused_port}/%2F")
    assert (found.kind, found.permanent) == (Kind.REFUSED, False)
    assert not any(secret in repr(found) for secret in SECRETS)


def test_a_wrong_password_is_an_error_of_settings_that_does_not_tell_it(broker_url: str) -> None:
    found = trouble(replace(Endpoint.parse(broker_url), password="open sesame-7319"))
    assert (found.kind, found.permanent) == (Kind.AUTHENTICATION, True)
    assert "user guest" in found.reason
    assert not any(secret in repr(found) for secret in SECRETS)


def test_a_missing_virtual_host_is_an_error_of_settings(broker_url: str) -> None:
    found = trouble(replace(Endpoint.parse(broker_url), vhost="nowhere"))
    assert (found.kind, found.permanent) == (Kind.VHOST, True)
    assert "virtual host nowhere" in found.reason


def test_a_host_without_an_address_is_told_apart() -> None:
    found = trouble("amqp://host.invalid")
    assert (found.kind, found.permanent) == (Kind.DNS, False)


def test_tls_to_a_port_that_speaks_none_is_told_apart(broker_url: str) -> None:
    assert trouble(replace(Endpoint.parse(broker_url), tls=True)).kind == Kind.TLS


def test_a_certificate_file_that_is_not_there_is_an_error_of_settings(broker_url: str, tmp_path: Path) -> None:
    port = Endpoint.parse(broker_url).port
    found = trouble(f"amqps://127.0.0.1:{port}/?cafile={tmp_path}/none.pem")
    assert (found.kind, found.permanent) == (Kind.SETTINGS, True)
    assert "none.pem" in found.reason


def test_another_connections_exclusive_queue_is_locked(broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, exclusive=True)
        assert trouble(broker_url, queue).kind == Kind.LOCKED


def test_a_user_without_permission_is_told_so(node: PrivateNode, broker_url: str, queue: str) -> None:
    name = amqp.binary(queue)
    node.eval(f'rabbit_auth_backend_internal:add_user({name}, <<"pw">>, <<"test">>).')
    try:
        node.eval(
            f'rabbit_auth_backend_internal:set_permissions({name}, <<"/">>, <<"^$">>, <<".*">>, <<".*">>, <<"test">>).'
        )
        found = trouble(replace(Endpoint.parse(broker_url), user=queue, password="pw"), queue)
    finally:
        node.eval(f'rabbit_auth_backend_internal:delete_user({name}, <<"test">>).')
    assert (found.kind, found.permanent) == (Kind.PERMISSION, True)
    assert f"user {queue}" in found.reason


def test_something_that_listens_and_never_answers_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = trouble(f"amqp://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.5)
    assert (found.kind, found.permanent) == (Kind.TIMEOUT, False)


def test_failed_connections_leave_no_descriptor_behind(unused_port: int) -> None:
    publisher = Publisher(f"amqp://127.0.0.1:{unused_port}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = Publisher(f"amqp://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.1)
        gc.collect()  # what other tests have left
        before = descriptors()
        for each in (publisher, mute, publisher, mute):
            with pytest.raises(NotSent):
                each.connect()
        assert descriptors() == before


def test_of_several_nodes_one_that_is_up_is_enough(broker_url: str, queue: str, unused_port: int) -> None:
    for _ in range(5):
        with Publisher([f"amqp://127.0.0.1:{unused_port}", broker_url], queue) as publisher:
            publisher.publish("x")
            assert publisher.endpoint == Endpoint.parse(broker_url)
    assert amqp.depth(broker_url, queue) == 5


# ------------------------------------------------------------------------------------------- workq publish

WORKQ = [sys.executable, "-c", "from supervisor.commands import main; main(prog_name='workq')", "publish"]


def workq(url: str, queue: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "WORKQ_URL": url, "WORKQ_QUEUE": queue}
    done = subprocess.run([*WORKQ, *arguments], input=stdin, capture_output=True, env=environment, timeout=60)
    for secret in SECRETS:
        assert secret.encode() not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    return done


def test_workq_publishes_its_arguments_with_headers_and_says_so(broker_url: str, queue: str) -> None:
    done = workq(broker_url, queue, "--header", "a=1", "--header", "b=x=y", "one", "two")
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"published 2, confirmed 2, to {queue} on amqp://guest:***@".encode() in done.stdout
    assert [(each[1].headers, each[2]) for each in amqp.drain(broker_url, queue)] == [
        ({"a": "1", "b": "x=y"}, b"one"),
        ({"a": "1", "b": "x=y"}, b"two"),
    ]


def test_workq_gives_a_single_message_the_id_asked_for(broker_url: str, queue: str) -> None:
    assert b"(id order-7)" in workq(broker_url, queue, "--id", "order-7", "one").stdout
    [(_, properties, _)] = amqp.drain(broker_url, queue)
    assert properties.message_id == "order-7"


def test_workq_shows_an_id_so_that_a_terminal_takes_it_for_text(broker_url: str, queue: str) -> None:
    assert rb"(id \x1b[31mred\n)" in workq(broker_url, queue, "--id", "\x1b[31mred\n", "one").stdout
    [(_, properties, _)] = amqp.drain(broker_url, queue)
    assert properties.message_id == "\x1b[31mred\n"


def test_workq_publishes_each_line_of_standard_input(broker_url: str, queue: str) -> None:
    lines = [b"first", b"", b"\xff\x00", b"x" * 200_000, b"last, without its newline"]
    assert b"published 5, confirmed 5" in workq(broker_url, queue, "-", stdin=b"\n".join(lines)).stdout
    assert bodies(broker_url, queue) == lines


def test_workq_publishes_a_line_before_standard_input_has_ended(broker_url: str, queue: str) -> None:
    environment = {**os.environ, "WORKQ_URL": broker_url}
    process = subprocess.Popen(
        [*WORKQ, "--queue", queue, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdin is not None
        with amqp.connection(broker_url) as link:
            channel = link.channel()
            channel.queue_declare(queue, durable=True)
            process.stdin.write(b"early\n")
            process.stdin.flush()
            for _method, _properties, body in channel.consume(queue, inactivity_timeout=60):
                assert body == b"early"
                assert process.poll() is None
                break
            channel.cancel()
        out, _ = process.communicate(timeout=60)
        assert b"published 1, confirmed 1" in out
    finally:
        process.kill()
        process.wait()


def test_workq_shows_progress_on_a_terminal(broker_url: str, queue: str) -> None:
    master, slave = os.openpty()
    try:
        environment = {**os.environ, "WORKQ_URL": broker_url, "WORKQ_QUEUE": queue}
        done = subprocess.run(
            [*WORKQ, "-"], input=b"a\nb\n", stdout=subprocess.PIPE, stderr=slave, env=environment, timeout=60
        )
        assert done.returncode == 0
        assert select.select([master], [], [], 10)[0]
        assert b"2 confirmed" in os.read(master, 4096)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--id", "x", "one", "two"], b"--id needs a single BODY"),
        (["--id", "x", "-"], b"--id needs a single BODY"),
        (["-", "one"], b"cannot be combined with other bodies"),
        (["--header", "novalue", "one"], b"NAME=VALUE"),
        (["--queue", "", "one"], b"a queue name of 1 to 250 bytes"),
        ([], b"Missing argument"),
        (["--url", f"amqp://user:{PASSWORD}@host:port", "one"], b"--url"),
        (["--url", f"http://user:{PASSWORD}@host", "one"], b"amqp://"),
    ],
)
def test_workq_explains_a_command_line_that_it_cannot_read(arguments: list[str], words: bytes) -> None:
    done = workq("amqp://127.0.0.1:1", "q", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == b""


def test_workq_without_a_broker_says_so_in_one_line_and_exits_with_75(unused_port: int) -> None:
    done = workq(f"amqp://user:{PASSWORD}@127.0.0.1:{unused_port}", "q", "one")
    assert done.returncode == 75
    assert done.stdout.startswith(b"published 0, confirmed 0, to q on amqp://user:***@")
    assert done.stderr.startswith(b"workq publish: connection refused by amqp://user:***@127.0.0.1:")
    assert done.stderr.count(b"\n") == 1


def test_workq_with_a_wrong_password_exits_with_78(broker_url: str) -> None:
    done = workq(broker_url.replace("guest:guest", f"guest:{PASSWORD}"), "q", "one")
    assert done.returncode == 78
    assert b"refuses the login of user guest" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_workq_that_gets_only_some_confirmed_says_how_many_and_exits_with_1(
    node: PrivateNode, broker_url: str, queue: str
) -> None:
    environment = {**os.environ, "WORKQ_URL": broker_url, "WORKQ_QUEUE": queue}
    process = subprocess.Popen(
        [*WORKQ, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdin is not None
        with amqp.connection(broker_url) as link:
            channel = link.channel()
            channel.queue_declare(queue, durable=True)
            process.stdin.write(b"one\n")
            process.stdin.flush()
            next(channel.consume(queue, inactivity_timeout=60))
        amqp.delete(node, queue)
        out, err = process.communicate(b"two\n", timeout=60)
        assert process.returncode == 1
        assert b"published 2, confirmed 1" in out
        assert b"no queue takes messages" in err
    finally:
        process.kill()
        process.wait()
