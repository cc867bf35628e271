"""One judgement of one exit: its cause, whose fault it is, whether it is a crash, and whether it was clean.

The cause comes from, in this order: the worker's last words, the supervisor's reason for a signal it sent, and the
kernel (an exit code, a signal, `OOM`). Operators see and count it. The fault is coarser, and decides about the restart
(see `restart`). Metrics, ledger, restart, reload and exit code all use the one `Judgement`.
"""

from __future__ import annotations

from supervisor.messages import Leaving, LoadFailed, Lost
from supervisor.policy import restart
from supervisor.policy.actions import Say
from supervisor.policy.events import Exited
from supervisor.policy.restart import Fault
from supervisor.policy.slot import Slot
from supervisor.values import dataclass
from supervisor.vocabulary import Cause


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of a worker's exit, or of the loss of its connection, which removes it from its slot too."""

    cause: str
    """A `Cause`, or the status as the kernel gave it."""
    fault: Fault
    because: str
    """The reason in words: the worker's own, if it gave one."""
    said: Leaving | LoadFailed | None
    """Its last words."""
    consumed: float | None
    """Seconds; None when it never consumed."""
    finished: int
    """Tasks."""
    is_clean: bool = True
    """Not killed by the supervisor, and no message left unsettled: a drain may end so and be clean."""

    @property
    def is_crash(self) -> bool:
        """Blamed on a message, or unexplained."""
        return self.fault in (Fault.MESSAGE, Fault.UNEXPLAINED)

    @property
    def is_planned(self) -> bool:
        return self.fault is Fault.PLANNED and self.cause != Cause.GRACE

    @property
    def leaving(self) -> Leaving | None:
        return self.said if isinstance(self.said, Leaving) else None

    @property
    def failed(self) -> LoadFailed | None:
        return self.said if isinstance(self.said, LoadFailed) else None


def judge(slot: Slot, died: Exited, now: float, *, has_worked: bool) -> Judgement:
    """`slot`: the worker's, or the orphan; `has_worked`: a worker of this pool has consumed before."""
    cause = _cause(slot, died)
    fault = _fault(slot, died, cause, has_worked=has_worked)
    return Judgement(
        cause,
        fault,
        _because(slot, died, cause, fault),
        died.said,
        slot.consumes_for(now),
        died.finished,
        is_clean=_is_clean(slot, died),
    )


def judge_lost(slot: Slot, lost: Lost, now: float) -> Judgement:
    """Its connection is lost while a handler runs: judged as an exit, though it runs on as an orphan."""
    said = Leaving(Cause.BROKER, lost.detail, lost.kind, silence=lost.silence)
    return Judgement(Cause.BROKER, _fault_of_broker(said), lost.detail, said, slot.consumes_for(now), lost.finished)


def _cause(slot: Slot, died: Exited) -> str:
    # Last words count only with an exit code: a worker killed while it exits was killed. And only without a task in
    # flight: a worker sends them after its task, so otherwise the handler has exited.
    if died.said is not None and died.hand is None and died.status.startswith("exit "):
        return Cause.HANDLER if isinstance(died.said, LoadFailed) else died.said.cause
    if slot.condemned is not None and died.status != "OOM":
        return slot.condemned
    return died.status


def _fault(slot: Slot, died: Exited, cause: str, *, has_worked: bool) -> Fault:
    match cause:
        case Cause.DRAINED | Cause.MAX_TASKS | Cause.GRACE | Cause.OPERATOR:
            return Fault.PLANNED
        case Cause.BROKER:
            return _fault_of_broker(died.said)
        case Cause.NOT_CONSUMING:
            return Fault.BROKER
        case Cause.LOCAL:
            return Fault.LOCAL
        case Cause.CONFIG if has_worked and isinstance(died.said, Leaving):
            # For instance, the queue was replaced by one of another type.
            return Fault.REFUSED
        case Cause.CONFIG | Cause.HANDLER:
            return Fault.CONFIG
        case Cause.MEMORY if died.hand is None:
            return Fault.PLANNED
        case _ if _is_bystander(slot, died, cause):
            return Fault.PLANNED
        case _:
            return Fault.MESSAGE if died.hand is not None else Fault.UNEXPLAINED


def _is_bystander(slot: Slot, died: Exited, cause: str) -> bool:
    """Whether the message in flight is another one than that for which the worker was aborted: that one was finished
    before the signal arrived."""
    is_ours = slot.condemned == cause and cause in (Cause.TIMEOUT, Cause.MEMORY, Cause.HUNG)
    return is_ours and died.hand is not None and died.hand.delivery_tag != slot.meant


def _fault_of_broker(said: Leaving | LoadFailed | None) -> Fault:
    """Whether it recovers by itself, or needs an operator."""
    kind = said.kind if isinstance(said, Leaving) else ""
    return Fault.REFUSED if kind in restart.NEEDS_OPERATOR else Fault.BROKER


def _is_clean(slot: Slot, died: Exited) -> bool:
    was_killed = slot.condemned not in (None, Cause.DRAINED) and not died.status.startswith("exit ")
    return not (was_killed or died.hand is not None or (isinstance(died.said, Leaving) and died.said.is_unsettled))


def unclean(slot: Slot, died: Exited, judged: Judgement) -> str:
    """How it ended, in words: it was killed by the supervisor, or left a message unsettled."""
    how = (
        f"was killed: {slot.why_killed}"
        if slot.why_killed
        else f"exited: {judged.cause if died.hand else judged.because}"
    )
    returned = f"; its message {died.hand.name} is redelivered" if died.hand is not None else ""
    return f"worker {slot.number} {how}{returned}"


def _because(slot: Slot, died: Exited, cause: str, fault: Fault) -> str:
    if isinstance(died.said, Leaving) and died.said.detail:
        return died.said.detail
    if cause == Cause.OPERATOR:
        return "an operator had it killed" + (", with a message in flight" if died.hand is not None else "")
    if fault is Fault.PLANNED and _is_bystander(slot, died, cause):
        return f"{cause}, but what it was aborted for was over; the message in flight is redelivered and not blamed"
    match fault:
        case Fault.MESSAGE:
            return f"{cause} with a message in flight"
        case Fault.UNEXPLAINED:
            return f"{cause} with no message in flight"
        case _:
            return str(cause)


def obituary(
    slot: int, died: Exited, judged: Judgement, follows: str, now: float, *, is_old_news: bool, by: str = ""
) -> Say:
    """The log line; `follows`: what happens to the slot; `by`: who has asked for it."""
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
    if by:
        fields["by"] = by
    if died.output and (judged.is_crash or judged.cause == Cause.OPERATOR):
        fields["output"] = died.output
    level = "info" if is_old_news or judged.is_planned else "warning"
    return Say("worker.exited", level, judged.because, fields)
