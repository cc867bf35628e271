"""What happens to a slot whose worker has exited: which of `exits`, `restart`, `broker` applies, and what else?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from supervisor.messages import LoadFailed, Lost
from supervisor.policy import broker, exits, restart
from supervisor.policy.actions import Say
from supervisor.policy.breaker import Breaker
from supervisor.policy.broker import BrokerState
from supervisor.policy.condition import Condition, Consequence, GiveUp
from supervisor.policy.events import Exited
from supervisor.policy.exits import Judgement
from supervisor.policy.nursery import Upkeep, import_hangs
from supervisor.policy.parkings import Parkings
from supervisor.policy.poison import Ledger, Suspects
from supervisor.policy.restart import STEADY, Elsewhere, Fault, Next, Restart, Stay
from supervisor.policy.rollout import Rollout
from supervisor.policy.slot import LastExit, Slot, SlotState
from supervisor.policy.slots import Slots
from supervisor.vocabulary import EXIT_CONFIG, EXIT_DONE, EXIT_KILLED, Cause, Moved

STOPPING: Final = "the supervisor is stopping"


@dataclass(slots=True)
class Succession:
    slots: Slots
    condition: Condition
    rollout: Rollout
    upkeep: Upkeep
    broker: BrokerState
    breaker: Breaker
    ledger: Ledger
    parkings: Parkings
    suspects: Suspects
    by_cause: Counter[str] = field(default_factory=Counter)
    """Exits."""
    crashes: int = 0

    def exited(self, slot: Slot, died: Exited, now: float) -> list[Consequence]:
        """A worker or an orphan has exited."""
        judged = exits.judge(slot, died, now, has_worked=self.condition.has_worked)
        crashes, failed = 0, list[Say]()
        if judged.fault is Fault.MESSAGE and died.hand is not None:
            if not self.condition.is_leaving:
                failed += self.breaker.died(died.page, judged.cause, self.rollout.nursery.settings, now)
            who = f"worker {slot.number} (pid {died.pid})"
            crashes = self.ledger.blame(died.hand.key, judged.cause, died.output, at=died.at, who=who)
        self.by_cause[judged.cause] += 1
        self.crashes += judged.is_crash
        self.rollout.count(slot, died.counts, is_crash=judged.is_crash)
        if self.condition.is_draining and not judged.is_clean:
            self.condition.unclean.append(exits.unclean(slot, died, judged))
            if self.condition.code == EXIT_DONE:
                self.condition.code = EXIT_KILLED
        self.parkings.died(died.page, died.moved, died.last)
        self.parked(slot, died.moved, now)
        name = died.hand.name if died.hand else None
        killing = slot.killing if judged.cause == Cause.OPERATOR else None
        sentence = self.suspects.sentences.carry(killing, died, now) if killing is not None else ""
        slot.vacate(LastExit(judged.cause, name, now, judged.is_planned))
        news: list[Consequence] = [*self.suspects.died(died.page, now), *self.broker.block(died.page, None, now)]
        trouble = self.broker.trouble
        is_expected = self.broker.is_usual(judged.leaving) or self._passing_import(slot, judged) is not None
        is_orphan = self.slots.orphans.pop(died.page, None) is not None
        follows, decided = (self._after_orphan(slot), []) if is_orphan else self._after(slot, judged, now)
        is_same = judged.fault in broker.FAULTS and judged.consumed is None and trouble == self.broker.trouble
        words = restart.in_words(follows, now) + self.ledger.sentence(crashes) + sentence
        by = killing.by if killing is not None else ""
        told = exits.obituary(slot.number, died, judged, words, now, is_old_news=is_same or is_expected, by=by)
        return [told, *failed, *news, *decided]

    def lost(self, slot: Slot, lost: Lost, now: float) -> list[Consequence]:
        """Its connection is lost, and its handler runs on, perhaps for an hour; the result will be discarded."""
        grace = self.rollout.limits_of(slot).lost_grace
        until = now + grace if slot.deadline is None else min(now + grace, slot.deadline)
        fields: dict[str, object] = {"slot": slot.number, "pid": slot.pid}
        because = f"{lost.detail}; its handler may run on for {until - now:g} s (--lost-grace {grace:g} s)"
        said = Say("worker.orphaned", "warning", because, fields)
        if self.condition.is_draining:
            slot.is_lost, slot.deadline = True, until
            fields["next"] = restart.in_words(Stay(STOPPING), now)
            return [said]
        judged = exits.judge_lost(slot, lost, now)
        killed = self.slots.orphan(slot, until, judged.cause, now)
        follows, decided = self._follow(slot, judged, now)
        fields["next"] = restart.in_words(follows, now)
        return [said, *killed, *decided]

    def parked(self, slot: Slot, moved: tuple[Moved, ...], now: float) -> None:
        """Note what a worker that exits had parked, perhaps without its acknowledgement."""
        if not slot.has_told:
            self.parkings.ended(moved, self.rollout.limits_of(slot).prefetch, now)
        slot.has_told = slot.has_told or bool(moved)

    def _after(self, slot: Slot, judged: Judgement, now: float) -> tuple[Next, list[Consequence]]:
        is_new = self.rollout.is_incoming(slot.generation) and not self._why_empty(slot)
        if is_new and not self.condition.is_finishing:
            if self.rollout.is_watching:
                return self._after_canary(slot, judged, now)
            if not self.rollout.proves_nothing(judged.fault):
                return self._fail_trial(slot, judged, now)
            held = self.rollout.hold(judged.because)
            follows, decided = self._follow(slot, judged, now)
            return follows, [held, *decided]
        failed = self._passing_import(slot, judged)
        if failed is None or self._why_empty(slot) or self.condition.is_finishing:
            return self._follow(slot, judged, now)
        return self._import_again(slot, failed, now)

    def _after_canary(self, slot: Slot, judged: Judgement, now: float) -> tuple[Next, list[Consequence]]:
        told = self.rollout.died(self._failed_import(slot, judged), now)
        if not told:
            return self._follow(slot, judged, now)
        slot.restarts += 1
        slot.enter(SlotState.WAITING, now)
        generation = self.rollout.nursery.generation
        return Elsewhere(f"the canary is rolled back; a worker of generation {generation} follows"), [*told]

    def _after_orphan(self, orphan: Slot) -> Next:
        """Its slot was dealt with when the connection was lost."""
        slot = self.slots[orphan.number]
        slot.last_exit = orphan.last_exit
        if slot.state is not SlotState.EMPTY:
            return Stay("its slot has been refilled")
        return Stay(self._why_empty(None) or "fewer workers are wanted")

    def _follow(self, slot: Slot, judged: Judgement, now: float) -> tuple[Next, list[Consequence]]:
        if why := self._why_empty(slot):
            return Stay(why), []
        if self.condition.is_finishing:
            if judged.leaving is not None and judged.leaving.cause == Cause.DRAINED:
                return Stay("the queue is empty"), []
            # It may have returned messages: `max_tasks` does not run what was prefetched beside the last task.
            self.condition.is_finishing = False
            self.slots.refill(now)
        if judged.fault is Fault.CONFIG and not self.condition.has_worked:
            return Stay("restarting will not help"), self._give_up(judged)
        decided: list[Consequence] = []
        if judged.fault is Fault.UNEXPLAINED:
            decided += self.condition.died_unexplained(self.slots.wanted, now)
        follows, news = self._restart(slot, judged, now)
        slot.restarts += 1
        slot.enter(SlotState.WAITING, follows.at)
        return follows, [*decided, *news]

    def _passing_import(self, slot: Slot, judged: Judgement) -> LoadFailed | None:
        """Why it could not import the handler, if that is transient and will be retried."""
        failed = self._failed_import(slot, judged)
        return failed if failed is not None and self.upkeep.may_pass(self.rollout.nursery, failed) else None

    def _failed_import(self, slot: Slot, judged: Judgement) -> LoadFailed | None:
        nursery = self.rollout.nursery_for(slot)
        if judged.cause == Cause.HANDLER:
            return judged.failed
        return import_hangs(nursery.settings) if judged.cause == Cause.BOOT and not nursery.preload else None

    def _why_empty(self, slot: Slot | None) -> str:
        if self.condition.is_draining:
            return STOPPING
        return "fewer workers are wanted" if slot is not None and not self.slots.is_wanted(slot) else ""

    def _fail_trial(self, slot: Slot, judged: Judgement, now: float) -> tuple[Next, list[Consequence]]:
        failed = self._failed_import(slot, judged)
        because, traceback = (failed.error, failed.traceback) if failed else (judged.because, "")
        told = self.rollout.fail_trial(slot, because, now, traceback)
        slot.restarts += 1
        generation = self.rollout.nursery.generation
        return Elsewhere(f"the reload failed; a worker of generation {generation} follows"), [*told]

    def _import_again(self, slot: Slot, failed: LoadFailed, now: float) -> tuple[Next, list[Consequence]]:
        nursery = self.rollout.nursery
        told = self.upkeep.import_later(nursery, failed, slot.spawned_at, now, self.slots.roll(slot.number))
        slot.restarts += 1
        slot.enter(SlotState.WAITING, now)
        what, by = ("set-up", "") if failed.is_set_up else ("import", " (--boot-retry)")
        how = f"one worker retries the {what}, the others wait for it{by}"
        return Elsewhere(how), [*told]

    def _give_up(self, judged: Judgement) -> list[Consequence]:
        if judged.failed is not None:
            return self.upkeep.cannot_load(self.rollout.nursery, judged.failed)
        detail = judged.leaving.detail if judged.leaving else ""
        return [GiveUp(detail or "a worker reports a configuration error", EXIT_CONFIG, ends_nursery=True)]

    def _restart(self, slot: Slot, judged: Judgement, now: float) -> tuple[Restart, list[Consequence]]:
        """When the next worker starts. If the broker is the reason, one worker probes for all."""
        fault, left = judged.fault, judged.leaving
        was_ready = judged.consumed is not None
        is_usual = self.broker.is_usual(left)
        news: list[Consequence] = []
        if left is not None and left.cause == Cause.BROKER and was_ready:
            news += self.broker.end(left.kind, left.silence, self.rollout.nursery.settings.heartbeat, now)
        elif fault in broker.FAULTS and not was_ready:
            self.broker.silences.missed()
        # Where a failed task cannot be parked for want of resources, each worker finishes one, which proves nothing.
        has_finished = judged.finished > 0 and fault is not Fault.LOCAL
        has_recovered = (judged.consumed or 0.0) >= STEADY or has_finished or is_usual
        streak = slot.count(fault, recovered=has_recovered)
        roll = self.slots.roll(slot.number)
        follows = restart.decide(fault, streak=streak, was_ready=was_ready, now=now, roll=roll)
        if fault not in broker.FAULTS or left is None or left.cause == Cause.NOT_CONSUMING:
            return follows, news
        consuming = self.slots.count(SlotState.READY)
        kind, detail = left.kind, left.detail or "no reason given"
        if was_ready:
            news += self.broker.lose(kind, detail, consuming, now, is_usual=is_usual)
        elif consuming:
            news += self.broker.turn_away(kind, detail, consuming)
        if not consuming and follows.at > now + restart.LULL:
            at, told = self.broker.fail(fault, kind, detail, streak, now, roll)
            news += told
            follows = Restart(at, "the next probe of the broker")
            for other in self.slots:
                if other.state is SlotState.WAITING and other.fault in broker.FAULTS and other.deadline is not None:
                    other.deadline = max(other.deadline, at)
        return follows, news
