"""Does something between us and the broker close connections for being idle?

A proxy, a load balancer or a firewall may, faster than our heartbeats come: then idle workers are replaced, and long
tasks run, again and again. It shows when one after the other ends after the same time without a byte, and none had been
without one for longer. Ends at one moment are one occasion.
"""

from __future__ import annotations

from typing import Final

from supervisor.vocabulary import Kind

OCCASIONS: Final = 3
"""Ends in a row after the same silence that are no chance any more."""
LEAST: Final = 1.0
"""Seconds. Who has been silent for less has not been idle."""
AT_ONCE: Final = 0.5
"""Seconds within which ends are one occasion."""
HOLDS: Final = 600.0
"""Seconds after the last such end for which it counts as the state of things."""


class Silences:
    """The silences in which connections of consumers have ended, and what they have in common."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []
        """When, and after how many seconds of silence: one for each occasion, all alike."""
        self.limit: float | None = None
        """After how many seconds idle connections are closed; None: nothing points to that."""

    def expects(self, kind: str, silence: float) -> bool:
        """Whether this is how idle connections end, as is known by now."""
        return self.limit is not None and kind == Kind.LOST and _alike(silence, self.limit)

    def ended(self, kind: str, silence: float, now: float) -> None:
        """A consumer's connection has ended after `silence` seconds; 0: it had been silent for longer before."""
        if self._ends and now - self._ends[-1][0] > HOLDS:
            self.forget()
        if self.limit is not None:
            if self.expects(kind, silence):
                self._ends = [(now, silence)]
            return
        if kind != Kind.LOST or silence < LEAST or (self._ends and not _alike(silence, self._ends[-1][1])):
            self._ends = []
        if kind == Kind.LOST and silence >= LEAST and (not self._ends or now - self._ends[-1][0] > AT_ONCE):
            self._ends.append((now, silence))
        if len(self._ends) >= OCCASIONS:
            self.limit = sum(each for _, each in self._ends) / len(self._ends)

    def missed(self) -> None:
        """A connection could not be made: what ends them then is no idle timeout."""
        if self.limit is None:
            self._ends = []

    def forget(self) -> None:
        """Other connections are made from now on."""
        self._ends, self.limit = [], None

    def because(self, heartbeat: float, now: float) -> str | None:
        """What is known, in words, and what to do; None: nothing, or nothing of late."""
        if self.limit is None or now - self._ends[-1][0] > HOLDS:
            return None
        enough = self.limit / 2
        remedy = f"raise that timeout above {heartbeat:g} s"
        if enough > 1.0:  # the least heartbeat that there is
            remedy = f"lower --heartbeat below {_seconds(enough)} s, or {remedy}"
        return (
            f"something between us and the broker closes idle connections after {_seconds(self.limit)} s: {remedy}; "
            "until then idle workers are replaced each time, and a task that takes longer runs again"
        )


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= max(0.25, 0.05 * other)


def _seconds(seconds: float) -> str:
    return f"{round(seconds, 1):g}"
