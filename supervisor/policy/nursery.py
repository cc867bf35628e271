"""A nursery as the pool knows it: a process that has imported the handler and forks workers.

It is started, loads within `--boot-timeout`, and forks for as long as nothing goes wrong. When it dies or hangs another
one of the same generation follows, with backoff; the workers it has forked live on. An import that leaves threads
behind is not forked from: then each worker imports for itself, and the nursery only forks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from supervisor.policy.restart import STEADY, Backoff
from supervisor.settings import Settings
from supervisor.vocabulary import Action, Say, StartNursery, StopNursery, Threaded

THREADS: Final = "the import left threads behind, forking beside them is unsafe: each worker imports for itself"
REPLACED: Final = (
    "the import replaced functions of the standard library ({}), as gevent and eventlet do, and forking with those is "
    "unsafe: each worker imports for itself"
)
_BACKOFF: Final = Backoff(free=1, first=0.25, most=30.0)


class NurseryState(StrEnum):
    NONE = "none"
    LOADING = "loading"
    READY = "ready"


def why_bare(report: Threaded) -> str:
    """Why an import cannot be forked from."""
    return REPLACED.format(", ".join(report.replaced)) if report.replaced else THREADS


@dataclass(slots=True)
class Nursery:
    """What the pool knows of the process that forks workers."""

    generation: int
    settings: Settings
    """Those of its workers."""
    preload: bool
    state: NurseryState = NurseryState.NONE
    deadline: float | None = None
    """LOADING: the import is given up. NONE: another one is started."""
    loaded_at: float = 0.0
    failures: int = 0
    """In a row: since one forked a worker, or held for `STEADY` seconds. Loading proves nothing: a fork may kill it."""

    def load(self, now: float, because: str) -> StartNursery:
        """Start it."""
        self.state = NurseryState.LOADING
        self.deadline = now + self.settings.boot_timeout
        return StartNursery(self.generation, self.preload, because)

    def load_bare(self, report: Threaded, now: float) -> list[Action]:
        """Its import cannot be forked from: start it again without."""
        because = why_bare(report)
        self.preload = False
        return [StopNursery(self.generation, because), self.load(now, because)]

    def has_loaded(self, seconds: float, preloaded: bool, now: float) -> Say:
        """It can fork from here; `seconds` is what the import took."""
        self.state = NurseryState.READY
        self.deadline = None
        self.loaded_at = now
        fields = {"handler": self.settings.handler, "seconds": round(seconds, 3), "preloaded": preloaded}
        because = "imported once, for every worker" if preloaded else "each worker imports it for itself"
        return Say("handler.loaded", "info", because, fields)

    def has_died(self, now: float) -> None:
        """The process is gone, without being asked to."""
        if self.state is not NurseryState.LOADING and now - self.loaded_at >= STEADY:
            self.failures = 0
        self.state = NurseryState.NONE

    def wait(self, until: float) -> None:
        """Another one is started then."""
        self.state = NurseryState.NONE
        self.deadline = until

    def retry(self, now: float, roll: float) -> list[Action]:
        """One more failure: start another one, now or when `deadline` has passed; `roll` as for `Backoff.delay`."""
        self.failures += 1
        delay = _BACKOFF.delay(self.failures, roll)
        if not delay:
            return [self.load(now, "the nursery is gone")]
        self.deadline = now + delay
        return []
