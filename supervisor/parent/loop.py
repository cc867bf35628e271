"""The parent's loop: wait; ask the pool; do what it says; log why. Decides nothing.

    while pool.open:
        for event in processes.wait(until): perform(pool.handle(event, now()))
        perform(pool.overdue(now()))

Only `wait` blocks. The one tick is the sample of the scoreboard and of memory, once a second.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from supervisor import logs, namesake, streams
from supervisor.clock import now
from supervisor.parent import control, refusals
from supervisor.parent.control import Listener, Wishes
from supervisor.parent.http.thread import Serving
from supervisor.parent.processes import Processes
from supervisor.parent.signals import Wakeups, asked
from supervisor.policy import status
from supervisor.policy.pool import Pool
from supervisor.policy.view import PoolView
from supervisor.scoreboard import Scoreboard
from supervisor.settings import OPTIONS, Settings, SettingsError, unreloadable
from supervisor.version import __version__
from supervisor.vocabulary import (
    EXIT_CONFIG,
    EXIT_KILLED,
    Action,
    Asked,
    Drain,
    Event,
    Leave,
    Measure,
    Reading,
    Sampled,
    Say,
    Signal,
    Spawn,
    StartNursery,
    StopNursery,
    Tell,
    Verdict,
    Wish,
    slot_of,
)

if TYPE_CHECKING:
    from supervisor.parent.systemd import Systemd
    from supervisor.parent.watcher import Changes

SAMPLE_EVERY: Final = 1.0
RECENT: Final = 50

Reread = Callable[[], Settings]
"""Read the settings anew. Raises SettingsError."""


def run(settings: Settings, reread: Reread) -> int:
    """Supervise until asked to leave. Returns the exit code."""
    try:
        streams.occupy()
        board = Scoreboard.create()
        log_fd = os.dup(2)
        # Settled here, where the terminal is: a worker's own stderr is a pipe.
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
        _write_last(f"workq-supervise: {because}\n")
        return code
    log = logs.get_logger()
    try:
        health, listener = _listen(settings, log)
    except _CannotListen as error:
        log.error("supervisor.stopped", because=str(error), code=error.code)
        return error.code
    changes = None
    try:
        try:
            supervisor = Supervisor(settings, board, log_fd, sink, lambda: _resolved(reread(), log_fd))
        except OSError as error:
            because, code = _cannot_start(error)
            log.error("supervisor.stopped", because=because, code=code)
            return code
        supervisor.start()  # the handler is imported while we import what serves
        if settings.reload:
            changes = _changes(settings.app_dir, supervisor, log)
        supervisor.serve(health, listener)
        return supervisor.run()
    finally:
        if changes is not None:
            changes.end()
        if listener is not None:
            listener.remove()


def _cannot_start(error: OSError) -> tuple[str, int]:
    """The one line, and the exit code."""
    hint = "; mount /proc" if str(error.filename or "").startswith("/proc") else ""
    code = EXIT_KILLED if error.errno in refusals.RESTART_MAY_HELP else EXIT_CONFIG
    return f"{refusals.because('the supervisor cannot start', error)}{hint}", code


def _write_last(line: str) -> None:
    """Before there is a log."""
    try:
        os.write(2, line.encode())
    except OSError:
        pass


def _changes(directory: str, supervisor: Supervisor, log: Any) -> Changes | None:
    try:
        from supervisor.parent.watcher import Changes

        return Changes(directory, supervisor)
    except (OSError, ImportError, RuntimeError) as error:
        because = refusals.because(f"{directory} is not watched", error)
        log.error("reload.not_watching", because=f"{because}; there are SIGHUP and workq reload")
        return None


def _resolved(settings: Settings, log_fd: int) -> Settings:
    return dataclasses.replace(settings, log_format=logs.resolve_format(settings.log_format, log_fd))


class _CannotListen(Exception):
    """Its text says where, and what to do."""

    def __init__(self, where: str, error: OSError, otherwise: str) -> None:
        is_used_up = error.errno in refusals.RESTART_MAY_HELP
        because = refusals.because(where, error) if is_used_up else f"{where}: {error.strerror}; {otherwise}"
        super().__init__(because)
        self.code = EXIT_KILLED if is_used_up else EXIT_CONFIG


def _listen(settings: Settings, log: Any) -> tuple[socket.socket | None, Listener | None]:
    """The health port and the control socket, where they are wanted."""
    health = control_socket = None
    if settings.health is not None:
        try:
            from supervisor.parent.http import sockets

            health = sockets.bind(settings.health, settings.health_explicit, log)
        except OSError as error:
            where = f"the health port {settings.health} cannot be had"
            raise _CannotListen(where, error, "choose another with --health, or off") from None
    if settings.control is not None:
        try:
            control_socket = control.bind(settings.control, settings.control_explicit, log)
        except OSError as error:
            where = f"the control socket {settings.control} cannot be had"
            raise _CannotListen(where, error, "choose another with --control, or off") from None
    return health, control_socket


def _systemd() -> Systemd | None:
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from supervisor.parent import systemd

    return systemd.take(os.environ)


class Supervisor:
    """The loop, and what others may read of it: `view`, `turned_at`, `recent`, each a value replaced as a whole."""

    def __init__(
        self, settings: Settings, board: Scoreboard, log_fd: int, sink: logs.Sink, reread: Reread | None = None
    ) -> None:
        self.settings = settings
        self.board = board
        self.sink = sink
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.readings: tuple[Reading, ...] = ()
        self.turned_at = now()
        self._pool = Pool(settings, seed=os.getpid())
        self.view: PoolView = self._pool.view(now())
        self._wakeups = Wakeups()
        self._reread = reread
        self.wishes = Wishes()
        self._processes = Processes(board, log_fd, sink)
        self._processes.watch(self._wakeups, self._signalled)
        self._processes.watch(self.wishes, self.wishes.take)
        self._log: Any = logs.get_logger()
        self._systemd = _systemd()
        self._serving: Serving | None = None
        self._code = 0

    def start(self) -> None:
        """Say so, and begin."""
        settings = self.settings
        brokers = [str(endpoint) for endpoint in settings.url]
        self._log.info(
            "supervisor.started",
            version=__version__,
            handler=settings.handler,
            workers=settings.workers.least,
            workers_most=settings.workers.most,
            workers_by=settings.workers.by,
            brokers=brokers,
        )
        self._warn_of_exposure()
        if clash := namesake.clash():
            self._log.warning("supervisor.namesake", because=f"{clash.what}: {clash.fix}")
        self._perform(self._pool.start(now()))

    def _warn_of_exposure(self) -> None:
        if exposure := self.settings.exposure:
            self._log.warning("supervisor.url_file_open", because=f"{exposure}; close it by chmod 600")

    def serve(self, health: socket.socket | None, listener: Listener | None) -> None:
        """Have these sockets answered, beside the loop."""
        self._serving = Serving(self, health, listener)
        self._serving.tend()

    def run(self) -> int:
        """The loop, once started. Returns the exit code."""
        pool = self._pool
        sample_at = now()
        while pool.open:
            until = min(sample_at, pool.deadline or sample_at, self._systemd.due if self._systemd else sample_at)
            for event in self._processes.wait(until):
                self._handle(event)
            if now() >= sample_at:
                sample_at = now() + SAMPLE_EVERY
                self._perform(pool.handle(self._sample(), now()))
                if self._serving is not None:
                    self._serving.tend()
            self._perform(pool.overdue(now()))
            self.view = pool.view(now())
            if self._systemd is not None:
                self._systemd.tell(self.view, self.readings, self.turned_at, self.settings.grace)
        self._wakeups.ignore()
        self._processes.close()
        return self._code

    def _handle(self, event: Event) -> None:
        heard = self._with_settings(event) if isinstance(event, Asked) and event.wish is Wish.RELOAD else event
        actions = self._pool.handle(heard, now())
        self._perform(actions)
        if self._pool.settings is not self.settings:
            self._take_settings(self._pool.settings)
        if isinstance(event, Asked):
            self.wishes.answer(event, actions, self.view.reload)

    def _with_settings(self, asked: Asked) -> Asked:
        """A reload is asked for: read what it is to be done with."""
        if self._reread is None:
            return asked
        try:
            settings = self._reread()
        except SettingsError as error:
            return dataclasses.replace(asked, problem="; ".join(error.problems))
        except OSError as error:
            return dataclasses.replace(asked, problem=f"the settings cannot be read: {error.strerror}")
        if fixed := unreloadable(self.settings, settings):
            verb = "has changed, which" if len(fixed) == 1 else "have changed, which"
            because = f"{', '.join(fixed)} {verb} no reload can carry out: put back what there was, or restart"
            return dataclasses.replace(asked, problem=because)
        return dataclasses.replace(asked, settings=settings)

    def _take_settings(self, settings: Settings) -> None:
        """A reload has been proved good: what the pool goes by is what everybody here goes by."""
        former, self.settings = self.settings, settings
        if settings.log_level != former.log_level:
            logs.set_level(settings.log_level)
            self._log = logs.get_logger()
        if settings.exposure != former.exposure:
            self._warn_of_exposure()
        changed = [name for name in OPTIONS if getattr(former, name, None) != getattr(settings, name, None)]
        if changed:
            self._note("info", "reload.settings", f"changed: {', '.join(changed)}", generation=self.view.generation)

    def status(self) -> dict[str, Any]:
        """What /status says. May be called from any thread."""
        view = self.view
        pages = [status.page_of(slot, self.board.read) for slot in view.slots]
        said = status.status(
            view, pages, self.readings, list(self.recent), self.settings, now(), datetime.datetime.now(datetime.UTC)
        )
        clean = {name: logs.redact(said[name] or "") or None for name in ("because", "readiness", "trouble")}
        # The thread that answers goes on when the loop does not: then all the rest is old.
        return said | clean | {"loop_seconds": round(now() - self.turned_at, 3)}

    # ------------------------------------------------------------------------------------------------ acting

    def _perform(self, actions: list[Action]) -> None:
        if actions:
            # Who has read of a decision in the log finds it in /status.
            self.view = self._pool.view(now())
        for action in actions:
            self._log_action(action)
            self._act(action)

    def _act(self, action: Action) -> None:
        processes = self._processes
        match action:
            case StartNursery(generation, preload):
                processes.start_nursery(generation, preload, self._pool.settings_of(generation))
            case StopNursery(generation, stack=stack):
                processes.stop_nursery(generation, stack=stack)
            case Spawn(page, generation, has_queues=has_queues):
                processes.spawn(page, generation, has_queues)
            case Tell(page, Drain() as order):
                processes.drain(page, order)
            case Tell(page, order):
                processes.tell(page, order)
            case Signal(page, name):
                processes.signal(page, signal.Signals[name])
            case Leave(code):
                self._code = code
            case Say():
                pass

    def _log_action(self, action: Action) -> None:
        match action:
            case Say(event, level, because, fields):
                getattr(self._log, level)(event, because=because, **fields)
                slim = {name: value for name, value in fields.items() if name not in ("output", "exception")}
                self._remember(event, because, slim)
                if self._systemd is not None and event.startswith("reload."):
                    self._systemd.reload()
            case Leave(code, because):
                self._log.info("supervisor.stopped", because=because, code=code)
                self._remember("supervisor.stopped", because, {"code": code})
            case Tell(page, Measure(), because):
                self._log.debug("worker.measure", slot=slot_of(page), because=because)
            case Tell(page, Verdict(name=name, run=may_run), because):
                self._log.debug("task.verdict", slot=slot_of(page), message_id=name, run=may_run, because=because)
            case Tell(page, _, because):
                self._note("info", "worker.drain", because, slot=slot_of(page))
            case Signal(page, name, because):
                self._note("warning", "worker.signalled", because, slot=slot_of(page), signal=name)
            case Spawn(page, _, because):
                self._log.debug("worker.spawn", slot=slot_of(page), because=because)
            case StartNursery(generation, preload, because):
                self._note("debug", "nursery.start", because, generation=generation, preload=preload)
            case StopNursery(generation, because):
                self._note("debug", "nursery.stop", because, generation=generation)

    def _note(self, level: str, event: str, because: str, **fields: Any) -> None:
        getattr(self._log, level)(event, because=because, **fields)
        self._remember(event, because, fields)

    def _remember(self, event: str, because: str, fields: dict[str, Any]) -> None:
        # As in the log: an error of the handler's import may quote a URL.
        clean = {name: logs.redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        self.recent.append({"at": logs.utc(), "event": event, "because": logs.redact(because), **clean})

    # ----------------------------------------------------------------------------------------------- hearing

    def _sample(self) -> Sampled:
        sampled = self._processes.sample()
        self.readings = sampled.readings
        self.turned_at = now()
        return sampled

    def _signalled(self) -> Iterator[Event]:
        for number in self._wakeups.read():
            wish = asked(number)
            if wish is not None:
                yield wish
            elif number is signal.SIGCHLD:
                self._processes.child_died()
            elif number is signal.SIGUSR1:
                self._log.info("worker.stacks", because="SIGUSR1: every worker writes its stacks to its output")
                self._processes.signal_all(signal.SIGUSR1)
            elif number is signal.SIGUSR2:
                self._log.info("supervisor.status", because="SIGUSR2", status=status.without_evidence(self.status()))
