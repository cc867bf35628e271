"""Does an import fail for a reason that may be gone by itself (`--boot-retry`)?

An exception is judged by what it is, not by what it says. From the outermost inwards, along `__cause__` and
`__context__`, the first that is known decides; a group is of code when one of its members is, else passing when one is.

| what is raised | judged | why |
|---|---|---|
| SyntaxError, ImportError, NameError, TypeError, ... | of code | the same code raises it again, see `_OF_CODE` |
| OSError: refused, reset, timed out, no such file, ... | passing | it tells of the surroundings now, see `_ERRNOS` |
| socket.gaierror: a name without an address | passing | DNS may come later than we do |
| TLS: the peer has closed | passing | it restarts; a certificate is not known |
| OperationalError, of any database driver | passing | PEP 249: not "under the control of the programmer" |
| ConnectionError, AutoReconnect, Unavailable, ... | passing | clients call it so that use no OSError, see `_NAMES` |
| `sys.exit(75)` | passing | EX_TEMPFAIL, sysexits.h: any code can say it so |
| "Multiple exceptions: [Errno 111] ..." | as its errnos | asyncio's, it has no errno itself |
| ValueError, KeyError, other sys.exit(), EACCES, ... | not known | what led to it decides, else it ends the start |

Of code is so also in `except ConnectionError:`, for that branch is wrong. Classes are known by the last part of their
name, or of one that they are derived from: nothing has to be imported for that, and a library may move them.

What cannot be told from it: a file that is missing for good is a file that is not there yet; a wrong password of a
database is an OperationalError, and may be mended over there; an HTTP status (503) stands in no class.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

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
"""How asyncio begins, when none of a name's addresses could be reached."""
DEEPEST: Final = 16
"""Exceptions that are looked at, one within the other."""


@dataclass(frozen=True, slots=True)
class Chained:
    names: tuple[str, ...]
    """Its class and those that it is derived from, as `module.name`."""
    number: int | None = None
    """An OSError's errno, a SystemExit's code."""
    text: str = ""
    """How what it says begins."""
    members: tuple[Chained, ...] = ()
    """Of an exception group."""
    cause: Chained | None = None
    """The one that led to it."""


class _Judged(Enum):
    OF_CODE = 1
    PASSING = 2
    UNKNOWN = 3


def is_passing(raised: Chained) -> bool:
    """Whether the import that raised this may succeed if it is tried again."""
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
