"""The parent: bind sockets first, since that may fail; then start."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from supervisor import logs, streams
from supervisor.parent import refusals
from supervisor.parent.control import Wishes
from supervisor.parent.http import sockets
from supervisor.parent.http.sockets import Listener
from supervisor.parent.http.thread import Serving
from supervisor.parent.loop import Loop, Reread
from supervisor.parent.snapshot import Look
from supervisor.parent.zygote import Zygote
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import EXIT_CONFIG, EXIT_KILLED

if TYPE_CHECKING:
    from supervisor.parent.systemd import Systemd


def run(settings: Settings, reread: Reread, zygote: Zygote | None) -> int:
    """Supervise until asked to stop. Returns the exit code."""
    try:
        streams.occupy()
        board = Scoreboard.create()
        log_fd = os.dup(2)
        # Resolved here, where the terminal is: a worker's stderr is a pipe.
        settings = _resolved(settings, log_fd)
        sink = logs.configure(
            role="supervisor",
            queue=settings.queue,
            fd=log_fd,
            lock_fd=board.fd,
            format=settings.log_format,
            level=settings.log_level,
        )
    except OSError as error:
        because, code = _cannot_start(error)
        streams.complain(f"workq-supervise: {because}\n")  # there is no log yet
        return code
    log = logs.get_logger()
    try:
        health, listener = _listen(settings, log)
    except _CannotListen as error:
        log.error("supervisor.stopped", because=str(error), code=error.code)
        return error.code
    with ExitStack() as undo:
        if listener is not None:
            undo.callback(listener.remove)
        try:
            wishes = Wishes()
            loop = Loop(settings, board, log_fd, sink, wishes, _systemd(), lambda: _resolved(reread(), log_fd), zygote)
        except OSError as error:
            because, code = _cannot_start(error)
            log.error("supervisor.stopped", because=because, code=code)
            return code
        loop.start()  # the handler is imported while we import what serves
        if settings.reload:
            _watch(settings.app_dir, loop.look, wishes, undo, log)
        serving = Serving(loop.look, wishes, health, listener)
        serving.tend()
        code = loop.run(serving.tend)
        wishes.end()
        serving.finish()
        return code


def _cannot_start(error: OSError) -> tuple[str, int]:
    """The reason, in one line, and the exit code."""
    is_missing = error.errno == errno.ENOENT and str(error.filename or "").startswith("/proc")
    hint = "; mount /proc" if is_missing else ""
    code = EXIT_KILLED if error.errno in refusals.RESTART_MAY_HELP else EXIT_CONFIG
    return f"{refusals.because('the supervisor cannot start', error)}{hint}", code


def _watch(directory: str, look: Look, wishes: Wishes, undo: ExitStack, log: Any) -> None:
    """Reload when the code changes."""
    try:
        from supervisor.parent.watcher import Changes

        undo.callback(Changes(directory, look, wishes).end)
    except (OSError, ImportError, RuntimeError) as error:
        because = refusals.because(f"{directory} is not watched", error)
        log.error("reload.not_watching", because=f"{because}; use SIGHUP or workq reload")


def _resolved(settings: Settings, log_fd: int) -> Settings:
    return dataclasses.replace(settings, log_format=logs.resolve_format(settings.log_format, log_fd))


class _CannotListen(Exception):
    """Its text has the address and the remedy."""

    def __init__(self, where: str, option: str, error: OSError) -> None:
        is_used_up = error.errno in refusals.RESTART_MAY_HELP
        otherwise = f"{where}: {error.strerror}; choose another with {option}, or off"
        super().__init__(refusals.because(where, error) if is_used_up else otherwise)
        self.code = EXIT_KILLED if is_used_up else EXIT_CONFIG


def _listen(settings: Settings, log: Any) -> tuple[socket.socket | None, Listener | None]:
    """The health port and the control socket, where they are wanted."""
    health = control = None
    where, option = f"cannot listen on the health port {settings.health}", "--health"
    try:
        if settings.health is not None:
            health = sockets.health(settings.health, settings.health_explicit, log)
        where, option = f"cannot listen on the control socket {settings.control}", "--control"
        if settings.control is not None:
            control = sockets.control(settings.control, settings.control_explicit, log)
    except OSError as error:
        raise _CannotListen(where, option, error) from None
    return health, control


def _systemd() -> Systemd | None:
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from supervisor.parent import systemd

    return systemd.take(os.environ)
