"""What becomes of a rolling reload: a value that the pool replaces as a whole, and shows.

loading     a nursery of the next generation imports the code; nothing else has changed
trying      one worker of that generation is to show that it can consume; the others stay as they are
waiting     it could not, because the broker is away, as it is for those that run: tried again when that is back
replacing   it consumes: the rest is replaced, one at a time, each when it has finished its task
finished    every worker is of that generation
failed      and the generation before stays
overtaken   by a later reload, while workers were still being replaced
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Stage(StrEnum):
    """See the module."""

    LOADING = "loading"
    TRYING = "trying"
    WAITING = "waiting"
    REPLACING = "replacing"
    FINISHED = "finished"
    FAILED = "failed"
    OVERTAKEN = "overtaken"


OVER = frozenset({Stage.FINISHED, Stage.FAILED, Stage.OVERTAKEN})


@dataclass(frozen=True, slots=True)
class Reload:
    """One reload."""

    number: int
    """From 1, in the order in which they were begun."""
    generation: int
    by: str
    """Who asked for it."""
    began: float
    stage: Stage = Stage.LOADING
    ended: float | None = None
    error: str = ""
    """Why it failed."""

    @property
    def is_over(self) -> bool:
        return self.stage in OVER


class Reloads:
    """The latest one, and how many there were."""

    def __init__(self) -> None:
        self._count = 0
        self.latest: Reload | None = None

    def begin(self, generation: int, by: str, now: float) -> None:
        self._count += 1
        self.latest = Reload(self._count, generation, by, now)

    def reach(self, stage: Stage) -> None:
        if self.latest is not None:
            self.latest = replace(self.latest, stage=stage)

    def end(self, stage: Stage, now: float, error: str = "") -> None:
        """Once: what is over stays as it ended."""
        if self.latest is not None and not self.latest.is_over:
            self.latest = replace(self.latest, stage=stage, ended=now, error=error)
