"""HTTP, on the one thread beside the loop: /healthz, /readyz, /metrics, /status, and the live page at /.

uvicorn reads what comes from outside; the answers are made from values that the loop replaces as a whole
(`parent.snapshot`) and from shared memory, so a slow client or a scraper in a hurry costs the loop nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import selectors
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Final

from supervisor import logs
from supervisor.clock import now
from supervisor.light import without
from supervisor.parent import control, refusals
from supervisor.parent.http import page
from supervisor.parent.snapshot import Look
from supervisor.policy import addressed
from supervisor.policy.status import readiness
from supervisor.vocabulary import Wish

STUCK_AFTER: Final = 5.0
"""Seconds without a turn of the loop (which ticks each second) after which /healthz says so."""

MAX_BODY: Final = 4096
"""Bytes that a wish may take."""

_PAUSE: Final = 0.02
"""Seconds before a selector that was refused is asked again."""

BACKLOG: Final = 512
"""Connections that the kernel keeps until this thread has its turn."""

Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[int, str, bytes]

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=utf-8"


class Site:
    """The ASGI application. Four paths do not need a framework."""

    def __init__(self, look: Look) -> None:
        self._look = look
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
        refusal = self._refusal(scope)
        try:
            status, kind, body = refusal or await self._respond(scope, receive)
        except (OSError, ImportError) as error:  # out of descriptors, most likely
            status, kind, body = _refused(503, refusals.because("this cannot be answered now", error))
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *page.HEADERS,
        ]
        if refusal is not None:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _refusal(self, scope: dict[str, Any]) -> Answer | None:
        """What is wrong with the request whatever it asks for."""
        headers = dict(scope["headers"])
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy in front may go by the other one, and see other requests in the same bytes (RFC 9112, 6.1).
            return 400, _TEXT, b"Content-Length or Transfer-Encoding, not both\n"
        host = headers.get(b"host", b"").decode("latin-1")
        if self._is_for_us(host):
            return None
        return 421, _TEXT, b"asked by a name that is not known to be this host's: allow it with --health-host NAME\n"

    def _is_for_us(self, host: str) -> bool:
        settings = self._look().settings
        names = [*settings.health_host, *([settings.health.host] if settings.health else [])]
        return addressed.is_ours(host, socket.gethostname(), names)

    async def _respond(self, scope: dict[str, Any], receive: Any) -> Answer:
        return self._answer(scope["method"], scope["path"])

    def _answer(self, method: str, path: str) -> Answer:
        answer = self._paths.get(path)
        if answer is None and method == "POST":
            return 403, _TEXT, b"nothing can be changed here, only by the control socket (--control)\n"
        if answer is None:
            return 404, _TEXT, f"there is {', '.join(sorted(self._paths))}\n".encode()
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"GET only\n"
        return answer()

    def _healthz(self) -> Answer:
        age = self._look().age
        if age > STUCK_AFTER:
            return 503, _TEXT, f"the supervisor's loop has not turned for {age:.1f} s\n".encode()
        return 200, _TEXT, b"ok\n"

    def _readyz(self) -> Answer:
        ready, because = readiness(self._look().view)
        because = logs.redact(because)
        return 200 if ready else 503, _TEXT, f"{because}\n".encode()

    def _scrape(self) -> Answer:
        # Imported at the first scrape: a supervisor that nobody scrapes does not pay for it.
        from supervisor.parent.http import metrics

        if self._metrics is None:
            self._metrics = metrics.Metrics(self._look)
        return 200, metrics.CONTENT_TYPE, self._metrics.text()

    def _status(self) -> Answer:
        return 200, _JSON, json.dumps(self._look().status()).encode() + b"\n"

    def _index(self) -> Answer:
        return 200, _HTML, page.HTML


class ControlSite(Site):
    """What the control socket has beside the rest: the verbs that change something. The health port is served by a
    `Site`, which does not know them."""

    def __init__(self, look: Look, wishes: control.Wishes) -> None:
        super().__init__(look)
        self._wishes = wishes
        self._verbs: dict[str, Callable[[dict[str, Any]], Future[control.Answer]]] = {
            "/scale": self._scale,
            "/reload": lambda _: wishes.make(Wish.RELOAD, "workq reload"),
            "/drain": lambda _: wishes.make(Wish.DRAIN, "workq drain"),
        }

    def _is_for_us(self, host: str) -> bool:
        return True  # no browser reaches a socket in the file system

    async def _respond(self, scope: dict[str, Any], receive: Any) -> Answer:
        verb = self._verbs.get(scope["path"])
        if verb is None:
            return await super()._respond(scope, receive)
        if scope["method"] != "POST":
            return 405, _TEXT, b"POST only\n"
        try:
            wish = verb(await _body(receive))
        except ValueError as error:
            return _refused(400, str(error))
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(wish), STUCK_AFTER)
        except TimeoutError:
            return _refused(503, f"the supervisor's loop has not turned for {STUCK_AFTER:g} s")
        said = [{"event": say.event, "because": say.because} for say in answer.said]
        is_refused = any(say.level in ("warning", "error") for say in answer.said) or not said
        document = {"ok": not is_refused, "because": said[-1]["because"] if said else "it is too late", "said": said}
        document["reload"] = answer.reload.number if answer.reload is not None else None
        return 409 if is_refused else 200, _JSON, json.dumps(document).encode() + b"\n"

    def _scale(self, given: dict[str, Any]) -> Future[control.Answer]:
        workers, change = given.get("workers"), given.get("change")
        if type(workers) is int and workers > 0 and change is None:
            return self._wishes.make(Wish.SCALE, "workq scale", workers)
        if change in (1, -1) and workers is None:
            return self._wishes.make(Wish.GROW if change == 1 else Wish.SHRINK, "workq scale")
        raise ValueError('expected {"workers": N}, or {"change": 1} or -1')


async def _body(receive: Any) -> dict[str, Any]:
    """The JSON object that a request brings, or an empty one. Raises ValueError."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            # Its sender went, or sent what is no HTTP: perhaps that was not all of it.
            raise ValueError("the request broke off")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise ValueError(f"a body of at most {MAX_BODY} bytes is expected")
        if not message.get("more_body"):
            break
    document = json.loads(body or b"{}")
    if isinstance(document, dict):
        return document
    raise ValueError("a JSON object is expected")


