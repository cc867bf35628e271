"""Does the broker agree that our workers consume? Readiness reports the broker's view, not ours.

At each look at the queue (a passive declare: messages ready, consumers) two things are compared with the scoreboard:

- *Counted*: the broker counts at least as many consumers as we have had for a while. Other programs' consumers hide a
  difference, and 4.3 still counts one that it has timed out (docs/consumers), so this alone proves nothing.
- *Served*: no worker stays idle while messages wait. RabbitMQ gives a waiting message to an idle consumer within
  milliseconds.

A worker that fails `LOOKS` looks in a row is replaced, one worker a look. Where that does not help, the broker has a
reason (a consumer of higher priority, a single active consumer), and it is only logged.

A queue with a *single active consumer* serves one worker of all hosts until it exits. When a worker is first idle while
messages wait, the broker is asked whether the queue is one; if it does not say, a round of useless replacements does.
From then on only workers that have been served are doubted: an active consumer stays active while it lives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from supervisor.messages import Depth
from supervisor.values import dataclass

LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class Belief:
    """A worker that believes it consumes, from its page of the scoreboard."""

    slot: int
    pid: int
    is_idle: bool
    taken: int
    """Messages settled by its slot so far."""


@dataclass(frozen=True, slots=True)
class Doubt:
    because: str
    replace: int | None
    """Slot of the worker to replace; None when replacing has not helped."""
    is_news: bool
    """The previous look did not find it."""


class Truth:
    def __init__(self) -> None:
        self._before: dict[int, Belief] = {}
        self._unserved: Counter[int] = Counter()
        """By pid: looks in a row at which it was idle while messages waited."""
        self._uncounted = 0
        """Looks in a row at which the broker counted fewer consumers than we have."""
        self._replaced = 0
        """Workers replaced since that last helped."""
        self._hopes: dict[int, int] = {}
        """By slot whose worker was replaced because it was not served: `taken` at that time."""
        self._tried: set[int] = set()
        """Slots whose worker was replaced."""
        self._is_resigned = False
        """It was logged that replacing does not help."""
        self._served: set[int] = set()
        """Pids of workers that have been given a message."""
        self.is_single: bool | None = None
        """Whether the queue has a single active consumer; None: not known."""
        self._is_asked = False
        self.doubt: Doubt | None = None
        self.is_starved = False
        """Every worker is idle while messages wait."""

    def look(self, depth: Depth, beliefs: Sequence[Belief]) -> Doubt | None:
        served = {belief.pid for belief in beliefs if self._is_served(belief)}
        self._served = (self._served | served) & {belief.pid for belief in beliefs}
        is_helped = any(belief.taken > self._hopes.get(belief.slot, belief.taken) for belief in beliefs)
        # One worker that is served may be the single active consumer; two cannot.
        if len(served) > 1 or (is_helped and len(beliefs) == 1 and not self._is_resigned):
            self._begin_anew()
        steady = [each for each in beliefs if (was := self._before.get(each.slot)) and was.pid == each.pid]
        still = [belief for belief in steady if belief.is_idle and self._before[belief.slot] == belief]
        self._before = {belief.slot: belief for belief in beliefs}
        self._unserved = Counter({b.pid: self._unserved[b.pid] + 1 for b in still if depth.ready})
        self._uncounted = self._uncounted + 1 if depth.consumers < len(steady) else 0
        unserved = [belief for belief in still if self._unserved[belief.pid] >= LOOKS - 1]
        is_uncounted = self._uncounted >= LOOKS - 1
        self.is_starved = bool(unserved) and len(unserved) == len(beliefs)
        if self.is_single:
            unserved = [belief for belief in unserved if belief.pid in self._served]
        if unserved or (is_uncounted and still):
            suspect = min(unserved or still, key=self._rank)
            self.doubt = self._doubt(depth, suspect, len(steady), len(beliefs), is_served=not unserved)
        elif not self._uncounted and (self.is_single or not self._unserved) and len(steady) == len(beliefs):
            self.doubt = None
            if not self._hopes:
                self._begin_anew()
        return self.doubt if unserved or (is_uncounted and still) else None

    @property
    def standby(self) -> str | None:
        """In words: all are idle while messages wait, as the single active consumer is, or seems to be, elsewhere."""
        if self.is_starved and self.is_single:
            return "on standby: messages wait, and the queue's single active consumer is elsewhere"
        return "messages wait, but the broker delivers none to us" if self.is_starved and self._is_resigned else None

    def wonders(self) -> bool:
        """Whether to ask what kind of queue it is; True once."""
        was_asked, self._is_asked = self._is_asked, self._is_asked or bool(self._unserved)
        return self._is_asked and not was_asked

    def forget_queue(self) -> None:
        """It may have been replaced."""
        self.is_single, self._is_asked = None, False
        self._begin_anew()

    def _is_served(self, belief: Belief) -> bool:
        before = self._before.get(belief.slot)
        has_settled = before is not None and before.pid == belief.pid and belief.taken > before.taken
        return not belief.is_idle or has_settled

    def _rank(self, belief: Belief) -> tuple[bool, bool]:
        """The least is doubted first. A wrong count does not show which worker, so take them in turn."""
        return belief.pid not in self._served and self._is_resigned, belief.slot in self._tried

    def _begin_anew(self) -> None:
        self._replaced, self._hopes, self._is_resigned = 0, {}, False
        self._tried.clear()

    def _doubt(self, depth: Depth, suspect: Belief, steady: int, workers: int, *, is_served: bool) -> Doubt:
        if is_served:
            because = f"the broker counts {depth.consumers} consumers, but {steady} of our workers believe they consume"
        else:
            because = f"{depth.ready} messages wait in the queue, but an idle worker gets none"
        was_served = not is_served and suspect.pid in self._served
        if self._replaced > workers and not was_served:
            reasons = "does the queue have a single active consumer elsewhere, or consumers of a higher priority?"
            because += f"; replacing workers has not helped, so none is replaced now: {reasons}"
            is_news, self._is_resigned = not self._is_resigned, True
            return Doubt(because, None, is_news)
        self._replaced += 1
        self._tried.add(suspect.slot)
        if not is_served:
            self._hopes[suspect.slot] = suspect.taken
        return Doubt(because, suspect.slot, is_news=True)
