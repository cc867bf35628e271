"""The table of options as click takes it, and how commands report bad settings. Not for workers: click costs memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from supervisor.settings.options import OPTIONS, Option
from supervisor.settings.parsers import parse_duration
from supervisor.settings.sources import SettingsError
from supervisor.vocabulary import EXIT_CONFIG

Command = Callable[..., Any]


def parameter(option: Option, help: str, *, hidden: bool = False) -> click.Option:
    """Adds options from a list to a command."""
    return click.Option(_names(option), **_attributes(option, help), hidden=hidden)


def declared(helps: Mapping[str, str], command: Command) -> Command:
    """The command with these options, in this order: names in the table, and their help."""
    for name, help in reversed(list(helps.items())):
        command = click.option(*_names(OPTIONS[name]), **_attributes(OPTIONS[name], help))(command)
    return command


def _names(option: Option) -> list[str]:
    # Both forms, so that the command line can override the environment either way.
    word = option.flag.removeprefix("--")
    return [option.flag if option.metavar else f"--{word}/--no-{word}", option.name]


def _attributes(option: Option, help: str) -> dict[str, Any]:
    words = {"metavar": option.metavar, "multiple": option.repeatable, "type": str} if option.metavar else {}
    return {"default": None, "help": help} | words


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def lasting(
    *names: str, help: str, default: str | None = None, above_zero: bool = False
) -> Callable[[Command], Command]:
    """Adds an option that is a duration; the command gets seconds, or None if there is no default."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
        return seconds(names[0], value, above_zero=above_zero)

    return click.option(*names, metavar="D", help=help, default=default, show_default=True, callback=parse)


def seconds(flag: str, value: str | None, *, above_zero: bool = False) -> float | None:
    """An option that is a duration. Raises click.UsageError."""
    try:
        found = None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.UsageError(f"{flag}: expected {error}") from None
    if above_zero and found == 0:
        raise click.UsageError(f"{flag}: expected a duration above 0, such as 10m")
    return found


@contextmanager
def reported(command: str, nothing: str) -> Iterator[None]:
    """Exits on invalid settings, with a line for each problem. `nothing`: what was not done."""
    try:
        yield
    except SettingsError as error:
        click.echo(f"{command}: invalid settings, {nothing}:", err=True)
        for problem in error.problems:
            click.echo(f"  {problem}", err=True)
        sys.exit(EXIT_CONFIG)
