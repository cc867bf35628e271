"""Settles a task's outcome with the broker: acknowledge, or park elsewhere and then acknowledge; count and log it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from supervisor import logs, queues
from supervisor.clock import now
from supervisor.link import Link
from supervisor.messages import Begin, Parked, ParkingBlocked
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
    failure,
    settle,
)
from supervisor.publisher import PublishError
from supervisor.redaction import clip_end, clip_start
from supervisor.scoreboard import Pen
from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Kind, Phase, slot_of
from supervisor.worker.consumer import Consumer
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import Gone
from supervisor.worker.parking import Parking

_FAILED: Final = (Raised, RetryAsked, Rejected)
_NOT_RUN: Final = (Condemned, TooLarge, Undecodable)

PARK_AGAIN_AFTER: Final = 1.0
PARK_AGAIN_AT_MOST: Final = 30.0
"""Seconds between two tries to park a message."""

HELD_UP_AFTER: Final = 5.0
"""Seconds after which a message that is being parked is reported as held up, even without an error."""

BECAUSE_MAX: Final = 1024
EVIDENCE_MAX: Final = 4 * 1024
"""Bytes of a dead letter's reason sent to the supervisor; its headers have all of it."""

_UNFORESEEN: Final = "parking failed unexpectedly: the worker exits, and another one gets the message"


