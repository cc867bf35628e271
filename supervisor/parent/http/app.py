"""HTTP answers, from the loop's latest snapshot and shared memory: they cost the loop nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from supervisor import logs
from supervisor.parent import control, refusals
from supervisor.parent.http import page
from supervisor.parent.snapshot import Look
from supervisor.policy import addressed
from supervisor.policy.events import Wish
from supervisor.policy.status import readiness

STUCK_AFTER: Final = 5.0
"""Seconds without a turn of the loop (it ticks every second) after which /healthz fails."""

Answer = tuple[int, str, bytes]
"""Status, content type, body."""

TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=utf-8"


class Site:
    """The health port."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._metrics: Any = None
        self._paths: dict[str, Callable[[], Answer]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/status": self._status,
            "/": lambda: (200, _HTML, page.HTML),
        }

    def refusal(self, headers: Mapping[bytes, bytes]) -> Answer | None:
        """The error for a request that is invalid whatever its path; None when it is valid."""
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy may use the other header, and see different requests in the same bytes (RFC 9112, 6.1).
            return 400, TEXT, b"Content-Length or Transfer-Encoding, not both\n"
        host = headers.get(b"host", b"").decode("latin-1")
        if self._is_for_us(host):
            return None
        return 421, TEXT, b"the Host header is not a known name of this host: allow it with --health-host NAME\n"

    async def answer(self, method: str, path: str, body: bytes) -> Answer:
        try:
            return await self._respond(method, path, body)
        except (OSError, ImportError) as error:  # out of descriptors, most likely
            return refused(503, refusals.because("cannot answer now", error))

    def _is_for_us(self, host: str) -> bool:
        settings = self._look().settings
        names = [*settings.health_host, *([settings.health.host] if settings.health else [])]
        return addressed.is_ours(host, socket.gethostname(), names)

    async def _respond(self, method: str, path: str, _body: bytes) -> Answer:
        answer = self._paths.get(path)
        if answer is None and method == "POST":
            return 403, TEXT, b"read-only: changes go to the control socket (--control)\n"
        if answer is None:
            return 404, TEXT, f"not found; paths: {', '.join(sorted(self._paths))}\n".encode()
        if method not in ("GET", "HEAD"):
            return 405, TEXT, b"GET only\n"
        return answer()

    def _healthz(self) -> Answer:
        age = self._look().age
        if age > STUCK_AFTER:
            return 503, TEXT, f"the supervisor's loop has been stuck for {age:.1f} s\n".encode()
        return 200, TEXT, b"ok\n"

    def _readyz(self) -> Answer:
        ready, because = readiness(self._look().view)
        because = logs.redact(because)
        return 200 if ready else 503, TEXT, f"{because}\n".encode()

    def _scrape(self) -> Answer:
        # Imported at the first scrape, for the memory of supervisors that are never scraped.
        from supervisor.parent.http import metrics

        if self._metrics is None:
            self._metrics = metrics.Metrics(self._look)
        return 200, metrics.CONTENT_TYPE, self._metrics.text()

    def _status(self) -> Answer:
        return 200, _JSON, json.dumps(self._look().status()).encode() + b"\n"


class ControlSite(Site):
    """The control socket: also the verbs that change something."""

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

    async def _respond(self, method: str, path: str, body: bytes) -> Answer:
        verb = self._verbs.get(path)
        if verb is None:
            return await super()._respond(method, path, body)
        if method != "POST":
            return 405, TEXT, b"POST only\n"
        try:
            wish = verb(_object(body))
        except ValueError as error:
            return refused(400, str(error))
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(wish), STUCK_AFTER)
        except TimeoutError:
            return refused(503, f"the supervisor's loop has been stuck for {STUCK_AFTER:g} s")
        said = [{"event": say.event, "because": say.because} for say in answer.said]
        is_refused = any(say.level in ("warning", "error") for say in answer.said) or not said
        because = said[-1]["because"] if said else "the supervisor has stopped"
        document = {"ok": not is_refused, "because": because, "said": said}
        document["reload"] = answer.reload.number if answer.reload is not None else None
        return 409 if is_refused else 200, _JSON, json.dumps(document).encode() + b"\n"

    def _scale(self, given: dict[str, Any]) -> Future[control.Answer]:
        workers, change = given.get("workers"), given.get("change")
        if type(workers) is int and workers > 0 and change is None:
            return self._wishes.make(Wish.SCALE, "workq scale", workers)
        if change in (1, -1) and workers is None:
            return self._wishes.make(Wish.GROW if change == 1 else Wish.SHRINK, "workq scale")
        raise ValueError('expected {"workers": N}, or {"change": 1} or -1')


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body, or an empty one. Raises ValueError."""
    try:
        document = json.loads(body or b"{}")
    except RecursionError:
        document = None
    if isinstance(document, dict):
        return document
    raise ValueError("a JSON object is expected")


def refused(status: int, because: str) -> Answer:
    return status, _JSON, json.dumps({"ok": False, "because": because}).encode() + b"\n"
