"""`workq ui`: the live page of one or more supervisors, with verbs."""

from __future__ import annotations

from supervisor.commands.ui.cli import ui

__all__ = ["ui"]
