"""Did an import fail for a transient reason (`--boot-retry`)?

An exception is judged by its class, not its text. From the outermost inwards, along `__cause__` and `__context__`, the
first known one decides; a group is of code if one of its members is, else passing if one is.

| what is raised | judged | why |
|---|---|---|
| SyntaxError, ImportError, NameError, TypeError, ... | of code | the same code raises it again, see `_OF_CODE` |
| OSError: refused, reset, timed out, no such file, ... | passing | it is about the environment now, see `_ERRNOS` |
| socket.gaierror: a name without an address | passing | DNS may come later than we do |
| TLS: the peer has closed | passing | it restarts; a certificate is not known |
| OperationalError, of any database driver | passing | PEP 249: not "under the control of the programmer" |
| ConnectionError, AutoReconnect, Unavailable, ... | passing | names used by client libraries, see `_NAMES` |
| `sys.exit(75)` | passing | EX_TEMPFAIL, sysexits.h: for any code |
| "Multiple exceptions: [Errno 111] ..." | as its errnos | asyncio's, without an errno of its own |
| ValueError, KeyError, other sys.exit(), EACCES, ... | not known | its cause decides, else the start fails |

An error of code decides also inside `except ConnectionError:`, since that branch is wrong. Classes are recognised by
the last part of their name, or a base class's: nothing is imported for that, and a library may move them.

Limits: a file that will never exist looks like one that does not exist yet; a wrong database password is an
OperationalError, and may be fixed in the database; an HTTP status (503) shows in no class.
"""

from __future__ import annotations

import errno
import re
from enum import Enum
from typing import Final

from supervisor.values import dataclass

_OF_CODE: Final = frozenset(
    {
        "SyntaxError", "ImportError", "NameError", "AttributeError", "TypeError", "AssertionError",
        "NotImplementedError", "RecursionError",
    }
)  # fmt: skip
"""Of Python itself, with what is derived from them."""
_NAMES: Final = frozenset(
    {
        # Python's own, also where they are raised without an errno; TimeoutExpired is subprocess's.
        "ConnectionError", "TimeoutError", "FileNotFoundError", "BlockingIOError", "InterruptedError", "MemoryError",
        "gaierror", "herror", "SSLEOFError", "SSLZeroReturnError", "TimeoutExpired",
        # PEP 249: psycopg, MySQL clients, sqlite3, oracledb, pyodbc, and SQLAlchemy's and Django's of the same name.
        "OperationalError",
        "CannotConnectNowError",  # asyncpg: the server starts
        "TooManyConnectionsError",
        # Clients of other services.
        "ConnectError",  # httpx, httpcore
        "TimeoutException",
        "Timeout",  # requests
        "AutoReconnect",  # pymongo
        "ConnectionFailure",
        "AMQPConnectionError",  # pika
        "NoBrokersAvailable",  # kafka-python
        "NoHostAvailable",  # cassandra-driver
        "ServiceUnavailable",  # neo4j, google.api_core
        "NetworkError",  # clickhouse-driver
        "SERVER_DOWN",  # python-ldap
        "LDAPSocketOpenError",
        "Unavailable",  # and a handler's own
    }
)  # fmt: skip
_ERRNOS: Final = frozenset(
    {
        errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT,
        errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET,
        errno.EADDRINUSE, errno.EADDRNOTAVAIL,
        errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EIO,
        errno.EAGAIN, errno.EINTR, errno.EBUSY,
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT,
    }
)  # fmt: skip
_OTHER_NUMBERS: Final = frozenset({"SSLError", "gaierror", "herror"})
"""Classes whose errno is a number of another kind."""
_TEMPORARY: Final = 75
_SEVERAL: Final = "Multiple exceptions: [Errno "
"""The start of asyncio's text when none of a name's addresses could be reached."""
DEEPEST: Final = 16
"""Nested exceptions looked at."""


@dataclass(frozen=True, slots=True)
class Chained:
    names: tuple[str, ...]
    """Its class and base classes, as `module.name`."""
    number: int | None = None
    """An OSError's errno, a SystemExit's code."""
    text: str = ""
    """The start of its text."""
    members: tuple[Chained, ...] = ()
    """Of an exception group."""
    cause: Chained | None = None
    """Its cause or context."""


class _Judged(Enum):
    OF_CODE = 1
    PASSING = 2
    UNKNOWN = 3


def is_passing(raised: Chained) -> bool:
    """Whether the import that raised this may succeed on a retry."""
    return _judge(raised) is _Judged.PASSING


def _judge(raised: Chained) -> _Judged:
    each: Chained | None = raised
    while each is not None:
        verdict = _judge_alone(each)
        if verdict is not _Judged.UNKNOWN:
            return verdict
        each = each.cause
    return _Judged.UNKNOWN


def _judge_alone(link: Chained) -> _Judged:
    if any(name.removeprefix("builtins.") in _OF_CODE for name in link.names):
        return _Judged.OF_CODE
    if link.members:
        verdicts = {_judge(member) for member in link.members}
        return min(verdicts, key=lambda verdict: verdict.value)
    last = {name.rpartition(".")[2] for name in link.names}
    is_passing = (
        bool(last & _NAMES)
        or ("builtins.OSError" in link.names and not last & _OTHER_NUMBERS and _tells_of_now(link))
        or ("builtins.SystemExit" in link.names and link.number == _TEMPORARY)
    )
    return _Judged.PASSING if is_passing else _Judged.UNKNOWN


def _tells_of_now(link: Chained) -> bool:
    if link.number is None and link.text.startswith(_SEVERAL):
        return {int(number) for number in re.findall(r"\[Errno (\d+)\]", link.text)} <= _ERRNOS
    return link.number in _ERRNOS
