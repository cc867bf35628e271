"""`--burst`: is there nothing left to do, or no worker that could do it?

A burst ends when every worker is idle, and the queue and the delay queues are empty. AMQP does not show a message that
expired in a delay queue while the main queue was full; only our own count of tasks delayed and not settled since does.
Nor does AMQP show what others settled, so with other consumers on the queue that count is ignored.
"""

from __future__ import annotations

from typing import Final

from supervisor.messages import Depth, Measure
from supervisor.policy.actions import Say, Tell
from supervisor.policy.condition import GiveUp
from supervisor.values import dataclass
from supervisor.vocabulary import EXIT_BROKER, Away, Phase, Reading

DUE_MARGIN: Final = 1.0
"""Seconds after a delay's end in which the message returns to the queue."""
BACK_WITHIN: Final = 200.0
"""Seconds to wait for an overdue task. When the queue was full, the broker keeps the task out of sight and retries
after 180 s (dead_letter_worker_publisher_confirm_timeout)."""
OTHERS_FOR: Final = 3
"""Looks in a row that must show other consumers; a connection just lost may still count as one."""


@dataclass(frozen=True, slots=True)
class Finish:
    """A decision: the burst is over, drain every worker."""

    because: str


class Burst:
    def __init__(self) -> None:
        self.all_idle = False
        """At the last sample every worker was idle, and none has died since."""
        self.away = Away()
        """Our tasks in delay queues, as last sampled."""
        self._missed_since: float | None = None
        self._had_delayed = False
        """The delay queues were not empty at the previous look."""
        self._others = 0
        """Looks in a row that showed other consumers."""
        self._awaited = ""
        """The last reason logged for waiting."""
        self._unreached_since: float | None = None
        """Since when no worker consumes because of the broker."""

    def reached(self) -> None:
        """A worker consumes."""
        self._unreached_since = None

    def give_up(self, trouble: str | None, wait: float, now: float) -> list[GiveUp]:
        """Whether `--burst-wait` is over. `trouble`: why no worker can consume; None when one can."""
        if trouble is None:
            self._unreached_since = None
            return []
        if self._unreached_since is None:
            self._unreached_since = now
        if now - self._unreached_since < wait:
            return []
        return [GiveUp(f"--burst: no worker has consumed for {wait:g} s (--burst-wait): {trouble}", EXIT_BROKER)]

    def ask(self, readings: tuple[Reading, ...], *, all_ready: bool) -> list[Tell]:
        """Ask for the depth when every worker is idle."""
        idle = [reading for reading in readings if reading.phase is Phase.IDLE]
        self.all_idle = len(idle) == len(readings) and all_ready
        if not self.all_idle:
            self._missed_since = None
            return []
        because = "--burst: every worker is idle; are the queue and the delay queues empty?"
        return [Tell(idle[0].page, Measure(delays=True), because)]

    def measured(self, depth: Depth, consuming: int, now: float) -> list[Say | Finish | GiveUp]:
        """The answer to a look: perhaps to a look at the queue alone, or outdated by a death."""
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
        """What to wait for although the queue is empty and every worker is idle, in words."""
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
