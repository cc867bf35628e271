"""HTTP answers, from the loop's latest snapshot and shared memory: they cost the loop nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from supervisor import logs
from supervisor.clock import now
from supervisor.parent import control, refusals
from supervisor.parent.http import page, sockets
from supervisor.parent.snapshot import Look
from supervisor.policy import addressed
from supervisor.policy.canary import Canary
from supervisor.policy.events import Asked, Target, Wish
from supervisor.policy.status import readiness

STUCK_AFTER: Final = 5.0
"""Seconds without a turn of the loop (it ticks every second) after which /healthz fails."""

USER_MOST: Final = 64
NOTE_MOST: Final = 1000
"""Characters."""
END_WITHIN: Final = 5.0
"""Seconds after which who waits for the end is told that it has not come yet: it asks again, before that."""
_LOOK_EVERY: Final = 0.05
LONGEST: Final = 365 * 86400.0
"""Seconds."""

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
            "/": self._page,
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

    async def answer(self, method: str, path: str, body: bytes, client: Any) -> Answer:
        """`client`: the connection's socket."""
        try:
            return await self._respond(method, path, body, client)
        except (OSError, ImportError) as error:  # out of descriptors, most likely
            return refused(503, refusals.because("cannot answer now", error))

    def _page(self) -> Answer:
        page.own_policy()  # fails here or not at all
        return 200, _HTML, page.HTML

    def _is_for_us(self, host: str) -> bool:
        settings = self._look().settings
        names = [*settings.health_host, *([settings.health.host] if settings.health else [])]
        return addressed.is_ours(host, socket.gethostname(), names)

    async def _respond(self, method: str, path: str, _body: bytes, _client: Any) -> Answer:
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
        self._verbs: dict[str, Callable[[dict[str, Any], Any], Future[control.Answer]]] = {
            "/scale": self._scale,
            "/reload": self._reload,
            "/pause": self._pause,
            "/resume": lambda given, _: wishes.make(Asked(Wish.RESUME, _by("workq resume", given))),
            "/drain": lambda *_: wishes.make(Asked(Wish.DRAIN, "workq drain")),
            "/kill": self._kill,
        }

    def _page(self) -> Answer:
        page.own_policy()  # fails here or not at all
        return 200, _HTML, page.HTML

    def _is_for_us(self, host: str) -> bool:
        return True  # no browser reaches a socket in the file system

    async def _respond(self, method: str, path: str, body: bytes, client: Any) -> Answer:
        if path == "/end" and method == "GET":
            await self._end()
            return self._status()
        verb = self._verbs.get(path)
        if verb is None and path != "/note":
            return await super()._respond(method, path, body, client)
        if method != "POST":
            return 405, TEXT, b"POST only\n"
        try:
            given = _object(body)
            wish = verb(given, client) if verb is not None else None
        except ValueError as error:
            return refused(400, str(error))
        self._note(path, given, client)
        if wish is None:
            return 200, _JSON, b'{"ok": true}\n'
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(wish), STUCK_AFTER)
        except TimeoutError:
            return refused(503, f"the supervisor's loop has been stuck for {STUCK_AFTER:g} s")
        said = [{"event": say.event, "because": say.because} for say in answer.said]
        is_refused = any(say.level in ("warning", "error") for say in answer.said) or not said
        because = said[-1]["because"] if said else "the supervisor has stopped"
        document = {"ok": not is_refused, "because": because, "said": said}
        document["worker"] = next(
            (say.fields for say in answer.said if say.event == "worker.kill" and say.fields), None
        )
        document["reload"] = answer.reload.number if answer.reload is not None else None
        return 409 if is_refused else 200, _JSON, json.dumps(document).encode() + b"\n"

    async def _end(self) -> None:
        """Wait until the supervisor has stopped. Its process exits when this is answered (`Serving.finish`)."""
        until = now() + END_WITHIN
        while not any(each["event"] == "supervisor.stopped" for each in self._look().recent) and now() < until:
            await asyncio.sleep(_LOOK_EVERY)

    def _kill(self, given: dict[str, Any], client: Any) -> Future[control.Answer]:
        text, kind, command = given.get("target"), given.get("kind", ""), given.get("command", "kill")
        flags = given.get("dead_letter", False), given.get("at_once", False)
        is_known = kind in ("", "slot", "message") and command in ("kill", "chaos")
        if type(text) is not str or not text or not is_known or not all(type(flag) is bool for flag in flags):
            raise ValueError('expected {"target": "SLOT or message id"}, and perhaps "kind", "dead_letter", "at_once"')
        by = f"workq {command} by {sockets.peer(client)}"
        return self._wishes.make(Asked(Wish.KILL, by, target=Target(text, kind, *flags)))

    def _note(self, path: str, given: dict[str, Any], client: Any) -> None:
        """Log who asks for what: the user is the kernel's word, the name the client's own. /note is for what was done
        elsewhere, to this queue's dead letters."""
        because = _printable(given.get("said"), NOTE_MOST) if path == "/note" else "by the control socket"
        user, name = sockets.peer(client), _printable(given.get("client"), USER_MOST)
        log = logs.get_logger()
        log.info("control.requested", because=because, verb=path.removeprefix("/"), user=user, client=name)

    def _scale(self, given: dict[str, Any], _client: Any) -> Future[control.Answer]:
        workers, change = given.get("workers"), given.get("change")
        if type(workers) is int and workers > 0 and change is None:
            return self._wishes.make(Asked(Wish.SCALE, "workq scale", workers))
        if change in (1, -1) and workers is None:
            return self._wishes.make(Asked(Wish.GROW if change == 1 else Wish.SHRINK, "workq scale"))
        raise ValueError('expected {"workers": N}, or {"change": 1} or -1')

    def _pause(self, given: dict[str, Any], _client: Any) -> Future[control.Answer]:
        seconds = given.get("seconds")
        if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds <= LONGEST):
            raise ValueError(f'expected {{"seconds": N}}, more than 0 and at most {LONGEST:g}, or none')
        return self._wishes.make(Asked(Wish.PAUSE, _by("workq pause", given), seconds=seconds))

    def _reload(self, given: dict[str, Any], _client: Any) -> Future[control.Answer]:
        if not {"canary", "seconds"} & given.keys():
            return self._wishes.make(Asked(Wish.RELOAD, _by("workq reload", given)))
        percent: Any = given.get("canary")
        seconds: Any = given.get("seconds")
        is_number = type(seconds) in (int, float)
        if type(percent) is int and 0 < percent < 100 and is_number and 0 < seconds <= LONGEST:
            by = _by(f"workq reload --canary {percent}% --for {seconds:g}s", given)
            return self._wishes.make(Asked(Wish.RELOAD, by, canary=Canary(percent, float(seconds))))
        raise ValueError('expected {"canary": PERCENT, "seconds": N}, PERCENT from 1 to 99, or {}')


def _by(command: str, given: dict[str, Any]) -> str:
    """Who asks, for the log. The name is the client's own: whoever may use the socket may also call it anything."""
    name = _printable(given.get("user"), USER_MOST)
    return f"{command} ({name})" if name else command


def _printable(value: object, most: int) -> str:
    return "".join(filter(str.isprintable, value))[:most] if isinstance(value, str) else ""


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
