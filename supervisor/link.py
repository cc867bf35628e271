"""A link: the socket between the parent and one other process, for infrequent messages (`messages`, `frames`).

SOCK_SEQPACKET keeps message boundaries (unix(7)): a message arrives whole or not at all, even if its sender is killed.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections.abc import Iterable
from typing import Any, Final

from supervisor import frames, originals
from supervisor.frames import MAX_BYTES, BadFrame

_TO_SEND, _TO_RECEIVE, _AT_ONCE, _CUT, _LOST = map(
    int, (socket.MSG_NOSIGNAL, socket.MSG_CMSG_CLOEXEC, socket.MSG_DONTWAIT, socket.MSG_TRUNC, socket.MSG_CTRUNC)
)
"""Plain numbers: combining enum flags runs Python code each time."""
_INT: Final = array.array("i").itemsize
_ROOM_FOR_FORK: Final = socket.CMSG_SPACE(5 * _INT)
"""Sent to the zygote with a Fork; to a nursery, two."""
_ROOM_FOR_ALL: Final = socket.CMSG_SPACE(253 * _INT)
"""Descriptors in one message at most (SCM_MAX_FD, unix(7))."""
_NO_LINGER: Final = struct.pack("ii", 0, 0)


class Link:
    """One end. Only one thread may receive; sending is one system call, from any thread."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two connected ends, neither inherited over exec."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @classmethod
    def of(cls, fd: int) -> Link:
        """The end inherited as descriptor `fd`."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        try:
            self._socket.close()
        except OSError:
            pass  # the descriptor is gone all the same (close(2))

    def send(self, message: object, fds: tuple[int, ...] = (), *, wait: bool = True) -> bool:
        """Returns False when the other side is gone, or (not waiting) its buffer is full."""
        data = frames.write(message)
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        flags = _TO_SEND | (0 if wait else _AT_ONCE)
        try:
            self._socket.sendmsg([data], extra, flags)
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            return False
        return True

    def send_record(self, message: object) -> bool:
        """Send one message; if the buffer is full, wait for a second at most."""
        if self.send(message, wait=False):
            return True
        originals.select([], [self._socket], [], 1.0)
        return self.send(message, wait=False)

    def receive(self, *, wait: bool = True) -> tuple[Any, list[int]] | None:
        """The parent's next message, with descriptors; None at the end of the file. Raises BlockingIOError when not
        waiting."""
        received = self._receive(_ROOM_FOR_FORK, 0 if wait else _AT_ONCE)
        if received is None:
            return None
        data, fds, _ = received
        return (frames.believe(data), fds) if data else None

    def hear(self) -> bytes | None:
        """A child's next message as bytes, for `frames.read`. None at the end of the file. Never waits. Raises
        BlockingIOError when there is none, and BadFrame for an invalid form."""
        received = self._receive(_ROOM_FOR_ALL, _AT_ONCE)
        if received is None:
            return None
        data, fds, flags = received
        _close(fds)
        if fds or flags & _LOST:
            raise BadFrame("it came with descriptors")
        if flags & _CUT:
            raise BadFrame(f"it is longer than {MAX_BYTES} bytes")
        if not data and not self._is_over():
            raise BadFrame("it is empty")
        return data or None

    def _receive(self, room: int, flags: int) -> tuple[bytes, list[int], int] | None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MAX_BYTES, room, _TO_RECEIVE | flags)
        except ConnectionResetError:
            # The other side closed without reading everything. The kernel reports that first, and once
            # (unix_release_sock() in net/unix/af_unix.c); its messages can still be read.
            return self._receive(room, flags)
        except ConnectionError:
            return None
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % _INT])
        return data, list(fds), flags

    def _is_over(self) -> bool:
        """Whether the other side has closed. An empty message looks the same."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))


def _close(fds: Iterable[int]) -> None:
    """Close descriptors sent along. Not left to the kernel, which would close them without room: if one is the last of
    a connection that lingers (SO_LINGER, socket(7)), this process would block."""
    for fd in fds:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            sock = None  # it is something else
        try:
            if sock is None:
                os.close(fd)
            else:
                with sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        except OSError:
            pass  # closed anyway: close(2) reports lost data
