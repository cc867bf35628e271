"""`workq dead` against a real broker: nothing is lost by looking, by interrupting, or by the broker's end."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

import pika
import pytest

from supervisor import queues
from supervisor.commands.dead.queue import WORN
from supervisor.commands.plain import plain
from tests import amqp, handler_modules, wire
from tests.dead_letters import KINDS, PATIENCE, bury, command, dead, declare, ids, rows
from tests.node import PrivateNode
from tests.supervision import Runs, eventually, supervised


class Undecoded(pika.SelectConnection):
    """Keeps the properties of messages as bytes, and lets pika's decoder see none of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.raws: list[bytes] = []
        super().__init__(*args, **kwargs)

    def _read_frame(self) -> Any:
        buffer = self._frame_buffer
        size = struct.unpack(">L", buffer[3:7])[0] if len(buffer) >= 7 else 0
        if buffer[0] != pika.spec.FRAME_HEADER or len(buffer) < size + 8:
            return super()._read_frame()
        self.raws.append(buffer[7 + 12 : 7 + size])
        channel, body_size = struct.unpack(">H", buffer[1:3])[0], struct.unpack(">Q", buffer[11:19])[0]
        return size + 8, pika.frame.Header(channel, body_size, pika.BasicProperties())


def raw(url: str, queue: str) -> list[tuple[dict[str, bytes], bytes]]:
    """Every message in the queue, taken out: its properties still encoded, and its body."""
    link = pika.BlockingConnection(pika.URLParameters(url), _impl_class=Undecoded)
    try:
        channel, bodies = link.channel(), []
        while (got := channel.basic_get(queue, auto_ack=True))[0]:
            bodies.append(got[2])
        return [(wire.split(each), body) for each, body in zip(link._impl.raws, bodies, strict=True)]
    finally:
        link.close()


# ---------------------------------------------------------------------------------------------------- looking


def test_list_tells_and_consumes_nothing(broker_url: str, buried: str) -> None:
    bury(broker_url, buried, ["a", "b", "c"], "12345")
    assert [row["id"] for row in rows(broker_url, buried)] == ["a", "b", "c"]
    [row] = rows(broker_url, buried, "--limit", "1")
    assert (row["id"], row["reason"], row["error"], row["attempts"], row["crashes"], row["size"], row["queue"]) == (
        "a", "exception", "ValueError: no", 1, 0, 5, buried
    )  # fmt: skip
    assert row["age_seconds"] > 0
    out, _ = dead("list", "--limit", "2", url=broker_url, queue=buried)
    assert "2 of 3 dead letters" in out
    assert ids(amqp.drain(broker_url, f"{buried}.dead")) == ["a", "b", "c"]


def test_a_table_fits_80_columns_and_cuts_no_id(broker_url: str, buried: str) -> None:
    names = ["0123456789abcdef0123456789abcdef-tail", "0123456789" * 7, "short"]
    bury(broker_url, buried, names, headers={"x-workq-error": "E" * 500, "x-workq-host": "h" * 60})
    out, _ = dead("list", url=broker_url, queue=buried)
    *table, _total = out.splitlines()
    assert all(len(line) <= 80 for line in table)
    # Each is whole, in one line.
    assert {line.split()[0] for line in table if not line.startswith(" ")} == {"id", *names}


def test_a_message_without_an_id_goes_by_the_digest_that_workers_log(broker_url: str, buried: str) -> None:
    amqp.publish(broker_url, f"{buried}.dead", [b"\x00body"], headers={"x-workq-queue": buried})
    name = queues.digest(b"\x00body", buried)
    assert queues.digest(b"x", "q" * 100) == "digest:c3e635e8a1b5ce5a7c2f34ab2a0cd581"
    assert [row["id"] for row in rows(broker_url, buried)] == [name]
    dead("requeue", name, url=broker_url, queue=buried)
    assert amqp.depth(broker_url, buried) == 1


