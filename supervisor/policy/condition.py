"""The pool's state: STARTING until every worker consumes, then RUNNING; DEGRADED after too many unexplained deaths,
until `STEADY` seconds without one; DRAINING to the end."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from supervisor.policy import restart
from supervisor.policy.actions import Action, Say
from supervisor.values import dataclass
from supervisor.vocabulary import EXIT_DONE, EXIT_KILLED


class State(StrEnum):
    """The pool as a whole."""

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A decision: restarting will not help; stop, and exit with this code."""

    because: str
    code: int
    ends_nursery: bool = False
    """Immediately, with the forks it was asked for."""


Consequence = Action | GiveUp


@dataclass(slots=True)
class Condition:
    state: State = State.STARTING
    since: float = 0.0
    because: str = "starting"
    code: int = EXIT_DONE
    """The exit code, once it drains."""
    unclean: list[str] = field(default_factory=list)
    """Why that is not 0, though it was asked to stop: a sentence for each worker that was killed or left a message."""
    is_finishing: bool = False
    """A burst is over, and its workers drain."""
    has_worked: bool = False
    """A worker has consumed."""
    unexplained: list[float] = field(default_factory=list)
    """Times of recent unexplained deaths."""

    @property
    def is_draining(self) -> bool:
        return self.state is State.DRAINING

    @property
    def is_leaving(self) -> bool:
        return self.is_draining or self.is_finishing

    @property
    def why_left(self) -> str:
        """The reason for the exit code."""
        if self.code == EXIT_DONE:
            return "everything is settled"
        if self.code != EXIT_KILLED or not self.unclean:
            return self.because
        first, *others = self.unclean
        return f"{self.because}; {first}" + (f"; and {len(others)} more" if others else "")

    def enter(self, state: State, because: str, now: float) -> None:
        self.state, self.because, self.since = state, because, now

    def died_unexplained(self, workers: int, now: float) -> list[Action]:
        self.unexplained = [at for at in self.unexplained if at > now - restart.INTENSITY_WINDOW] + [now]
        if self.state is State.DEGRADED or not restart.too_intense(self.unexplained, workers, now):
            return []
        deaths = f"{len(self.unexplained)} unexplained deaths in {restart.INTENSITY_WINDOW:g} s"
        self.enter(State.DEGRADED, f"{deaths}: restarting one worker at a time", now)
        return [Say("supervisor.degraded", "error", self.because)]

    def consume(self, consuming: int, wanted: int, now: float) -> list[Action]:
        if self.state is not State.STARTING or consuming < wanted:
            return []
        return self._run("every worker consumes", wanted, now)

    def recover(self, consuming: int, wanted: int, now: float) -> list[Action]:
        """Called once a second."""
        if self.state is not State.DEGRADED:
            return self.consume(consuming, wanted, now)  # fewer may be wanted now
        is_recent = bool(self.unexplained) and now - self.unexplained[-1] < restart.STEADY
        if is_recent or consuming < wanted:
            return []
        self.unexplained.clear()
        return self._run("every worker consumes again", wanted, now)

    def _run(self, because: str, wanted: int, now: float) -> list[Action]:
        self.enter(State.RUNNING, because, now)
        return [Say("supervisor.ready", "info", because, {"workers": wanted})]
