"""Nurseries and workers: spawn, read, signal, reap. Decides nothing. Each is a child of this process, watched by pidfd,
which unlike a pipe no grandchild can keep open."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from supervisor import logs
from supervisor.clock import now
from supervisor.frames import kinds_of
from supervisor.linux import cgroup
from supervisor.messages import (
    Admit,
    Begin,
    Drain,
    Forked,
    ForkFailed,
    Leaving,
    Load,
    Loaded,
    LoadFailed,
    Lost,
    Measure,
    NurseryReport,
    Ready,
    Suspect,
    Threaded,
    WorkerReport,
)
from supervisor.parent import refusals, standstill
from supervisor.parent.child import Child, channel, read_output
from supervisor.parent.descriptors import Descriptors, close
from supervisor.parent.forks import Births, Newborn
from supervisor.parent.hearing import Hearing
from supervisor.parent.output import Output
from supervisor.parent.reaper import Reaper
from supervisor.parent.refusals import Refusals
from supervisor.parent.source import Source
from supervisor.parent.wait import Callback, Wait
from supervisor.parent.worker import Worker
from supervisor.parent.zygote import NoZygote, Zygote
from supervisor.policy import hung
from supervisor.policy.events import (
    Event,
    Exited,
    Garbled,
    NurseryFailed,
    NurseryGone,
    NurserySaid,
    Sampled,
    Started,
    StartFailed,
    WorkerSaid,
)
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import Reading, slot_of

_WORKER_REPORTS: Final = kinds_of(WorkerReport)
_NURSERY_REPORTS: Final = kinds_of(NurseryReport)


@dataclass(slots=True, eq=False)
class _Nursery(Child):
    generation: int
    births: Births
    settings: Settings
    is_spent: bool = False
    """It reported why it exits, or was asked to: do not report the exit."""


def _is_meant(page: Reading, meant: str) -> bool:
    return meant == str(slot_of(page.page)) or (page.hand is not None and page.hand.name == meant)


class Processes:
    """All children of the supervisor, and the one place that waits for anything."""

    def __init__(self, board: Scoreboard, log_fd: int, sink: logs.Sink, zygote: Zygote | None) -> None:
        self._board = board
        self._log_fd = log_fd
        self._sink = sink
        self._log: Any = logs.get_logger()
        self._descriptors = Descriptors()
        self._refusals = Refusals(self._log, self._descriptors)
        self._wait = Wait(self._refusals.say)
        self._reaper = Reaper()
        self._nurseries: dict[int, _Nursery] = {}
        """By generation: one, and while a reload loads, two."""
        self._spent: list[_Nursery] = []
        self._pending: list[Event] = []
        """Events from outside `wait`."""
        self._orders: dict[int, Begin] = {}
        """By page: the first message to its next worker."""
        self._workers: dict[int, Worker] = {}
        """By page."""
        self._pages: set[int] = set()
        """Pages that workers have ever had."""
        self.beside: set[int] = set()
        """Further children that are reaped by their pidfds: `reap`."""
        self._source = Source(zygote, board.fd, log_fd, self._wait, self._reaper, self.beside)

    # ----------------------------------------------------------------------------------------------- waiting

    def watch(self, fileobj: Any, callback: Callback) -> None:
        """Have `wait` call this when `fileobj` is readable."""
        self._wait.watch(fileobj, callback)

    def listen(self, output: Output) -> None:
        """Have `wait` log what a child prints. Raises OSError."""
        self.watch(output.fd, partial(read_output, output, self._wait))

    def forget(self, fileobj: Any) -> None:
        """The end of `watch` and `listen`."""
        self._wait.forget(fileobj)

    def reap(self, pidfd: int) -> str:
        """Reap this child: `exit 3`, `SIGKILL`, `OOM`. Raises OSError."""
        return self._reaper.reap(pidfd)

    def wait(self, until: float) -> list[Event]:
        """The events so far; at `until` (monotonic seconds) an empty list."""
        events, self._pending = self._pending, []
        # Exits first: another worker's question in the same round may be about a message that just killed one.
        deaths = {worker.pidfd for worker in self._workers.values()}
        events += self._wait.events(0.0 if events else until, deaths)
        if self._reaper.has_reparented:
            self._reap_reparented()
        return events

    def _reap_reparented(self) -> None:
        # Not while a worker may have been forked whose pid is unknown.
        if not any(nursery.births.are_due for nursery in self._all_nurseries()):
            self._reaper.reap_reparented(self._ours(), self._living())

    def child_died(self) -> None:
        """On SIGCHLD: perhaps a grandchild was reparented to us and has exited."""
        self._reaper.has_reparented = True

    def sample(self) -> Sampled:
        """Once a second: every worker's page and memory."""
        self._wait.resume()
        self._refusals.try_again()
        self._reaper.sampled(self._living())
        nurseries = self._all_nurseries()
        for child in (*self._workers.values(), *nurseries):
            self._sink.dropped += child.output.refill()
            child.hearing.refill()
        for nursery in nurseries:
            if not nursery.is_spent:
                nursery.births.sampled()
        readings = tuple(self._read(worker) for worker in self._workers.values())
        return Sampled(readings, self._board.away(self._pages))

    def _read(self, worker: Worker) -> Reading:
        return worker.read(self._board)

    @contextmanager
    def still(self, meant: str) -> Iterator[tuple[Reading, ...]]:
        """Every worker's page. Those that have a message of this name, or a slot of this number, do not move until the
        end of the block: what their pages say stays true, and a signal finds them there."""
        workers, held = tuple(self._workers.values()), set[int]()
        with ExitStack() as until_decided:
            while True:
                readings = tuple(self._read(worker) for worker in workers)
                # Again, until nobody has come to have it meanwhile.
                those = [each for each, page in zip(workers, readings, strict=True) if _is_meant(page, meant)]
                if held.issuperset(each.pid for each in those):
                    break
                until_decided.enter_context(standstill.of(each for each in those if each.pid not in held))
                held.update(each.pid for each in those)
            yield readings

    # ----------------------------------------------------------------------------------------------- nursery

    def start_nursery(self, generation: int, preload: bool, settings: Settings) -> None:
        """Start the process that imports the handler and forks workers; stop a running one of this generation."""
        self.stop_nursery(generation)
        try:
            self._nurseries[generation] = self._start_nursery(generation, preload, settings)
        except NoZygote:
            self.start_nursery(generation, preload, settings)  # it is executed this time
        except OSError as error:
            doing = "cannot start the process that forks workers"
            self._pending.append(NurseryFailed(generation, self._refusals.because(doing, error)))

    def _start_nursery(self, generation: int, preload: bool, settings: Settings) -> _Nursery:
        self._descriptors.make_room(len(self._workers))
        with channel() as (ours, reader, its, writer), ExitStack() as undo:
            pid = self._source.nursery(its.fileno(), writer)
            undo.callback(self._abandon, pid)
            # Now that it is our child, which is the first thing that it makes sure of.
            ours.send(Load(settings.to_wire(), preload, os.getpid(), generation), wait=False)
            cgroup.make_expendable(pid)
            pidfd = os.pidfd_open(pid)
            undo.callback(close, pidfd)
            output = Output(reader, self._log, source="nursery", pid=pid)
            hearing = Hearing(ours, _NURSERY_REPORTS, self._sink, self._log, source="nursery", pid=pid)
            births = Births(ours, self._descriptors, self._refuse)
            nursery = _Nursery(pid, pidfd, ours, hearing, output, generation, births, settings)
            nursery.watch(self._wait, partial(self._hear_nursery, nursery), partial(self._nursery_exited, nursery))
            undo.pop_all()
        return nursery

    def _abandon(self, pid: int) -> None:
        """Kill a child that cannot be watched; it is reaped like a reparented one."""
        os.kill(pid, signal.SIGKILL)
        self._reaper.has_reparented = True

    def _refuse(self, page: int, error: Exception) -> None:
        """The machine refuses a worker for this page."""
        self._pending.append(StartFailed(page, self._refusals.because("cannot start a worker", error)))

    def stop_nursery(self, generation: int, *, stack: bool = False) -> None:
        """Stop it, and read no more from it. `stack`: by SIGABRT, which logs where it hangs."""
        nursery = self._nurseries.pop(generation, None)
        if nursery is not None:
            self._forget_births(nursery)
            nursery.is_spent = True
            self._spent.append(nursery)
            self._end(nursery, signal.SIGABRT if stack else signal.SIGKILL)

    def _end(self, nursery: _Nursery, number: int) -> None:
        self._refusals.insist(
            "ending a nursery", lambda: nursery not in self._all_nurseries() or nursery.signal(number)
        )

    def _hear_nursery(self, nursery: _Nursery) -> Iterator[Event]:
        yield from self._nursery_said(nursery, nursery.reports(self._wait))
        if nursery.hearing.garbled:
            self._end(nursery, signal.SIGKILL)

    def _nursery_said(self, nursery: _Nursery, reports: Iterator[Any]) -> Iterator[Event]:
        for report in reports:
            match report:
                case Loaded() | Threaded() | LoadFailed():
                    if not nursery.is_spent:
                        nursery.is_spent = not isinstance(report, Loaded)
                        yield NurserySaid(nursery.generation, report)
                case Forked(ticket, pid):
                    yield from self._born(nursery, ticket, pid)
                case ForkFailed(ticket, error, number):
                    page = nursery.births.failed(ticket)
                    if page is not None:
                        yield StartFailed(page, error + refusals.remedy(number))

    def _nursery_exited(self, nursery: _Nursery) -> Iterator[Event]:
        yield from self._nursery_said(nursery, nursery.hearing.last_words())
        self._sink.dropped += nursery.output.drain()
        status = self._reaper.reap(nursery.pidfd)
        if nursery.hearing.garbled:
            status = f"{status}, after an invalid message on its link: {nursery.hearing.garbled}"
        nursery.close(self._wait)
        if nursery in self._spent:
            self._spent.remove(nursery)
        if nursery is self._nurseries.get(nursery.generation):
            del self._nurseries[nursery.generation]
            self._forget_births(nursery)
        if not nursery.is_spent:
            yield NurseryGone(nursery.generation, status, nursery.output.tail)

    # ------------------------------------------------------------------------------------------------ births

    def spawn(self, generation: int, begin: Begin) -> None:
        """Ask the nursery to fork a worker; `Started`, `StartFailed` or the nursery's exit follows."""
        page = begin.page
        self._orders[page] = begin
        nursery = self._nurseries.get(generation)
        if nursery is None:
            return  # its exit is reported, or about to be
        births = sum(len(other.births) for other in self._nurseries.values())
        self._descriptors.make_room(len(self._workers) + births + 1)
        spare = self._take_spare(nursery)
        if spare is not None:
            started = self._assign(spare, page, nursery)
            if isinstance(started, Started):
                self._pending.append(started)
                return
        nursery.births.ask(page)

    def _born(self, nursery: _Nursery, ticket: int, pid: int) -> Iterator[Event]:
        match nursery.births.born(ticket, pid, self._ours()):
            case int(page), newborn:
                yield self._assign(newborn, page, nursery)
            case None, spare:
                try:
                    self.watch(spare.pidfd, partial(self._spare_exited, nursery))
                except OSError:
                    self._dismiss(spare)
                else:
                    nursery.births.spare = spare

    def _assign(self, newborn: Newborn, page: int, nursery: _Nursery) -> Started | StartFailed:
        """Watch a new worker, then let it begin. If that fails it is dismissed, and has run nothing."""
        because = "the new worker died before the supervisor saw it"
        worker = None
        try:
            output = Output(
                newborn.output, self._log, partial(self._board.note_read, page), slot=slot_of(page), pid=newborn.pid
            )
            finished_before = self._board.read(page).counts.finished
            link = newborn.link
            hearing = Hearing(link, _WORKER_REPORTS, self._sink, self._log, slot=slot_of(page), pid=newborn.pid)
            its = (page, nursery.generation, hung.stands_still_after(nursery.settings), finished_before)
            worker = Worker(newborn.pid, newborn.pidfd, link, hearing, output, *its)
            hear = partial(self._said_by, worker, partial(worker.reports, self._wait))
            worker.watch(self._wait, hear, partial(self._exited, worker))
            if newborn.begin(self._orders[page]):
                self._workers[page] = worker
                self._pages.add(page)
                return Started(page, newborn.pid)
        except OSError as error:
            because = self._refusals.because("cannot start a worker", error)
        if worker is not None:
            worker.forget(self._wait)
        self._dismiss(newborn)
        return StartFailed(page, because)

    def _take_spare(self, nursery: _Nursery) -> Newborn | None:
        spare, nursery.births.spare = nursery.births.spare, None
        if spare is not None:
            self._wait.forget(spare.pidfd)
        return spare

    def _spare_exited(self, nursery: _Nursery) -> Iterator[Event]:
        """It was killed. Another follows when the next worker is ready: not immediately, or that may go on."""
        self._dismiss_spare(nursery)
        return iter(())

    def _dismiss(self, newborn: Newborn) -> None:
        newborn.let_go()
        self._reaper.has_reparented = True

    def _dismiss_spare(self, nursery: _Nursery) -> None:
        if (spare := self._take_spare(nursery)) is not None:
            self._dismiss(spare)

    def _forget_births(self, nursery: _Nursery) -> None:
        self._dismiss_spare(nursery)
        nursery.births.forget()

    # ----------------------------------------------------------------------------------------------- workers

    def tell(self, page: int, order: object) -> None:
        """Send a worker an order. One that no longer reads is detected elsewhere."""
        worker = self._workers.get(page)
        if worker is None:
            return
        if isinstance(order, Measure):
            try:
                worker.link.send(order, wait=False)
            except OSError:
                pass  # it will be sent again soon
            return
        self._refusals.insist(
            "an order to a worker", lambda: not self._is_ours(worker) or worker.link.send(order, wait=False)
        )

    def _is_ours(self, worker: Worker) -> bool:
        return self._workers.get(worker.page) is worker

    def call(self, page: int, order: Admit | Drain) -> None:
        """Send an order, and flag it on the worker's page, which the worker checks before its next ack."""
        self.tell(page, order)  # first: a worker that sees the flag must find the order
        self._board.call(page)

    def signal(self, page: int, number: int) -> None:
        worker = self._workers.get(page)
        if worker is not None:
            self._refusals.insist("a signal to a worker", lambda: not self._is_ours(worker) or worker.signal(number))

    def signal_all(self, number: int) -> None:
        for page in list(self._workers):
            self.signal(page, number)

    def _said_by(self, worker: Worker, reports: Callable[[], Iterator[Any]]) -> Iterator[Event]:
        was_garbled = bool(worker.hearing.garbled)
        for report in reports():
            match report:
                case LoadFailed():
                    worker.said = report
                case Suspect():
                    yield WorkerSaid(worker.page, report, self._holders(report, worker))
                case Lost():
                    finished = self._board.read(worker.page).counts.finished - worker.finished_before
                    yield WorkerSaid(worker.page, replace(report, finished=finished))
                case Leaving():
                    worker.said = report
                    yield WorkerSaid(worker.page, report, moved=self._board.moved(worker.page))
                case _:
                    yield WorkerSaid(worker.page, report)
                    # Now that it runs, the CPU that its start used is free again.
                    if isinstance(report, Ready) and worker.generation in self._nurseries:
                        self._nurseries[worker.generation].births.ask_ahead()
        if worker.hearing.garbled and not was_garbled:
            worker.said = None  # the handler may have done it too
            yield Garbled(worker.page, worker.hearing.garbled)

    def _holders(self, suspect: Suspect, asked_by: Worker) -> tuple[int, ...]:
        """Other pages with this message, or whose worker has just parked it."""
        others = [worker.page for worker in self._workers.values() if worker is not asked_by]
        latest = (suspect.key, suspect.step, 0)
        return tuple(
            page
            for page in others
            if self._board.read(page).key == suspect.key
            or any((moved.key, moved.step, moved.later) == latest for moved in self._board.moved(page))
        )

    def _exited(self, worker: Worker) -> Iterator[Event]:
        """Last words before the exit, the exit before what follows from it."""
        yield from self._said_by(worker, worker.hearing.last_words)
        self._sink.dropped += worker.output.drain()
        try:
            # Its process group, while the zombie still keeps the number from being reused.
            os.killpg(worker.pid, signal.SIGKILL)
        except OSError:
            pass
        self._reaper.kill_leftovers(self._living() - {worker.pid})
        status = self._reaper.reap(worker.pidfd)
        del self._workers[worker.page]
        reading = self._board.read(worker.page)
        moved, last = self._board.moved(worker.page), self._board.last(worker.page)
        output = worker.output.tail if reading.hand is None else worker.output.since(self._board.mark(worker.page))
        self._board.vacate(worker.page)
        worker.close(self._wait)
        self._reaper.has_reparented = True
        yield Exited(
            page=worker.page,
            pid=worker.pid,
            status=status,
            hand=reading.hand,
            said=worker.said,
            finished=reading.counts.finished - worker.finished_before,
            output=output,
            at=logs.utc(),
            moved=moved,
            last=last,
            counts=reading.counts,
        )

    # ------------------------------------------------------------------------------------------------ pieces

    def _ours(self) -> set[int]:
        """Children that are reaped by their pidfd."""
        nurseries = self._all_nurseries()
        spares = {nursery.births.spare.pid for nursery in nurseries if nursery.births.spare is not None}
        return self._living() | spares | {nursery.pid for nursery in nurseries} | self.beside

    def _all_nurseries(self) -> list[_Nursery]:
        return [*self._spent, *self._nurseries.values()]

    def _living(self) -> set[int]:
        return {worker.pid for worker in self._workers.values()}

    def close(self) -> None:
        """Kill what is left. A nursery asked for its stack has two seconds to write it."""
        for generation in list(self._nurseries):
            self.stop_nursery(generation)
        self._source.close()
        until = now() + 2.0
        while self._spent and now() < until:
            self.wait(until)
        until = now() + 5.0
        while (self._spent or self._workers) and now() < until:
            for child in (*self._spent, *self._workers.values()):
                try:
                    child.signal(signal.SIGKILL)
                except OSError:
                    pass
            self.wait(min(until, now() + 1.0))
            self._wait.resume()
        self._reap_reparented()
        while now() < until and self._reaper.kill_all():
            self.wait(min(until, now() + 0.1))
