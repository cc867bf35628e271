"""A command's settings: from the sources of workq-supervise, or a unit's."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from supervisor.endpoint import Endpoint
from supervisor.settings import OPTIONS, SettingsError, locate, read
from supervisor.settings.command_line import Command, declared, given, reported

_UNIT: Final = (
    "Use the settings of systemd unit workq-supervise@NAME (/etc/workq/NAME.toml, NAME.amqp-url) and ignore WORKQ_*."
)


class Sources:
    """The settings on the command line, and those of all sources together."""

    def __init__(self, names: Sequence[str], command_line: dict[str, Any]) -> None:
        self._names = names
        self._command_line = given(command_line)

    def read(self) -> dict[str, Any]:
        """The settings by name. Exits if they are invalid: with 2 for the command line, else with 78."""
        command = click.get_current_context().command_path
        with reported(command, "nothing was done"):
            try:
                return read(self._names, self._command_line, os.environ)
            except SettingsError as error:
                if all(problem.startswith("--") for problem in error.problems):
                    raise click.UsageError("\n".join(error.problems)) from None
                raise

    def control(self) -> str | None:
        """The control socket that they name, by path or by unit. Exits as `read` does."""
        with reported(click.get_current_context().command_path, "nothing was done"):
            where = locate(self._command_line, os.environ)
        is_named = "control" in where.explicit or "unit" in self._command_line
        return where.control if is_named else None

    def place(self) -> tuple[list[Endpoint], str]:
        """The broker's nodes, and the queue. Exits as `read` does."""
        found = self.read()
        return list(found["url"]), found["queue"]


def options(*names: str) -> Callable[[Command], Command]:
    """Adds options for these settings; the command gets `sources`. None for the handler, which each command takes in
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
    """Adds --unit."""
    return click.option("--unit", metavar="NAME", help=_UNIT)(command)
