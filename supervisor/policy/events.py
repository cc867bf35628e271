"""What the pool is told. An *event* is something that happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from supervisor.messages import Leaving, Loaded, LoadFailed, PoolReport, Threaded
from supervisor.vocabulary import Away, InHand, Moved, Reading


class Wish(StrEnum):
    """What somebody asked the supervisor for, by a signal or the control socket."""

    STOP = "stop"
    """Leave; asked a second time: at once."""
    DRAIN = "drain"
    """Leave; asked again, or in the middle of it: go on leaving."""
    RELOAD = "reload"
    SCALE = "scale"
    GROW = "one worker more"
    SHRINK = "one worker fewer"


@dataclass(frozen=True, slots=True)
class Asked:
    wish: Wish
    by: str
    """Who asked, for the log: `SIGTERM`."""
    workers: int = 0
    """With SCALE: how many."""
    settings: Any = None
    """With RELOAD: the `Settings` read anew (a type that this module does not know); None for those there are."""
    problem: str = ""
    """With RELOAD: why the settings cannot be used."""


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
    """The last of what it wrote to stdout and stderr."""


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
    """With Suspect: the other pages that show this message. A worker there may be dying of it, or run it on without a
    connection, or have put it elsewhere and not know that its acknowledgement was lost."""
    moved: tuple[Moved, ...] = ()
    """With Leaving: what its page says; so far as it is not known to be acknowledged."""


@dataclass(frozen=True, slots=True)
class Garbled:
    """What a worker has sent is no report of ours; nothing more is heard of it."""

    page: int
    because: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker is gone: the kernel's word, the worker's last words, and what the scoreboard held."""

    page: int
    pid: int
    status: str
    """`SIGKILL`, `exit 3`, or `OOM`."""
    hand: InHand | None
    said: Leaving | LoadFailed | None
    finished: int
    """Tasks that this worker brought to an end in its life."""
    output: str = ""
    """The last of what it wrote to stdout and stderr."""
    at: str = ""
    """When, for people: UTC, ISO 8601."""
    moved: tuple[Moved, ...] = ()
    """What its page says."""
    last: InHand | None = None
    """The last message that it had, whatever became of that."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Once a second: every worker's page."""

    readings: tuple[Reading, ...]
    away: Away = field(default_factory=Away)


Event = (
    Asked | NurserySaid | NurseryFailed | NurseryGone | Started | StartFailed | WorkerSaid | Garbled | Exited | Sampled
)
