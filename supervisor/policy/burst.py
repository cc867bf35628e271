"""`--burst`: is there nothing left to do, or nobody who could?

A burst ends when every worker is idle, and the queue and the delay queues are empty. AMQP does not show what has
expired in a delay queue and found the main queue full: only the account does, of what we delayed and have not settled
since. Nor does it show what others settled: beside other consumers nothing is waited for that only the account knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from supervisor.messages import Depth, Measure
from supervisor.policy.actions import Say, Tell
from supervisor.policy.condition import GiveUp
from supervisor.vocabulary import EXIT_BROKER, Away, Phase, Reading

DUE_MARGIN: Final = 1.0
"""Seconds after a delay's end by which the message is taken for back in the queue."""
BACK_WITHIN: Final = 200.0
"""Seconds for which a task is waited for that should be back. A queue that was full has refused it, and the broker,
which keeps it where nobody sees it, tries again after 180 (dead_letter_worker_publisher_confirm_timeout)."""
OTHERS_FOR: Final = 3
"""Looks in a row; a connection that has just been lost may still count as a consumer."""


@dataclass(frozen=True, slots=True)
class Finish:
    """A decision: it is over, every worker leaves when it has done what it has."""

    because: str


class Burst:
    def __init__(self) -> None:
        self.all_idle = False
        """Everybody has been idle since the last sample, and nobody has died since."""
        self.away = Away()
        """Tasks of ours in delay queues, as last sampled."""
        self._missed_since: float | None = None
        self._had_delayed = False
        """At the look before something was in the delay queues."""
        self._others = 0
        """Looks in a row at which the queue had consumers that are not ours."""
        self._awaited = ""
        """What was last said to be waited for."""
        self._unreached_since: float | None = None
        """Since when nobody consumes because of the broker."""

    def reached(self) -> None:
        """A worker consumes."""
        self._unreached_since = None

    def give_up(self, trouble: str | None, wait: float, now: float) -> list[GiveUp]:
        """`--burst-wait` is over. `trouble`: why nobody can consume; None while somebody can."""
        if trouble is None:
            self._unreached_since = None
            return []
        if self._unreached_since is None:
            self._unreached_since = now
        if now - self._unreached_since < wait:
            return []
        return [GiveUp(f"--burst: no worker has consumed for {wait:g} s (--burst-wait): {trouble}", EXIT_BROKER)]

    def ask(self, readings: tuple[Reading, ...], *, all_ready: bool) -> list[Tell]:
        """Ask for the depth when everybody has been idle since the last sample."""
        idle = [reading for reading in readings if reading.phase is Phase.IDLE]
        self.all_idle = len(idle) == len(readings) and all_ready
        if not self.all_idle:
            self._missed_since = None
            return []
        because = "--burst: every worker is idle; are the queue and the delay queues empty?"
        return [Tell(idle[0].page, Measure(delays=True), because)]

    def measured(self, depth: Depth, consuming: int, now: float) -> list[Say | Finish | GiveUp]:
        """The answer to a look. It may be to another one, at the queue alone, or one that a death has overtaken."""
        if depth.delayed is None or not self.all_idle or depth.ready:
            return []
        awaited = self._await(depth, consuming, now)
        if awaited is not None:
            is_news, self._awaited = self._awaited != awaited, awaited
            return [Say("burst.waiting", "info", f"--burst: {awaited}")] if is_news else []
        because = "--burst: the queue is empty and every worker is idle"
        if not self.away.tasks:
            return [Finish(because)]
        because += f"; {self.away.tasks} delayed and not settled here since; AMQP does not show where they are"
        if self._others >= OTHERS_FOR:
            return [Finish(f"{because}: other consumers may have settled them")]
        return [GiveUp(f"{because}: run it again", EXIT_BROKER)]

    def _await(self, depth: Depth, consuming: int, now: float) -> str | None:
        """What is waited for although the queue is empty and everybody is idle, in words."""
        self._others = self._others + 1 if depth.consumers > consuming else 0
        had_delayed, self._had_delayed = self._had_delayed, bool(depth.delayed)
        if depth.delayed:
            self._missed_since = None
            return f"{_tasks(depth.delayed)} in the delay queues, for another try"
        if not self.away.tasks or self._others >= OTHERS_FOR:
            self._missed_since = None
            has_just_gone = had_delayed or self.away.due + DUE_MARGIN > now
            return "a task may have just left a delay queue" if has_just_gone else None
        if self._missed_since is None:
            self._missed_since = max(now, self.away.due)
        if now - self._missed_since >= BACK_WITHIN:
            return None
        return (
            f"{_tasks(self.away.tasks)} to come back from a delay queue: was the queue full (reject-publish) when it "
            f"was due? Then the broker retries after 3 min; waiting for {BACK_WITHIN:g} s at most"
        )


def _tasks(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count} tasks wait"