def _refused(status: int, because: str) -> Answer:
    return status, _JSON, json.dumps({"ok": False, "because": because}).encode() + b"\n"


class _Selector(selectors.EpollSelector):
    """One that the kernel refuses for once has nothing ready; asyncio's loop would end."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        try:
            return super().select(timeout)
        except OSError:
            time.sleep(_PAUSE)
            return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector())

    def __del__(self, *_: object) -> None:
        """Not asyncio's: of a loop that was refused its descriptors it prints a traceback. `Runner` closes others."""


def serve(look: Look, wishes: control.Wishes, health: socket.socket | None, listener: control.Listener | None) -> None:
    """Answer on these sockets, for as long as the process lives. Raises what keeps it from that."""
    sites: list[tuple[socket.socket, Site]] = []
    # asyncio closes what it was given when it fails; the next attempt needs the sockets.
    if health is not None:
        sites.append((health.dup(), Site(look)))
    if listener is not None:
        sites.append((listener.socket.dup(), ControlSite(look, wishes)))
    try:
        _serve(sites)
    finally:
        for sock, _ in sites:
            sock.close()


def _serve(sites: list[tuple[socket.socket, Site]]) -> None:
    with without("watchfiles"), without("uvicorn.supervisors", "ChangeReload", "Multiprocess"):
        import uvicorn

    from supervisor.parent.http.limits import AT_ONCE, MOST, Client

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    Client.most = min(MOST, max(4, soft // 8))

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            # uvicorn's own wakes ten times a second to look at the clock and at signals, which are not its business
            # here.
            await asyncio.Event().wait()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for sock in sockets or ():
                # asyncio has made the kernel's queue as short as AT_ONCE: who does not fit in tries again in a second.
                sock.listen(BACKLOG)

    # Not its warnings: one for each request that is not HTTP, which anybody can send any number of.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)

    def server(site: Site) -> Server:
        config = uvicorn.Config(
            site,
            loop="asyncio",
            http=Client,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=5,
            h11_max_incomplete_event_size=16 * 1024,
            backlog=AT_ONCE,
        )
        return Server(config)

    said = refusals.Said()

    def cannot(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError):
            loop.default_exception_handler(context)
            return
        # accept(2), most likely; asyncio tries again in a second.
        because = refusals.because("a client of the health port or the control socket is turned away", error)
        if said.is_news(because, now()):
            logs.get_logger().warning("supervisor.refused", because=because)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(cannot)
        await asyncio.gather(*(server(site).serve(sockets=[listener]) for listener, site in sites))

    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.get_loop()  # else a loop that cannot be had leaves a coroutine that nobody has awaited, and a warning
        runner.run(run())