def test_show_has_the_evidence_and_the_body(broker_url: str, buried: str) -> None:
    headers = {"x-workq-reason": "crash", "x-workq-cause": "SIGSEGV", "x-workq-crashes": 3,
               "x-workq-evidence": "Fatal\n  File 'x.py'", "tenant": "blue"}  # fmt: skip
    bury(broker_url, buried, ["bomb"], '{"b": [1]}', headers=headers, content_type="application/json", priority=3)
    out, _ = dead("show", "bomb", url=broker_url, queue=buried)
    for text in (
        "SIGSEGV",
        "after 3 crashes",
        "  Fatal",
        "    File 'x.py'",
        "tenant  blue",
        "priority       3",
        '"b": [',
    ):
        assert text in out
    assert dead("show", "--body", "bomb", url=broker_url, queue=buried)[0] == '{"b": [1]}'
    _, err = dead("show", "nobody", url=broker_url, queue=buried, code=1)
    assert "no dead letter nobody" in err
    assert amqp.depth(broker_url, f"{buried}.dead") == 1


def test_hostile_text_reaches_no_terminal(broker_url: str, queue: str) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202egnp\r\x00[bold]x"
    bury(
        broker_url, queue, [evil], evil, content_type=evil,
        headers={"x-workq-error": evil, "x-workq-host": evil, "x-workq-reason": evil, "x-workq-cause": evil,
                 "x-workq-traceback": f"a\n{evil}\n", "x-workq-queue": evil, evil: [evil, b"\xff\x1b", {evil: evil}]},
    )  # fmt: skip
    fields = {
        b"\x1b[0m\xff": wire.nested(3000),
        b"t": (b"T", struct.pack(">Q", 2**62)),
        b"n": (b"d", struct.pack(">d", 1.5)),
    }
    encoded = wire.properties(
        headers=wire.table(fields), message_id=wire.short(b"\xff\x1bid"), timestamp=struct.pack(">Q", 2**63)
    )
    wire.publish(broker_url, f"{queue}.dead", encoded, b"\x1b\x00\xff" * 400)
    outs = [dead("list", url=broker_url, queue=queue), dead("list", "--json", url=broker_url, queue=queue)]
    names = [row["id"] for row in rows(broker_url, queue)]
    assert names[0] == evil
    outs += [
        dead("show", plain(evil), url=broker_url, queue=queue),
        dead("show", names[1], url=broker_url, queue=queue),
    ]
    for out, err in outs:
        assert all(char == "\n" or char.isprintable() for char in out + err)
    assert "1.5" in outs[3][0]
    assert "00000000  1b 00 ff" in outs[3][0]
    assert "[bold]" in outs[0][0] + outs[2][0]


def test_10000_dead_letters_are_listed_and_left(broker_url: str, buried: str) -> None:
    names = [f"m{n}" for n in range(10_000)]
    bury(broker_url, buried, names)
    assert {row["id"] for row in rows(broker_url, buried)} == set(names)
    assert amqp.depth(broker_url, f"{buried}.dead") == 10_000
    out, _ = dead("drop", "--all", "--yes", url=broker_url, queue=buried)
    assert "dropped 10,000 of 10,000" in out
    assert amqp.depth(broker_url, f"{buried}.dead") == amqp.depth(broker_url, buried) == 0


def test_looking_again_and_again_uses_up_no_delivery_limit(broker_url: str, queue: str) -> None:
    declare(broker_url, queue, "quorum", **{"x-delivery-limit": WORN + 1})
    bury(broker_url, queue, ["a", "b", "c"], headers={"k": "v"}, correlation_id="c")
    for _ in range(4 * WORN):
        assert {row["id"] for row in rows(broker_url, queue)} == {"a", "b", "c"}
    taken = amqp.drain(broker_url, f"{queue}.dead")
    assert sorted(ids(taken)) == ["a", "b", "c"]
    for _, properties, _ in taken:
        assert ((properties.headers or {})["k"], properties.correlation_id, properties.delivery_mode) == ("v", "c", 2)


# ------------------------------------------------------------------------------------------------- requeueing


