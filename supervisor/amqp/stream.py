"""A byte stream to one broker: name look-up, TCP to each address in turn, TLS, then reads and writes.

Plain and TLS share one path. There is a plain socket; with TLS the bytes pass through a pair of `ssl.MemoryBIO`. So one
read per epoll event is enough (no decrypted data stays where epoll cannot see it), and we always know what the kernel
has taken.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from supervisor import originals
from supervisor.amqp.ioloop import Found, IOLoop, Timer, look_up
from supervisor.clock import now
from supervisor.endpoint import Endpoint

if TYPE_CHECKING:
    from supervisor.amqp.tls import Layer, Tls

_READ: Final = 64 * 1024
"""Bytes to ask the socket for."""
_CONNECT: Final = 10.0
"""Seconds for an address to take a connection, out of those for all of the handshake."""
KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""The kernel's answer to a peer that vanished while heartbeats are not being served: socket options, in seconds."""
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # macOS has the first by another name, and after two hours by default.
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in KEEPALIVE.items() if hasattr(socket, name)),
)


class Stream:
    """One attempt to reach a broker. Starts in the constructor. Calls `on_ready` once, `on_read` with each chunk, and
    `on_lost` once at the end, unless `close` is called first. EOFError: the peer closed the stream.

    `timeout` in seconds applies to each address until `keep` is called. An exception from `on_read` ends the stream.
    Raises what `tls` raises, and RuntimeError if no thread can be started for the name look-up.
    """

    def __init__(
        self,
        loop: IOLoop,
        endpoint: Endpoint,
        timeout: float,
        on_ready: Callable[[], None],
        on_read: Callable[[bytes], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._loop = loop
        self._tls_options: Tls | None = None
        if endpoint.tls:
            from supervisor.amqp.tls import tls  # OpenSSL is for who uses it

            self._tls_options = tls(endpoint)
        self._timeout = timeout
        self._on_ready = on_ready
        self._on_read = on_read
        self._on_lost = on_lost
        self._addresses: Found = []
        self._sock: originals.socket_type | None = None
        self._tls: Layer | None = None
        self._until = 0.0
        self._timer: Timer | None = None
        self._unsent = bytearray()
        self._is_ready = False
        self.is_over = False
        self.has_written = False
        """Whether the kernel has taken everything written. False once the stream is over."""
        look_up(loop, endpoint.host, endpoint.port, self._found)

    def write(self, data: bytes) -> None:
        """Does nothing before the stream is ready, and after it is over."""
        if self._is_ready:
            self._send(data if self._tls is None else self._tls.encrypt(data))

    def keep(self) -> None:
        """The handshake is done: no timeout from here on."""
        if self._timer is not None:
            self._timer.callback = None

    def close(self) -> None:
        """Close at once, without calling `on_lost`."""
        self.is_over = True
        self._drop()

    # --------------------------------------------------------------------------------------------- connecting

    def _found(self, found: Found | Exception) -> None:
        if self.is_over:
            return
        if isinstance(found, Exception):
            self._fail(found)
        else:
            self._addresses = list(found)
            self._fail(OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)))

    def _fail(self, error: Exception) -> None:
        """Try the next address; if there is none, or AMQP has begun already, the stream is over."""
        while not self.is_over:
            self._drop()
            if self._is_ready or not self._addresses:
                self.is_over = True
                self._on_lost(error)
                return
            try:
                self._connect(*self._addresses.pop(0))
                return
            except Exception as refused:  # noqa: BLE001 - no descriptor is free, or there is no route
                error = refused

    def _connect(self, family: int, kind: int, protocol: int, _: str, address: tuple[object, ...]) -> None:
        self._sock = sock = originals.socket_type(family, kind, protocol)
        sock.setblocking(False)
        for option in _OPTIONS:
            sock.setsockopt(*option)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self._loop.add_handler(sock.fileno(), self._connected, self._loop.WRITE)
        self._until = now() + self._timeout
        self._expect_within(min(_CONNECT, self._timeout))

    def _connected(self, fd: int, _: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(OSError(code, os.strerror(code)))
            return
        self._loop.replace_handler(fd, self._happened)
        self._loop.update_handler(fd, self._loop.READ)
        self._expect_within(self._until - now())
        self.has_written = True
        if self._tls_options is None:
            self._begin()
        else:
            self._tls = self._tls_options.layer()
            self._shake_hands(self._tls)

    def _expect_within(self, seconds: float) -> None:
        self.keep()
        self._timer = self._loop.call_later(seconds, lambda: self._fail(TimeoutError()))

    def _begin(self) -> None:
        self._is_ready = True
        self._on_ready()

    def _drop(self) -> None:
        self.keep()
        self._unsent, self._tls, self.has_written = bytearray(), None, False
        sock, self._sock = self._sock, None
        if sock is not None:
            with suppress(KeyError):  # not registered yet
                self._loop.remove_handler(sock.fileno())
            sock.close()

    # --------------------------------------------------------------------------------------- reading and writing

    def _happened(self, _: int, events: int) -> None:
        if events & self._loop.WRITE:
            self._send(b"")
        if events & ~self._loop.WRITE and self._sock is not None:
            self._receive(self._sock)

    def _receive(self, sock: originals.socket_type) -> None:
        try:
            read = sock.recv(_READ)
            if self._tls is not None:
                self._decrypt(self._tls, read)
            elif read:
                self._on_read(read)
            else:
                raise EOFError
        except BlockingIOError:
            pass
        except Exception as error:  # noqa: BLE001 - the socket's, TLS's, or raised by `on_read`
            self._fail(error)

    def _send(self, data: bytes) -> None:
        sock, waiting = self._sock, self._unsent
        if sock is None or not (data or waiting):
            return
        if waiting:
            waiting += data
        try:
            sent = sock.send(waiting or data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.has_written = False
            # Later: the peer's last words may have arrived, and tell more.
            self._loop.call_later(0, partial(self._fail, error))
            return
        if waiting:
            del waiting[:sent]
            if not waiting:
                self._loop.update_handler(sock.fileno(), self._loop.READ)
                self.has_written = True
        elif sent < len(data):
            self._loop.update_handler(sock.fileno(), self._loop.READ | self._loop.WRITE)
            waiting += data[sent:]
            self.has_written = False

    def _decrypt(self, tls: Layer, read: bytes) -> None:
        tls.feed(read)
        if not self._is_ready:
            self._shake_hands(tls)
        while self._is_ready and (data := tls.decrypt()):
            self._on_read(data)
        if self._is_ready:
            self._send(tls.encrypted())
            if not read:
                raise EOFError

    def _shake_hands(self, tls: Layer) -> None:
        try:
            has_agreed = tls.shake_hands()
        except Exception:
            if (sock := self._sock) is not None:
                with suppress(OSError):
                    sock.send(tls.encrypted())  # the alert, for the peer's log
            raise
        self._send(tls.encrypted())
        if has_agreed:
            self._begin()
