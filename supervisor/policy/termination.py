"""How a worker is stopped. Each way moves the slot to the state that waits for the exit (see `slot`).

- *Drain*: it settles the task in flight and exits, with or without a deadline.
- *Abort*: it hangs. SIGABRT makes faulthandler write every thread's stack before the process dies.
- *Kill*: nothing else has worked, or there is nothing to lose.
"""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.messages import Drain
from supervisor.policy import hung
from supervisor.policy.actions import Action, Say, Signal, Tell
from supervisor.policy.slot import ABORT_TIMEOUT, CONNECT_TIMEOUT, Slot, SlotState
from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Reading


def drain(slot: Slot, because: str, deadline: float | None, *, finish: bool = False) -> list[Action]:
    """Empty the slot. `deadline` in monotonic seconds, None: no limit; `finish` as in `Drain`."""
    match slot.state:
        case SlotState.WAITING | SlotState.FORKING:
            # A worker that is just being forked is drained once it has started (see `Pool._started`).
            if slot.state is SlotState.WAITING:
                slot.enter(SlotState.EMPTY)
            return []
        case SlotState.BOOTING:
            # It imports, perhaps without end, reads no orders, and has no task to lose.
            return kill(slot, Cause.DRAINED, because)
        case SlotState.CONNECTING | SlotState.READY:
            # One that hangs while connecting does not read this: without a grace, the state's own deadline stays.
            slot.enter(SlotState.DRAINING, slot.deadline if deadline is None else deadline)
            return [Tell(slot.page, Drain(finish), because)]
        case SlotState.DRAINING:
            if deadline is not None:
                slot.deadline = deadline if slot.deadline is None else min(deadline, slot.deadline)
            return []
        case _:
            return []


def drain_all(slots: Iterable[Slot], because: str, deadline: float | None, *, finish: bool = False) -> list[Action]:
    return [action for slot in slots for action in drain(slot, because, deadline, finish=finish)]


def replace(slot: Slot, cause: str, because: str) -> Tell:
    """Drain a worker that consumes; another one will follow."""
    slot.enter(SlotState.DRAINING, None)
    return Tell(slot.page, Drain(cause=cause), because)


def abort(slot: Slot, cause: str, because: str, now: float) -> list[Action]:
    """SIGABRT; SIGKILL follows if it does not exit."""
    slot.condemned = slot.condemned or cause
    slot.enter(SlotState.ABORTING, now + ABORT_TIMEOUT)
    return [Signal(slot.page, "SIGABRT", because)]


def examine(slot: Slot, reading: Reading, limits: Settings, *, held_up: bool, now: float) -> list[Action]:
    """Abort it when it hangs, replace it when it exceeds its memory limit; arguments as in `hung.examine`."""
    is_ready = slot.state is SlotState.READY
    found = hung.examine(reading, limits, began_with=slot.began_with, is_ready=is_ready, held_up=held_up, now=now)
    if found is None:
        return []
    if not found.is_hung:
        return [replace(slot, found.cause, found.because)]
    fields = {"slot": slot.number, "pid": slot.pid, "cause": found.cause}
    if reading.hand is not None:
        slot.meant = reading.hand.delivery_tag
        fields["message_id"] = reading.hand.name
        if reading.hand.trace_id:
            fields["trace_id"] = reading.hand.trace_id
    return [Say("worker.hung", "error", found.because, fields), *abort(slot, found.cause, found.because, now)]


def overdue(slot: Slot, boot_timeout: float, grace: float, now: float) -> list[Action]:
    """The deadline of its state has passed."""
    match slot.state:
        case SlotState.BOOTING:
            return abort(slot, Cause.BOOT, f"not booted within --boot-timeout ({boot_timeout:g} s)", now)
        case SlotState.CONNECTING:
            because = f"neither connected nor gave up within {CONNECT_TIMEOUT:g} s"
            return abort(slot, Cause.HUNG, because, now)
        case SlotState.DRAINING if slot.is_lost:
            because = "its connection is lost, and its handler has run for all of --lost-grace"
            return kill(slot, Cause.BROKER, because)
        case SlotState.DRAINING:
            return kill(slot, Cause.GRACE, f"still running after --grace ({grace:g} s)")
        case SlotState.ABORTING:
            return kill(slot, slot.condemned or Cause.HUNG, "SIGABRT did not end it")
        case _:
            return []


def kill(slot: Slot, cause: str, because: str) -> list[Action]:
    slot.condemned, slot.why_killed = slot.condemned or cause, because
    slot.enter(SlotState.KILLED)
    return [Signal(slot.page, "SIGKILL", because)]
