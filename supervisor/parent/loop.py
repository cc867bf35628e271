"""The parent's loop: wait; ask the pool; perform its actions; log why. Decides nothing.

    while pool.open:
        for event in processes.wait(until): perform(pool.handle(event, now()))
        perform(pool.overdue(now()))

Only `wait` blocks. The one tick is the sample of the scoreboard and of memory, once a second.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from supervisor import logs, namesake
from supervisor.clock import now
from supervisor.messages import Admit, Begin, Drain, Measure, Parked, Verdict
from supervisor.parent.control import Wishes
from supervisor.parent.processes import Processes
from supervisor.parent.signals import Wakeups, asked
from supervisor.parent.snapshot import Snapshot
from supervisor.parent.zygote import Zygote
from supervisor.policy import status
from supervisor.policy.actions import Action, Leave, Say, Signal, Spawn, StartNursery, StopNursery, Tell
from supervisor.policy.events import Asked, Event, Sampled, Wish, WorkerSaid
from supervisor.policy.pool import Pool
from supervisor.scoreboard import Scoreboard
from supervisor.settings import OPTIONS, Settings, SettingsError, unreloadable
from supervisor.version import __version__
from supervisor.vocabulary import Reading, slot_of

if TYPE_CHECKING:
    from supervisor.parent.reports import Reports
    from supervisor.parent.systemd import Systemd

SAMPLE_EVERY: Final = 1.0
RECENT: Final = 50

Reread = Callable[[], Settings]
"""Read the settings again. Raises SettingsError."""


class Loop:
    """Runs on the main thread. Other threads get `look`, which returns the latest snapshot."""

    def __init__(
        self,
        settings: Settings,
        board: Scoreboard,
        log_fd: int,
        sink: logs.Sink,
        wishes: Wishes,
        systemd: Systemd | None,
        reread: Reread,
        zygote: Zygote | None,
    ) -> None:
        """`log_fd`: where children write their log lines. Raises OSError."""
        self._settings = settings
        self._board = board
        self._sink = sink
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._readings: tuple[Reading, ...] = ()
        self._turned_at = now()
        self._pool = Pool(settings, seed=os.getpid())
        self._wakeups = Wakeups()
        self._reread = reread
        self._wishes = wishes
        self._processes = Processes(board, log_fd, sink, zygote)
        self._processes.watch(self._wakeups, self._signalled)
        self._processes.watch(wishes, wishes.take)
        self._log: Any = logs.get_logger()
        self._systemd = systemd
        self._reports: Reports | None = None
        self._take_report(settings)
        self._code = 0
        self._show()

    def look(self) -> Snapshot:
        """The latest snapshot. Callable from any thread."""
        return self._snapshot

    def _show(self) -> None:
        self._snapshot = Snapshot(
            view=self._pool.view(now()),
            settings=self._settings,
            readings=self._readings,
            recent=tuple(self._recent),
            log_lines_dropped=self._sink.dropped,
            turned_at=self._turned_at,
            read=self._board.read,
            reported=self._reports.counts if self._reports is not None else None,
        )

    def start(self) -> None:
        settings = self._settings
        self._log.info(
            "supervisor.started",
            version=__version__,
            handler=settings.handler,
            workers=settings.workers.least,
            workers_most=settings.workers.most,
            workers_by=settings.workers.by,
            brokers=[str(endpoint) for endpoint in settings.url],
        )
        self._warn_of_exposure()
        if clash := namesake.clash():
            self._log.warning("supervisor.namesake", because=": ".join(clash))
        self._perform(self._pool.start(now()))

    def _warn_of_exposure(self) -> None:
        if exposure := self._settings.exposure:
            self._log.warning("supervisor.url_file_open", because=f"{exposure}; close it by chmod 600")

    def run(self, each_second: Callable[[], None]) -> int:
        """Run until the pool has stopped. Returns the exit code."""
        pool = self._pool
        sample_at = now()
        while pool.open:
            until = min(sample_at, pool.deadline or sample_at, self._systemd.due if self._systemd else sample_at)
            for event in self._processes.wait(until):
                self._handle(event)
            if now() >= sample_at:
                sample_at = now() + SAMPLE_EVERY
                self._perform(pool.handle(self._sample(), now()))
                each_second()
                if self._reports is not None:
                    self._reports.tend()
            self._perform(pool.overdue(now()))
            self._show()
            if self._systemd is not None:
                self._systemd.tell(self._snapshot.view, self._readings, self._turned_at, self._settings.grace)
        self._wakeups.ignore()
        if self._reports is not None:
            self._reports.finish()
        self._processes.close()
        return self._code

    def _handle(self, event: Event) -> None:
        if isinstance(event, Asked) and event.target is not None:
            with self._processes.still(event.target.text) as readings:
                target = dataclasses.replace(event.target, readings=readings)
                actions = self._decide(dataclasses.replace(event, target=target))
        elif isinstance(event, Asked) and event.wish is Wish.RELOAD:
            actions = self._decide(self._with_settings(event))
        else:
            actions = self._decide(event)
        if self._reports is not None and isinstance(event, WorkerSaid) and isinstance(event.report, Parked):
            self._reports.parked(event.page, event.report)
        if self._pool.settings is not self._settings:
            self._take_settings(self._pool.settings)
        if isinstance(event, Asked):
            self._wishes.answer(event, actions, self._snapshot.view.reload)

    def _decide(self, event: Event) -> list[Action]:
        actions = self._pool.handle(event, now())
        self._perform(actions)
        return actions

    def _with_settings(self, asked: Asked) -> Asked:
        """Read the settings for a reload."""
        try:
            settings = self._reread()
        except SettingsError as error:
            return dataclasses.replace(asked, problem="; ".join(error.problems))
        except OSError as error:
            return dataclasses.replace(asked, problem=f"the settings cannot be read: {error.strerror}")
        if fixed := unreloadable(self._settings, settings):
            because = f"{', '.join(fixed)} cannot be changed by a reload: restore the old value or restart"
            return dataclasses.replace(asked, problem=because)
        return dataclasses.replace(asked, settings=settings)

    def _take_settings(self, settings: Settings) -> None:
        """The reload succeeded: apply the new settings in the supervisor too."""
        former, self._settings = self._settings, settings
        self._take_report(settings)
        self._show()
        if settings.log_level != former.log_level:
            logs.set_level(settings.log_level)
            self._log = logs.get_logger()
        if settings.exposure != former.exposure:
            self._warn_of_exposure()
        changed = [name for name in OPTIONS if getattr(former, name, None) != getattr(settings, name, None)]
        if changed:
            generation = self._snapshot.view.generation
            self._note("info", "reload.settings", f"changed: {', '.join(changed)}", generation=generation)

    def _take_report(self, settings: Settings) -> None:
        if self._reports is not None:
            self._reports.change(settings)
        elif settings.report is not None:
            from supervisor.parent.reports import Reports

            self._reports = Reports(settings, self._processes)

    # ------------------------------------------------------------------------------------------------ acting

    def _perform(self, actions: list[Action]) -> None:
        if actions:
            # A decision that is in the log must already be in /status.
            self._show()
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        processes = self._processes
        match action:
            case Say(event, level, because, fields):
                getattr(self._log, level)(event, because=because, **fields)
                if self._reports is not None:
                    self._reports.tell(level, event, because, fields)
                slim = {name: value for name, value in fields.items() if name not in ("output", "exception")}
                self._remember(event, because, slim)
                if self._systemd is not None and event.startswith("reload."):
                    self._systemd.reload()
            case Leave(code, because):
                self._note("info", "supervisor.stopped", because, code=code)
                self._code = code
            case Tell(page, Drain() as order, because):
                self._note("info", "worker.drain", because, slot=slot_of(page))
                processes.call(page, order)
            case Tell(page, Admit() as order, because):
                self._log.debug("worker.admit", slot=slot_of(page), intake=order.intake, because=because)
                processes.call(page, order)
            case Tell(page, Measure() as order, because):
                self._log.debug("worker.measure", slot=slot_of(page), because=because)
                processes.tell(page, order)
            case Tell(page, Verdict(name=name, run=may_run) as order, because):
                self._log.debug("task.verdict", slot=slot_of(page), message_id=name, run=may_run, because=because)
                processes.tell(page, order)
            case Signal(page, name, because):
                self._note("warning", "worker.signalled", because, slot=slot_of(page), signal=name)
                processes.signal(page, signal.Signals[name])
            case Spawn(page, generation, because, has_queues, met, intake):
                self._log.debug("worker.spawn", slot=slot_of(page), because=because)
                processes.spawn(generation, Begin(page, has_queues, met, intake))
            case StartNursery(generation, preload, because):
                self._note("debug", "nursery.start", because, generation=generation, preload=preload)
                processes.start_nursery(generation, preload, self._pool.settings_of(generation))
            case StopNursery(generation, because, stack):
                self._note("debug", "nursery.stop", because, generation=generation)
                processes.stop_nursery(generation, stack=stack)

    def _note(self, level: str, event: str, because: str, **fields: Any) -> None:
        getattr(self._log, level)(event, because=because, **fields)
        if self._reports is not None:
            self._reports.tell(level, event, because, fields)
        self._remember(event, because, fields)

    def _remember(self, event: str, because: str, fields: dict[str, Any]) -> None:
        # Redacted as in the log: the error of an import may quote a URL.
        clean = {name: logs.redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        self._recent.append({"at": logs.utc(), "event": event, "because": logs.redact(because), **clean})
        self._snapshot = dataclasses.replace(self._snapshot, recent=tuple(self._recent))

    # ----------------------------------------------------------------------------------------------- hearing

    def _sample(self) -> Sampled:
        sampled = self._processes.sample()
        self._readings = sampled.readings
        self._turned_at = now()
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
                said = status.without_evidence(self._snapshot.status())
                self._log.info("supervisor.status", because="SIGUSR2", status=said)
