"""What a worker's death means: its cause, whose fault it is, and the line that tells of it.

Three are asked, in this order: the worker's own last words (when it left by itself, they are the truth), what the
supervisor had in mind when it sent a signal, and the kernel (an exit code, a signal, `OOM`). The cause is what
operators see and count. The fault is coarser, and decides when the seat is filled again (see `restart`); a death with a
message in hand that nothing else explains is the message's.
"""

from __future__ import annotations

from supervisor.policy import restart
from supervisor.policy.restart import Fault
from supervisor.policy.slot import Slot
from supervisor.vocabulary import Cause, Exited, Leaving, LoadFailed, Say


def cause_of(slot: Slot, died: Exited) -> str:
    """A `Cause`, or the status as the kernel gave it."""
    # Last words count only with the exit that goes with them: a worker killed while it leaves was killed. And only with
    # nothing in hand: a worker says them when it has put its message down, so else its handler has.
    if died.said is not None and died.hand is None and died.status.startswith("exit "):
        return Cause.HANDLER if isinstance(died.said, LoadFailed) else died.said.cause
    if slot.condemned is not None and died.status != "OOM":
        return slot.condemned
    return died.status


def fault_of(died: Exited, cause: str, *, has_worked: bool) -> Fault:
    """Whose fault it is; `has_worked`: some worker of this pool has consumed before."""
    match cause:
        case Cause.DRAINED | Cause.MAX_TASKS | Cause.GRACE:
            return Fault.PLANNED
        case Cause.BROKER:
            return fault_of_broker(died.said)
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


def is_crash(fault: Fault) -> bool:
    """Whether it counts as a crash: exactly when a message is blamed for it, or nothing explains it."""
    return fault in (Fault.MESSAGE, Fault.UNEXPLAINED)


def fault_of_broker(said: Leaving | LoadFailed | None) -> Fault:
    """Whether it comes back by itself, or people have to change something."""
    kind = said.kind if isinstance(said, Leaving) else ""
    return Fault.REFUSED if kind in restart.PEOPLE_MEND else Fault.BROKER


def is_unclean(slot: Slot, died: Exited) -> bool:
    """Whether the supervisor had to kill it, or it left a message unsettled: no way to end a drain."""
    was_killed = slot.condemned not in (None, Cause.DRAINED) and not died.status.startswith("exit ")
    return was_killed or died.hand is not None or (isinstance(died.said, Leaving) and died.said.is_unsettled)


def because(died: Exited, cause: str, fault: Fault) -> str:
    """The reason in words: the worker's own, if it gave one."""
    if isinstance(died.said, Leaving) and died.said.detail:
        return died.said.detail
    match fault:
        case Fault.MESSAGE:
            return f"{cause} while it had a message in hand"
        case Fault.UNEXPLAINED:
            return f"{cause} with nothing in hand"
        case _:
            return str(cause)


def obituary(slot: int, died: Exited, cause: str, fault: Fault, follows: str, now: float, is_old_news: bool) -> Say:
    """The log's line; `follows` says what becomes of the seat."""
    fields: dict[str, object] = {
        "slot": slot,
        "pid": died.pid,
        "cause": cause,
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
    if died.output and fault in (Fault.MESSAGE, Fault.UNEXPLAINED):
        fields["output"] = died.output
    level = "info" if is_old_news or (fault is Fault.PLANNED and cause != Cause.GRACE) else "warning"
    return Say("worker.exited", level, because(died, cause, fault), fields)
