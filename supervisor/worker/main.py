"""A worker's life: begin, connect; take a message, run, settle; until it must exit."""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import sys
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from supervisor import logs, queues, streams, trace
from supervisor.amqp.properties import Remains
from supervisor.clock import now
from supervisor.link import Link
from supervisor.linux import prctl, proctitle
from supervisor.messages import (
    Admit,
    Begin,
    Connecting,
    Drain,
    Leaving,
    LoadFailed,
    Lost,
    Measure,
    Ready,
    Record,
    Suspect,
    Verdict,
)
from supervisor.policy.settle import Condemned, Outcome, TooLarge, Undecodable
from supervisor.scoreboard import Pen, Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG, EXIT_DONE, Cause, Intake, Kind, Phase, slot_of
from supervisor.worker import aftermath, forked
from supervisor.worker.consumer import Consumer
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import Gone
from supervisor.worker.handler import CannotLoad, Handler, load
from supervisor.worker.inquiries import Inquiries
from supervisor.worker.pace import Pace
from supervisor.worker.settling import Settling
from supervisor.worker.task import Task

if TYPE_CHECKING:
    from supervisor.worker.tracing import Tracing

_EXIT_CODES = {Cause.BROKER: EXIT_BROKER, Cause.LOCAL: EXIT_BROKER, Cause.CONFIG: EXIT_CONFIG}


@dataclass(slots=True)
class Birth:
    """What a worker inherits."""

    parent: int
    settings: Settings
    link: Link
    board: Scoreboard
    log_fd: int
    handler: Handler | None
    """Already imported by the nursery, or None: import it here."""
    output_fd: int
    """The pipe that descriptors 1 and 2 are, until a handler's code puts something else there."""


def live(birth: Birth) -> NoReturn:
    """A worker's whole life. Ends the process."""
    # Everything that needs no slot comes first.
    proctitle.name("workq-spare")
    aftermath.arm()
    settings = birth.settings
    sink = logs.inherit("worker", lambda line: _record(birth.link, line))
    received = birth.link.receive()
    if received is None or not isinstance(received[0], Begin):
        os._exit(EXIT_DONE)  # the supervisor is gone, or does not want this worker
    page = received[0].page
    slot = slot_of(page)
    prctl.follow(birth.parent)
    logs.sit(slot)
    proctitle.name(f"workq-worker-{slot}")
    pen = birth.board.pen(page)
    pen.open(os.getpid())
    handler = birth.handler
    if handler is None or handler.is_class:
        handler = _set_up(handler, birth)
        try:
            aftermath.demand((birth.link.fileno(), birth.board.fd, birth.log_fd))
        except aftermath.DescriptorsClosed as closed:
            streams.complain(f"{closed}\n")
            os._exit(EXIT_CONFIG)
        aftermath.arm()
        # The handler's code may have configured logging itself; lines must stay whole.
        sink = configure_logs("worker", settings, birth.link, birth.board.fd, birth.log_fd, slot)
    worker = Worker(birth, received[0], pen, sink, handler)
    end = worker.run()
    pen.phase(Phase.LEAVING)
    birth.link.send(Leaving(end.cause, end.detail, end.kind or "", worker.settling.is_unsettled, end.silence))
    _tear_down(handler)
    _exit(_EXIT_CODES.get(end.cause, EXIT_DONE))


def _set_up(handler: Handler | None, birth: Birth) -> Handler:
    """The handler, set up. Ends the process if that fails."""
    try:
        handler = handler or load(birth.settings.handler, birth.settings.app_dir)
        handler.set_up()
    except CannotLoad as error:
        is_set_up = handler is not None
        birth.link.send(LoadFailed(error.error, error.traceback, error.is_passing, is_set_up))
        os._exit(EXIT_CONFIG)
    return handler


def _tear_down(handler: Handler) -> None:
    """May take any time: the supervisor waits for the grace."""
    if (failed := handler.tear_down()) is not None:
        because = f"the tear-down of the handler raised {failed.error}; the worker exits anyway"
        logs.get_logger().warning("handler.teardown_failed", because=because, exception=failed.traceback)


def configure_logs(
    role: str, settings: Settings, link: Link, board_fd: int, log_fd: int, slot: int | None = None
) -> logs.Sink:
    return logs.configure(
        role=role,
        slot=slot,
        queue=settings.queue,
        fd=log_fd,
        lock_fd=board_fd,
        format=settings.log_format,
        level=settings.log_level,
        on_long=lambda line: _record(link, line),
    )


def _record(link: Link, line: bytes) -> None:
    """Send the parent a long line to write. Raises BlockingIOError if it does not take it; the sink counts that."""
    if not link.send_record(Record(line.decode())):
        raise BlockingIOError("the supervisor takes no log lines")


