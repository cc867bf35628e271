"""`workq chaos`. `cli` kills, `account` adds up what that did, `marked` publishes tasks of its own."""

from __future__ import annotations

from supervisor.commands.chaos.cli import chaos

__all__ = ["chaos"]
