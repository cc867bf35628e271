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
import resource
import signal
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from supervisor import logs
from supervisor.clock import now
from supervisor.parent.processes import Processes
from supervisor.parent.wakeups import Wakeups, asked
from supervisor.policy import status
from supervisor.policy.pool import Pool
from supervisor.policy.view import PoolView
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings
from supervisor.version import __version__
from supervisor.vocabulary import (
    EXIT_CONFIG,
    Action,
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
)

SAMPLE_EVERY: Final = 1.0
RECENT: Final = 50
_FDS_PER_WORKER: Final = 3
_FDS_BESIDE: Final = 256


def run(settings: Settings) -> int:
    """Supervise until asked to leave. Returns the exit code."""
    board = Scoreboard.create()
    log_fd = os.dup(sys.stderr.fileno())
    # Settled here, where the terminal is: a worker's own stderr is a pipe.
    settings = dataclasses.replace(settings, log_format=logs.resolve_format(settings.log_format, log_fd))
    sink = logs.configure(
        role="supervisor",
        queue=settings.queue,
        fd=log_fd,
        lock_fd=board.fd,
        format=settings.log_format,
        level=settings.log_level,
    )
    log = logs.get_logger()
    _raise_descriptor_limit(settings.workers.most)
    try:
        listener = None
        if settings.health is not None:
            from supervisor.parent import listen

            listener = listen.bind(settings.health, settings.health_explicit, log)
    except OSError as error:
        because = (
            f"the health port {settings.health} cannot be had: {error.strerror}; choose another with --health, or off"
        )
        log.error("supervisor.stopped", because=because, code=EXIT_CONFIG)
        return EXIT_CONFIG
    supervisor = Supervisor(settings, board, log_fd, sink)
    if listener is not None:
        from supervisor.parent import web

        web.serve(listener, supervisor)
    return supervisor.run()


def _raise_descriptor_limit(workers: int) -> None:
    """Room for three descriptors a worker, where the hard limit allows; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, workers * _FDS_PER_WORKER + _FDS_BESIDE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Supervisor:
    """The loop, and what others may read of it: `view`, `turned_at`, `recent`, each a value replaced as a whole."""

    def __init__(self, settings: Settings, board: Scoreboard, log_fd: int, sink: logs.Sink) -> None:
        self.settings = settings
        self.board = board
        self.sink = sink
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.readings: tuple[Reading, ...] = ()
        self.turned_at = now()
        self._pool = Pool(settings, seed=os.getpid())
        self.view: PoolView = self._pool.view(now())
        self._wakeups = Wakeups()
        self._processes = Processes(settings, board, log_fd, sink.write)
        self._processes.watch(self._wakeups, self._signalled)
        self._log: Any = logs.get_logger()
        self._code = 0

    def run(self) -> int:
        """The loop. Returns the exit code."""
        settings, pool = self.settings, self._pool
        brokers = [str(endpoint) for endpoint in settings.url]
        self._log.info(
            "supervisor.started",
            version=__version__,
            handler=settings.handler,
            workers=settings.workers.least,
            workers_most=settings.workers.most,
            brokers=brokers,
        )
        self._perform(pool.start(now()))
        sample_at = now()
        while pool.open:
            for event in self._processes.wait(min(sample_at, pool.deadline or sample_at)):
                self._perform(pool.handle(event, now()))
            if now() >= sample_at:
                sample_at = now() + SAMPLE_EVERY
                self._perform(pool.handle(self._sample(), now()))
            self._perform(pool.overdue(now()))
            self.view = pool.view(now())
        self._processes.close()
        return self._code

    def status(self) -> dict[str, Any]:
        """What /status says. May be called from any thread."""
        view = self.view
        pages = [self.board.read(slot.slot) for slot in view.slots]
        return status.status(
            view, pages, self.readings, list(self.recent), self.settings, now(), datetime.datetime.now(datetime.UTC)
        )

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
                processes.start_nursery(generation, preload)
            case StopNursery(generation, stack=stack):
                processes.stop_nursery(generation, stack=stack)
            case Spawn(slot, generation):
                processes.spawn(slot, generation)
            case Tell(slot, Drain() as order):
                processes.drain(slot, order)
            case Tell(slot, order):
                processes.tell(slot, order)
            case Signal(slot, name):
                processes.signal(slot, signal.Signals[name])
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
            case Leave(code, because):
                self._log.info("supervisor.stopped", because=because, code=code)
                self._remember("supervisor.stopped", because, {"code": code})
            case Tell(slot, Measure(), because):
                self._log.debug("worker.measure", slot=slot, because=because)
            case Tell(slot, Verdict(key=key, run=may_run), because):
                self._log.debug("task.verdict", slot=slot, message_id=key, run=may_run, because=because)
            case Tell(slot, _, because):
                self._note("info", "worker.drain", because, slot=slot)
            case Signal(slot, name, because):
                self._note("warning", "worker.signalled", because, slot=slot, signal=name)
            case Spawn(slot, _, because):
                self._log.debug("worker.spawn", slot=slot, because=because)
            case StartNursery(generation, preload, because):
                self._note("debug", "nursery.start", because, generation=generation, preload=preload)
            case StopNursery(generation, because):
                self._note("debug", "nursery.stop", because, generation=generation)

    def _note(self, level: str, event: str, because: str, **fields: Any) -> None:
        getattr(self._log, level)(event, because=because, **fields)
        self._remember(event, because, fields)

    def _remember(self, event: str, because: str, fields: dict[str, Any]) -> None:
        self.recent.append({"at": logs.utc(), "event": event, "because": because, **fields})

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
