"""What an import may raise, and whether it is tried again: `passing`. Chains as they were seen, library by library."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import sqlite3
import ssl
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.policy.passing import Chained, is_passing
from supervisor.worker.handler import CannotLoad, load

REFUSED = Chained(
    ("builtins.ConnectionRefusedError", "builtins.ConnectionError", "builtins.OSError"), errno.ECONNREFUSED
)
PYTHON = ("builtins.Exception", "builtins.BaseException", "builtins.object")


def of(*names: str, number: int | None = None, text: str = "", cause: Chained | None = None) -> Chained:
    return Chained((*names, *PYTHON), number, text, cause=cause)


@pytest.mark.parametrize(
    "raised",
    [
        REFUSED,
        of("psycopg.OperationalError", "psycopg.DatabaseError", "psycopg.Error"),
        of("psycopg2.OperationalError", "psycopg2.DatabaseError", "psycopg2.Error"),
        of("pymysql.err.OperationalError", "pymysql.err.DatabaseError", cause=REFUSED),
        of("mysql.connector.errors.InterfaceError", "mysql.connector.errors.Error", cause=REFUSED),
        of("sqlalchemy.exc.OperationalError", "sqlalchemy.exc.DatabaseError", cause=of("psycopg2.OperationalError")),
        of("redis.exceptions.ConnectionError", "redis.exceptions.RedisError", cause=REFUSED),
        of("redis.exceptions.TimeoutError", "redis.exceptions.RedisError"),
        of("requests.exceptions.ConnectionError", "requests.exceptions.RequestException", "builtins.OSError"),
        of("pymongo.errors.ServerSelectionTimeoutError", "pymongo.errors.AutoReconnect"),
        of("httpx.ConnectError", "httpx.NetworkError", "httpx.TransportError"),
        of("aiohttp.client_exceptions.ClientConnectorError", "builtins.OSError", number=errno.ECONNREFUSED),
        of("pika.exceptions.AMQPConnectionError", "pika.exceptions.AMQPError"),
        of("asyncpg.exceptions.CannotConnectNowError", "asyncpg.exceptions._base.PostgresError"),
        of("app.Unavailable"),
        of("app.NotYet", cause=REFUSED),
        of("builtins.KeyError", "builtins.LookupError", cause=of("builtins.RuntimeError", cause=REFUSED)),
        of("builtins.OSError", text="Multiple exceptions: [Errno 111] Connect call failed, [Errno 110] timed out"),
        Chained(("builtins.ExceptionGroup",), members=(REFUSED, of("builtins.ValueError"))),
    ],
    ids=lambda raised: raised.names[0],
)
def test_f73_these_are_tried_again(raised: Chained) -> None:
    assert is_passing(raised)


@pytest.mark.parametrize(
    "raised",
    [
        of("builtins.ValueError"),
        of("builtins.KeyError", "builtins.LookupError"),
        of("builtins.TypeError", cause=REFUSED),
        of("builtins.NameError", cause=REFUSED),
        of("builtins.ModuleNotFoundError", "builtins.ImportError", cause=of("builtins.FileNotFoundError", number=2)),
        of("psycopg.ProgrammingError", "psycopg.DatabaseError"),
        of("requests.exceptions.MissingSchema", "requests.exceptions.RequestException", "builtins.OSError"),
        of("builtins.OSError", text="Multiple exceptions: [Errno 111] Connect call failed, [Errno 13] denied"),
        Chained(("builtins.ExceptionGroup",), members=(REFUSED, of("builtins.TypeError"))),
        of("builtins.KeyboardInterrupt"),
        of("ssl.SSLWantReadError", "ssl.SSLError", "builtins.OSError", number=2),
    ],
    ids=lambda raised: raised.names[0],
)
def test_f73_these_are_not(raised: Chained) -> None:
    assert not is_passing(raised)


# ------------------------------------------------------------------------------------------- raised by a real import


def refused() -> int:
    """A port at which nobody listens, for the life of this process."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])


_HELD: list[socket.socket] = []


def connects() -> None:
    socket.create_connection(("127.0.0.1", refused()))


def connects_by_asyncio() -> None:
    asyncio.run(asyncio.open_connection("127.0.0.1", refused()))


def fetches() -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{refused()}/")


def fetches_and_exits() -> None:
    try:
        connects()
    except OSError:
        sys.exit("no database")


def fetches_and_forgets() -> None:
    try:
        connects()
    except OSError:
        sys.exit(len(None))  # type: ignore[arg-type]


def breaks_off() -> None:
    try:
        connects()
    except OSError:
        raise RuntimeError("in vain") from None


def of_a_class_that_lies() -> None:
    class Liar(OSError):
        errno = property(lambda self: 1 / 0)

        def __str__(self) -> str:
            sys.exit("no text either")

    raise Liar(errno.EACCES, "denied")


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        (connects, True),
        (connects_by_asyncio, True),
        (fetches, True),
        (fetches_and_exits, True),
        (fetches_and_forgets, False),
        (breaks_off, False),
        (of_a_class_that_lies, False),
        (lambda: socket.getaddrinfo("no address", None, flags=socket.AI_NUMERICHOST), True),
        (lambda: Path("/no/such/file").read_text(), True),
        (lambda: os.listdir("/proc/self/status"), False),
        (lambda: sqlite3.connect("/no/such/directory/file"), True),
        (lambda: ctypes.CDLL("libno-such.so"), False),
        (lambda: ssl.create_default_context(cafile=__file__), False),
        (lambda: sys.exit(75), True),
        (lambda: sys.exit(1), False),
        (lambda: sys.exit(), False),
        (lambda: __import__("no_such_module"), False),
        (lambda: os.environ["WORKQ_NO_SUCH"], False),
        (lambda: compile("def work(task:", "app.py", "exec"), False),
    ],
)
def test_f73_a_real_import_that_raises_it(
    imports: Callable[[], object], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"raises_{os.getpid()}_{len(sys.modules)}"
    (tmp_path / f"{name}.py").write_text("import builtins\nbuiltins._raise_now()\n")
    monkeypatch.setattr("builtins._raise_now", imports, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CannotLoad) as failed:
        load(f"{name}:work", str(tmp_path))
    assert failed.value.is_passing is expected


@pytest.mark.parametrize("target", ["no_such_module:work", "json:no_such", "os:sep", "json:JSONDecoder", "os:rename"])
def test_f73_what_is_no_handler_is_never_tried_again(target: str, tmp_path: Path) -> None:
    with pytest.raises(CannotLoad) as failed:
        load(target, str(tmp_path))
    assert not failed.value.is_passing
