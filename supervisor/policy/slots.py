"""All slots and orphans. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator

from supervisor.policy import restart, termination
from supervisor.policy.actions import Action
from supervisor.policy.slot import Slot, SlotState
from supervisor.vocabulary import Cause, Intake, other_page, slot_of


class Slots:
    """Slots that are no longer wanted stay: for workers that are still exiting, then empty."""

    def __init__(self, wanted: int, seed: int) -> None:
        self.wanted = wanted
        """Number of workers wanted."""
        self.orphans: dict[int, Slot] = {}
        """By page: workers whose connection is lost while their handlers run on. Another worker has the slot; at most
        one orphan a slot."""
        self._slots = [Slot(number) for number in range(wanted)]
        self._seed = seed

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def at(self, page: int) -> Slot:
        """The orphan or slot with this page."""
        return self.orphans.get(page) or self._slots[slot_of(page)]

    def everybody(self) -> list[Slot]:
        """Orphans included."""
        return [*self._slots, *self.orphans.values()]

    def in_use(self) -> list[Slot]:
        return self._slots[: self.wanted]

    def is_wanted(self, slot: Slot) -> bool:
        return slot.number < self.wanted

    def consuming(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.state is SlotState.READY]

    def taking(self) -> list[Slot]:
        """Those that consume, and may take whatever comes."""
        return [slot for slot in self.consuming() if slot.intake is Intake.ALL]

    def count(self, *states: SlotState) -> int:
        return sum(1 for slot in self._slots if slot.state in states)

    def resize(self, wanted: int) -> list[Slot]:
        """Set the number wanted. Returns the slots in excess; call `refill` for new ones."""
        self.wanted = wanted
        self._slots += [Slot(number) for number in range(len(self._slots), wanted)]
        return self._slots[wanted:]

    def refill(self, now: float) -> None:
        """Move wanted empty slots to WAITING."""
        for slot in self.in_use():
            if slot.state is SlotState.EMPTY:
                slot.enter(SlotState.WAITING, now)

    def orphan(self, slot: Slot, until: float, cause: str, now: float) -> list[Action]:
        """Detach its worker, which may run until then. An older orphan of this slot is killed to free its page."""
        actions: list[Action] = []
        older = self.orphans.get(other_page(slot.page))
        if older is not None and older.state is SlotState.DRAINING:
            because = "the worker that replaced this orphan lost its connection too"
            actions += termination.kill(older, Cause.BROKER, because)
        orphan = slot.orphan(until, cause, now)
        self.orphans[orphan.page] = orphan
        return actions

    def roll(self, number: int = 0) -> float:
        """The next `restart.roll` of this slot."""
        slot = self._slots[number]
        slot.rolls += 1
        return restart.roll(self._seed, number, slot.rolls)
