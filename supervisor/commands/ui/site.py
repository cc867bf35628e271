"""What `workq ui` answers: the page, statuses, and the verbs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import supervisor.commands.ui.page as page
from supervisor.commands.running import VerbError, user
from supervisor.commands.ui.desk import Desk, LetterError
from supervisor.commands.ui.fleet import Fleet, Watched
from supervisor.commands.ui.guard import Guard, Keys
from supervisor.endpoint import Endpoint

VERBS: Final = ("scale", "reload", "pause", "resume", "drain", "kill")
"""Paths of the control socket: `/scale`."""
LETTERS: Final = ("list", "show", "requeue", "drop")
_CHANGES: Final = ("requeue", "drop")


class Site:
    def __init__(self, fleet: Fleet, endpoints: Sequence[Endpoint]) -> None:
        """`endpoints`: the broker whose dead letters may be handled."""
        self._fleet = fleet
        self._brokers = [str(endpoint) for endpoint in endpoints]
        self._desk = Desk(endpoints)

    def app(self, keys: Keys) -> Starlette:
        routes = [
            Route("/", _static("text/html", page.HTML)),
            Route("/style.css", _static("text/css", page.STYLE)),
            Route("/live.js", _static("text/javascript", page.LIVE)),
            Route("/hands.js", _static("text/javascript", page.HANDS)),
            Route("/look", self._look),
            *(Route(f"/supervisors/{{number:int}}/{verb}", self._verb(verb), methods=["POST"]) for verb in VERBS),
            *(
                Route(f"/supervisors/{{number:int}}/letters/{name}", self._letters(name), methods=["POST"])
                for name in LETTERS
            ),
        ]
        return Starlette(routes=[Mount(keys.path, routes=routes)], middleware=[Middleware(Guard, keys=keys)])

    async def _look(self, request: Request) -> Response:
        """All supervisors in brief, and the chosen one's status."""
        await self._fleet.ask()
        chosen = request.query_params.get("of", "")
        watched = self._fleet.watched
        document = watched[int(chosen)].document if chosen.isdigit() and int(chosen) < len(watched) else None
        briefs = [each.brief() | {"letters": self._why_no_letters(each)} for each in watched]
        return JSONResponse({"supervisors": briefs, "status": document})

    def _why_no_letters(self, watched: Watched) -> str:
        """Why the dead letters of this one's queue cannot be handled here; empty: they can. A queue of the same name at
        another broker is another queue."""
        if not watched.running.can_change:
            return "read-only: it is watched by its health port"
        broker = (watched.document or {}).get("broker")
        if broker is None:
            return "its broker is not known: it is not connected, or does not answer"
        if broker not in self._brokers:
            ours = ", ".join(self._brokers)
            return f"its broker is {broker}, but this workq ui has the URL of {ours}: start one with --url or --unit"
        return ""

    def _verb(self, verb: str) -> Callable[[Request], Awaitable[Response]]:
        async def act(request: Request) -> Response:
            watched = self._of(request)
            if watched is None:
                return _failed(404, "there is no such supervisor on this page")
            if not watched.running.can_change:
                return _failed(403, "read-only: it is watched by its health port")
            try:
                body = await _object(request)
                answer = await watched.wish(f"/{verb}", body | _signed())
            except ValueError as error:
                return _failed(400, str(error))
            except VerbError as error:
                return _failed(502, error.message)
            return JSONResponse(answer, 200 if answer["ok"] else 409)

        return act

    def _letters(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            watched = self._of(request)
            if watched is None or watched.queue is None:
                return _failed(404, "there is no such supervisor on this page, or it has not answered yet")
            if watched.document is None:
                await watched.ask()
            if because := self._why_no_letters(watched):
                return _failed(403, because)
            try:
                body = await _object(request)
                done = await self._desk.ask(name, watched.queue, body)
            except ValueError as error:
                return _failed(400, str(error))
            except LetterError as error:
                await self._note(watched, name, error.done)
                return _failed(409, str(error))
            await self._note(watched, name, str(done.get("because", "")))
            return JSONResponse(done)

        return handle

    async def _note(self, watched: Watched, name: str, because: str) -> None:
        """Have the supervisor log what was done to its dead letters."""
        if name in _CHANGES and because:
            try:
                await watched.wish("/note", {"said": because[:1000]} | _signed())
            except VerbError:
                pass  # it is gone; the dead letters are not its own

    def _of(self, request: Request) -> Watched | None:
        number = int(request.path_params["number"])
        return self._fleet.watched[number] if number < len(self._fleet.watched) else None


def _static(kind: str, content: bytes) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=kind)


def _signed() -> dict[str, str]:
    """Who asks, for the supervisor's log."""
    name = f"{user()}, workq ui"
    return {"client": name, "user": name}


async def _object(request: Request) -> dict[str, Any]:
    """The JSON object in the body. Raises ValueError."""
    try:
        document = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return document
    raise ValueError("a JSON object is expected")


def _failed(status: int, because: str) -> Response:
    return JSONResponse({"ok": False, "because": because}, status)
