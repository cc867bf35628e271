"""HTTP, on the one thread beside the loop: /healthz, /readyz, /metrics, /status.

uvicorn reads what comes from outside; the answers are made from values that the loop replaces as a whole
(`Supervisor.view`) and from shared memory, so a slow client or a scraper in a hurry costs the loop nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from supervisor.clock import now
from supervisor.policy.status import readiness

if TYPE_CHECKING:
    from supervisor.parent.loop import Supervisor

STUCK_AFTER: Final = 5.0
"""Seconds without a turn of the loop (which ticks each second) after which /healthz says so."""

Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[int, str, bytes]

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"


class Site:
    """The ASGI application. Four paths do not need a framework."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._metrics: Any = None
        self._paths: dict[str, Callable[[], Answer]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/status": self._status,
            "/": self._index,
        }

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = self._answer(scope["method"], scope["path"])
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, method: str, path: str) -> Answer:
        answer = self._paths.get(path)
        if answer is None:
            return 404, _TEXT, f"there is {', '.join(sorted(self._paths))}\n".encode()
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"GET only\n"
        return answer()

    def _healthz(self) -> Answer:
        age = now() - self._supervisor.turned_at
        if age > STUCK_AFTER:
            return 503, _TEXT, f"the supervisor's loop has not turned for {age:.1f} s\n".encode()
        return 200, _TEXT, b"ok\n"

    def _readyz(self) -> Answer:
        ready, because = readiness(self._supervisor.view)
        return 200 if ready else 503, _TEXT, f"{because}\n".encode()

    def _scrape(self) -> Answer:
        # Imported at the first scrape: a supervisor that nobody scrapes does not pay for it.
        from supervisor.parent import metrics

        if self._metrics is None:
            self._metrics = metrics.Metrics(self._supervisor)
        return 200, metrics.CONTENT_TYPE, self._metrics.text()

    def _status(self) -> Answer:
        return 200, _JSON, json.dumps(self._supervisor.status()).encode() + b"\n"

    def _index(self) -> Answer:
        lines = ["workq-supervise", *(path for path in self._paths if path != "/")]
        return 200, _TEXT, "\n".join(lines).encode() + b"\n"


def serve(listener: socket.socket, supervisor: Supervisor) -> None:
    """Answer on this socket, on a thread of its own, for as long as the process lives."""
    threading.Thread(target=_serve, args=(listener, supervisor), name="workq-http", daemon=True).start()


def _serve(listener: socket.socket, supervisor: Supervisor) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            # uvicorn's own wakes ten times a second to look at the clock and at signals, which are not its business
            # here.
            await asyncio.Event().wait()

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        Site(supervisor),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=16 * 1024,
    )
    Server(config).run(sockets=[listener])
