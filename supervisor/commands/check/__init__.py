"""`workq check`. `probe`, `management` and `surroundings` gather facts, `broker` and `machine` say what they mean."""

from __future__ import annotations

from supervisor.commands.check.cli import check

__all__ = ["check"]
