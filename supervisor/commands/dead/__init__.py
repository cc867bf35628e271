"""`workq dead`. `queue` takes dead letters, `letter` reads one, `choice` says which are meant, `sweep` acts on many, at
a `pace`; `asking` asks first. `table` and `groups` show many, `render` shows one, `edit` changes one."""

from __future__ import annotations

from supervisor.commands.dead.cli import dead

__all__ = ["dead"]
