"""A link: the socket between the parent and one other process, for the rare things.

SOCK_SEQPACKET keeps message boundaries (unix(7)): a message arrives whole or not at all, also when its sender is
killed, and end-of-file tells each side about the other. Messages are the reports and orders of `vocabulary`, as JSON:
pickle would let a handler gone wrong run code in the parent.
"""

from __future__ import annotations

import array
import dataclasses
import json
import socket
from typing import Any, Final

from supervisor import originals
from supervisor import vocabulary as v

MAX_BYTES: Final = 160 * 1024
"""A message's size at most: below the kernel's default send buffer (212,992 bytes, socket(7)), above every bounded
field."""

_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (
        v.Loaded, v.Threaded, v.LoadFailed, v.Forked, v.ForkFailed, v.Connecting, v.Ready, v.Suspect, v.Depth,
        v.DeadDepth, v.Parked, v.Blocked, v.Lost, v.Leaving, v.Record, v.Load, v.Fork, v.Begin, v.Drain, v.Measure,
        v.Verdict,
    )
}  # fmt: skip
_FIELDS: Final = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _KINDS.values()}
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_TO_SEND, _TO_RECEIVE, _AT_ONCE = map(int, (socket.MSG_NOSIGNAL, socket.MSG_CMSG_CLOEXEC, socket.MSG_DONTWAIT))
"""As plain numbers: an enum's are put together by a page of Python each time."""


class Link:
    """One end of the pair. Not thread-safe for receiving; sending is one system call and may come from any thread."""

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
        """The end that this process inherited as descriptor `fd`."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        try:
            self._socket.close()
        except OSError:
            pass  # the descriptor is gone all the same (close(2))

    def send(self, message: object, fds: tuple[int, ...] = (), *, wait: bool = True) -> bool:
        """Send one message, with descriptors if there are any.

        `wait=False` never blocks. Returns False when the other side is gone, or (not waiting) has not read for so long
        that the buffer is full.
        """
        fields = {name: getattr(message, name) for name in _FIELDS[type(message)]}
        data = _encode([type(message).__name__, fields]).encode()
        if len(data) > MAX_BYTES:
            raise ValueError(f"a {type(message).__name__} of {len(data)} bytes is too long for a link")
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        flags = _TO_SEND | (0 if wait else _AT_ONCE)
        try:
            self._socket.sendmsg([data], extra, flags)
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            return False
        return True

    def send_record(self, message: object) -> bool:
        """Send one message; when the other side is behind, wait for it, but for a second at most."""
        if self.send(message, wait=False):
            return True
        originals.select([], [self._socket], [], 1.0)
        return self.send(message, wait=False)

    def receive(self, *, wait: bool = True) -> tuple[Any, list[int]] | None:
        """The next message and the descriptors that came with it; None at the end of the file.

        Raises BlockingIOError when not waiting and nothing is there.
        """
        flags = _TO_RECEIVE | (0 if wait else _AT_ONCE)
        room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(MAX_BYTES, room, flags)
        except ConnectionResetError:
            # The other side has closed without reading all that we had sent. The kernel tells that first, and once
            # (unix_release_sock() in net/unix/af_unix.c); what the other side had said is still there.
            return self.receive(wait=wait)
        except ConnectionError:
            return None
        if not data:
            return None
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        name, fields = json.loads(data.decode())
        return _KINDS[name](**fields), list(fds)
