"""The thread that serves the health port and the control socket; restarted when it ends."""

from __future__ import annotations

import errno
import gc
import select
import socket
import threading
from typing import Any, Final

from supervisor import logs
from supervisor.clock import now
from supervisor.late import without
from supervisor.parent import refusals
from supervisor.parent.control import Wishes
from supervisor.parent.http.sockets import Listener
from supervisor.parent.snapshot import Look
from supervisor.policy.restart import Backoff

_BACKOFF: Final = Backoff(free=0, first=1.0, most=30.0)
_STEADY: Final = 10.0
"""Seconds of service after which the backoff is reset."""
_HEAD_START: Final = 0.2
"""Seconds before this thread imports anything, unless a client comes: the workers' start needs the processor."""
_LAST_ANSWERS: Final = 1.0
"""Seconds to finish answers when the supervisor exits: `workq drain` waits for the answer to its own request."""


class Answering:
    """Counts requests in progress: `with` this, on any thread."""

    def __init__(self) -> None:
        self._requests = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._requests += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._requests -= 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until there is none, for `seconds` at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._requests, seconds)


class Serving:
    """Call `tend` once a second, and `finish` before the process exits."""

    def __init__(self, look: Look, wishes: Wishes, health: socket.socket | None, listener: Listener | None) -> None:
        self._look = look
        self._wishes = wishes
        self._health = health
        self._listener = listener
        self._answering = Answering()
        self._log: Any = logs.get_logger()
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        """Why the thread ended; its last write."""
        self._failures = 0
        self._due = 0.0
        self._started_at = 0.0

    def tend(self) -> None:
        """Restart it when it has ended."""
        if self._health is None and self._listener is None:
            return
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread = None
            self._give_up(self._failed or RuntimeError("its thread has ended"))
            # Reference cycles in asyncio's dead loop, and the traceback, still hold the clients' descriptors.
            self._failed = None
            gc.collect()
        if now() >= self._due:
            self._start()

    def finish(self) -> None:
        """Finish the answers in progress."""
        self._answering.wait(_LAST_ANSWERS)

    def _start(self) -> None:
        self._failed = None
        thread = threading.Thread(target=self._serve, name="workq-http", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # pthread_create(3) failed: a process limit
            self._give_up(BlockingIOError(errno.EAGAIN, str(error)))
            return
        self._thread, self._started_at = thread, now()

    def _serve(self) -> None:
        try:
            self._await_client(_HEAD_START)
            with without("ssl"):  # for asyncio, that is
                from supervisor.parent.http import app, server

            sites: list[tuple[socket.socket, app.Site]] = []
            if self._health is not None:
                sites.append((self._health, app.Site(self._look)))
            if self._listener is not None:
                sites.append((self._listener.socket, app.ControlSite(self._look, self._wishes)))
            server.serve(sites, self._answering)
        except Exception as error:  # noqa: BLE001 - the workers must run on without it
            self._failed = error

    def _await_client(self, seconds: float) -> None:
        clients = select.poll()
        for sock in (self._health, self._listener.socket if self._listener else None):
            if sock is not None:
                clients.register(sock, select.POLLIN)
        clients.poll(seconds * 1000)

    def _give_up(self, error: Exception) -> None:
        self._failures = 1 if now() - self._started_at > _STEADY else self._failures + 1
        delay = _BACKOFF.delay(self._failures, 0.0)
        self._due = now() + delay
        because = refusals.because("the health port and the control socket are down", error)
        self._log.error("health.failed", because=because, next=f"retried in {delay:g} s; workers keep running")
