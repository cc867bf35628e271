"""HTTP by h11, on one thread beside the loop, for clients that may never send, read or hang up.

A client has `PATIENCE` seconds for a request and its answer, and with too many clients the oldest connection is closed,
which bounds descriptors and memory. Why no framework or server package: docs/decisions/0024.
"""

from __future__ import annotations

import asyncio
import resource
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import h11

from supervisor import logs
from supervisor.clock import now
from supervisor.failure import rendered
from supervisor.parent import refusals
from supervisor.parent.http import page
from supervisor.parent.http.app import TEXT, Answer, Site, refused

PATIENCE: Final = 10.0
"""Seconds from the connection, or a request's head, until the answer must be written; then the connection is closed.
More than `app.STUCK_AFTER`, for which a request may wait."""
BETWEEN: Final = 5.0
"""Seconds from an answer to the next request's head."""

MOST: Final = 96
"""Connections at a time, for each socket; fewer if the limit on descriptors is low."""

AT_ONCE: Final = 16
"""Connections accepted in one turn: by default asyncio accepts all that wait before one can be closed."""

BACKLOG: Final = 512
"""The listen backlog."""

MAX_HEAD: Final = 16 * 1024
MAX_BODY: Final = 4096
"""Bytes in a request's body."""

_CHUNK: Final = 16 * 1024
_PAUSE: Final = 0.02
"""Seconds before a selector that failed is used again."""

_NO_HTTP: Final = (400, TEXT, b"this is no HTTP request, or not all of it\n")
_TOO_LONG: Final = refused(400, f"a body of at most {MAX_BODY} bytes is expected")


class Server:
    """Serves one listening socket."""

    def __init__(self, site: Site, answering: AbstractContextManager[None]) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(MOST, max(4, soft // 8))
        self._site = site
        self._answering = answering
        self._said = refusals.Said()
        self._clients: dict[asyncio.StreamWriter, None] = {}
        """The oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=sock, backlog=AT_ONCE, limit=_CHUNK)
        # asyncio shortened the backlog to AT_ONCE: a client that does not fit retries after a second.
        sock.listen(BACKLOG)
        await server.serve_forever()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine: room is made before the next one is taken.
        if len(self._clients) >= self._most:
            eldest = next(iter(self._clients))
            del self._clients[eldest]
            eldest.transport.abort()
        self._clients[writer] = None
        task = asyncio.create_task(self._attend(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE) as patience:
                await Client(self._site, self._answering, self._said, reader, writer, patience).attend()
        except (TimeoutError, OSError):
            pass  # it has timed out, or is gone
        finally:
            # Not close(): that waits until the client has read everything.
            writer.transport.abort()
            self._clients.pop(writer, None)


class Client:
    """One connection, which `patience` may close."""

    def __init__(
        self,
        site: Site,
        answering: AbstractContextManager[None],
        said: refusals.Said,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        patience: asyncio.Timeout,
    ) -> None:
        self._site = site
        self._answering = answering
        self._said = said
        self._reader = reader
        self._writer = writer
        self._patience = patience
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._socket = writer.get_extra_info("socket")

    async def attend(self) -> None:
        """Answer until no further request can come."""
        while await self._answer_one():
            self._give(BETWEEN)
            self._http.start_next_cycle()
        self._writer.close()
        await self._writer.wait_closed()

    def _give(self, seconds: float) -> None:
        self._patience.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _answer_one(self) -> bool:
        """False when no other request can follow."""
        try:
            request = await self._event()
        except h11.RemoteProtocolError:
            return await self._send(_NO_HTTP)
        if not isinstance(request, h11.Request):
            return False  # it has closed the connection
        self._give(PATIENCE)
        with self._answering:
            return await self._answer(request)

    async def _answer(self, request: h11.Request) -> bool:
        try:
            answer = self._site.refusal(dict(request.headers))
            if answer is None:
                body = await self._body()
                method, path = request.method.decode(), unquote(request.target.partition(b"?")[0].decode())
                answer = _TOO_LONG if body is None else await self._site.answer(method, path, body, self._socket)
        except h11.RemoteProtocolError:
            answer = _NO_HTTP
        except OSError:
            raise  # the client is gone
        except Exception as error:  # noqa: BLE001 - ours; the client and the log are told, other requests are answered
            answer = self._unforeseen(request, error)
        return await self._send(answer, is_head=request.method == b"HEAD")

    def _unforeseen(self, request: h11.Request, error: Exception) -> Answer:
        asked = (request.method + b" " + request.target.partition(b"?")[0]).decode("ascii", "backslashreplace")[:200]
        because = f"{asked} failed: {type(error).__name__}: {error}"
        if self._said.is_news(because, now()):
            logs.get_logger().error(
                "health.answer_failed", because=because, exception=rendered(error, error.__traceback__)
            )
        return refused(500, f"an internal error of the supervisor, which is in its log: {type(error).__name__}")

    async def _send(self, answer: Answer, *, is_head: bool = False) -> bool:
        has_all = self._http.their_state is h11.DONE
        events = _response(answer, is_last=not has_all, is_head=is_head)
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()
        return has_all and self._http.our_state is h11.DONE

    async def _event(self) -> Any:
        """Raises RemoteProtocolError for what is not HTTP."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._http.receive_data(await self._reader.read(_CHUNK))
        return event

    async def _body(self) -> bytes | None:
        """None when it is too long. Raises what `_event` raises."""
        body = b""
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                return None
        return body


def _response(answer: Answer, *, is_last: bool, is_head: bool) -> tuple[h11.Event, ...]:
    status, kind, body = answer
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", page.own_policy() if body is page.HTML else page.NO_PAGE),
        *page.HEADERS,
        *([(b"connection", b"close")] if is_last else []),
    ]
    response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
    return (response, h11.EndOfMessage()) if is_head else (response, h11.Data(data=body), h11.EndOfMessage())


# ---------------------------------------------------------------------------------------------------- the thread


class _Selector(selectors.EpollSelector):
    """Returns nothing when the kernel refuses select(); asyncio's loop would end."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        try:
            return super().select(timeout)
        except OSError:
            time.sleep(_PAUSE)
            return []


class _EventLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector())

    def __del__(self, *_: object) -> None:
        """asyncio's own prints a traceback for a loop without descriptors. `Runner` closes other loops."""


def serve(sites: Sequence[tuple[socket.socket, Site]], answering: AbstractContextManager[None]) -> None:
    """Answer on these sockets, each request inside that context, until an error, which it raises."""
    with asyncio.Runner(loop_factory=_EventLoop) as runner:
        runner.get_loop()  # else a loop that cannot be created leaves a coroutine that was never awaited, and a warning
        runner.run(_serve(sites, answering))


async def _serve(sites: Sequence[tuple[socket.socket, Site]], answering: AbstractContextManager[None]) -> None:
    said = refusals.Said()

    def cannot(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError):
            loop.default_exception_handler(context)
            return
        # accept(2), most likely; asyncio retries in a second.
        because = refusals.because("a client of the health port or the control socket is refused", error)
        if said.is_news(because, now()):
            logs.get_logger().warning("supervisor.refused", because=because)

    asyncio.get_running_loop().set_exception_handler(cannot)
    # asyncio closes its socket on failure; the next attempt needs ours.
    copies = [sock.dup() for sock, _ in sites]
    try:
        async with asyncio.TaskGroup() as group:
            for sock, (_, site) in zip(copies, sites, strict=True):
                group.create_task(Server(site, answering).serve(sock))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        for sock in copies:
            sock.close()
