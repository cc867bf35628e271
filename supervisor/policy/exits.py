"""One judgement of one exit: its cause, whose fault it is, whether it is a crash, and whether it was clean.

Three are asked, in this order: the worker's last words, the supervisor's reason for a signal it sent, and the kernel
(an exit code, a signal, `OOM`). Operators see and count the cause. The fault is coarser, and decides when the slot is
filled again (see `restart`). Metrics, ledger, restart, reload and exit code all go by the one `Judgement`.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.messages import Leaving, LoadFailed, Lost
from supervisor.policy import restart
from supervisor.policy.actions import Say
from supervisor.policy.events import Exited
from supervisor.policy.restart import Fault
from supervisor.policy.slot import Slot
from supervisor.vocabulary import Cause


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the exit of a worker means, or the loss of its connection, which takes it from its slot as well."""

    cause: str
    """A `Cause`, or the status as the kernel gave it."""
    fault: Fault
    because: str
    """The reason in words: the worker's own, if it gave one."""
    said: Leaving | LoadFailed | None
    """Its last words."""
    consumed: float | None
    """Seconds for which it has; None when it never did."""
    finished: int
    """Tasks that it brought to an end."""
    is_clean: bool = True
    """It was not killed by the supervisor, and left no message unsettled: a way to end a drain."""

    @property
    def is_crash(self) -> bool:
        """Exactly when a message is blamed for it, or nothing explains it."""
        return self.fault in (Fault.MESSAGE, Fault.UNEXPLAINED)

    @property
    def is_planned(self) -> bool:
        """It ended as it was to."""
        return self.fault is Fault.PLANNED and self.cause != Cause.GRACE

    @property
    def leaving(self) -> Leaving | None:
        """Its last words, if it left because it had to."""
        return self.said if isinstance(self.said, Leaving) else None

    @property
    def failed(self) -> LoadFailed | None:
        """Its last words, if it could not load the handler."""
        return self.said if isinstance(self.said, LoadFailed) else None


def judge(slot: Slot, died: Exited, now: float, *, has_worked: bool) -> Judgement:
    """`slot` is that of the worker, or the orphan; `has_worked`: some worker of this pool has consumed before."""
    cause = _cause(slot, died)
    fault = _fault(died, cause, has_worked=has_worked)
    return Judgement(
        cause,
        fault,
        _because(died, cause, fault),
        died.said,
        slot.consumes_for(now),
        died.finished,
        is_clean=_is_clean(slot, died),
    )


def judge_lost(slot: Slot, lost: Lost, now: float) -> Judgement:
    """Its connection is gone under a handler: as if it had left for that, though it lives on as an orphan."""
    said = Leaving(Cause.BROKER, lost.detail, lost.kind, silence=lost.silence)
    return Judgement(Cause.BROKER, _fault_of_broker(said), lost.detail, said, slot.consumes_for(now), lost.finished)


def _cause(slot: Slot, died: Exited) -> str:
    # Last words count only with the exit that goes with them: a worker killed while it leaves was killed. And only with
    # nothing in hand: a worker says them when it has put its message down, so else its handler has.
    if died.said is not None and died.hand is None and died.status.startswith("exit "):
        return Cause.HANDLER if isinstance(died.said, LoadFailed) else died.said.cause
    if slot.condemned is not None and died.status != "OOM":
        return slot.condemned
    return died.status


def _fault(died: Exited, cause: str, *, has_worked: bool) -> Fault:
    match cause:
        case Cause.DRAINED | Cause.MAX_TASKS | Cause.GRACE:
            return Fault.PLANNED
        case Cause.BROKER:
            return _fault_of_broker(died.said)
        case Cause.NOT_CONSUMING:
            return Fault.BROKER
        case Cause.LOCAL:
            return Fault.LOCAL
        case Cause.CONFIG if has_worked and isinstance(died.said, Leaving):
            # The queue was replaced by one of another type, for instance.
            return Fault.REFUSED
        case Cause.CONFIG | Cause.HANDLER:
            return Fault.CONFIG
        case Cause.MEMORY if died.hand is None:
            return Fault.PLANNED
        case _:
            return Fault.MESSAGE if died.hand is not None else Fault.UNEXPLAINED


def _fault_of_broker(said: Leaving | LoadFailed | None) -> Fault:
    """Whether it comes back by itself, or people have to change something."""
    kind = said.kind if isinstance(said, Leaving) else ""
    return Fault.REFUSED if kind in restart.NEEDS_OPERATOR else Fault.BROKER


def _is_clean(slot: Slot, died: Exited) -> bool:
    was_killed = slot.condemned not in (None, Cause.DRAINED) and not died.status.startswith("exit ")
    return not (was_killed or died.hand is not None or (isinstance(died.said, Leaving) and died.said.is_unsettled))


def _because(died: Exited, cause: str, fault: Fault) -> str:
    if isinstance(died.said, Leaving) and died.said.detail:
        return died.said.detail
    match fault:
        case Fault.MESSAGE:
            return f"{cause} with a message in flight"
        case Fault.UNEXPLAINED:
            return f"{cause} with no message in flight"
        case _:
            return str(cause)


def obituary(slot: int, died: Exited, judged: Judgement, follows: str, now: float, *, is_old_news: bool) -> Say:
    """The log's line; `follows` says what becomes of the slot."""
    fields: dict[str, object] = {
        "slot": slot,
        "pid": died.pid,
        "cause": judged.cause,
        "planned": judged.is_planned,
        "status": died.status,
        "next": follows,
    }
    if died.hand is not None:
        fields["message_id"] = died.hand.name
        fields["busy_seconds"] = round(now - died.hand.since, 3)
        fields["attempt"] = died.hand.attempt
        fields["redelivered"] = died.hand.redelivered
        if died.hand.settling:
            fields["settling"] = True
        if died.hand.trace_id:
            fields["trace_id"] = died.hand.trace_id
    else:
        fields["message_id"] = None
    if died.output and judged.is_crash:
        fields["output"] = died.output
    level = "info" if is_old_news or judged.is_planned else "warning"
    return Say("worker.exited", level, judged.because, fields)