def _exit(code: int) -> NoReturn:
    """Exit, running atexit functions; threads left behind are not waited for."""
    try:
        # Executors first, as the interpreter does: atexit waits for their processes.
        for function in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
            function()
        atexit._run_exitfuncs()
        streams.flush()
    finally:
        os._exit(code)


class Worker:
    """One worker between Connecting and Leaving."""

    def __init__(self, birth: Birth, begin: Begin, pen: Pen, sink: logs.Sink, handler: Handler) -> None:
        settings, slot = birth.settings, slot_of(begin.page)
        self._settings = settings
        self._link = birth.link
        self._pen = pen
        self._run = handler.runner(settings.soft_timeout)
        name = f"workq-{os.uname().nodename}-{os.getpid()}-{slot}"
        self._consumer = Consumer(settings, name, pen.beat, self._lost, handler.idle, Intake(begin.intake))
        self._inquiries = Inquiries(settings, self._consumer.open_channel, self._link.send)
        self.settling = Settling(settings, name, begin, self._link, pen, sink, self._consumer, self._hear)
        self._begin = begin
        self._pace = Pace(birth.board.bucket(begin.page), settings.rate.interval) if settings.rate else None
        self._tries = settings.retries + 1
        self._verdicts: dict[str, Verdict] = {}
        self._task: Task | None = None
        self._log: Any = logs.get_logger()
        self._output_fd = birth.output_fd
        self._tells_starts = logs.tells("debug")
        self._name = name
        self._tracing: Tracing | None = None

    def run(self) -> Gone:
        """Consume until there is a reason to stop, and return it."""
        consumer = self._consumer
        consumer.watch(self._link.fileno(), self._hear)
        self._be_a_process()
        self._link.send(Connecting())
        self._pen.phase(Phase.CONNECTING)
        try:
            begin = self._begin
            broker = consumer.open(declare_ours=self._settings.declare and not begin.has_queues, met=begin.met)
            ours, queue = consumer.own_queues, consumer.subscription
            self.settling.parking.learn(ours.declared)
            self._start_heartbeats()
            self._tracing = self._open_tracing()
            self._pen.phase(Phase.IDLE)
            ready = Ready(broker, consumer.version, queue.has_declared, ours.refused, queue.prefetch, _resident())
            self._link.send(ready)
            take = consumer.next if self._pace is None else partial(self._next_in_turn, self._pace)
            while (delivery := take()) is not None:
                self._serve(delivery)
        except Gone as gone:
            return gone
        if consumer.close():
            self._pen.forget()
        assert consumer.leaving is not None
        return consumer.leaving

    # ------------------------------------------------------------------------------------------------ one task

    def _next_in_turn(self, pace: Pace) -> Delivery | None:
        """As `Consumer.next`, once `--rate` lets another task begin. Until then the consumer has the message, and
        returns it when this worker is to exit, or to take nothing."""
        consumer, pen = self._consumer, self._pen
        while True:
            if not consumer.has_delivery:
                pace.leave()
                pen.phase(Phase.IDLE)
            delivery = consumer.next()
            if delivery is None:
                return None
            try:
                wait = pace.take()
            except OSError as error:
                raise Gone(Cause.LOCAL, f"--rate: the bucket cannot be locked: {error}", Kind.LOCAL) from error
            if not wait:
                return delivery
            consumer.put_back(delivery)
            pen.phase(Phase.WAITING)
            consumer.pass_time(wait)

    def _serve(self, delivery: Delivery) -> None:
        """Note, run, settle and count it."""
        pen, settling = self._pen, self.settling
        # A sender can set that header too, which only costs it retries.
        attempt = min(delivery.attempt, self._tries)
        if delivery.redelivered:
            pen.count("redelivered")
        if delivery.came_back:
            verdict = self._ask(delivery)
            if verdict is None:
                return
            if verdict.is_parked:
                settling.acknowledge_parked(delivery)
                return
            if not verdict.run:
                self._put_away(delivery, attempt, Condemned(verdict))
                return
        if len(delivery.body) > self._settings.max_body:
            self._put_away(delivery, attempt, TooLarge(len(delivery.body), self._settings.max_body))
            return
        if isinstance(delivery.properties, Remains):
            self._put_away(delivery, attempt, Undecodable(delivery.properties.error, delivery.properties.raw))
            return
        tracing = self._tracing
        if tracing is not None:
            tracing.begin(delivery, attempt)
        pen.mark(self._output_fd)
        begun = pen.take(
            delivery.name.encode(),
            delivery.is_named,
            delivery.tag,
            attempt,
            delivery.redelivered,
            delivery.trace_id,
            delivery.checksum,
            step=delivery.step,
        )
        self._task = task = Task(delivery, attempt, begun, self._settings.queue)
        if self._tells_starts:
            self._log.debug(
                "task.started",
                message_id=delivery.name,
                attempt=attempt,
                redelivered=delivery.redelivered,
                **delivery.trace,
            )
        with self._consumer.unattended:
            outcome = self._run(task)
        if tracing is not None:
            tracing.end(outcome)
        pen.returned()
        self._task = None
        settling.settle(delivery, attempt, outcome, begun)

    def _ask(self, delivery: Delivery) -> Verdict | None:
        """Ask whether a redelivered message may run: only the supervisor knows which workers died of it. Raises Gone.

        The answer comes when no other worker runs the message any more. None: asked to exit meanwhile, so the message
        is returned. (Not if the answer is that it must not run: the supervisor has told nobody else.)
        """
        key = queues.key(delivery.name, delivery.checksum)
        self._note(delivery, Phase.ASKING)
        self._link.send(Suspect(key, delivery.delivery_count, delivery.put_back, delivery.name, delivery.step))
        while True:
            self._consumer.turn()
            verdict = self._verdicts.pop(key, None)
            if verdict is not None and not verdict.run:
                return verdict
            if self._consumer.take_back(delivery):
                self._pen.phase(Phase.IDLE)
                return None
            if verdict is not None:
                return verdict

    def _put_away(self, delivery: Delivery, attempt: int, outcome: Outcome) -> None:
        """Settle a message that is not run. Raises Gone."""
        # Like a handler, parking may outlive the connection: who gets the message then waits for the end of it.
        self._note(delivery, Phase.PARKING)
        self.settling.settle(delivery, attempt, outcome, now())

    def _note(self, delivery: Delivery, phase: Phase) -> None:
        """Note a message that is not run, or not yet."""
        self._pen.take(
            delivery.name.encode(),
            delivery.is_named,
            delivery.tag,
            delivery.attempt,
            delivery.came_back,  # what did not, `policy.parkings` takes for a new message
            delivery.trace_id,
            delivery.checksum,
            phase,
            delivery.step,
        )

    def _open_tracing(self) -> Tracing | None:
        """Spans, if wanted. Errors in them must not stop the work."""
        if not trace.is_wanted(os.environ):
            return None
        try:
            from supervisor.worker import tracing

            return tracing.Tracing(self._settings.queue, self._name, self._consumer.endpoint)
        except ImportError:
            return None  # the nursery has logged it, once
        except Exception as error:  # noqa: BLE001 - OpenTelemetry's, or an exporter's: nobody knows what they raise
            self._log.warning("tracing.off", because=f"no spans are sent: {error}")
            return None

    # ------------------------------------------------------------------------------------------------- the link

    def _be_a_process(self) -> None:
        """Treat SIGTERM as a request to exit, and do not continue in processes that a handler forks."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A poll resumes after a signal (PEP 475), but a byte in a pipe ends it.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: programs exec'd by a handler would inherit that
        _refuse_breakpoints()
        self._run = forked.contain(self._run)
        self._consumer.watch(reader, lambda: self._signalled(os.read(reader, 64)))

    def _start_heartbeats(self) -> None:
        self._consumer.start_heartbeats()

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers:
            self._consumer.leave(Cause.DRAINED, "SIGTERM was sent to the worker itself")

    def _hear(self) -> None:
        while True:
            try:
                received = self._link.receive(wait=False)
            except BlockingIOError:
                return
            if received is None:
                # The supervisor is gone, and PR_SET_PDEATHSIG is on its way.
                self._consumer.unwatch(self._link.fileno())
                self._consumer.leave(Cause.DRAINED, "the supervisor is gone")
                return
            self._obey(received[0])

    def _obey(self, order: object) -> None:
        match order:
            case Drain(finish, cause):
                self._consumer.leave(Cause(cause), "drain requested", finish=finish)
            case Admit(intake):
                self._consumer.admit(Intake(intake))
            case Measure():
                self._inquiries.make(order)
            case Verdict(key):
                self._verdicts[key] = order

    def _lost(self, gone: Gone) -> None:
        """Called from the heartbeat thread."""
        if (task := self._task) is not None:
            task.lost = True
        self._link.send(Lost(gone.detail, gone.kind or "", silence=gone.silence), wait=False)


def _refuse_breakpoints() -> None:
    """`breakpoint()` would read from /dev/null, and the task fail with BdbQuit. $PYTHONBREAKPOINT still works."""
    if sys.breakpointhook is not sys.__breakpointhook__ or os.environ.get("PYTHONBREAKPOINT"):
        return

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("breakpoint(): a worker has no terminal; run the handler by `workq try`")

    sys.breakpointhook = refuse


def _resident() -> int:
    """Resident bytes, as the supervisor measures them (proc_pid_statm(5)); 0 when not available."""
    try:
        with open("/proc/self/statm", "rb", 0) as told:  # noqa: PTH123 - pathlib costs each worker memory
            return int(told.read().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0
