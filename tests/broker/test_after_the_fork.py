"""FAULTS 69 and 70: what forked workers would share of what the import has opened, and of what it has drawn."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.commands.check.surroundings import import_handler
from supervisor.endpoint import Endpoint
from supervisor.settings import Settings
from supervisor.worker import shared
from tests import amqp, handler_modules
from tests.supervision import Runs, supervised

pytestmark = pytest.mark.any_broker

HANDLE = """
from handlers import note

def work(task):
    note("done", task.message_id)
"""
TCP = """
import os, socket
at_import = socket.create_connection(("127.0.0.1", int(os.environ["TCP_PORT"])))
"""
TLS = """
import os, socket, ssl
context = ssl.create_default_context()
at_import = context.wrap_socket(
    socket.create_connection(("::1", int(os.environ["TCP6_PORT"]))),
    server_hostname="db", do_handshake_on_connect=False,
)
"""
UNIX = """
import os, socket
at_import = socket.socket(socket.AF_UNIX)
at_import.connect(os.environ["UNIX_PATH"])
"""
ABSTRACT = """
import os, socket
at_import = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
at_import.connect("\\0" + os.environ["UNIX_NAME"])
"""
PIKA = """
import os, pika
at_import = pika.BlockingConnection(pika.URLParameters(os.environ["PIKA_URL"]))
"""
SQLITE = """
import os, sqlite3
sqlite = sqlite3.connect(os.environ["SQLITE"])
sqlite.execute("create table if not exists answers (text)").fetchall()
sqlite.execute("select * from answers").fetchall()
"""
LOOP = """
import asyncio
loop = asyncio.new_event_loop()
"""
SHARED = {"tcp": TCP, "tls": TLS, "unix": UNIX, "abstract": ABSTRACT, "pika": PIKA, "sqlite": SQLITE, "loop": LOOP}

INNOCENT = """
import logging, logging.handlers, os, socket, tempfile
listening = socket.create_server(("127.0.0.1", 0))
pair = socket.socketpair()
client = socket.create_connection(listening.getsockname())
accepted, _ = listening.accept()
unbound = socket.socket()
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
statsd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
statsd.connect(("127.0.0.1", 9))
pipe = os.pipe()
closed = socket.create_connection(("127.0.0.1", int(os.environ["TCP_PORT"])))
closed.close()
log = logging.FileHandler(os.environ["SQLITE"] + ".log")
log.emit(logging.makeLogRecord({"msg": "imported"}))
scratch = tempfile.TemporaryFile()
"""


@dataclass
class World:
    """What a module can connect to, and how it is told."""

    env: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)
    """What is said of each of `SHARED`."""


@pytest.fixture
def world(tmp_path: Path, broker_url: str) -> Iterator[World]:
    """Listeners whose backlog takes a connection: nobody has to accept it."""
    with ExitStack() as stack:

        def listen(family: int, kind: int, address: object) -> socket.socket:
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)  # type: ignore[arg-type]
            listener.listen()
            return listener

        port = listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)).getsockname()[1]
        port6 = listen(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)).getsockname()[1]
        path, name, database = str(tmp_path / "db.sock"), f"workq-test-{tmp_path}", str(tmp_path / "a.db")
        listen(socket.AF_UNIX, socket.SOCK_STREAM, path)
        listen(socket.AF_UNIX, socket.SOCK_SEQPACKET, f"\0{name}")
        broker = Endpoint.parse(broker_url)
        yield World(
            {
                "TCP_PORT": str(port),
                "TCP6_PORT": str(port6),
                "UNIX_PATH": path,
                "UNIX_NAME": name,
                "PIKA_URL": broker_url,
                "SQLITE": database,
            },
            {
                "tcp": f"a connection to 127.0.0.1:{port} (descriptor ",
                "tls": f"a connection to [::1]:{port6} (descriptor ",
                "unix": f"a connection to {path} (descriptor ",
                "abstract": f"a connection to @{name} (descriptor ",
                "pika": f"a connection to 127.0.0.1:{broker.port} (descriptor ",
                "sqlite": f"the SQLite database {database} (descriptor ",
                "loop": "an event loop's epoll set (descriptor ",
            },
        )


def everything() -> str:
    """All of it in one module, under names of its own so that nothing is collected."""
    return "".join(text.replace("at_import", f"at_import_{name}") for name, text in SHARED.items())


def test_f69_what_the_import_opened_and_workers_would_share_is_said_once_with_the_way_out(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, world: World
) -> None:
    handler_modules.write(tmp_path, "app", everything() + HANDLE)
    env = runs.env | world.env | {"PYTHONPATH": str(tmp_path)}
    amqp.publish(broker_url, queue, ["x"] * 3)
    options = ("--workers", "2", "--max-tasks", "1", "--burst")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
        [said] = pool.named("handler.side_effects")
        assert said["level"] == "warning" and said["role"] == "nursery"
        for name in world.names.values():
            assert name in said["because"]
        assert said["because"].count("descriptor ") == len(SHARED) + 1, "pika's connection has an epoll set of its own"
        assert "open it in the first task, or have each worker import for itself (--no-preload)" in said["because"]
    assert len(runs.lines("done")) == 3, "it is said, and nothing is stopped for it"


@pytest.mark.parametrize(("module", "preload"), [(INNOCENT, "--preload"), (TCP, "--no-preload")])
def test_f69_what_workers_may_share_or_open_for_themselves_is_not_said(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, world: World, module: str, preload: str
) -> None:
    handler_modules.write(tmp_path, "app", module + HANDLE)
    env = runs.env | world.env | {"PYTHONPATH": str(tmp_path)}
    amqp.publish(broker_url, queue, ["x"])
    options = ("--workers", "1", "--burst", preload)
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
        assert not pool.named("handler.side_effects")
    assert len(runs.lines("done")) == 1


def test_f69_workq_check_says_what_workers_would_share(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in world.env.items():
        monkeypatch.setenv(name, value)
    handler_modules.write(tmp_path, "shares", everything() + "def work(task): ...\n")
    handler_modules.write(tmp_path, "innocent", INNOCENT + "def work(task): ...\n")
    shares = import_handler(Settings(handler="shares:work", app_dir=str(tmp_path)))
    assert not shares.error
    for name in world.names.values():
        assert name in shares.shared
    innocent = import_handler(Settings(handler="innocent:work", app_dir=str(tmp_path)))
    assert not innocent.error and not innocent.shared


def test_f69_what_was_open_before_the_import_is_not_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        said = f"a connection to 127.0.0.1:{listener.getsockname()[1]} (descriptor {client.fileno()})"
        assert said in shared.found({})
        assert said not in shared.found(shared.opened())


# --------------------------------------------------------------------------------------------- 70: what is random

DRAWS = """
import random
import numpy.random
from handlers import note

{at_import}

def work(task):
    note("numpy", int(numpy.random.randint(2**31)))
    note("python", random.getrandbits(60))
"""


@pytest.mark.parametrize(
    "at_import",
    ["numpy.random.seed(42); random.seed(42)", "numpy.random.randint(2); random.random()"],
    ids=["seeded at import", "drawn from at import"],
)
def test_f70_no_two_workers_draw_the_same_random_numbers(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, at_import: str
) -> None:
    handler_modules.write(tmp_path, "app", DRAWS.format(at_import=at_import))
    amqp.publish(broker_url, queue, ["x"] * 6)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--max-tasks", "1", "--burst")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
        assert pool.named("handler.loaded", preloaded=True), "else each worker imports numpy, and seeds it, for itself"
    assert len(set(runs.lines("numpy"))) == 6
    assert len(set(runs.lines("python"))) == 6


def test_f70_a_generator_that_cannot_be_seeded_anew_stops_no_worker(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    other = "numpy.random.set_bit_generator(numpy.random.PCG64(42))"
    handler_modules.write(tmp_path, "app", DRAWS.format(at_import=other))
    amqp.publish(broker_url, queue, ["x"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    assert len(runs.lines("numpy")) == 1
