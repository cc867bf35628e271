"""Clients of the health port and the control socket that nobody can trust to ask, to end or to read.

uvicorn has no limit on the time that a request may take to arrive or an answer to be read, and its only limit on
connections (`limit_concurrency`) turns away whoever comes next: the honest one. Here a client has `PATIENCE` seconds
from one answer to the next, and when there are too many at a time the eldest makes room, so that a newcomer is always
heard. That also bounds descriptors and memory: the supervisor needs its own to replace workers.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from supervisor.clock import now

PATIENCE: Final = 10.0
"""Seconds from being connected, or from the last answer, to the next answer's having been written; an answer that is
not read by then goes with its connection. More than `app.STUCK_AFTER`, for which a wish may wait."""

MOST: Final = 96
"""Connections at a time, to each of the sockets, where the limit on descriptors is as high as usual; fewer where it is
not. With both full, three quarters of what `descriptors.BESIDE` sets aside."""

AT_ONCE: Final = 16
"""Connections taken from the kernel in one turn of the thread's loop. By default asyncio takes as many as wait, all of
them with their descriptors, before the first of them can be sent away."""


class Client(H11Protocol):
    """One connection."""

    most: ClassVar[int] = MOST
    _since = 0.0
    _is_sent_away = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        held = [client for client in self.connections if isinstance(client, Client) and not client._is_sent_away]
        if len(held) >= self.most:
            min(held, key=lambda client: client._since).send_away()
        super().connection_made(transport)
        self._since = now()
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._be_patient()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. uvicorn's own lets the application answer as well, and answers what has been answered
        already, or a HEAD with a body: h11 refuses that, a traceback in the log for each such request."""
        if self.cycle is not None and not self.cycle.response_complete:
            # As if it were gone: nothing that the application says is sent any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def send_away(self) -> None:
        # Not close(): that waits until what is written has been read.
        self._is_sent_away = True
        self.transport.abort()

    def _be_patient(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(PATIENCE, self.send_away)
