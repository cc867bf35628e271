"""`workq kill` and `workq chaos`: which worker is meant, and may it be killed?

Decided while the workers that may be meant stand still, so that no other message is hit: what a page says stays true
until the signal is sent (`Target.readings`). The message is not blamed, and the next worker starts at once: an operator
has asked for it.
"""

from __future__ import annotations

from supervisor.policy import termination
from supervisor.policy.actions import Action, Say
from supervisor.policy.events import Asked, Target
from supervisor.policy.slot import Killing, Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.vocabulary import Cause, Reading


def kill(asked: Asked, slots: Slots, now: float) -> list[Action]:
    """Kill the worker that is meant; or only say why not."""
    target = asked.target
    assert target is not None
    found = _find(target, slots)
    why = found if isinstance(found, str) else _refusal(found, target)
    if isinstance(found, str) or why:
        return [Say("worker.kill", "warning", f"{asked.by}: {why}; nothing was done")]
    reading = _reading(found, target)
    hand = reading.hand if reading is not None else None
    doing = f"{now - hand.since:.1f} s into {hand.name}" if hand is not None else "with no message in flight"
    if hand is not None and hand.settling:
        doing = f"settling {hand.name}"
    because = f"{asked.by}: worker {found.number} (pid {found.pid}), {doing}, is killed"
    found.killing = Killing(asked.by, hand if target.dead_letter else None)
    fields = {"slot": found.number, "pid": found.pid, "message_id": hand.name if hand is not None else None}
    said = Say("worker.kill", "info", because, fields)
    if target.at_once:
        return [said, *termination.kill(found, Cause.OPERATOR, because)]
    return [said, *termination.abort(found, Cause.OPERATOR, because, now)]


def _find(target: Target, slots: Slots) -> Slot | str:
    """The worker's slot, or the orphan; or why there is none."""
    text = target.text
    is_number = text.isascii() and text.isdigit() and target.kind != "message"
    holders: list[Slot] = []
    if target.kind != "slot":
        running = (reading for reading in target.readings if reading.hand is not None and reading.hand.name == text)
        holders = [slot for reading in running if (slot := slots.at(reading.page)).pid == reading.pid]
    where = ", ".join(f"slot {slot.number} (pid {slot.pid})" for slot in holders)
    if is_number and holders:
        return f"{text} is a slot, and the id of a message in flight in {where}: say --slot or --id"
    if is_number or target.kind == "slot":
        count = len(list(slots))
        if not is_number or int(text) >= count:
            return f"there is no slot {text}: the slots are 0 to {count - 1}"
        return slots[int(text)]
    if not holders:
        return f"no worker here has a message {text} in flight: it has not begun, is finished, or runs elsewhere"
    if len(holders) > 1:
        return f"{len(holders)} messages with the id {text} are in flight, in {where}: name the slot"
    return holders[0]


def _refusal(slot: Slot, target: Target) -> str:
    """Why it is not killed; empty: it is."""
    if slot.state in (SlotState.ABORTING, SlotState.KILLED):
        return f"worker {slot.number} (pid {slot.pid}) is being killed already: {slot.condemned}"
    if not slot.is_alive:
        return f"slot {slot.number} has no worker ({slot.state.value})"
    if not target.dead_letter:
        return ""
    reading = _reading(slot, target)
    hand = reading.hand if reading is not None else None
    if hand is None:
        return f"worker {slot.number} (pid {slot.pid}) has no message in flight that could be dead-lettered"
    if hand.settling:
        return f"the handler has finished with {hand.name}, and its outcome is being settled"
    return ""


def _reading(slot: Slot, target: Target) -> Reading | None:
    same = (reading for reading in target.readings if (reading.page, reading.pid) == (slot.page, slot.pid))
    return next(same, None)
