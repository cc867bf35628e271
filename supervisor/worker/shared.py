"""What a handler's import has opened that forks would share, and must not.

A fork copies descriptors, not what they refer to. A connection is one stream of bytes: two workers that use it read
each other's answers. Findings:

    connected stream sockets    TCP, TLS or unix: databases, caches, HTTP sessions, AMQP
    SQLite databases            "Do not open an SQLite database connection, then fork" (sqlite.org/howtocorrupt.html)
    epoll sets                  an event loop: each worker is woken by events on the others' sockets

Harmless, so no finding: sockets that listen, or have no peer yet; datagrams (syslog, statsd); both ends of a pair in
this process (an event loop's own wakeup); files, appended to by logs; pipes, whose other ends are here too, or belong
to a child that is reported separately.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from supervisor import originals

Descriptors = dict[int, str]
"""Number, and what /proc says it is: `socket:[4711]`."""

WAY_OUT: Final = "open it in the first task, or have each worker import for itself (--no-preload)"
_SOCKET: Final = "socket:["
_EPOLL: Final = "anon_inode:[eventpoll]"
_SQLITE: Final = b"SQLite format 3\0"
_MOST: Final = 8
"""Named in the message."""


def opened() -> Descriptors:
    """The open descriptors."""
    found = {}
    try:
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            try:
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
            except OSError:
                pass  # the listing's own
    except OSError:
        pass  # no /proc
    return found


def found(before: Descriptors) -> list[str]:
    """In words, what forks would share of everything opened since `before`. Neither opens nor closes a file: closing
    one drops this process's locks on it (fcntl_locking(2))."""
    # By both: the number may have been reused.
    new = {fd: what for fd, what in sorted(opened().items()) if before.get(fd) != what}
    peers = {fd: ends for fd, what in new.items() if what.startswith(_SOCKET) and (ends := _ends(fd)) is not None}
    pairs = set(peers.values())
    words = []
    for fd, what in new.items():
        if fd in peers:
            own, peer = peers[fd]
            # A pair within this process is there from either end. One without names always is its own other end:
            # socketpair(2), whose other end is here or in a child.
            if (peer, own) not in pairs:
                words.append(f"a connection to {_shown(peer or own)} (descriptor {fd})")
        elif what == _EPOLL:
            words.append(f"an event loop's epoll set (descriptor {fd})")
        elif what.startswith("/") and _is_sqlite(fd):
            words.append(f"the SQLite database {what} (descriptor {fd})")
    return words


def sentence(words: list[str]) -> str:
    """The problem, and the way out."""
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return (
        f"it opened {', '.join(words[:_MOST])}{more}, which all workers would share: one reads the answers meant "
        f"for another; {WAY_OUT}"
    )


def _ends(fd: int) -> tuple[Any, Any] | None:
    """The addresses of a connected stream, the local one first."""
    try:
        # The C type: a module may have replaced the class, by a proxy's client or a green one.
        end = originals.socket_type(fileno=fd)
    except OSError:
        return None
    try:
        if end.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            return None
        return end.getsockname(), end.getpeername()
    except OSError:
        return None  # it listens, or is not connected
    finally:
        end.detach()


def _shown(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):  # the abstract namespace, unix(7)
        return address.decode("utf-8", "backslashreplace").replace("\0", "@")
    return str(address)


def _is_sqlite(fd: int) -> bool:
    try:
        return os.pread(fd, len(_SQLITE), 0) == _SQLITE
    except OSError:
        return False
