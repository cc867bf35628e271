"""What /status shows of a reload. `rollout` decides it.

loading     a nursery of the next generation imports the code; nothing else has changed
trying      one worker of that generation must consume first; the others are unchanged
waiting     it could not, because the broker is down for the old workers too: retried once the broker is back
canary      if asked for: a share of the workers runs that generation for a while, and is compared (see `canary`)
replacing   it consumes: the others are replaced, one at a time, each when it has finished its task
finished    every worker runs that generation
failed      the previous generation stays
"""

from __future__ import annotations

from enum import StrEnum

from supervisor.policy.canary import Canary, Progress
from supervisor.values import dataclass


class Stage(StrEnum):
    LOADING = "loading"
    TRYING = "trying"
    WAITING = "waiting"
    CANARY = "canary"
    REPLACING = "replacing"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reload:
    number: int
    """From 1."""
    generation: int
    by: str
    """Where the request came from: `SIGHUP`."""
    began: float
    stage: Stage = Stage.LOADING
    ended: float | None = None
    error: str = ""
    """Why it failed."""
    canary: Canary | None = None
    progress: Progress | None = None
    """Of the canary, once it runs."""

    @property
    def is_over(self) -> bool:
        return self.stage in (Stage.FINISHED, Stage.FAILED)
