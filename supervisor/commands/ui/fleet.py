"""The supervisors on the page: found, asked once a second while somebody looks, and asked to act."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from supervisor.clock import now
from supervisor.commands.running import Running, VerbError, sockets

ANSWER_WITHIN: Final = 5.0
"""Seconds for a status. One that hangs occupies one thread, and nobody else waits for it."""
WAIT_MOST: Final = 0.6
"""Seconds that the page waits for statuses: later ones come with its next question."""
FRESH: Final = 0.5
"""Seconds for which a status is not asked for again."""
OLD: Final = 2.5
"""Seconds after which a status is not shown as the present one."""
LOOK_EVERY: Final = 2.0
"""Seconds between two looks for new sockets."""


_THREADS: Final = ThreadPoolExecutor(64, thread_name_prefix="workq-ui")
"""More than asyncio's own: each supervisor that hangs occupies one."""


class Watched:
    """One supervisor."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.error = ""
        """Why there is no answer."""
        self._document: dict[str, Any] | None = None
        self._heard_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return str(self.running.address)

    @property
    def document(self) -> dict[str, Any] | None:
        """Its latest status; None if that is old."""
        return self._document if now() - self._heard_at < OLD else None

    @property
    def queue(self) -> str | None:
        """The queue that it consumes, or consumed when it last answered."""
        return str(self._document["queue"]["name"]) if self._document else None

    def ask(self) -> asyncio.Task[None]:
        """Ask for its status, unless that is being done."""
        if self._asking is None or (self._asking.done() and now() - self._heard_at > FRESH):
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        try:
            self._document = await self._in_thread(self.running.status, ANSWER_WITHIN)
        except VerbError as error:
            self.error = error.message
        else:
            self.error, self._heard_at = "", now()

    async def wish(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask it to act; the answer has `ok` and `because`. Raises VerbError."""
        return await self._in_thread(self.running.wish, path, body)

    async def _in_thread(self, act: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(_THREADS, act, *given)

    def brief(self) -> dict[str, Any]:
        """What the page shows of those that are not chosen."""
        document = self.document
        about = {"address": self.address, "can_change": self.running.can_change, "queue": self.queue}
        if document is None:
            silent = f"it has not answered for {now() - self._heard_at:.0f} s" if self._heard_at else "not asked yet"
            return about | {"error": self.error or silent}
        workers = document["workers"]
        return about | {
            "error": "",
            "state": document["state"],
            "ready": document["ready"],
            "paused": bool(document.get("paused")),
            "readiness": document["readiness"],
            "consuming": sum(1 for worker in workers if worker["state"] in ("idle", "busy")),
            "workers": len(workers),
            "waiting": document["queue"]["ready"],
            "dead": document["dead_letters"]["ready"],
        }


class Fleet:
    """Those that were named; or, if no socket was, all that this user may use. One that goes away stays listed: it may
    come back."""

    def __init__(self, named: Sequence[Running], targets: Sequence[Running], find: Callable[[], Iterable[str]]) -> None:
        self.watched = [Watched(each) for each in (*named, *targets)]
        self._find = find if not named else None
        self._looked_at = -LOOK_EVERY

    def look(self) -> None:
        """Add new ones."""
        if self._find is None or now() - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now()
        known = {each.address for each in self.watched}
        self.watched += [Watched(Running(path)) for path in self._find() if path not in known]

    async def ask(self) -> None:
        """Ask all for their status, and wait a moment for the answers."""
        self.look()
        if self.watched:
            await asyncio.wait([each.ask() for each in self.watched], timeout=WAIT_MOST)


def usable() -> list[str]:
    """Control sockets that this user may connect to."""
    return [path for path in sockets() if os.access(path, os.R_OK | os.W_OK)]