def test_requeue_restores_the_message_to_the_byte(broker_url: str, buried: str) -> None:
    kept = {
        b"double": (b"d", struct.pack(">d", 1.5)),
        b"small": (b"b", b"\xff"),
        b"binary": (b"S", wire.long(b"\xff\x00")),
        b"stamp": (b"T", struct.pack(">Q", 2**62)),
        b"deep": wire.nested(5),
        b"void": (b"V", b""),
    }
    ours = {
        b"x-workq-reason": (b"S", wire.long(b"exception")),
        b"x-workq-attempt": (b"I", struct.pack(">i", 4)),
        b"x-workq-expiration": (b"S", wire.long(b"3600000")),
        b"x-workq-user-id": (b"S", wire.long(b"guest")),
        b"x-workq-queue": (b"S", wire.long(buried.encode())),
        b"x-delivery-count": (b"l", struct.pack(">q", 2)),
    }
    rest = {
        "content_type": wire.short(b"text/x"), "priority": b"\x05", "correlation_id": wire.short(b"\xfe"),
        "message_id": wire.short(b"m"), "timestamp": struct.pack(">Q", 2**63), "app_id": wire.short(b"app"),
    }  # fmt: skip
    encoded = wire.properties(headers=wire.table({**kept, **ours}), delivery_mode=b"\x02", **rest)
    wire.publish(broker_url, f"{buried}.dead", encoded, b"\x00\xff")
    out, _ = dead("requeue", "m", url=broker_url, queue=buried)
    assert f"requeued 1 from {buried}.dead" in out
    [(parts, body)] = raw(broker_url, buried)
    headers = wire.fields(parts.pop("headers"))
    headers.pop(b"x-delivery-count", None)  # the quorum queue's own
    assert headers == kept
    expected = {**rest, "delivery_mode": b"\x02", "expiration": wire.short(b"3600000"), "user_id": wire.short(b"guest")}
    assert (parts, body) == (expected, b"\x00\xff")
    assert amqp.depth(broker_url, f"{buried}.dead") == 0


def test_a_bare_message_that_somebody_else_put_there_goes_to_the_queue_by_name(broker_url: str, buried: str) -> None:
    amqp.publish(broker_url, f"{buried}.dead", ["bare"])
    wire.publish(broker_url, f"{buried}.dead", wire.properties(), b"barer")
    assert [row["reason"] for row in rows(broker_url, buried)] == ["", ""]
    dead("requeue", "--all", "--yes", url=broker_url, queue=buried)
    assert [body for _, body in raw(broker_url, buried)] == [b"bare", b"barer"]


def test_a_user_id_of_somebody_else_stays_a_header_and_cc_sends_no_copies(broker_url: str, queue: str) -> None:
    other = f"{queue}.dead.other"
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(other, durable=True)
    declare(broker_url, queue, "classic")
    bury(broker_url, queue, ["m"], headers={"x-workq-user-id": "bob", "CC": [other]})
    with amqp.connection(broker_url) as link:
        link.channel().queue_purge(other)
    dead("requeue", "m", url=broker_url, queue=queue)
    [(_, properties, _)] = amqp.drain(broker_url, queue)
    assert (properties.user_id, properties.headers) == (None, {"x-workq-user-id": "bob"})
    assert amqp.depth(broker_url, other) == 0


def test_an_undecodable_message_is_requeued_as_it_was(broker_url: str, queue: str) -> None:
    declare(broker_url, queue, "classic")
    sent = wire.properties(
        # In the order of their names, as RabbitMQ 4 delivers headers.
        headers=wire.table({b"n": (b"d", struct.pack(">d", 2.5)), b"t": (b"T", struct.pack(">Q", 2**62))}),
        delivery_mode=b"\x02",
        message_id=wire.short(b"odd"),
    )
    wire.publish(broker_url, f"{queue}.dead", wire.properties(headers=wire.table({
        b"x-workq-reason": (b"S", wire.long(b"undecodable")),
        b"x-workq-properties": (b"x", wire.long(sent)),
    }), message_id=wire.short(b"odd")))  # fmt: skip
    dead("requeue", "odd", url=broker_url, queue=queue)
    assert raw(broker_url, queue) == [(wire.split(sent), b"0")]


def test_what_a_supervisor_put_aside_is_requeued_and_run_to_success(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path
) -> None:
    amqp.publish(broker_url, queue, ["nonsense", "0"], ids=["bad", "good"])
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "0.1")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.dead_lettered", message_id="bad")
        assert pool.stop() == 0
    [row] = rows(broker_url, queue)
    assert (row["id"], row["reason"], row["attempts"]) == ("bad", "exception", 2)
    assert "could not convert" in dead("show", "bad", url=broker_url, queue=queue)[0]
    handler_modules.write(tmp_path, "mended", "def work(task):\n    assert task.attempt == 1 and not task.headers\n")
    mended = {"PYTHONPATH": str(tmp_path)}
    with supervised("mended:work", "--workers", "1", url=broker_url, queue=queue, env=mended) as pool:
        pool.ready()
        dead("requeue", "--all", "--yes", url=broker_url, queue=queue)
        pool.hear("task.succeeded", message_id="bad")
        assert pool.stop() == 0
    assert amqp.depth(broker_url, f"{queue}.dead") == amqp.depth(broker_url, queue) == 0


