"""When does an empty slot get a new worker?

A decision is a value, computed from past exits, as in Erlang/OTP's `supervisor`.

| why the worker exited | the next one starts |
|---|---|
| planned: drained, `max_tasks`, `memory` | immediately |
| a message killed it | immediately; after ten in a row without a finished task, with backoff up to 5 s |
| the broker, after it had consumed | after 50 ms the first time |
| the broker again before a finished task, or before it consumed | backoff from 0.2 s to 5 s, without end |
| the same, and an operator must fix it: login, permission, certificate | backoff from 5 s to 30 s, without end |
| configuration, in a pool that has worked before | the same |
| the machine has no descriptor, memory or thread left | backoff from 0.25 s to 30 s, whatever it had finished |
| unexplained | immediately the first time, then backoff from 0.25 s to 30 s |
"""

from __future__ import annotations

import math
import zlib
from enum import StrEnum
from typing import Final

from supervisor.values import dataclass
from supervisor.vocabulary import Kind

STEADY: Final = 10.0
"""Seconds after which a worker that consumes counts as healthy: its slot's streak is over."""

LULL: Final = 0.05
"""Seconds after a lost connection that show whether all were lost: then one worker probes (see `broker`)."""
INTENSITY_WINDOW: Final = 30.0
"""Seconds over which unexplained deaths are counted."""
NEEDS_OPERATOR: Final = frozenset(
    {Kind.AUTHENTICATION, Kind.VHOST, Kind.PERMISSION, Kind.LIMIT, Kind.TLS, Kind.PROTOCOL}
)
"""Does not go away by itself: frequent retries only fill two logs."""


class Fault(StrEnum):
    """Whose fault a death is."""

    PLANNED = "planned"
    MESSAGE = "message"
    BROKER = "broker"
    REFUSED = "refused"
    """By a broker, until an operator acts: see `NEEDS_OPERATOR`."""
    CONFIG = "configuration"
    LOCAL = "local"
    """No descriptor, memory or thread left on this machine."""
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class Restart:
    """Start another at `at` (monotonic seconds)."""

    at: float
    because: str


@dataclass(frozen=True, slots=True)
class Stay:
    """The slot stays empty."""

    why: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Something else decided what follows: a reload, or an import that all wait for."""

    how: str


Next = Restart | Stay | Elsewhere


def in_words(follows: Next, now: float) -> str:
    """For the log."""
    match follows:
        case Stay(why):
            return f"none: {why}"
        case Elsewhere(how):
            return how
        case Restart(at):
            return "restart immediately" if at <= now else f"restart in {at - now:.2f} s"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential: `first` seconds after the `free`-th death of a streak, doubling, `most` at most."""

    free: int
    first: float
    most: float

    def delay(self, streak: int, roll: float) -> float:
        """Seconds to wait after the `streak`-th death in a row; `roll` in [0, 1) takes off up to half of it."""
        if streak <= self.free:
            return 0.0
        full = min(self.most, self.first * 2.0 ** min(streak - self.free - 1, 30))
        return full * (1.0 - roll / 2.0)


class OneTries:
    """What all want has failed: one tries it again, with backoff, and the others wait.

    `because`: why the latest try failed; None: it is not known to fail.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.because: str | None = None
        self._backoff = backoff
        self._streak = 0
        self._failed_at = self._again_at = -math.inf

    def turn(self, is_trying: bool) -> float:
        """When the next one may try; infinite while one does."""
        if self.because is None:
            return -math.inf
        return math.inf if is_trying else self._again_at

    def _fail(self, because: str, now: float, roll: float) -> float:
        """Returns the seconds until the next try."""
        self.because, self._failed_at = because, now
        self._streak += 1
        delay = self._backoff.delay(self._streak, roll)
        self._again_at = now + delay
        return delay


_BACKOFF: Final = {
    Fault.PLANNED: Backoff(free=1_000_000_000, first=0.0, most=0.0),
    Fault.MESSAGE: Backoff(free=10, first=0.1, most=5.0),
    Fault.BROKER: Backoff(free=0, first=0.2, most=5.0),
    Fault.REFUSED: Backoff(free=0, first=5.0, most=30.0),
    Fault.CONFIG: Backoff(free=0, first=5.0, most=30.0),
    Fault.LOCAL: Backoff(free=0, first=0.25, most=30.0),
    Fault.UNEXPLAINED: Backoff(free=1, first=0.25, most=30.0),
}


def decide(fault: Fault, *, streak: int, was_ready: bool, now: float, roll: float) -> Restart:
    """When to restart after the `streak`-th exit in a row (from 1) with this fault."""
    if fault is Fault.BROKER and was_ready and streak == 1:
        return Restart(now + LULL, "the connection was lost")
    delay = _BACKOFF[fault].delay(streak, roll)
    if not delay:
        return Restart(now, f"{fault} exit")
    return Restart(now + delay, f"{fault} exit, {streak} in a row: waiting {delay:.2f} s")


def too_intense(deaths: list[float], workers: int, now: float) -> bool:
    """Whether the window has over three deaths a worker, and over five."""
    return sum(1 for at in deaths if at > now - INTENSITY_WINDOW) > max(5, 3 * workers)


def roll(seed: int, slot: int, number: int) -> float:
    """Jitter: a number in [0, 1) that differs by slot and `number`, and is the same in every run."""
    return zlib.crc32(f"{seed}/{slot}/{number}".encode()) / 2**32
