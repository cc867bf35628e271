"""What other threads may read of the loop: HTTP, the metrics and the file watcher get this and nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor import logs
from supervisor.clock import now
from supervisor.policy import status
from supervisor.policy.view import PoolView
from supervisor.settings import Settings
from supervisor.vocabulary import Reading


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The loop at one of its turns. Never changed, replaced as a whole."""

    view: PoolView
    settings: Settings
    readings: tuple[Reading, ...]
    """Of the last sample."""
    recent: tuple[dict[str, Any], ...]
    """The last decisions, the latest last."""
    log_lines_dropped: int
    turned_at: float
    """Of the last sample, which the loop takes once a second; monotonic seconds."""
    read: Callable[[int], Reading]
    """Read a page of the scoreboard: shared memory, so the one thing here that goes on changing."""

    @property
    def age(self) -> float:
        """Seconds since the loop last turned."""
        return now() - self.turned_at

    def pages(self) -> list[Reading]:
        """A page for each slot."""
        return [status.page_of(slot, self.read) for slot in self.view.slots]

    def status(self) -> dict[str, Any]:
        """What /status says."""
        wall = datetime.datetime.now(datetime.UTC)
        said = status.status(self.view, self.pages(), self.readings, list(self.recent), self.settings, now(), wall)
        clean = {name: logs.redact(said[name] or "") or None for name in ("because", "readiness", "trouble")}
        return said | clean | {"loop_seconds": round(self.age, 3)}


Look = Callable[[], Snapshot]
"""Returns the latest snapshot. May be called from any thread."""
