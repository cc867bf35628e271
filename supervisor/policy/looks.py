"""Looking at the queue: when, whom to ask, and what the answers say.

Only a worker can ask the broker, so the pool asks one, if possible an idle one: for the status (how many messages wait,
alive and dead), `truth`, `scaling` and `burst`. What was seen gets old, and is then not shown any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from supervisor.messages import DeadDepth, Depth, Measure, Nature, Parked
from supervisor.policy import termination
from supervisor.policy.actions import Action, Say, Tell
from supervisor.policy.scaling import LOOK_EVERY, Decision, Scaling
from supervisor.policy.slot import Slot
from supervisor.policy.truth import Belief, Doubt, Truth
from supervisor.settings import Span
from supervisor.vocabulary import Cause, Phase, Reading

DEPTH_EVERY: Final = 5.0
"""Seconds between two looks at the queue's depth; every sample under `--burst`."""
DEPTH_HOLDS: Final = 20.0
"""Seconds after which a depth is history."""
DEAD_EVERY: Final = 60.0
"""Seconds between two looks at a dead-letter queue that was empty: asking for one that is missing costs a log line."""
DEAD_HOLDS: Final = DEAD_EVERY + DEPTH_HOLDS
PARKED_SHOWN: Final = 20
"""Dead letters remembered for those who look; all of them lie in the queue."""


class Looks:
    def __init__(self, span: Span) -> None:
        self._span = span
        self._scaling = Scaling(span)
        self.truth = Truth()
        self._is_single_known = False
        self._compared_at = 0.0
        self._pages: dict[int, Reading] = {}
        """By page number, as last sampled; orphans' left out."""
        self._depth: Depth | None = None
        self._depth_asked = 0.0
        self._depth_at = 0.0
        self._dead: DeadDepth | None = None
        self._dead_asked = -math.inf
        """Minus infinity: to be looked at with the next look at the queue."""
        self._dead_at = 0.0
        self.parked: tuple[Parked, ...] = ()

    # ----------------------------------------------------------------------------------------- to be asked

    def depth(self, now: float) -> Depth | None:
        """The queue's, while it is news; likewise `dead`."""
        return self._depth if now - self._depth_at <= DEPTH_HOLDS else None

    def dead(self, now: float) -> DeadDepth | None:
        return self._dead if now - self._dead_at <= DEAD_HOLDS else None

    def idle_of(self, slots: Sequence[Slot]) -> Slot:
        """One whose worker was idle when last sampled; else the first."""
        idle = (slot for slot in slots if (page := self._pages.get(slot.page)) and page.phase is Phase.IDLE)
        return next(idle, slots[0])

    def is_due(self, now: float) -> bool:
        return now - self._depth_asked >= (DEPTH_EVERY if self._span.is_fixed else LOOK_EVERY)

    # ------------------------------------------------------------------------------------------ to be told

    def sampled(self, readings: tuple[Reading, ...], now: float) -> None:
        """The page of every worker that is no orphan, about once a second."""
        self._pages = {reading.page: reading for reading in readings}
        self._scaling.sampled(readings, now)

    def measured(self, depth: Depth, now: float) -> None:
        self._depth, self._depth_at = depth, now

    def dead_measured(self, dead: DeadDepth, now: float) -> None:
        self._dead, self._dead_at = dead, now

    def described(self, nature: Nature, queue: str) -> list[Say]:
        """The broker has said what kind of queue it is: say so when it is news that it has a single active consumer."""
        is_news = nature.is_single and not self._is_single_known
        self._is_single_known = nature.is_single
        self.truth.is_single = nature.is_single
        if not is_news:
            return []
        because = (
            f"{queue} has a single active consumer: one worker of all hosts gets its messages, the others stand "
            "by, idle, until it exits; none is replaced for being idle"
        )
        return [Say("queue.single_active_consumer", "info", because)]

    def has_parked(self, parked: Parked) -> None:
        """A worker has put a message into the dead-letter queue."""
        self.parked = (*self.parked, parked)[-PARKED_SHOWN:]
        self._dead_asked = -math.inf
        if self._dead is not None:
            self._dead = DeadDepth(self._dead.ready + 1)  # until the broker's own word

    def rescale(self, span: Span) -> None:
        """`--workers` has been changed: what the scaling has learnt was under other limits."""
        self._span = span
        self._scaling = Scaling(span)

    # ------------------------------------------------------------------------------------------- decisions

    def ask(self, ready: Sequence[Slot], now: float) -> list[Tell]:
        """Ask somebody idle, if there is one: a handler that holds the interpreter keeps the question waiting."""
        if not ready:
            return []
        self._depth_asked = now
        asked = self.idle_of(ready)
        has_dead = self._dead is not None and self._dead.ready > 0
        dead = now - self._dead_asked >= (DEPTH_EVERY if has_dead else DEAD_EVERY)
        if dead:
            self._dead_asked = now
        return [Tell(asked.page, Measure(dead), "periodic look at the queue's depth")]

    def compare(self, depth: Depth, ready: Sequence[Slot], now: float) -> list[Action]:
        """The broker's truth with our workers' beliefs; see `truth`. Who is doubted is replaced."""
        doubt, asked = self._doubt(depth, ready, now), self._ask_of_its_kind(ready)
        if doubt is None:
            return [*asked]
        if doubt.replace is None:
            return [Say("worker.not_consuming", "warning", doubt.because)] if doubt.is_news else []
        slot = next(slot for slot in ready if slot.number == doubt.replace)
        fields = {"slot": slot.number, "pid": slot.pid, "next": "it is replaced"}
        said = Say("worker.not_consuming", "error", doubt.because, fields)
        return [said, termination.replace(slot, Cause.NOT_CONSUMING, doubt.because)]

    def _ask_of_its_kind(self, ready: Sequence[Slot]) -> list[Tell]:
        """Ask what kind of queue it is, when a worker is idle beside messages that wait: once."""
        if not ready or not self.truth.wonders():
            return []
        asked = self.idle_of(ready)
        because = "a worker is idle while messages wait: does the queue have a single active consumer?"
        return [Tell(asked.page, Measure(nature=True), because)]

    def _doubt(self, depth: Depth, ready: Sequence[Slot], now: float) -> Doubt | None:
        # Not at every look of the scaling: a quorum queue that elects a leader gives nobody anything for seconds.
        if now - self._compared_at < DEPTH_EVERY:
            return None
        self._compared_at = now
        beliefs = [
            Belief(slot.number, slot.pid, page.phase is Phase.IDLE, page.counts.settled)
            for slot in ready
            if (page := self._pages.get(slot.page)) and page.pid == slot.pid
        ]
        return self.truth.look(depth, beliefs)

    def scale(self, depth: Depth, wanted: int, now: float) -> Decision | None:
        """How many workers instead of those `wanted`; see `scaling`."""
        return self._scaling.look(depth, wanted, now)