def test_ids_that_are_not_there_are_named_and_the_others_done(broker_url: str, buried: str) -> None:
    bury(broker_url, buried, ["a", "twin", "b", "twin", "c"])
    out, err = dead("requeue", "twin", "nope", "b", "never", url=broker_url, queue=buried, code=1)
    assert "requeued 3 " in out
    assert "2 dead letters have the id twin" in out
    assert "no dead letter nope" in err
    assert "no dead letter never" in err
    assert sorted(ids(amqp.drain(broker_url, buried))) == ["b", "twin", "twin"]
    assert sorted(row["id"] for row in rows(broker_url, buried)) == ["a", "c"]


def test_messages_for_a_queue_that_is_gone_stay(broker_url: str, buried: str) -> None:
    bury(broker_url, buried, ["a", "\u00fc"])
    amqp.publish(broker_url, f"{buried}.dead", ["0"])
    wire.publish(broker_url, f"{buried}.dead", wire.properties(message_id=wire.short(b"\xff")))
    out, err = dead("requeue", "--all", "--yes", "--to", f"{buried}-gone", url=broker_url, queue=buried, code=1)
    assert "requeued 0 of 4" in out
    assert err.count(f"there is no queue {buried}-gone") == 4
    assert amqp.depth(broker_url, f"{buried}.dead") == 4


