"""Where a command finds its settings: where workq-supervise with the same sources finds them, or those of a unit."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from supervisor.endpoint import Endpoint
from supervisor.settings import OPTIONS, SettingsError, read
from supervisor.settings.command_line import Command, declared, given, reported

_UNIT: Final = (
    "Use the settings of systemd unit workq-supervise@NAME (/etc/workq/NAME.toml, NAME.amqp-url) and ignore WORKQ_*."
)


class Sources:
    """What the command line says of the settings, and what all sources together say."""

    def __init__(self, names: Sequence[str], command_line: dict[str, Any]) -> None:
        self._names = names
        self._command_line = given(command_line)

    def read(self) -> dict[str, Any]:
        """The settings by name. Where they are wrong the process ends: by 2 for the command line, else by 78."""
        command = click.get_current_context().command_path
        with reported(command, "nothing was done"):
            try:
                return read(self._names, self._command_line, os.environ)
            except SettingsError as error:
                if all(problem.startswith("--") for problem in error.problems):
                    raise click.UsageError("\n".join(error.problems)) from None
                raise

    def place(self) -> tuple[list[Endpoint], str]:
        """The broker's nodes, and the queue. Ends the process as `read` does."""
        found = self.read()
        return list(found["url"]), found["queue"]


def options(*names: str) -> Callable[[Command], Command]:
    """Options for these settings; the command gets them as `sources`. The handler has none: a command asks for it in
    its own way."""
    named = (each for name in names for each in ((name, "url_file") if name == "url" else (name,)) if name != "handler")
    taken = (*named, "config")

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> Any:
            said = {name: values.pop(name) for name in (*taken, "unit")}
            return command(*args, sources=Sources(names, said), **values)

        return declared({name: OPTIONS[name].help for name in taken}, unit(run))

    return decorate


def unit(command: Command) -> Command:
    """The option --unit."""
    return click.option("--unit", metavar="NAME", help=_UNIT)(command)
