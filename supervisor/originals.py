"""Functions of the standard library, saved before any handler is imported: gevent and eventlet replace them by green
ones, whose threads run only when another yields, but a worker's own thread must run while a handler computes."""

from __future__ import annotations

import os
import select as select_module
import socket
import time
from _socket import socket as socket_type
from _thread import RLock, allocate_lock, start_new_thread
from os import fork, waitpid
from select import select
from socket import getaddrinfo
from time import sleep
from typing import Any, Final

__all__ = [
    "RLock", "allocate_lock", "fork", "getaddrinfo", "poll", "replaced", "select", "sleep", "socket_type",
    "start_new_thread", "waitpid",
]  # fmt: skip

epoll: Final[Any] = getattr(select_module, "epoll", None)
"""None, like the next, in a program that gave them up before it imported us, which no worker does."""
poll: Final[Any] = getattr(select_module, "poll", None)
_GREEN: Final = ("gevent.", "eventlet.")
_WATCHED: Final = (
    (os, "fork", fork),
    (os, "waitpid", waitpid),
    (time, "sleep", sleep),
    (select_module, "select", select),
    (select_module, "poll", poll),
)


def replaced() -> list[str]:
    """What the import has replaced of the functions that fork or wait."""
    found = [f"{module.__name__}.{name}" for module, name, true in _WATCHED if getattr(module, name, None) is not true]
    # Some replace the socket harmlessly (a proxy's client): its module tells.
    if f"{socket.socket.__module__}.".startswith(_GREEN):
        found.append("socket.socket")
    return found
