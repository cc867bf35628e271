"""Does something between us and the broker close connections for being idle?

A proxy, a load balancer or a firewall may, sooner than our next heartbeat: then idle workers are replaced, and long
tasks run, again and again. The sign: connections end one after the other after the same time without a byte, and none
was silent for longer. Several that end at the same moment count once.
"""

from __future__ import annotations

from typing import Final

from supervisor.vocabulary import Kind

OCCASIONS: Final = 3
"""Ends in a row after the same silence that are not chance."""
LEAST: Final = 1.0
"""Seconds; a shorter silence is not idleness."""
AT_ONCE: Final = 0.5
"""Seconds within which ends count once."""
HOLDS: Final = 600.0
"""Seconds for which the finding holds after the last such end."""


class Silences:
    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []
        """Time and seconds of silence of each end, all alike."""
        self.limit: float | None = None
        """Seconds after which idle connections are closed; None: not known to be."""

    def expects(self, kind: str, silence: float) -> bool:
        """Whether a connection that ends so was closed for being idle."""
        return self.limit is not None and kind == Kind.LOST and _alike(silence, self.limit)

    def ended(self, kind: str, silence: float, now: float) -> None:
        """A consumer's connection ended after `silence` seconds; 0: it had been silent for longer before."""
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
        """A connection could not be made, so it is not an idle timeout that ends them."""
        if self.limit is None:
            self._ends = []

    def forget(self) -> None:
        self._ends, self.limit = [], None

    def because(self, heartbeat: float, now: float) -> str | None:
        """The finding and the remedy, in words; None: nothing found recently."""
        if self.limit is None or now - self._ends[-1][0] > HOLDS:
            return None
        enough = self.limit / 2
        remedy = f"raise that timeout above {heartbeat:g} s"
        if enough > 1.0:  # the least --heartbeat
            remedy = f"lower --heartbeat below {_seconds(enough)} s, or {remedy}"
        return (
            f"something between us and the broker closes idle connections after {_seconds(self.limit)} s: {remedy}; "
            "until then idle workers are replaced each time, and a task that takes longer runs again"
        )


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= max(0.25, 0.05 * other)


def _seconds(seconds: float) -> str:
    return f"{round(seconds, 1):g}"
