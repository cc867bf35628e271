"""What the pool wants done. Each *action* says `because`, for the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from supervisor.messages import Drain, Measure, Verdict


@dataclass(frozen=True, slots=True)
class StartNursery:
    generation: int
    preload: bool
    because: str


@dataclass(frozen=True, slots=True)
class StopNursery:
    """End the nursery of a generation, and hear no more of it; its workers are not its children and live on."""

    generation: int
    because: str
    stack: bool = False
    """SIGABRT first, so that faulthandler tells where it hangs."""


@dataclass(frozen=True, slots=True)
class Spawn:
    page: int
    generation: int
    because: str
    has_queues: bool = False
    """As in `Begin`."""


@dataclass(frozen=True, slots=True)
class Tell:
    page: int
    order: Drain | Measure | Verdict
    because: str


@dataclass(frozen=True, slots=True)
class Signal:
    page: int
    signal: str
    """`SIGKILL` or `SIGABRT`."""
    because: str


@dataclass(frozen=True, slots=True)
class Say:
    """Nothing to do but to log."""

    event: str
    level: str
    because: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leave:
    """Everyone is gone: exit with this code."""

    code: int
    because: str


Action = StartNursery | StopNursery | Spawn | Tell | Signal | Say | Leave
