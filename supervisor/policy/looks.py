"""Looking at the queue: when, whom to ask, and what the answers say.

Only a worker can ask the broker, so the pool asks a worker, an idle one if there is one, and the answer comes when it
comes. A look serves several at once: the status (how many messages wait, alive and dead), `truth` (does the broker
agree that our workers consume?), `scaling` (how many workers does the backlog call for?), and `--burst` (is the queue
empty?). What was seen gets old, and is then not shown any more.

Here is what is known; what to do about it is the pool's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from supervisor.policy.scaling import LOOK_EVERY, Decision, Scaling
from supervisor.policy.slot import Slot
from supervisor.policy.truth import Belief, Doubt, Truth
from supervisor.settings import Span
from supervisor.vocabulary import Away, DeadDepth, Depth, Measure, Nature, Parked, Phase, Reading, Tell

DEPTH_EVERY: Final = 5.0
"""Seconds between two looks at the queue's depth; every sample under `--burst`."""
DEPTH_HOLDS: Final = 20.0
"""Seconds after which a depth is history."""
DEAD_EVERY: Final = 60.0
"""Seconds between two looks at a dead-letter queue that was empty and that we put nothing into since: mostly it does
not exist, and to ask for it costs a line in the broker's log."""
DEAD_HOLDS: Final = DEAD_EVERY + DEPTH_HOLDS
PARKED_SHOWN: Final = 20
"""Dead letters remembered for those who look; all of them lie in the queue."""
DUE_MARGIN: Final = 1.0
"""Seconds after a delay's end by which `--burst` takes the message for back in the queue."""
BACK_WITHIN: Final = 200.0
"""Seconds for which `--burst` waits for a task that should be back. A queue that was full has refused it, and the
broker, which keeps it where nobody sees it, tries again after 180 (dead_letter_worker_publisher_confirm_timeout)."""
OTHERS_FOR: Final = 3
"""Looks in a row; a connection that has just been lost may still count as a consumer."""


