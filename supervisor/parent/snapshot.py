"""What other threads may read of the loop; HTTP, metrics and the file watcher get nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from supervisor import logs
from supervisor.clock import now
from supervisor.policy import status
from supervisor.policy.view import PoolView
from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import Reading


@dataclass(frozen=True, slots=True)
class Reported:
    """Of --report."""

    dropped: int
    """Events that found no room in the queue."""
    restarts: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The loop at one turn. Immutable."""

    view: PoolView
    settings: Settings
    readings: tuple[Reading, ...]
    """Of the last sample."""
    recent: tuple[dict[str, Any], ...]
    """The latest decisions, in order."""
    log_lines_dropped: int
    turned_at: float
    """Time of the last sample (one a second), monotonic seconds."""
    read: Callable[[int], Reading]
    """Reads a page of the scoreboard, which is shared memory and keeps changing."""
    reported: Reported | None = None
    """None without --report."""

    @property
    def age(self) -> float:
        """Seconds since the loop last turned."""
        return now() - self.turned_at

    def pages(self) -> list[Reading]:
        """A page for each slot."""
        return [status.page_of(slot, self.read) for slot in self.view.slots]

    def status(self) -> dict[str, Any]:
        """The document at /status."""
        wall = datetime.datetime.now(datetime.UTC)
        said = status.status(self.view, self.pages(), self.readings, list(self.recent), self.settings, now(), wall)
        clean = {name: logs.redact(said[name] or "") or None for name in ("because", "readiness", "trouble")}
        return said | clean | {"loop_seconds": round(self.age, 3)}


Look = Callable[[], Snapshot]
"""Returns the latest snapshot. Callable from any thread."""
