"""A worker's story: begin, connect; take, run, settle, note; until told to leave."""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from supervisor import logs, queues, streams, trace
from supervisor.amqp.properties import Remains
from supervisor.clock import now
from supervisor.link import Link
from supervisor.linux import prctl, proctitle
from supervisor.messages import (
    Begin,
    Blocked,
    Connecting,
    DeadDepth,
    Depth,
    Drain,
    Leaving,
    LoadFailed,
    Lost,
    Measure,
    Nature,
    Parked,
    Ready,
    Record,
    Suspect,
    Verdict,
)
from supervisor.policy.settle import (
    Acknowledge,
    Afresh,
    Condemned,
    DeadLetter,
    Later,
    Outcome,
    Patience,
    Raised,
    Rejected,
    RetryAsked,
    Settlement,
    TooLarge,
    Undecodable,
    settle,
)
from supervisor.redaction import clip_end, clip_start
from supervisor.scoreboard import Pen, Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG, EXIT_DONE, Cause, Kind, Phase, slot_of
from supervisor.worker import aftermath, forked
from supervisor.worker.consumer import Consumer
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import Gone
from supervisor.worker.handler import CannotLoad, load
from supervisor.worker.parking import Parking, PublishError
from supervisor.worker.task import Task

if TYPE_CHECKING:
    from supervisor.worker.tracing import Tracing

_FAILED = (Raised, RetryAsked, Rejected)

PARK_AGAIN_AFTER = 1.0
PARK_AGAIN_AT_MOST = 30.0
"""Seconds between two tries to park a message."""

HELD_UP_AFTER = 5.0
"""Seconds after which a message that is being parked is said to be held up, whether or not anything has failed."""

BECAUSE_MAX = 1024
EVIDENCE_MAX = 4 * 1024
"""Bytes of a dead letter's story that the supervisor is told; all of it is in the dead letter's headers."""

_UNFORESEEN = "it failed in this process, in a way not foreseen: the worker leaves, and the message is given to another"

_EXIT_CODES = {Cause.BROKER: EXIT_BROKER, Cause.LOCAL: EXIT_BROKER, Cause.CONFIG: EXIT_CONFIG}


@dataclass(slots=True)
class Birth:
    """What a worker is born with."""

    parent: int
    settings: Settings
    link: Link
    board: Scoreboard
    log_fd: int
    handler: Callable[[Task], Outcome] | None
    """Already imported by the nursery, or None: import it here."""


def live(birth: Birth) -> NoReturn:
    """A worker's whole life. Ends the process."""
    # What needs no seat is done before there is one.
    proctitle.name("workq-spare")
    aftermath.arm()
    settings = birth.settings
    sink = logs.inherit("worker", lambda line: _record(birth.link, line))
    received = birth.link.receive()
    if received is None or not isinstance(received[0], Begin):
        os._exit(EXIT_DONE)  # the supervisor is gone, or did not want this worker after all
    page = received[0].page
    slot = slot_of(page)
    prctl.follow(birth.parent)
    logs.sit(slot)
    proctitle.name(f"workq-worker-{slot}")
    pen = birth.board.pen(page)
    pen.open(os.getpid())
    handler = birth.handler
    if handler is None:
        try:
            handler = load(settings.handler, settings.app_dir)
        except CannotLoad as error:
            birth.link.send(LoadFailed(error.error, error.traceback, error.is_passing))
            os._exit(EXIT_CONFIG)
        try:
            aftermath.demand((birth.link.fileno(), birth.board.fd, birth.log_fd))
        except aftermath.DescriptorsClosed as closed:
            streams.complain(f"{closed}\n")
            os._exit(EXIT_CONFIG)
        aftermath.arm()
        sink = _configure_logs(birth, slot)  # the import may have set up logging in its own way; lines must stay whole
    worker = Worker(birth, received[0], pen, sink, handler)
    end = worker.run()
    pen.phase(Phase.LEAVING)
    birth.link.send(Leaving(end.cause, end.detail, end.kind or "", worker.is_unsettled, end.silence))
    _exit(_EXIT_CODES.get(end.cause, EXIT_DONE))


def _configure_logs(birth: Birth, slot: int) -> logs.Sink:
    return logs.configure(
        role="worker",
        slot=slot,
        queue=birth.settings.queue,
        fd=birth.log_fd,
        lock_fd=birth.board.fd,
        format=birth.settings.log_format,
        level=birth.settings.log_level,
        on_long=lambda line: _record(birth.link, line),
    )


