"""What may listen where a broker should."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pika import frame, spec

from tests.proxy import LINGER_ZERO
from tests.supervision import PATIENCE

HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def listening(answer: bytes | None, *, hang_up: bool = False) -> Iterator[int]:
    """A server that is no broker: it says this to whoever says something (None: nothing, ever), and may hang up then.
    Its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                clients.append(client)
                if answer is not None and client.recv(8):
                    client.sendall(answer)
                if hang_up:
                    client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in clients:
                client.close()


@contextmanager
def resetting() -> Iterator[int]:
    """A server that resets every connection as soon as it is accepted, now and then before the client has looked at it:
    as quickly as it can be done, thus no `conversation`. Its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)  # which those that it accepts inherit

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def requests(client: socket.socket) -> Iterator[None]:
    """The methods and the protocol header that come from a client, but for tune-ok, which wants no answer."""
    heard = b""
    while read := client.recv(65536):
        heard += read
        while (found := frame.decode_frame(heard))[1] is not None:
            heard = heard[found[0] :]
            if not isinstance(getattr(found[1], "method", None), spec.Connection.TuneOk):
                yield


@contextmanager
def conversation(script: Sequence[bytes], *, reset: bool) -> Iterator[int]:
    """A server that answers the n-th request of each of its clients with the n-th of these, the protocol header being
    the first request, and ends the connection right behind the last: with a RST, or with a FIN. Its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def talk(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError, StopIteration):
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                asked = requests(client)
                for answer in script:
                    next(asked)
                    client.sendall(answer)
                if not reset:
                    # Closed with something unread, it would be a RST all the same (tcp(7)).
                    client.shutdown(socket.SHUT_WR)
                    client.settimeout(PATIENCE)
                    while client.recv(65536):
                        pass

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    talk(listener.accept()[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
