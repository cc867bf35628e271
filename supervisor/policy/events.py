"""The pool's input."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from typing import Any, Literal

from supervisor.messages import Leaving, Loaded, LoadFailed, PoolReport, Threaded
from supervisor.policy.canary import Canary
from supervisor.values import dataclass
from supervisor.vocabulary import Away, Counts, InHand, Moved, Reading


class Wish(StrEnum):
    """A request to the supervisor, by a signal or the control socket."""

    STOP = "stop"
    """Drain and exit; the second time: exit now."""
    DRAIN = "drain"
    """Drain and exit; repeated: no change."""
    RELOAD = "reload"
    SCALE = "scale"
    GROW = "one worker more"
    SHRINK = "one worker fewer"
    PAUSE = "pause"
    RESUME = "resume"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Target:
    """Which worker to kill, and how."""

    text: str
    """A slot's number, or the name of a message in flight."""
    kind: Literal["", "slot", "message"] = ""
    """Which of the two; empty: whichever there is."""
    dead_letter: bool = False
    """The message is not to run again."""
    at_once: bool = False
    """By SIGKILL, which leaves no stack."""
    readings: tuple[Reading, ...] = ()
    """Every worker's page; the workers that may be meant stand still since."""


@dataclass(frozen=True, slots=True)
class Asked:
    wish: Wish
    by: str
    """The origin, for the log: `SIGTERM`."""
    workers: int = 0
    """With SCALE: how many."""
    seconds: float | None = None
    """With PAUSE: for how long; None: until RESUME."""
    settings: Any = None
    """With RELOAD: the new `Settings` (a type that this module may not import); None: unchanged."""
    problem: str = ""
    """With RELOAD: why the settings are invalid."""
    target: Target | None = None
    """With KILL."""
    canary: Canary | None = None
    """With RELOAD."""


@dataclass(frozen=True, slots=True)
class NurserySaid:
    generation: int
    report: Loaded | Threaded | LoadFailed


@dataclass(frozen=True, slots=True)
class NurseryFailed:
    """The process that forks workers could not be started."""

    generation: int
    error: str


@dataclass(frozen=True, slots=True)
class NurseryGone:
    generation: int
    cause: str
    output: str = ""
    """The end of its stdout and stderr."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's process exists and was told to begin."""

    page: int
    pid: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    page: int
    error: str


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    page: int
    report: PoolReport
    holders: tuple[int, ...] = ()
    """With Suspect: the other pages with this message. A worker there may be dying of it, or run it without a
    connection, or have parked it without knowing that its acknowledgement was lost."""
    moved: tuple[Moved, ...] = ()
    """With Leaving: messages on its page not known to be acknowledged."""


@dataclass(frozen=True, slots=True)
class Garbled:
    """A worker has sent an invalid message; its link is read no more."""

    page: int
    because: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker exited: the kernel's status, the worker's last words, and what the scoreboard held."""

    page: int
    pid: int
    status: str
    """`SIGKILL`, `exit 3`, or `OOM`."""
    hand: InHand | None
    said: Leaving | LoadFailed | None
    finished: int
    """Tasks finished by this worker."""
    output: str = ""
    """The end of its stdout and stderr."""
    at: str = ""
    """When, for people: UTC, ISO 8601."""
    moved: tuple[Moved, ...] = ()
    """From its page."""
    last: InHand | None = None
    """Its last message, settled or not."""
    counts: Counts | None = None
    """Of its page; None: not known."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Once a second: every worker's page."""

    readings: tuple[Reading, ...]
    away: Away = field(default_factory=Away)


Event = (
    Asked | NurserySaid | NurseryFailed | NurseryGone | Started | StartFailed | WorkerSaid | Garbled | Exited | Sampled
)
