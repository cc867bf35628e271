"""`workq check`: `probe`, `management`, `surroundings` gather `facts`; `broker`, `queue`, `machine`,
`container` judge them."""

from __future__ import annotations

from supervisor.commands.check.cli import check

__all__ = ["check"]
