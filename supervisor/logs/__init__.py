"""Logging, set up the same way in every process: each record one whole line, without blocking, at no cost to the
parent.

Every process writes its own lines to one inherited descriptor, under a shared record lock (`Sink`). User code's lines
go the same way (`configure`). Reasons and alternatives: docs/decisions/0005-logs.md.
"""

from __future__ import annotations

from supervisor.logs.record import utc
from supervisor.logs.setup import (
    close,
    configure,
    get_logger,
    inherit,
    is_line,
    resolve_format,
    set_level,
    sit,
    tell,
    tells,
)  # fmt: skip
from supervisor.logs.sink import MAX_LINE, Sink, open_lock
from supervisor.redaction import redact

__all__ = [
    "MAX_LINE", "Sink", "close", "configure", "get_logger", "inherit", "is_line", "open_lock", "redact",
    "resolve_format", "set_level", "sit", "tell", "tells", "utc",
]  # fmt: skip