class Settling:
    """Settles one task after the other. After the last one of `--max-tasks` it makes the consumer exit."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        begin: Begin,
        link: Link,
        pen: Pen,
        sink: logs.Sink,
        consumer: Consumer,
        hear: Callable[[], None],
    ) -> None:
        """`name`: the connection's; `hear` reads the orders on the link."""
        self._settings = settings
        self._link = link
        self._pen = pen
        self._sink = sink
        self._consumer = consumer
        self._hear = hear
        self._dropped = 0
        self._burst = burst = _supervisor() if settings.burst else ""
        self.parking = Parking(settings, name, lambda: self._hold_up(""), has_queues=begin.has_queues, burst=burst)
        self._patience = Patience(settings.retries, settings.retry_delay)
        self._held_up: str | None = None
        """Why the message in flight cannot be parked, as reported to the supervisor; empty: an alarm."""
        self._moved: tuple[int, DeadLetter | Later] | None = None
        """The delivery tag and settlement of the message parked last."""
        self._remaining = _tasks_to_run(settings.max_tasks, slot_of(begin.page))
        self.is_unsettled = False
        """A task finished, but could not be settled."""
        self._log: Any = logs.get_logger()
        # Asked once: building a line that is not logged costs more than anything else between two tasks.
        self.tells_tasks = logs.tells("info")

    def acknowledge_parked(self, delivery: Delivery) -> None:
        """It is parked already, and only its acknowledgement was lost. Raises Gone."""
        self._note_moved(delivery)
        self._acknowledge(delivery, None)
        self._count_returned(delivery)
        self._pen.phase(Phase.IDLE)
        because = "an earlier worker parked it, and the acknowledgement was lost: acknowledged, not run"
        self._log.info(
            "task.already_parked", message_id=delivery.name, attempt=delivery.attempt, because=because, **delivery.trace
        )

    def settle(self, delivery: Delivery, attempt: int, outcome: Outcome, begun: float) -> None:
        """Settle with the broker; log and count it. `begun` in monotonic seconds. Raises Gone."""
        seconds = now() - begun
        settlement = settle(outcome, attempt, self._patience)
        if self._remaining is not None:
            self._remaining -= 1
            if self._remaining == 0:
                self._consumer.leave(Cause.MAX_TASKS, f"--max-tasks {self._settings.max_tasks} reached")
        if isinstance(outcome, _FAILED):
            # Now, not with the settlement, which may wait as long as the broker blocks publishing.
            self._pen.count("failed")
            error = outcome.error if isinstance(outcome, Raised) else outcome.why
            said = {"exception": outcome.traceback} if outcome.traceback else {}
            self._log.warning("task.failed", **_about(delivery, attempt, seconds), because=error, **said)
        try:
            settlement = self._tell_broker(delivery, attempt, settlement, outcome)
        except (Gone, PublishError) as error:
            self.is_unsettled = True
            if self._moved is not None and self._moved[0] == delivery.tag:
                self._count_parked(
                    delivery, attempt, self._moved[1], seconds, f"; its acknowledgement was lost: {error}"
                )
                raise
            self._pen.settled("unsettled", seconds)
            why = "the outcome could not be settled, so the broker redelivers the message"
            self._log.warning("task.unsettled", **_about(delivery, attempt, seconds), because=f"{error}: {why}")
            if isinstance(error, Gone):
                raise
            kind = _kind(error)
            cause = Cause.LOCAL if kind is Kind.LOCAL else Cause.BROKER
            raise Gone(cause, f"parking failed: {error}", kind) from None
        if isinstance(settlement, Acknowledge):
            self._pen.settled("succeeded", seconds)
            if self.tells_tasks:
                logs.tell("info", "task.succeeded", _about(delivery, attempt, seconds))
        elif isinstance(settlement, Afresh):
            self._pen.phase(Phase.IDLE)  # its copy will be counted
            self._log.warning(settlement.event, **_about(delivery, attempt, seconds), because=settlement.because)
        else:
            self._count_parked(delivery, attempt, settlement, seconds)
        if self._sink.dropped != self._dropped:
            self._pen.count("log_lines_dropped", self._sink.dropped - self._dropped)
            self._dropped = self._sink.dropped

    def _count_parked(
        self, delivery: Delivery, attempt: int, settlement: DeadLetter | Later, seconds: float, but: str = ""
    ) -> None:
        """Count and log a message that is parked."""
        self._pen.settled(settlement.counter, seconds)
        self._log.warning(settlement.event, **_about(delivery, attempt, seconds), because=settlement.because + but)

    def _tell_broker(self, delivery: Delivery, attempt: int, settlement: Settlement, outcome: Outcome) -> Settlement:
        """Returns the settlement that was possible. Raises Gone, and PublishError."""
        self._consumer.catch_up()
        if not isinstance(settlement, Acknowledge):
            settlement = self._put_elsewhere(delivery, attempt, settlement, outcome)
            if not isinstance(settlement, Afresh):  # its copy is not told from it
                self._note_moved(delivery)
                self._moved = delivery.tag, settlement
        self._acknowledge(delivery, outcome)
        if not isinstance(settlement, Afresh):
            self._count_returned(delivery)
        return settlement

    def _note_moved(self, delivery: Delivery) -> None:
        """Called before the acknowledgement, which may be lost. Not for messages without an id, which may be identical:
        see `policy.parkings`."""
        if delivery.properties.message_id:
            self._pen.move(delivery.name.encode(), delivery.tag, delivery.step, delivery.checksum)

    def _count_returned(self, delivery: Delivery) -> None:
        """A task that this supervisor had delayed is settled."""
        if self._burst and (delivery.properties.headers or {}).get(queues.BURST) == self._burst:
            self._pen.count("returned")

    def _acknowledge(self, delivery: Delivery, outcome: Outcome | None) -> None:
        """`outcome` as in `_tell_broker`; None: it was not run. Raises Gone."""
        consumer = self._consumer
        if self._pen.is_called() or consumer.is_restrained:
            self._pen.heed()
            self._hear()
            consumer.before_ack(has_run=outcome is not None and not isinstance(outcome, _NOT_RUN))
        consumer.ack(delivery)

    # ----------------------------------------------------------------------------------------------- elsewhere

    def _put_elsewhere(
        self, delivery: Delivery, attempt: int, settlement: DeadLetter | Later | Afresh, outcome: Outcome
    ) -> DeadLetter | Later | Afresh:
        """Park it in the dead-letter queue, a delay queue, or its own. Returns the settlement used. Raises Gone, and
        PublishError."""
        if self._consumer.gone is not None:
            raise self._consumer.gone
        if self._settings.breaker is not None and (failed := failure(outcome)) is not None:
            self._pen.stumble(*failed)
        if not isinstance(settlement, DeadLetter):
            returning = settlement
            try:
                self._park(delivery, attempt, lambda: self.parking.have_return(delivery, returning))
            except PublishError as error:
                if isinstance(outcome, Condemned):
                    outcome = Condemned(replace(outcome.verdict, fresh=False))
                last = settle(outcome, attempt)  # without another try
                if _kind(error) is not Kind.TOO_LARGE or not isinstance(last, DeadLetter):
                    raise
                settlement = replace(last, because=f"{last.because}; it cannot be retried: {error}")
            else:
                if isinstance(returning, Later):
                    self._pen.owe(now() + returning.ms / 1000)
                return returning
        letter = settlement
        self._park(delivery, attempt, lambda: self.parking.park(delivery, letter))
        # Only for the live page, so do not wait. Before the ack: if that is lost, the letter is parked all the same.
        self._link.send(_parked(delivery, attempt, letter), wait=False)
        return letter

    def _park(self, delivery: Delivery, attempt: int, park: Callable[[], None]) -> None:
        """Park until it is confirmed. Raises PublishError only when there is no time for a retry, or no use: another
        process may have the resource that this one lacks.

        Meanwhile the message stays unacked: requeued, its handler would run again immediately, and again.
        """
        about = {"message_id": delivery.name, "attempt": attempt, **delivery.trace}
        delay = PARK_AGAIN_AFTER
        timer = self._consumer.after(HELD_UP_AFTER, self._take_long)
        while True:
            try:
                # It may take as long as the broker's alarm: the heartbeat thread serves the consuming connection.
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
                because = f"{error}; the message stays in flight, retried in {delay:g} s"
                self._log.error("task.parking_failed", **about, because=because)
            except Exception as error:
                # Not the message's fault, which would be blamed if the worker died of this.
                trace = "".join(traceback.format_exception(error))
                self._log.error("task.parking_failed", **about, because=_UNFORESEEN, exception=trace)
                raise Gone(Cause.LOCAL, f"parking failed: {type(error).__name__}: {error}", Kind.LOCAL) from error
            self._consumer.rest(delay)
            delay = min(2 * delay, PARK_AGAIN_AT_MOST)

    def _take_long(self) -> None:
        """Usually called from the heartbeat thread."""
        if self._held_up is None:
            self._hold_up(f"the broker has confirmed nothing for {HELD_UP_AFTER:g} s")

    def _hold_up(self, because: str | None) -> None:
        """For /readyz and metrics: why the message in flight cannot be parked; None: it is."""
        if because != self._held_up:
            self._held_up = because
            self._link.send(ParkingBlocked(because is not None, because or ""))


def _kind(error: PublishError) -> Kind:
    return error.trouble.kind if error.trouble else Kind.OTHER


def _supervisor() -> str:
    """A unique name of this supervisor: host, pid, and start time (ticks since boot, proc_pid_stat(5)). Empty when that
    is not available."""
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
    """`--max-tasks` less up to a tenth, by slot: workers that began together do not exit together."""
    if limit is None:
        return None
    return max(1, limit - limit * (slot % 8) // 80)