def test_a_full_queue_refuses_and_nothing_is_lost(broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
        link.channel().queue_declare(queue, durable=True, arguments=limits)
    names = [f"m{n}" for n in range(50)]
    bury(broker_url, queue, names)
    _, err = dead("requeue", "--all", "--yes", url=broker_url, queue=queue, code=1)
    assert "full" in err
    taken = ids(amqp.drain(broker_url, queue)) + ids(amqp.drain(broker_url, f"{queue}.dead"))
    assert sorted(taken) == sorted(names)


def test_drop_deletes_what_is_named_and_all_only_when_told_so(broker_url: str, buried: str) -> None:
    bury(broker_url, buried, ["a", "b", "c"])
    dead("drop", "b", url=broker_url, queue=buried)
    _, err = dead("drop", "--all", url=broker_url, queue=buried, code=2)
    assert "--yes" in err
    assert [row["id"] for row in rows(broker_url, buried)] == ["a", "c"]
    dead("drop", "--all", "--yes", url=broker_url, queue=buried)
    assert amqp.depth(broker_url, f"{buried}.dead") == amqp.depth(broker_url, buried) == 0


def test_no_queue_no_broker_no_login_are_one_line_without_the_password(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    assert "there is no queue" in dead("list", url=broker_url, queue=queue)[0]
    dead("requeue", "--all", "--yes", url=broker_url, queue=queue)
    dead("requeue", "x", url=broker_url, queue=queue, code=1)
    dead("requeue", url=broker_url, queue=queue, code=2)
    dead("requeue", "--all", "x", url=broker_url, queue=queue, code=2)
    secret = "sesame-4711"
    for arguments in (("list",), ("requeue", "--all", "--yes"), ("drop", "--all", "--yes"), ("show", "x")):
        wrong = broker_url.replace("guest:guest", f"guest:{secret}")
        out, err = dead(*arguments, url=wrong, queue=queue, code=78)
        assert secret not in out + err
        assert err.count("\n") == 1
        out, err = dead(*arguments, url=f"amqp://guest:{secret}@127.0.0.1:1/", queue=queue, code=75)
        assert secret not in out + err
        assert err.count("\n") == 1
    file = tmp_path / "urls"
    file.write_text(f"# mine\n\n{broker_url}\n")
    assert "there is no queue" in dead("list", "--url-file", str(file), url="amqp://wrong:1/", queue=queue)[0]


# ------------------------------------------------------------------------------------------------ interruptions


def test_sigkill_in_mid_requeue_loses_nothing(broker_url: str, buried: str) -> None:
    names = [f"m{n}" for n in range(4000)]
    bury(broker_url, buried, names)
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    gone: set[str] = set()
    interrupted = 0
    for _ in range(6):
        process = subprocess.Popen(**command("requeue", "--all", "--yes", *SLOWLY, url=broker_url, queue=buried))
        try:
            # Events, not seconds: once it has moved something, it is killed somewhere in what follows.
            await_moved(broker_url, buried, process, dice.randrange(1, 1000))
        finally:
            process.kill()
            interrupted += process.wait() == -signal.SIGKILL
            process.communicate()
        gone |= set(ids(amqp.drain(broker_url, buried)))
        left = {row["id"] for row in rows(broker_url, buried)}
        assert gone | left == set(names), f"seed {seed}"
    assert interrupted, f"seed {seed}"
    dead("requeue", "--all", "--yes", url=broker_url, queue=buried)
    gone |= set(ids(amqp.drain(broker_url, buried)))
    assert gone == set(names)
    assert amqp.depth(broker_url, f"{buried}.dead") == 0


def await_moved(url: str, queue: str, process: subprocess.Popen[bytes], goal: int) -> None:
    """Until it has requeued so many, or is at its end."""
    eventually(lambda: amqp.depth(url, queue) >= goal or process.poll() is not None)


SLOWLY = ("--rate", "1000/s")
"""So slowly that thousands are not moved before a look at the queue."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_requeue_between_windows_without_a_duplicate(
    broker_url: str, buried: str, number: signal.Signals
) -> None:
    names = [f"m{n}" for n in range(4000)]
    bury(broker_url, buried, names)
    process = subprocess.Popen(**command("requeue", "--all", "--yes", *SLOWLY, url=broker_url, queue=buried))
    try:
        eventually(lambda: amqp.depth(broker_url, buried) > 0)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    moved = ids(amqp.drain(broker_url, buried))
    assert f"requeued {len(moved):,} of 4,000".encode() in out
    assert 0 < len(moved) < 4000
    assert sorted(moved + [row["id"] for row in rows(broker_url, buried)]) == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_killed_in_mid_requeue_loses_nothing(own_node: PrivateNode, kind: str) -> None:
    declare(own_node.url, "q", kind)
    names = [f"m{n}" for n in range(4000)]
    bury(own_node.url, "q", names)
    own_node.sync()
    process = subprocess.Popen(**command("requeue", "--all", "--yes", *SLOWLY, url=own_node.url, queue="q"))
    try:
        eventually(lambda: amqp.depth(own_node.url, "q") > 0)
        own_node.kill()
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, err
    assert b"Nothing is lost" in err
    own_node.start()
    eventually(lambda: amqp.depth(own_node.url, "q") > 0)
    left = {row["id"] for row in rows(own_node.url, "q")}
    assert left | set(ids(amqp.drain(own_node.url, "q"))) == set(names)


def test_a_list_that_is_killed_gives_everything_back(broker_url: str, buried: str) -> None:
    bury(broker_url, buried, [f"m{n}" for n in range(3000)])
    process = subprocess.Popen(**command("list", url=broker_url, queue=buried))
    try:
        eventually(lambda: amqp.depth(broker_url, f"{buried}.dead") < 3000)
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: amqp.depth(broker_url, f"{buried}.dead") == 3000)


# --------------------------------------------------------------------------------------------------- neighbours


def test_two_at_once_and_new_dead_letters_meanwhile_disturb_nobody(broker_url: str, buried: str) -> None:
    names = [f"m{n}" for n in range(3000)]
    bury(broker_url, buried, names)
    both = [subprocess.Popen(**command("requeue", "--all", "--yes", url=broker_url, queue=buried)) for _ in range(2)]
    late = [f"late{n}" for n in range(500)]
    try:
        bury(broker_url, buried, late)
        ends = [process.communicate(timeout=PATIENCE) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0], ends
    moved = ids(amqp.drain(broker_url, buried))
    left = ids(amqp.drain(broker_url, f"{buried}.dead"))
    assert sorted(moved + left) == sorted(names + late)


def test_a_requeue_takes_what_was_there_when_it_came_and_ends(broker_url: str, queue: str) -> None:
    """Its queue is its own dead-letter queue: without a snapshot this would go round for ever."""
    declare(broker_url, queue, "classic")
    bury(broker_url, queue, [f"m{n}" for n in range(300)])
    out, _ = dead("requeue", "--all", "--yes", "--to", f"{queue}.dead", url=broker_url, queue=queue)
    assert "requeued 300 of 300" in out
    assert amqp.depth(broker_url, f"{queue}.dead") == 300
