"""The pool's output. Each *action* has its reason, `because`, for the log."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from supervisor.messages import Admit, Drain, Measure, Verdict
from supervisor.values import dataclass
from supervisor.vocabulary import Intake


@dataclass(frozen=True, slots=True)
class StartNursery:
    generation: int
    preload: bool
    because: str


@dataclass(frozen=True, slots=True)
class StopNursery:
    """Kill a generation's nursery, and ignore it from then on; its workers are not its children and run on."""

    generation: int
    because: str
    stack: bool = False
    """SIGABRT first, so that faulthandler writes where it hangs."""


@dataclass(frozen=True, slots=True)
class Spawn:
    page: int
    generation: int
    because: str
    has_queues: bool = False
    """As in `Begin`; likewise the next two."""
    met: dict[str, str] = field(default_factory=dict)
    intake: Intake = Intake.ALL


@dataclass(frozen=True, slots=True)
class Tell:
    page: int
    order: Admit | Drain | Measure | Verdict
    because: str


@dataclass(frozen=True, slots=True)
class Signal:
    page: int
    signal: str
    """`SIGKILL` or `SIGABRT`."""
    because: str


@dataclass(frozen=True, slots=True)
class Say:
    """Only log."""

    event: str
    level: str
    because: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leave:
    """Every worker is gone: exit with this code."""

    code: int
    because: str


Action = StartNursery | StopNursery | Spawn | Tell | Signal | Say | Leave
