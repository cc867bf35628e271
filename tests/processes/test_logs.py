"""The promises of `supervisor.logs`, kept by real processes, pipes and signals."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import fcntl
import json
import logging
import os
import pty
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import logs
from supervisor.logs import setup, sink

MADE_AT_IMPORT = structlog.get_logger("made.at.import")


# ------------------------------------------------------------------------------------------------------- the setting


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lock() -> Iterator[int]:
    fd = logs.open_lock()
    yield fd
    os.close(fd)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which the reader does come, however busy the machine is."""
    monkeypatch.setattr(sink, "SHORT_PATIENCE", 30.0)
    monkeypatch.setattr(sink, "LONG_PATIENCE", 30.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which it does not."""
    monkeypatch.setattr(sink, "SHORT_PATIENCE", 0.01)
    monkeypatch.setattr(sink, "LONG_PATIENCE", 0.01)


class Reader:
    """Collects all that comes out of a pipe, on a thread, until every writer is gone."""

    def __init__(self, fd: int) -> None:
        self.data = bytearray()
        self.arrived = threading.Condition()
        self._fd = fd
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self._fd, 1 << 16):
            with self.arrived:
                self.data += piece
                self.arrived.notify_all()

    def until(self, size: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.data) >= size, timeout=30)

    def until_seen(self, text: bytes, after: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.data.find(text, after) >= 0, timeout=30)

    def rest(self) -> bytes:
        self._thread.join(30)
        assert not self._thread.is_alive()
        os.close(self._fd)
        return bytes(self.data)


class Child:
    """A fork that runs the task and leaves; killed by the end of the block, if it is still there."""

    def __init__(self, task: Callable[[], None]) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                task()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def exit_code(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.exit_code()


class Captured:
    """This process configured to log to a file, and what it wrote there."""

    def __init__(self, path: Path, lock_fd: int, **options: Any) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        given = {"role": "worker", "queue": "q", "slot": 2, "format": "json", "level": "info"} | options
        self.sink = logs.configure(fd=self.fd, lock_fd=lock_fd, **given)

    def records(self) -> list[dict[str, Any]]:
        return [strict(line) for line in self.path.read_bytes().splitlines(keepends=True)]

    def record(self) -> dict[str, Any]:
        (record,) = self.records()
        return record


@pytest.fixture
def captured(tmp_path: Path, lock: int) -> Iterator[Captured]:
    one = Captured(tmp_path / "log", lock)
    yield one
    one.sink.close()
    os.close(one.fd)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def strict(line: bytes) -> dict[str, Any]:
    """The record, if the line is one: whole, ASCII, strict JSON without lone surrogates, and short enough."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= 32768
    text = line.decode("ascii")
    assert all(character.isprintable() for character in text[:-1])
    record = json.loads(text, parse_constant=_no_constant)
    assert isinstance(record, dict)
    json.dumps(record, ensure_ascii=False).encode("utf-8")
    return record


def unread_pipe() -> tuple[int, int]:
    """A pipe filled to the brim."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"#" * 4096)
    os.set_blocking(writer, True)
    return reader, writer


# -------------------------------------------------------------------------------------------------------- one record


def test_a_record_has_the_promised_fields(captured: Captured) -> None:
    structlog.get_logger().info("task.succeeded", message_id="m1", attempt=1, seconds=0.25)
    record = captured.record()
    moment = datetime.datetime.fromisoformat(record.pop("timestamp"))
    assert moment.utcoffset() == datetime.timedelta(0)
    assert list(record.items()) == [
        ("level", "info"),
        ("event", "task.succeeded"),
        ("pid", os.getpid()),
        ("role", "worker"),
        ("slot", 2),
        ("queue", "q"),
        ("message_id", "m1"),
        ("attempt", 1),
        ("seconds", 0.25),
    ]


def test_the_supervisor_has_no_slot_of_its_own_and_may_name_one(tmp_path: Path, lock: int) -> None:
    captured = Captured(tmp_path / "log", lock, role="supervisor", slot=None)
    structlog.get_logger().info("supervisor.started")
    structlog.get_logger().info("worker.exited", slot=7)
    first, second = captured.records()
    assert "slot" not in first
    assert second["slot"] == 7
    os.close(captured.fd)


def test_fields_cannot_forge_whose_record_it_is(captured: Captured) -> None:
    structlog.get_logger().info("x", role="supervisor", pid=1, level="critical", timestamp="never")
    record = captured.record()
    assert (record["role"], record["pid"], record["level"]) == ("worker", os.getpid(), "info")
    assert (record["role_"], record["pid_"], record["level_"], record["timestamp_"]) == (
        "supervisor",
        1,
        "critical",
        "never",
    )


def test_a_forged_line_stays_inside_its_field(captured: Captured) -> None:
    forged = 'x"}\n{"level":"critical","event":"forged"}\r\x85\u2028\x1b[2J\x9b2J\x00'
    structlog.get_logger().info(forged, **{forged: forged})
    record = captured.record()
    assert record["event"] == forged
    assert record[forged] == forged


def test_a_console_shows_no_control_character_of_a_field(tmp_path: Path, lock: int) -> None:
    captured = Captured(tmp_path / "log", lock, format="console")
    evil = "a\x1b[2J\x1b]0;title\x07\nforged line\r\x9b31m\u202etxt\x7f"
    try:
        raise RuntimeError(evil)
    except RuntimeError:
        structlog.get_logger().error(evil, exc_info=True, **{evil: evil}, nested={evil: [evil]}, spaced=evil + " ")
    text = captured.path.read_text()
    assert all(line.isprintable() for line in text.split("\n"))
    first, *others = text.rstrip("\n").split("\n")
    assert "forged" in first
    assert "Traceback" in text
    assert all(line.startswith("    ") for line in others)
    os.close(captured.fd)


def test_what_json_cannot_carry_becomes_a_string(captured: Captured) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    class HostileDict(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("no")

    circle: list[Any] = []
    circle.append(circle)
    structlog.get_logger().info(
        "x",
        raw=b"\xff\x00",
        moment=datetime.datetime(2024, 1, 2, 3, 4, 5),
        price=decimal.Decimal("1.50"),
        several={1},
        hostile=Hostile(),
        mapping=HostileDict(a=1),
        nan=float("nan"),
        endless=[float("inf")],
        circle=circle,
        lone="\ud800",
        astral="\U0001f600",
        huge=10**5000,
        odd={(1, 2): "tuple key", b"k": "bytes key"},
    )
    record = captured.record()
    assert record["raw"] == "\\xff\x00"
    assert record["moment"] == "2024-01-02T03:04:05"
    assert record["price"] == "1.50"
    assert record["several"] == "{1}"
    assert record["hostile"] == "<Hostile, and its repr fails>"
    assert record["nan"] == "nan"
    assert record["endless"] == ["inf"]
    assert record["lone"] == "\\ud800"
    assert record["astral"] == "\U0001f600"
    assert record["odd"] == {"(1, 2)": "tuple key", "k": "bytes key"}
    assert {"mapping", "circle", "huge"} <= record.keys()


def test_the_longest_values_are_cut_and_the_short_ones_stay(captured: Captured) -> None:
    structlog.get_logger().info("x", body="a" * 60000, other="b" * 50000, small="whole", many=list(range(20000)))
    record = captured.record()
    assert record["body"].startswith("aaa")
    assert record["body"].endswith("…[60000 chars]")
    assert record["other"].endswith("…[50000 chars]")
    assert record["small"] == "whole"
    assert record["many"].startswith("[0,1,2,")
    assert len(captured.path.read_bytes()) > 30000


def test_a_record_with_too_many_fields_says_how_many_it_lost(captured: Captured) -> None:
    structlog.get_logger().info("x", **{f"field{number}": number for number in range(10000)})
    record = captured.record()
    assert record["field0"] == 0
    assert record["fields_dropped"] > 0
    assert record["fields_dropped"] + sum(key.startswith("field") for key in record) - 1 == 10000


def test_an_exception_keeps_its_end(captured: Captured) -> None:
    try:
        raise ValueError("x" * 20000 + " the point")
    except ValueError:
        structlog.get_logger().exception("task.failed")
    record = captured.record()
    assert record["level"] == "error"
    assert record["exception"].endswith(" the point")
    assert 8192 <= len(record["exception"]) < 8300


def test_an_exception_of_any_form_is_rendered(captured: Captured) -> None:
    log = structlog.get_logger()
    try:
        raise KeyError("which")
    except KeyError as error:
        log.warning("as object", exc_info=error)
        log.warning("as tuple", exc_info=sys.exc_info())
        log.warning("as true", exc_info=True)
    log.warning("there is none", exc_info=True)
    *three, none = captured.records()
    assert all(record["exception"].endswith("KeyError: 'which'") for record in three)
    assert "exception" not in none


SECRET = "amqps://user:p@ss/w\u00f6rd@broker:5671/%2F"


def test_no_password_of_a_url_is_written(captured: Captured) -> None:
    try:
        raise RuntimeError(f"cannot reach {SECRET}")
    except RuntimeError:
        structlog.get_logger().exception(
            f"no {SECRET}", url=SECRET, deep=[{"urls": (SECRET, SECRET.upper())}], raw=SECRET.encode(), **{SECRET: 1}
        )
    logging.getLogger("lib").error("two: %s,%s", SECRET, SECRET)
    text = captured.path.read_text().lower()
    assert "p@ss" not in text
    assert "rd@" not in text
    assert "user" not in text.replace('raise runtimeerror(f\\"cannot reach {secret}', "")
    first, second = captured.records()
    assert first["url"] == "amqps://***@broker:5671/%2F"
    assert second["event"] == "two: amqps://***@broker:5671/%2F,amqps://***@broker:5671/%2F"


def test_no_password_is_written_on_a_console(tmp_path: Path, lock: int) -> None:
    captured = Captured(tmp_path / "log", lock, format="console")
    structlog.get_logger().info("x", url=SECRET)
    assert "***@broker" in captured.path.read_text()
    assert "p@ss" not in captured.path.read_text()
    os.close(captured.fd)


def test_other_urls_stay_as_they_are(captured: Captured) -> None:
    structlog.get_logger().info("x", url="https://example.org/a@b", broker="amqp://localhost:5672/")
    record = captured.record()
    assert (record["url"], record["broker"]) == ("https://example.org/a@b", "amqp://localhost:5672/")


WEIRD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=50)
    | st.text(st.sampled_from('amqp://u:p@h\n"\\\ud83d\ude00\x1b\x00'), max_size=50)
    | st.binary(max_size=50)
    | st.decimals()
    | st.datetimes()
    | st.sets(st.integers())
    | st.builds(object)
    | st.builds(
        lambda size, letter: letter * size, st.integers(0, 70000), st.sampled_from('a"\n\u00e9\U0001f600\ud800')
    ),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.binary(max_size=3), inner, max_size=5)
    ),
    max_leaves=15,
)
KEYS = st.text(st.characters(exclude_categories=()), max_size=20) | st.builds(lambda n: "k" * n, st.integers(0, 40000))


@settings(max_examples=150, deadline=None)
@given(event=WEIRD, fields=st.dictionaries(KEYS, WEIRD, max_size=12))
def test_any_fields_make_one_whole_line(event: Any, fields: dict[str, Any]) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 17)
    lock_fd = logs.open_lock()
    sink = logs.configure(role="worker", queue="q", slot=0, fd=writer, lock_fd=lock_fd, format="json", level="info")
    try:
        logs.get_logger(**{key: value for key, value in fields.items() if key not in ("event", "odd")}).info(
            event, odd=event
        )
        record = strict(os.read(reader, 1 << 17))
        assert isinstance(record["event"], str)
        assert (record["level"], record["role"], record["slot"], record["pid"]) == ("info", "worker", 0, os.getpid())
        assert sink.dropped == 0
    finally:
        sink.close()
        for fd in (reader, writer, lock_fd):
            os.close(fd)


# ------------------------------------------------------------------------------------------------ who goes through it


def test_levels_below_the_chosen_one_are_not_written(captured: Captured) -> None:
    log = structlog.get_logger()
    log.debug("no")
    logging.getLogger("lib").debug("no")
    chatty = logging.getLogger("chatty")
    chatty.setLevel(logging.DEBUG)
    chatty.debug("no")
    log.warning("yes")
    logging.getLogger("lib").info("yes too")
    assert [(record["level"], record["event"]) for record in captured.records()] == [
        ("warning", "yes"),
        ("info", "yes too"),
    ]


def test_the_standard_library_goes_the_same_way(captured: Captured) -> None:
    log = logging.getLogger("some.lib")
    log.root.handlers[:] = [setup._BRIDGE]  # pytest's own raise on a message that cannot be formatted
    structlog.contextvars.bind_contextvars(trace_id="t1")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("got %d of %s", 1, "two", extra={"message_id": "m1", "pid": 1, "raw": b"\xff"})
    log.warning("does not %d fit", "at all")
    first, second = captured.records()
    assert (first["level"], first["event"], first["logger"]) == ("error", "got 1 of two", "some.lib")
    assert (first["message_id"], first["pid"], first["pid_"], first["raw"]) == ("m1", os.getpid(), 1, "\\xff")
    assert (first["role"], first["slot"], first["trace_id"]) == ("worker", 2, "t1")
    assert first["exception"].endswith("ValueError: why")
    assert "does not %d fit" in second["event"]


def test_warnings_are_records(captured: Captured) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("it is old", DeprecationWarning, stacklevel=1)
    record = captured.record()
    assert record["logger"] == "py.warnings"
    assert "it is old" in record["event"]


def test_pika_is_quiet_below_critical(captured: Captured) -> None:
    logging.getLogger("pika.adapters.utils").error("AMQP connector failed")
    logging.getLogger("pika").critical("the end")
    assert captured.record()["event"] == "the end"


def test_loggers_made_before_follow_each_configure(tmp_path: Path, lock: int) -> None:
    first = Captured(tmp_path / "nursery", lock, role="nursery", slot=None)
    lazy = structlog.get_logger("lazy")
    bound = structlog.get_logger().bind(component="resize")
    lazy.info("in the nursery")
    second = Captured(tmp_path / "worker", lock, role="worker", slot=5)
    for log in (MADE_AT_IMPORT, lazy, bound):
        log.info("in the worker")
    assert [record["event"] for record in first.records()] == ["in the nursery"]
    made, lately, tied = second.records()
    assert {record["slot"] for record in (made, lately, tied)} == {5}
    assert (made["logger"], lately["logger"], tied["component"]) == ("made.at.import", "lazy", "resize")
    os.close(first.fd)
    os.close(second.fd)


def test_our_own_logger_cannot_be_diverted(captured: Captured, capsys: pytest.CaptureFixture[str]) -> None:
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()], cache_logger_on_first_use=False)
    structlog.get_logger().info("the user's")
    logs.get_logger(message_id="m1").info("task.succeeded")
    assert "the user's" in capsys.readouterr().out
    assert captured.record()["message_id"] == "m1"


def test_a_forked_child_of_a_worker_gives_its_own_pid(captured: Captured) -> None:
    with Child(lambda: MADE_AT_IMPORT.info("from a child")) as child:
        assert child.exit_code() == 0
    MADE_AT_IMPORT.info("from the worker")
    assert [record["pid"] for record in captured.records()] == [child.pid, os.getpid()]


@pytest.mark.usefixtures("patient")
def test_a_fork_while_another_thread_writes_does_not_lock_the_child_out(lock: int) -> None:
    out, into = unread_pipe()
    sink = logs.Sink(into, lock)
    inside = threading.Thread(target=sink.write, args=(b"from the thread\n",))
    inside.start()
    while not sink._writing:
        os.sched_yield()

    def task() -> None:
        assert sink.write(b"from the child\n")

    with Child(task) as child:
        reader = Reader(out)
        assert child.exit_code() == 0
    inside.join()
    sink.close()
    os.close(into)
    assert b"from the child\n" in reader.rest()


@pytest.mark.usefixtures("patient")
def test_a_signal_handler_that_logs_in_mid_write_neither_hangs_nor_loses_its_line(lock: int) -> None:
    reader, writer = unread_pipe()
    sink = logs.Sink(writer, lock)

    def handler(*_: object) -> None:
        sink.write(b"from the handler\n")
        os.read(reader, 1 << 16)

    former = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        sink.write(b"from below\n")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    sink.close()
    os.close(writer)
    lines = Reader(reader).rest().replace(b"#", b"").splitlines()
    assert lines == [b"from below", b"from the handler"]
    assert sink.dropped == 0


@pytest.mark.parametrize("choice", ["json", "console"])
def test_a_chosen_format_stays(choice: str) -> None:
    assert logs.resolve_format(choice, 2) == choice


def test_auto_is_console_on_a_terminal_only() -> None:
    ours, theirs = pty.openpty()
    try:
        assert logs.resolve_format("auto", theirs) == "console"
    finally:
        os.close(ours)
        os.close(theirs)
    with open("/dev/null") as null:
        assert logs.resolve_format("auto", null.fileno()) == "json"
    with pytest.raises(ValueError, match="auto, json or console"):
        logs.resolve_format("xml", 2)


def test_an_unknown_level_and_a_lock_that_is_none_are_refused(lock: int) -> None:
    with pytest.raises(ValueError, match="debug, info"):
        logs.configure(role="worker", queue="q", fd=2, lock_fd=lock, format="json", level="loud")
    with pytest.raises(OSError, match="Bad file descriptor"):
        logs.Sink(2, 999_999)


# -------------------------------------------------------------------------------------------------- many processes


@pytest.mark.usefixtures("patient")
def test_long_records_of_eight_processes_arrive_whole_beside_short_ones(lock: int) -> None:
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 20)  # more than all of them write: nothing need be dropped
    reader = Reader(out)
    links = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]

    def worker(slot: int) -> None:
        link = links[slot][1]
        sink = logs.configure(
            role="worker",
            queue="q",
            slot=slot,
            fd=into,
            lock_fd=lock,
            format="json",
            level="info",
            on_long=link.sendall,
        )
        log = structlog.get_logger()
        for number in range(60):
            log.info("short", number=number)
            if number % 20 == 10:
                log.info("long", number=number, body=str(slot) * 60000)
        link.sendall(b"bye %d" % sink.dropped)

    sink = logs.Sink(into, lock)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(lambda slot=slot: worker(slot))) for slot in range(8)]
        for _, theirs in links:
            theirs.close()
        open_links = [ours for ours, _ in links]
        while open_links:
            for link in select.select(open_links, [], [], 30)[0]:
                packet = link.recv(1 << 17)
                if packet.startswith(b"{"):
                    assert sink.write(packet)
                elif packet:
                    assert packet == b"bye 0"
                else:
                    open_links.remove(link)
                    link.close()
        assert [child.exit_code() for child in children] == [0] * 8
    sink.close()
    os.close(into)
    records = [strict(line) for line in reader.rest().splitlines(keepends=True)]
    assert sink.dropped == 0
    assert sorted((r["slot"], r["number"]) for r in records if r["event"] == "short") == [
        (slot, number) for slot in range(8) for number in range(60)
    ]
    long = [r for r in records if r["event"] == "long"]
    assert sorted((r["slot"], r["number"]) for r in long) == [(s, n) for s in range(8) for n in (10, 30, 50)]
    assert all(set(r["body"].partition("…")[0]) == {str(r["slot"])} for r in long)
    assert all(len(r["body"]) > 30000 and r["body"].endswith("…[60000 chars]") for r in long)


@pytest.mark.usefixtures("patient")
def test_fifty_writers_killed_in_mid_work_tear_no_line(lock: int) -> None:
    out, into = os.pipe()
    reader = Reader(out)

    def worker() -> None:
        logs.configure(role="worker", queue="q", slot=0, fd=into, lock_fd=lock, format="json", level="info")
        while True:
            MADE_AT_IMPORT.info("short", padding="x" * 300)

    for _ in range(50):
        seen = len(reader.data)
        with Child(worker) as child:
            reader.until_seen(b'"pid":%d,' % child.pid, after=max(0, seen - 1000))
            os.kill(child.pid, signal.SIGKILL)
            assert child.exit_code() == -signal.SIGKILL
    sink = logs.Sink(into, lock)
    assert sink.write(b'{"event":"' + b"x" * 10000 + b'"}\n'), "the dead left the lock taken"
    sink.close()
    os.close(into)
    lines = reader.rest().splitlines(keepends=True)
    assert len({strict(line).get("pid") for line in lines[:-1]}) == 50
    assert len(strict(lines[-1])["event"]) == 10000


@pytest.mark.usefixtures("impatient")
def test_a_process_stopped_with_the_lock_in_hand_holds_up_no_other(lock: int) -> None:
    out, into = os.pipe()
    told, tell = os.pipe()

    def stopped() -> None:
        fcntl.lockf(lock, fcntl.LOCK_SH, 1)  # as in the middle of a short line
        os.write(tell, b"!")
        signal.pause()

    with Child(stopped):
        os.read(told, 1)
        sink = logs.Sink(into, lock)
        assert sink.write(b"short\n")
        assert not sink.write(b"x" * 5000 + b"\n")
        assert sink.write(b"short again\n")
        assert sink.dropped == 1
    assert sink.write(b"x" * 5000 + b"\n")
    sink.close()
    for fd in (out, into, told, tell):
        os.close(fd)


@pytest.mark.usefixtures("patient")
def test_a_short_line_never_lands_inside_a_long_one(lock: int) -> None:
    out, into = unread_pipe()
    sink = logs.Sink(into, lock)
    begun = threading.Event()

    def long() -> None:
        begun.set()
        sink.write(b"L" * 30000 + b"\n")

    def short() -> None:
        mine = logs.Sink(into, lock)
        for _ in range(50):
            mine.write(b"s\n")

    writer = threading.Thread(target=long)
    writer.start()
    begun.wait()
    with Child(short) as child:
        reader = Reader(out)
        assert child.exit_code() == 0
    writer.join()
    sink.close()
    os.close(into)
    lines = reader.rest().lstrip(b"#").split(b"\n")
    assert lines.count(b"L" * 30000) == 1
    assert lines.count(b"s") == 50


# ---------------------------------------------------------------------------------------- readers that do not read


def test_a_reader_that_is_gone_costs_lines_only(lock: int) -> None:
    out, into = os.pipe()
    sink = logs.Sink(into, lock)
    os.close(out)
    for _ in range(3):
        assert not sink.write(b"nobody\n")
    assert not sink.write(b"x" * 10000 + b"\n")
    assert sink.dropped == 4
    sink.close()
    os.close(into)


def test_a_reader_that_is_gone_kills_nobody_even_with_sigpipe_at_its_default(lock: int) -> None:
    out, into = os.pipe()
    sink = logs.Sink(into, lock)
    os.close(out)

    def task() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sink.write(b"nobody\n")

    with Child(task) as child:
        assert child.exit_code() == 0
    sink.close()
    os.close(into)


@pytest.mark.parametrize("size", [100, 20000])
def test_a_full_pipe_drops_lines_until_its_reader_reads_again(lock: int, size: int) -> None:
    out, into = unread_pipe()
    sink = logs.Sink(into, lock)
    line = b"x" * (size - 1) + b"\n"
    assert [sink.write(line) for _ in range(1000)] == [False] * 1000
    assert sink.dropped == 1000
    assert not os.get_blocking(sink._out)
    assert os.get_blocking(into), "the description shared with the shell was made non-blocking"
    reader = Reader(out)
    reader.until(65536)
    assert sink.write(b"here again\n")
    assert sink.dropped == 1000
    sink.close()
    os.close(into)
    assert reader.rest().lstrip(b"#") == b"here again\n"


def test_a_terminal_that_is_stopped_blocks_nobody(lock: int) -> None:
    ours, theirs = pty.openpty()
    sink = logs.Sink(theirs, lock)
    for _ in range(2000):
        sink.write(b"x" * 99 + b"\n")
    assert sink.dropped > 0
    sink.close()
    os.close(theirs)
    os.close(ours)


def test_a_socket_whose_reader_does_not_read_blocks_nobody(lock: int) -> None:
    ours, theirs = socket.socketpair()
    sink = logs.Sink(theirs.fileno(), lock)
    for _ in range(5000):
        sink.write(b"x" * 999 + b"\n")
    assert sink.dropped > 0
    sink.close()
    ours.close()
    theirs.close()


def test_a_full_disk_costs_lines_only(lock: int) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    sink = logs.Sink(fd, lock)
    assert not sink.write(b"no room\n")
    assert not sink.write(b"x" * 10000 + b"\n")
    assert sink.dropped == 2
    sink.close()
    os.close(fd)


def test_a_closed_descriptor_costs_lines_only(lock: int) -> None:
    fd = os.open("/dev/null", os.O_WRONLY)
    sink = logs.Sink(fd, lock)
    os.close(fd)
    assert not sink.write(b"nowhere\n")
    assert sink.dropped == 1


LONG = b"L" * 20000 + b"\n"


def begun_line(lock: int) -> tuple[int, int, logs.Sink]:
    """A pipe whose reader stalled in the middle of `LONG`; the sink of the process that wrote it."""
    out, into = unread_pipe()
    os.read(out, 8192)  # room for two pieces of the five
    sink = logs.Sink(into, lock)
    assert sink.write(LONG)
    return out, into, sink


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("size", [6, 10000])
def test_f112_a_line_that_the_reader_left_half_read_is_finished_by_the_next_process_that_writes(
    lock: int, size: int
) -> None:
    out, into, sink = begun_line(lock)
    line = b"s" * (size - 1) + b"\n"

    def others(count: int) -> None:
        mine = logs.Sink(into, lock)
        assert [mine.write(line) for _ in range(3)] == [count == 0] * 3
        assert mine.dropped == count

    with Child(lambda: others(3)) as child:
        assert child.exit_code() == 0
    reader = Reader(out)
    reader.until(65536)
    with Child(lambda: others(0)) as child:
        assert child.exit_code() == 0
    assert sink.write(b"the first again\n")
    assert sink.dropped == 0
    sink.close()
    os.close(into)
    assert reader.rest().lstrip(b"#") == LONG + line * 3 + b"the first again\n"


@pytest.mark.usefixtures("impatient")
def test_f112_a_half_read_line_is_finished_once_when_several_write_at_once(lock: int) -> None:
    out, into, sink = begun_line(lock)
    go_out, go_in = os.pipe()

    def other() -> None:
        mine = logs.Sink(into, lock)
        os.read(go_out, 1)
        mine.write(b"s\n")

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(other)) for _ in range(4)]
        reader = Reader(out)
        reader.until(65536)
        os.write(go_in, b"!!!!")
        assert [child.exit_code() for child in children] == [0] * 4
    sink.close()
    for fd in (into, go_out, go_in):
        os.close(fd)
    first, *others = reader.rest().lstrip(b"#").splitlines(keepends=True)
    assert first == LONG
    assert set(others) == {b"s\n"}


@pytest.mark.usefixtures("impatient")
def test_f112_a_half_read_line_whose_reader_is_gone_is_counted(lock: int, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    out = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)
    into = os.open(path, os.O_WRONLY)
    sink = logs.Sink(into, lock)
    assert sink.write(LONG)
    os.close(out)
    assert [sink.write(b"nobody\n") for _ in range(2)] == [False] * 2
    assert sink.dropped == 3
    out = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(out, 1 << 16) == b"L" * 4096
    assert sink.write(b"whole\n")
    assert os.read(out, 1 << 16) == b"\nwhole\n"
    sink.close()
    os.close(into)
    os.close(out)


class Disk:
    """A log that is a file, on a disk that is full at `size` bytes: for each process that says so, and until it says
    something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def full_at(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    one = Disk(tmp_path / "log")
    yield one
    os.close(one.fd)


@pytest.mark.parametrize("size", [100, 20000])
def test_f89_a_disk_that_was_full_has_whole_lines_only(lock: int, disk: Disk, size: int) -> None:
    line = b"x" * (size - 1) + b"\n"

    def first() -> None:
        disk.full_at(size * 7 // 2)
        sink = logs.Sink(disk.fd, lock)
        assert [sink.write(line) for _ in range(6)] == [True] * 4 + [False] * 2
        assert sink.dropped == 2

    def second() -> None:
        sink = logs.Sink(disk.fd, lock)
        disk.full_at(size * 7 // 2)
        assert not sink.write(line)
        disk.full_at(resource.RLIM_INFINITY)
        assert sink.write(b"space again\n")
        assert sink.dropped == 1

    for task in (first, second):
        with Child(task) as child:
            assert child.exit_code() == 0
    assert disk.path.read_bytes() == line * 4 + b"space again\n"


def test_f89_a_log_that_is_emptied_to_make_room_begins_with_a_whole_line(lock: int, disk: Disk) -> None:
    def task() -> None:
        disk.full_at(150)
        sink = logs.Sink(disk.fd, lock)
        assert sink.write(b"a" * 99 + b"\n")
        assert sink.write(b"b" * 99 + b"\n")
        os.truncate(disk.path, 0)
        assert sink.write(b"whole\n")
        assert sink.dropped == 1

    with Child(task) as child:
        assert child.exit_code() == 0
    assert disk.path.read_bytes() == b"whole\n"


def test_f89_what_a_killed_writer_left_half_written_in_a_file_has_a_line_of_its_own(lock: int, disk: Disk) -> None:
    """A write to a file, unlike one to a pipe, ends in the middle when its process is killed."""
    whole = b"x" * 3999 + b"\n"

    def writer() -> None:
        mine = logs.Sink(disk.fd, lock)
        while True:
            mine.write(whole)

    sink = logs.Sink(disk.fd, lock)
    torn = 0
    for _ in range(2000):
        size = os.stat(disk.path).st_size
        with Child(writer) as child:
            while os.stat(disk.path).st_size == size:
                os.sched_yield()
            os.kill(child.pid, signal.SIGKILL)
            assert child.exit_code() == -signal.SIGKILL
        assert sink.write(b"next\n")
        *_, last, mine = disk.path.read_bytes().splitlines(keepends=True)
        assert mine == b"next\n"
        torn += last != whole
        os.truncate(disk.path, 0)
        if torn == 2:
            break
    assert torn == 2
    sink.close()


def test_f89_a_supervisor_whose_predecessor_was_killed_in_mid_line_begins_with_a_line_of_its_own(
    disk: Disk,
) -> None:
    os.write(disk.fd, b'{"half":')
    lock_fd = logs.open_lock()
    sink = logs.Sink(disk.fd, lock_fd)
    assert sink.write(b"first\n")
    assert sink.write(b"second\n")
    assert sink.dropped == 0
    sink.close()
    os.close(lock_fd)
    assert disk.path.read_bytes() == b'{"half":\nfirst\nsecond\n'


def test_a_link_that_fails_costs_the_long_line_only(lock: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    out, into = os.pipe()
    sink = logs.Sink(into, lock, on_long=ours.sendall)
    assert not sink.write(b"x" * 5000 + b"\n")
    assert sink.write(b"short\n")
    assert sink.dropped == 1
    sink.close()
    ours.close()
    os.close(into)
    assert Reader(out).rest() == b"short\n"


def test_a_worker_needs_nothing_heavy_for_its_logs() -> None:
    heavy = ("click", "h11", "psutil", "prometheus_client", "pika")
    code = f"import sys, supervisor.logs; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
