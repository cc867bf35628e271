"""What `workq try` and `workq dead replay` share on the command line. What they share otherwise is `foreground`, which
brings the worker's code and is imported when a handler is run: the other verbs start without it."""

from __future__ import annotations

from typing import Final

import click

from supervisor.settings.command_line import Command

__all__ = ["SETTINGS", "options"]

SETTINGS: Final = ("queue", "app_dir", "retries", "retry_delay", "soft_timeout")
"""Of a supervisor's."""


def options(command: Command) -> Command:
    """The options --times and --pdb."""
    command = click.option("--pdb", is_flag=True, help="Debug where it raises.")(command)
    times = click.option("--times", type=click.IntRange(min=1), default=1, metavar="N", help="Run it N times.")
    return times(command)
