"""Looks at the queue: when, which worker to ask, and what follows from the answer.

Only workers talk to the broker, so the pool asks one, preferably idle, on behalf of the status (messages and dead
letters waiting), `truth`, `scaling` and `burst`. An old answer is not shown any more.
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
"""Seconds between two looks at the queue's depth; under `--burst` every sample."""
DEPTH_HOLDS: Final = 20.0
"""Seconds after which a depth is too old to show."""
DEAD_EVERY: Final = 60.0
"""Seconds between two looks at an empty dead-letter queue: if it is missing, each costs a line in the broker's log."""
DEAD_HOLDS: Final = DEAD_EVERY + DEPTH_HOLDS
PARKED_SHOWN: Final = 20
"""Dead letters remembered for /status; the queue has them all."""


class Looks:
    def __init__(self, span: Span) -> None:
        self._span = span
        self._scaling = Scaling(span)
        self.truth = Truth()
        self._is_single_known = False
        self._compared_at = 0.0
        self._pages: dict[int, Reading] = {}
        """By page number, as last sampled; without orphans."""
        self._depth: Depth | None = None
        self._depth_asked = 0.0
        self._depth_at = 0.0
        self._dead: DeadDepth | None = None
        self._dead_asked = -math.inf
        """Minus infinity: include it in the next look."""
        self._dead_at = 0.0
        self.parked: tuple[Parked, ...] = ()

    # -------------------------------------------------------------------------------------------- queries

    def depth(self, now: float) -> Depth | None:
        """The queue's, unless it is too old; likewise `dead`."""
        return self._depth if now - self._depth_at <= DEPTH_HOLDS else None

    def dead(self, now: float) -> DeadDepth | None:
        return self._dead if now - self._dead_at <= DEAD_HOLDS else None

    def idle_of(self, slots: Sequence[Slot]) -> Slot:
        """One whose worker was idle at the last sample, or waited for the rate; else the first."""
        free = (Phase.IDLE, Phase.WAITING)
        idle = (slot for slot in slots if (page := self._pages.get(slot.page)) and page.phase in free)
        return next(idle, slots[0])

    def is_due(self, now: float) -> bool:
        return now - self._depth_asked >= (DEPTH_EVERY if self._span.is_fixed else LOOK_EVERY)

    # --------------------------------------------------------------------------------------------- events

    def sampled(self, readings: tuple[Reading, ...], now: float) -> None:
        """About once a second: the page of every worker that is not an orphan."""
        self._pages = {reading.page: reading for reading in readings}
        self._scaling.sampled(readings, now)

    def measured(self, depth: Depth, now: float) -> None:
        self._depth, self._depth_at = depth, now

    def dead_measured(self, dead: DeadDepth, now: float) -> None:
        self._dead, self._dead_at = dead, now

    def described(self, nature: Nature, queue: str) -> list[Say]:
        """The broker's answer to what kind of queue it is: log when it has a single active consumer."""
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
        """A worker dead-lettered a message."""
        self.parked = (*self.parked, parked)[-PARKED_SHOWN:]
        self._dead_asked = -math.inf
        if self._dead is not None:
            self._dead = DeadDepth(self._dead.ready + 1)  # until the broker is asked again

    def rescale(self, span: Span) -> None:
        """`--workers` changed: forget what was learnt under the old limits."""
        self._span = span
        self._scaling = Scaling(span)

    # ------------------------------------------------------------------------------------------- decisions

    def ask(self, ready: Sequence[Slot], now: float) -> list[Tell]:
        """Prefer an idle worker: a handler that holds the interpreter delays the answer."""
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
        """Compare the broker's view with our workers' (see `truth`), and replace a worker that is doubted."""
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
        """Ask, once, what kind of queue it is when a worker is idle while messages wait."""
        if not ready or not self.truth.wonders():
            return []
        asked = self.idle_of(ready)
        because = "a worker is idle while messages wait: does the queue have a single active consumer?"
        return [Tell(asked.page, Measure(nature=True), because)]

    def _doubt(self, depth: Depth, ready: Sequence[Slot], now: float) -> Doubt | None:
        # Not at every look for scaling: a quorum queue that elects a leader delivers nothing for seconds.
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
