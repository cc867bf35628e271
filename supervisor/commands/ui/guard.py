"""Who may talk to `workq ui`: the browser that opened the printed URL first, and no page but ours.

The URL has two secrets. The *path* is where everything is: a browser sends cookies to every port of a host, but only
below their path, so no other server on this host is sent ours. The *token* is exchanged for a cookie, once.
"""

from __future__ import annotations

import hmac
import json
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from supervisor.parent.http import page

COOKIE: Final = "workq-ui"
BODY_MOST: Final = 256 * 1024
"""Bytes of a request's body."""
_READS: Final = ("GET", "HEAD")
_HEADERS: Final = {
    **{name.decode(): value.decode() for name, value in page.HEADERS},
    "content-security-policy": page.policy("'self'", "'self'"),
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class Keys:
    """The secrets of one run."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.path = f"/{secrets.token_urlsafe(9)}"
        self._token: str | None = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)

    @property
    def url(self) -> str:
        """For the browser; works once."""
        return f"http://127.0.0.1:{self.port}{self.path}/?token={self._token}"

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]"))

    @property
    def is_spent(self) -> bool:
        return self._token is None

    def spend(self, token: str) -> str | None:
        """The session's cookie for the right token, once."""
        if self._token is None or not _is_same(token, self._token):
            return None
        self._token = None
        return self._session

    def admits(self, cookie: str) -> bool:
        return _is_same(cookie, self._session)


def _is_same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


class Guard:
    """ASGI middleware: refuses what is not from our page, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websocket, no lifespan

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(scope["method"], Headers(scope=scope)) or self._entrance(scope)
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        """For a request that is invalid whatever its path."""
        host = headers.get("host", "")
        if host not in self._keys.hosts:
            ours = self._keys.hosts[0]
            return _refused(421, f"the Host header is not {ours}: use the printed URL, and in a tunnel the same port")
        if method not in (*_READS, "POST"):
            return _refused(405, "GET and POST only", allow="GET, HEAD, POST")
        origin = headers.get("origin")
        if origin != f"http://{host}" and (origin is not None or method == "POST"):
            return _refused(403, "the Origin header is not that of this page")
        if method == "POST":
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return _refused(415, "application/json is expected")
            length = headers.get("content-length", "")
            if not length.isascii() or not length.isdigit():
                return _refused(411, "Content-Length is expected")
            if int(length) > BODY_MOST:
                return _refused(413, f"a body of at most {BODY_MOST} bytes is expected")
        return None

    def _entrance(self, scope: Scope) -> Response | None:
        """For a request without a session: a new one, or a refusal."""
        path, cookie_path = scope["path"], f"{self._keys.path}/"
        if not _is_same(path[: len(cookie_path)], cookie_path):
            return _refused(404, "not found: open the URL that workq ui printed")
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if token is not None and path == cookie_path and scope["method"] == "GET":
            session = self._keys.spend(token[-1])
            if session is not None:
                answer = RedirectResponse(cookie_path, 303)
                answer.set_cookie(COOKIE, session, path=cookie_path, httponly=True, samesite="strict")
                return answer
            if not self._has_session(scope):
                used = "has been used: each works once" if self._keys.is_spent else "is wrong"
                return _refused(403, f"this URL's token {used}. Start workq ui again for a new one")
        if not self._has_session(scope):
            return _refused(403, "no session: open the URL that workq ui printed, or start it again for a new one")
        return None

    def _has_session(self, scope: Scope) -> bool:
        for header in Headers(scope=scope).getlist("cookie"):
            try:
                found = SimpleCookie(header).get(COOKIE)
            except CookieError:
                continue
            if found is not None and self._keys.admits(found.value):
                return True
        return False


def _refused(status: int, because: str, **headers: str) -> Response:
    # A script reads JSON, a person reads text: one line of either.
    return PlainTextResponse(json.dumps({"ok": False, "because": because}) + "\n", status, headers)