class Looks:
    """What the looks so far have shown."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._scaling = Scaling(span)
        self._truth = Truth()
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
        self.all_idle = False
        """Under `--burst`: everybody has been idle since the last sample, and nobody has died since."""
        self.away = Away()
        """Tasks of ours in delay queues, as last sampled."""
        self._missed_since: float | None = None
        self._had_delayed = False
        """At the look before something was in the delay queues."""
        self._others = 0
        """Looks in a row at which the queue had consumers that are not ours."""

    # ----------------------------------------------------------------------------------------- to be asked

    def depth(self, now: float) -> Depth | None:
        """The queue's, while it is news."""
        return self._depth if now - self._depth_at <= DEPTH_HOLDS else None

    def dead(self, now: float) -> DeadDepth | None:
        """The dead-letter queue's, while it is news."""
        return self._dead if now - self._dead_at <= DEAD_HOLDS else None

    @property
    def doubt(self) -> Doubt | None:
        """What the broker's truth has against our workers' beliefs."""
        return self._truth.doubt

    @property
    def is_starved(self) -> bool:
        """Every worker is idle beside messages that wait."""
        return self._truth.is_starved

    @property
    def standby(self) -> str | None:
        """They are, and as far as one knows because the single active consumer is elsewhere; in words."""
        return self._truth.standby

    def is_idle(self, page: int) -> bool:
        """Whether it said so, when last sampled."""
        return page in self._pages and self._pages[page].phase is Phase.IDLE

    def is_due(self, now: float) -> bool:
        """Whether it is time for another look."""
        return now - self._depth_asked >= (DEPTH_EVERY if self._span.is_fixed else LOOK_EVERY)

    # ------------------------------------------------------------------------------------------ to be told

    def sampled(self, readings: tuple[Reading, ...], now: float) -> None:
        """The page of every worker that is no orphan, about once a second."""
        self._pages = {reading.page: reading for reading in readings}
        self._scaling.sampled(readings, now)

    def measured(self, depth: Depth, now: float) -> None:
        """The answer to a look."""
        self._depth, self._depth_at = depth, now

    def dead_measured(self, dead: DeadDepth, now: float) -> None:
        """The answer to a look at the dead-letter queue."""
        self._dead, self._dead_at = dead, now

    def described(self, nature: Nature) -> bool:
        """The broker has said what kind of queue it is. Returns whether it is news that it has a single active
        consumer."""
        is_news = nature.is_single and not self._is_single_known
        self._is_single_known = nature.is_single
        self._truth.learn(nature.is_single)
        return is_news

    def forget_queue(self) -> None:
        """It may be another one by now."""
        self._truth.forget_queue()

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
        asked = next((slot for slot in ready if self.is_idle(slot.page)), ready[0])
        has_dead = self._dead is not None and self._dead.ready > 0
        dead = now - self._dead_asked >= (DEPTH_EVERY if has_dead else DEAD_EVERY)
        if dead:
            self._dead_asked = now
        return [Tell(asked.page, Measure(dead), "the queue's depth is looked at now and then")]

    def ask_of_its_kind(self, ready: Sequence[Slot]) -> list[Tell]:
        """Ask what kind of queue it is, when a worker is idle beside messages that wait: once."""
        if not ready or not self._truth.wonders():
            return []
        asked = next((slot for slot in ready if self.is_idle(slot.page)), ready[0])
        because = "a worker is idle beside messages that wait: has the queue a single active consumer?"
        return [Tell(asked.page, Measure(nature=True), because)]

    def ask_if_empty(self, readings: tuple[Reading, ...], now: float, *, all_ready: bool) -> list[Tell]:
        """`--burst`: ask for the depth when everybody has been idle since the last sample."""
        idle = [reading for reading in readings if reading.phase is Phase.IDLE]
        self.all_idle = len(idle) == len(readings) and all_ready
        if not self.all_idle:
            self._missed_since = None
            return []
        because = "--burst: everybody is idle; are the queue and the delay queues empty?"
        return [Tell(idle[0].page, Measure(delays=True), because)]

    def await_delayed(self, depth: Depth, consuming: int, now: float) -> str | None:
        """What `--burst` waits for, though the queue is empty and everybody is idle, in words; None: for nothing, or no
        longer.

        AMQP shows what waits in a delay queue, and not what has expired there and could not be put into a full queue.
        That is known by the account alone: delayed by us, and not settled by us since. Nor does it show what others
        have settled: while there are other consumers, nothing is waited for that only the account knows.
        """
        self._others = self._others + 1 if depth.consumers > consuming else 0
        had_delayed, self._had_delayed = self._had_delayed, bool(depth.delayed)
        if depth.delayed:
            self._missed_since = None
            return f"{_tasks(depth.delayed)} in the delay queues, for another try"
        if not self.missing or self._others >= OTHERS_FOR:
            self._missed_since = None
            has_just_gone = had_delayed or self.away.due + DUE_MARGIN > now
            return "a task may have just left a delay queue" if has_just_gone else None
        if self._missed_since is None:
            self._missed_since = max(now, self.away.due)
        if now - self._missed_since >= BACK_WITHIN:
            return None
        return (
            f"{_tasks(self.missing)} to come back from a delay queue: was the queue full (reject-publish) when that "
            f"was due? Then the broker tries again after 3 min; {BACK_WITHIN:g} s are waited at most"
        )

    @property
    def missing(self) -> int:
        """Tasks that we have put into delay queues, and that have not come back to us."""
        return self.away.tasks

    @property
    def may_be_elsewhere(self) -> bool:
        """Others consume from the queue, and may have settled them."""
        return self._others >= OTHERS_FOR

    def compare(self, depth: Depth, ready: Sequence[Slot], now: float) -> Doubt | None:
        """The broker's truth with our workers' beliefs; see `truth`."""
        # Not at every look of the scaling: a quorum queue that elects a leader gives nobody anything for seconds.
        if now - self._compared_at < DEPTH_EVERY:
            return None
        self._compared_at = now
        beliefs = [
            Belief(slot.number, slot.pid, page.phase is Phase.IDLE, page.counts.settled)
            for slot in ready
            if (page := self._pages.get(slot.page)) and page.pid == slot.pid
        ]
        return self._truth.look(depth, beliefs)

    def scale(self, depth: Depth, wanted: int, now: float) -> Decision | None:
        """How many workers instead of those `wanted`; see `scaling`."""
        return self._scaling.look(depth, wanted, now)


def _tasks(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count} tasks wait"
