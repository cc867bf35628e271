"""`workq dead`. `queue` takes dead letters, `letter` reads one, `sweep` does something to many, `render` shows them."""

from __future__ import annotations

from supervisor.commands.dead.cli import dead

__all__ = ["dead"]
