"""--report: passes events to a process of its own (`supervisor.reporter`), and never waits for it.

The queue between them is the buffer of a socket, of which the parent keeps both ends: the events wait there while the
process is restarted. What does not fit is dropped and counted.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from supervisor import logs, reporter
from supervisor.clock import now
from supervisor.linux import cgroup
from supervisor.logs.record import as_json
from supervisor.messages import Parked
from supervisor.parent import refusals
from supervisor.parent.descriptors import close
from supervisor.parent.output import Output
from supervisor.parent.processes import Processes
from supervisor.parent.snapshot import Reported
from supervisor.parent.source import execute
from supervisor.policy.events import Event
from supervisor.policy.restart import Backoff
from supervisor.settings import Settings
from supervisor.vocabulary import slot_of

_EVENTS: Final = ("worker.exited",)
_AREAS: Final = ("breaker.", "broker.", "reload.")
_ROOM: Final = 256 * 1024
"""Bytes of the socket's buffer, if net.core.wmem_max allows; the kernel doubles it for what it needs itself."""
_BACKOFF: Final = Backoff(free=0, first=1.0, most=60.0)
_STEADY: Final = 60.0
"""Seconds of service after which the backoff is reset."""
_REPLACED_WITHIN: Final = 5.0
"""Seconds that the process has for its current event and its atexit functions when a reload replaces it."""
_LAST_EVENTS: Final = 2.0
"""The same when the supervisor stops, with all the events that wait."""
_DIES_WITHIN: Final = 1.0


@dataclass(slots=True, eq=False)
class _Reporter:
    pid: int
    pidfd: int
    output: Output
    started_at: float
    kill_at: float | None = None
    """When to kill it, if it has been told to exit: monotonic seconds."""

    @property
    def is_told_to_exit(self) -> bool:
        return self.kill_at is not None


class Reports:
    """Call `tend` once a second, and `finish` before `Processes.close`."""

    def __init__(self, settings: Settings, processes: Processes) -> None:
        self._settings = settings
        self._processes = processes
        self._log: Any = logs.get_logger()
        self._said = refusals.Said()
        self._ends: tuple[socket.socket, socket.socket] | None = None
        """Ours, and the reporter's."""
        self._reporter: _Reporter | None = None
        self._failures = 0
        self._due = 0.0
        self._dropped = 0
        self._restarts = 0

    @property
    def counts(self) -> Reported | None:
        return Reported(self._dropped, self._restarts) if self._settings.report is not None else None

    def tell(self, level: str, event: str, because: str, fields: Mapping[str, object]) -> None:
        """The supervisor logs this event."""
        if event in _EVENTS or event.startswith(_AREAS):
            about = {"pid": os.getpid(), "role": "supervisor", "queue": self._settings.queue, "because": because}
            self._send({"timestamp": logs.utc(), "level": level, "event": event, **about, **fields})

    def parked(self, page: int, parked: Parked) -> None:
        """A worker has reported a dead letter, which it logs itself."""
        event = "task.quarantined" if parked.reason == "crash" else "task.dead_lettered"
        about = {"role": "worker", "slot": slot_of(page), "queue": self._settings.queue}
        fields = {
            name: getattr(parked, name)
            for name in ("because", "message_id", "attempt", "reason", "cause", "crashes", "evidence")
        }
        self._send({"timestamp": parked.at, "level": "warning", "event": event, **about, **fields})

    def _send(self, event: dict[str, Any]) -> None:
        if self._settings.report is None:
            return
        try:
            self._writer().send(as_json(event).encode())
        except OSError as error:
            self._dropped += 1
            full = "the queue to the process of --report is full" if error.errno == errno.EAGAIN else str(error)
            if self._said.is_news(full, now()):
                because = f"an event was not reported: {full}; workq_reports_dropped_total counts them"
                self._log.warning("report.dropped", because=because)

    def _writer(self) -> socket.socket:
        """Raises OSError."""
        if self._ends is None:
            self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._ends[0].setblocking(False)
            self._ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        return self._ends[0]

    # ------------------------------------------------------------------------------------------------ the process

    def tend(self) -> None:
        """Start the process when that is due; kill one that does not exit."""
        running = self._reporter
        if running is not None:
            running.output.refill()
            if running.kill_at is not None and now() >= running.kill_at:
                self._signal(running, signal.SIGKILL)
        elif self._settings.report is not None and now() >= self._due:
            try:
                self._reporter = self._start(self._settings.report)
            except (OSError, ImportError) as error:
                self._failed(refusals.because("the process of --report cannot be started", error))

    def change(self, settings: Settings) -> None:
        """A reload: its successor has the new code."""
        self._settings, self._log = settings, logs.get_logger()
        self._failures, self._due = 0, 0.0
        if self._reporter is not None:
            self._reporter.kill_at = now() + _REPLACED_WITHIN
            try:
                self._writer().send(reporter.end_of(self._reporter.pid))
            except OSError:
                self._reporter.kill_at = now()

    def finish(self) -> None:
        """Give the process a moment for the last events, then kill it."""
        if self._reporter is None:
            return
        self._reporter.kill_at = now() + _LAST_EVENTS
        self._writer().shutdown(socket.SHUT_WR)
        for within in (_LAST_EVENTS, _DIES_WITHIN):
            until = now() + within
            while self._reporter is not None and now() < until:
                self._processes.wait(until)
            if self._reporter is not None:
                self._signal(self._reporter, signal.SIGKILL)

    def _start(self, target: str) -> _Reporter:
        self._writer()
        assert self._ends is not None
        fd = self._ends[1].fileno()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            arguments = (str(fd), str(os.getpid()), target, self._settings.app_dir)
            pid = execute("supervisor.reporter", arguments, (fd,), writer)
        except BaseException:
            close(reader)
            raise
        finally:
            close(writer)
        self._processes.beside.add(pid)
        pidfd = None
        try:
            cgroup.make_expendable(pid)
            pidfd = os.pidfd_open(pid)
            started = _Reporter(pid, pidfd, Output(reader, self._log, source="report", pid=pid), now())
            self._processes.watch(pidfd, self._exited)
            self._processes.listen(started.output)
        except OSError:
            # It is reaped like a reparented process.
            os.kill(pid, signal.SIGKILL)
            self._processes.beside.discard(pid)
            self._processes.child_died()
            for each in (reader, pidfd):
                if each is not None:
                    self._processes.forget(each)
                    close(each)
            raise
        return started

    def _exited(self) -> Iterator[Event]:
        gone, self._reporter = self._reporter, None
        assert gone is not None
        gone.output.drain()
        status = self._processes.reap(gone.pidfd)
        for fd in (gone.pidfd, gone.output.fd):
            self._processes.forget(fd)
            close(fd)
        self._processes.beside.discard(gone.pid)
        if not gone.is_told_to_exit:
            if now() - gone.started_at > _STEADY:
                self._failures = 0
            self._failed(f"the process of --report has exited: {status}", gone.output.tail)
        return iter(())

    def _failed(self, because: str, output: str = "") -> None:
        self._failures += 1
        self._restarts += 1
        delay = _BACKOFF.delay(self._failures, 0.0)
        self._due = now() + delay
        follows = f"restarted in {delay:g} s; events wait, and workers are not affected"
        self._log.warning("report.exited", because=because, next=follows, output=output)

    def _signal(self, running: _Reporter, number: int) -> None:
        try:
            signal.pidfd_send_signal(running.pidfd, number)
        except OSError:
            pass  # a zombie