def _record(link: Link, line: bytes) -> None:
    """Have the parent write a long line. Raises BlockingIOError when it does not take it; the sink counts that."""
    if not link.send_record(Record(line.decode())):
        raise BlockingIOError("the supervisor takes no log lines")


def _exit(code: int) -> NoReturn:
    """Leave, running what handlers registered with atexit; threads they left behind are not waited for."""
    try:
        # Executors before all else, as the interpreter itself does it: atexit waits for the processes of theirs.
        for function in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
            function()
        atexit._run_exitfuncs()
        streams.flush()
    finally:
        os._exit(code)


class Worker:
    """One worker between Connecting and Leaving."""

    def __init__(
        self, birth: Birth, begin: Begin, pen: Pen, sink: logs.Sink, handler: Callable[[Task], Outcome]
    ) -> None:
        settings, slot = birth.settings, slot_of(begin.page)
        self._settings = settings
        self._link = birth.link
        self._pen = pen
        self._sink = sink
        self._dropped = 0
        self._handler = handler
        name = f"workq-{os.uname().nodename}-{os.getpid()}-{slot}"
        self._consumer = Consumer(settings, name, pen.beat, self._measured, self._lost, self._counted_dead)
        self._burst = _supervisor() if settings.burst else ""
        self._parking = Parking(settings, name, self._blocked, has_queues=begin.has_queues, burst=self._burst)
        self._has_queues = begin.has_queues
        self._patience = Patience(settings.retries, settings.retry_delay)
        self._tries = settings.retries + 1
        self._verdicts: dict[str, Verdict] = {}
        self._held_up: str | None = None
        """Why the message in hand cannot be parked, as the supervisor was told; empty: an alarm."""
        self._moved: tuple[int, DeadLetter | Later] | None = None
        """The delivery tag of the message that was parked last, and where it is."""
        self.is_unsettled = False
        """A task came to its end, and the broker cannot be told."""
        self._task: Task | None = None
        self._remaining = _tasks_to_run(settings.max_tasks, slot)
        self._log: Any = logs.get_logger()
        # Asked once: to put together what nobody wants to read costs more than anything else between two tasks.
        self._tells_starts = logs.tells("debug")
        self._tells_tasks = logs.tells("info")
        self._name = name
        self._tracing: Tracing | None = None

    def run(self) -> Gone:
        """Consume until there is a reason not to, and return it."""
        consumer = self._consumer
        consumer.watch(self._link.fileno(), self._hear)
        self._be_a_process()
        self._link.send(Connecting())
        self._pen.phase(Phase.CONNECTING)
        try:
            broker = consumer.open(declare_ours=self._settings.declare and not self._has_queues)
            self._parking.learn(consumer.declared)
            self._start_keeper()
            self._tracing = self._open_tracing()
            self._pen.phase(Phase.IDLE)
            ready = Ready(
                broker, consumer.version, consumer.has_declared, consumer.refused, consumer.prefetch, _resident()
            )
            self._link.send(ready)
            while (delivery := consumer.next()) is not None:
                self._serve(delivery)
        except Gone as gone:
            return gone
        if consumer.close():
            self._pen.forget()
        assert consumer.leaving is not None
        return consumer.leaving

    # ------------------------------------------------------------------------------------------------ one task

    def _serve(self, delivery: Delivery) -> None:
        """Note it, run it, settle it, count it."""
        pen = self._pen
        if delivery.redelivered:
            pen.count("redelivered")
        # A fresh copy is not marked as redelivered, and an earlier holder may still run it.
        if delivery.redelivered or delivery.put_back:
            verdict = self._ask(delivery)
            if verdict is None:
                return
            if verdict.is_parked:
                self._acknowledge_parked(delivery)
                return
            if not verdict.run:
                self._put_away(delivery, Condemned(verdict))
                return
        if len(delivery.body) > self._settings.max_body:
            self._put_away(delivery, TooLarge(len(delivery.body), self._settings.max_body))
            return
        if isinstance(delivery.properties, Remains):
            self._put_away(delivery, Undecodable(delivery.properties.error, delivery.properties.raw))
            return
        attempt = self._attempt(delivery)
        tracing = self._tracing
        if tracing is not None:
            tracing.begin(delivery, attempt)
        begun = pen.take(
            delivery.name.encode(),
            delivery.is_named,
            delivery.tag,
            attempt,
            delivery.redelivered,
            delivery.trace_id,
            delivery.checksum,
        )
        self._task = task = Task(delivery, attempt, begun)
        if self._tells_starts:
            self._log.debug(
                "task.started",
                message_id=delivery.name,
                attempt=attempt,
                redelivered=delivery.redelivered,
                **delivery.trace,
            )
        with self._consumer.unattended:
            outcome = self._handler(task)
        if tracing is not None:
            tracing.end(outcome)
        pen.returned()
        self._task = None
        self._settle(delivery, attempt, outcome, begun)

    def _attempt(self, delivery: Delivery) -> int:
        """Which try this is, of as many as there may be: the sender can write that header, too, and so give up tries of
        its own."""
        return min(delivery.attempt, self._tries)

    def _put_away(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle what is not run. Raises Gone."""
        self._pen.phase(Phase.PARKING)
        self._settle(delivery, self._attempt(delivery), outcome, now())

    def _acknowledge_parked(self, delivery: Delivery) -> None:
        """It lies in another queue already, and only its acknowledgement was lost. Raises Gone."""
        self._note_moved(delivery)
        self._acknowledge(delivery)
        self._count_returned(delivery)
        self._pen.phase(Phase.IDLE)
        because = "an earlier worker has parked it, confirmed, and its acknowledgement was lost: acknowledged, not run"
        self._log.info(
            "task.already_parked", message_id=delivery.name, attempt=delivery.attempt, because=because, **delivery.trace
        )

    def _note_moved(self, delivery: Delivery) -> None:
        """Before the acknowledgement, which may be lost. Messages without an id may be alike and many: see
        `policy.parkings`."""
        if delivery.properties.message_id:
            self._pen.move(delivery.name.encode(), delivery.tag, delivery.attempt, delivery.checksum)

    def _settle(self, delivery: Delivery, attempt: int, outcome: Outcome, begun: float) -> None:
        """Tell the broker; log and count what it was told. Raises Gone."""
        seconds = now() - begun
        settlement = settle(outcome, attempt, self._patience)
        if self._remaining is not None:
            self._remaining -= 1
            if self._remaining == 0:
                self._consumer.leave(Cause.MAX_TASKS, f"--max-tasks {self._settings.max_tasks} reached")
        if isinstance(outcome, _FAILED):
            # Now, and not with the settlement, for which it may wait as long as the broker takes nothing.
            self._pen.count("failed")
            error = outcome.error if isinstance(outcome, Raised) else outcome.why
            self._log.warning("task.failed", **_about(delivery, attempt, seconds), because=error)
        try:
            settlement = self._tell_broker(delivery, settlement, outcome)
        except (Gone, PublishError) as error:
            self.is_unsettled = True
            if self._moved is not None and self._moved[0] == delivery.tag:
                self._count_parked(
                    delivery, attempt, self._moved[1], seconds, f"; its acknowledgement was lost: {error}"
                )
                raise
            self._pen.settled("unsettled", seconds)
            why = "the outcome could not be settled, so the broker gives the message to a worker again"
            self._log.warning("task.unsettled", **_about(delivery, attempt, seconds), because=f"{error}: {why}")
            if isinstance(error, Gone):
                raise
            kind = _kind(error)
            cause = Cause.LOCAL if kind is Kind.LOCAL else Cause.BROKER
            raise Gone(cause, f"parking failed: {error}", kind) from None
        if isinstance(settlement, Acknowledge):
            self._pen.settled("succeeded", seconds)
            if self._tells_tasks:
                logs.tell("info", "task.succeeded", _about(delivery, attempt, seconds))
        elif isinstance(settlement, Afresh):
            self._pen.phase(Phase.IDLE)  # it will be counted when it has come to an end
            self._log.warning(settlement.event, **_about(delivery, attempt, seconds), because=settlement.because)
        else:
            self._count_parked(delivery, attempt, settlement, seconds)
        if self._sink.dropped != self._dropped:
            self._pen.count("log_lines_dropped", self._sink.dropped - self._dropped)
            self._dropped = self._sink.dropped

    def _count_parked(
        self, delivery: Delivery, attempt: int, settlement: DeadLetter | Later, seconds: float, but: str = ""
    ) -> None:
        """A message that lies in another queue now."""
        self._pen.settled(settlement.counter, seconds)
        self._log.warning(settlement.event, **_about(delivery, attempt, seconds), because=settlement.because + but)

    def _tell_broker(self, delivery: Delivery, settlement: Settlement, outcome: Outcome) -> Settlement:
        """Returns what was possible. Raises Gone, and PublishError."""
        self._consumer.catch_up()
        if not isinstance(settlement, Acknowledge):
            settlement = self._put_elsewhere(delivery, settlement, outcome)
            if not isinstance(settlement, Afresh):  # its copy is not told from it
                self._note_moved(delivery)
                self._moved = delivery.tag, settlement
        self._acknowledge(delivery)
        if not isinstance(settlement, Afresh):
            self._count_returned(delivery)
        return settlement

    def _count_returned(self, delivery: Delivery) -> None:
        """A task that this supervisor had put into a delay queue is settled: it is not out any more."""
        if self._burst and (delivery.properties.headers or {}).get(queues.BURST) == self._burst:
            self._pen.count("returned")

    def _acknowledge(self, delivery: Delivery) -> None:
        """Raises Gone."""
        consumer = self._consumer
        if self._pen.is_called() or consumer.leaving is not None:
            self._hear()
            if consumer.leaving is not None:  # else somebody else has written on the page
                consumer.cancel()
        consumer.ack(delivery)

    def _put_elsewhere(
        self, delivery: Delivery, settlement: DeadLetter | Later | Afresh, outcome: Outcome
    ) -> DeadLetter | Later | Afresh:
        """Among the dead letters, in a delay queue, or at the end of its own. Returns which. Raises Gone, and
        PublishError."""
        if self._consumer.gone is not None:
            raise self._consumer.gone
        if not isinstance(settlement, DeadLetter):
            returning = settlement
            try:
                self._park(delivery, lambda: self._parking.have_return(delivery, returning))
            except PublishError as error:
                if isinstance(outcome, Condemned):
                    outcome = Condemned(replace(outcome.verdict, fresh=False))
                last = settle(outcome, self._attempt(delivery))  # without another try
                if _kind(error) is not Kind.TOO_LARGE or not isinstance(last, DeadLetter):
                    raise
                settlement = replace(last, because=f"{last.because}; there is no other try: {error}")
            else:
                if isinstance(returning, Later):
                    self._pen.owe(now() + returning.ms / 1000)
                return returning
        letter = settlement
        self._park(delivery, lambda: self._parking.park(delivery, letter))
        # For the live page alone, so not worth a wait. Before the ack: should that get lost, there it lies all the
        # same.
        self._link.send(_parked(delivery, self._attempt(delivery), letter), wait=False)
        return letter

    def _park(self, delivery: Delivery, park: Callable[[], None]) -> None:
        """Park until it is confirmed. Raises PublishError only when there is no time to try again, or no sense: what
        this process has not got, another may have.

        The message stays in hand, unacknowledged, meanwhile: giving it back would run its handler again at once, and
        again.
        """
        delay = PARK_AGAIN_AFTER
        timer = self._consumer.after(HELD_UP_AFTER, self._take_long)
        while True:
            try:
                # It may take as long as the broker's alarms last: the keeper looks after the consuming connection.
                with self._consumer.unattended:
                    park()
                timer.callback = None
                self._hold_up(None)
                return
            except PublishError as error:
                if self._consumer.leaving is not None or _kind(error) in (Kind.LOCAL, Kind.TOO_LARGE):
                    timer.callback = None
                    raise
                self._hold_up("" if _kind(error) is Kind.BLOCKED else str(error))
                because = f"{error}; the message stays in hand, next try in {delay:g} s"
                self._log.error(
                    "task.parking_failed",
                    message_id=delivery.name,
                    attempt=self._attempt(delivery),
                    because=because,
                    **delivery.trace,
                )
            except Exception as error:
                # Neither the broker's nor the message's: died of it, the message would be blamed.
                import traceback

                self._log.error(
                    "task.parking_failed",
                    message_id=delivery.name,
                    attempt=delivery.attempt,
                    because=_UNFORESEEN,
                    exception="".join(traceback.format_exception(error)),
                    **delivery.trace,
                )
                raise Gone(Cause.LOCAL, f"parking failed: {type(error).__name__}: {error}", Kind.LOCAL) from error
            self._consumer.rest(delay)
            delay = min(2 * delay, PARK_AGAIN_AT_MOST)

    def _ask(self, delivery: Delivery) -> Verdict | None:
        """This message was somebody's before: may it run? Only the supervisor knows who died of it. Raises Gone.

        The answer waits until an earlier run of the message in this supervisor has ended. None when asked to leave
        meanwhile: the message is handed back.
        """
        pen, key = self._pen, delivery.key
        at, trace_id = Phase.ASKING, delivery.trace_id
        pen.take(
            delivery.name.encode(),
            delivery.is_named,
            delivery.tag,
            delivery.attempt,
            True,
            trace_id,
            delivery.checksum,
            at,
        )
        self._link.send(Suspect(key, delivery.delivery_count, delivery.put_back, delivery.name, delivery.attempt))
        while (verdict := self._verdicts.pop(key, None)) is None:
            self._consumer.turn()
            if self._consumer.take_back(delivery):
                pen.phase(Phase.IDLE)
                return None
        return verdict

    def _open_tracing(self) -> Tracing | None:
        """Spans, when they are wanted. Whatever is wrong with them, the work goes on."""
        if not trace.is_wanted(os.environ):
            return None
        try:
            from supervisor.worker import tracing

            return tracing.Tracing(self._settings.queue, self._name, self._consumer.endpoint)
        except ImportError:
            return None  # the nursery has said so, once
        except Exception as error:  # noqa: BLE001 - OpenTelemetry's, or an exporter's: nobody knows what they raise
            self._log.warning("tracing.off", because=f"no spans are sent: {error}")
            return None

    # ------------------------------------------------------------------------------------------------- the link

    def _be_a_process(self) -> None:
        """Hear SIGTERM as a request to leave, and go on in no process that a handler forks."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # pika's loop resumes its poll after a signal (PEP 475); a byte in a pipe is noticed.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: what a handler executes would inherit that
        self._handler = forked.contain(self._handler)
        self._consumer.watch(reader, lambda: self._signalled(os.read(reader, 64)))

    def _start_keeper(self) -> None:
        self._consumer.start_keeper()

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers:
            self._consumer.leave(Cause.DRAINED, "SIGTERM sent to the worker itself")

    def _hear(self) -> None:
        """Read what orders there are."""
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
                self._consumer.leave(Cause(cause), "asked to leave", finish=finish)
            case Measure(dead, nature, delays):
                self._consumer.measure(delays=delays)
                if dead:
                    self._consumer.count_dead()
                if nature:
                    self._consumer.describe(lambda is_single: self._link.send(Nature(is_single)))
            case Verdict(key):
                self._verdicts[key] = order

    def _lost(self, gone: Gone) -> None:
        """Called from the keeper's thread."""
        if (task := self._task) is not None:
            task.lost = True
        self._link.send(Lost(gone.detail, gone.kind or "", silence=gone.silence), wait=False)

    def _blocked(self, is_blocked: bool) -> None:
        if is_blocked:
            self._hold_up("")

    def _take_long(self) -> None:
        """Called from the keeper's thread, mostly."""
        if self._held_up is None:
            self._hold_up(f"the broker has confirmed nothing for {HELD_UP_AFTER:g} s")

    def _hold_up(self, because: str | None) -> None:
        """The message in hand cannot be parked, and why; or (None) is parked. For /readyz and metrics."""
        if because != self._held_up:
            self._held_up = because
            self._link.send(Blocked(because is not None, because or ""))

    def _measured(self, ready: int, consumers: int, delayed: int | None) -> None:
        self._link.send(Depth(ready, consumers, delayed))

    def _counted_dead(self, ready: int) -> None:
        self._link.send(DeadDepth(ready))


def _kind(error: PublishError) -> Kind:
    return error.trouble.kind if error.trouble else Kind.OTHER


def _resident() -> int:
    """Bytes, as the supervisor sees them; 0 when the kernel does not tell. See proc_pid_statm(5)."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


def _supervisor() -> str:
    """A name that no two supervisors share, and none with one that ran before it: host, pid, and when it began (ticks
    since boot, proc_pid_stat(5)). Empty when the kernel does not tell."""
    pid = os.getppid()
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{os.uname().nodename}-{pid}-{began}"


def _about(delivery: Delivery, attempt: int, seconds: float) -> dict[str, object]:
    return {
        "message_id": delivery.name,
        "attempt": attempt,
        "seconds": round(seconds, 6),
        **delivery.trace,
    }


def _parked(delivery: Delivery, attempt: int, settlement: DeadLetter) -> Parked:
    headers = settlement.headers
    evidence = str(headers.get(queues.EVIDENCE) or headers.get(queues.TRACEBACK) or "")
    return Parked(
        delivery.name,
        settlement.reason,
        clip_start(settlement.because, BECAUSE_MAX),
        attempt,
        logs.utc(),
        cause=str(headers.get(queues.CAUSE, "")),
        crashes=int(headers.get(queues.CRASHES, 0)),
        evidence=clip_end(evidence, EVIDENCE_MAX),
    )


def _tasks_to_run(limit: int | None, slot: int) -> int | None:
    """`--max-tasks` less up to a tenth, different from seat to seat: workers that began together do not leave
    together."""
    if limit is None:
        return None
    return max(1, limit - limit * (slot % 8) // 80)
