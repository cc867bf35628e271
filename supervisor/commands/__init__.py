"""`workq`, the operator's tool. Each command is a module of its own, imported when it is called."""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword
from typing import Final

import click

from supervisor.linux import lacking
from supervisor.linux.proctitle import hide_urls
from supervisor.version import __version__

COMMANDS: Final = (
    "broker", "chaos", "check", "dead", "drain", "kill", "once", "pause", "publish", "reload", "resume", "scale",
    "status", "top", "try", "ui",
)  # fmt: skip
"""A command `x` is the attribute `x` of the module `supervisor.commands.x`; that of a keyword, `x_` of `x_`."""


_ON_MACOS: Final = frozenset({"dead", "once", "publish"})
"""Commands that run there, too: they only talk to the broker."""


class Lazy(click.Group):
    """Imports a command when it is asked for: `workq publish` does not pay for the libraries of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if said := lacking(f"workq {cmd_name}", macos=cmd_name in _ON_MACOS):
            return _refused(cmd_name, said)
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command = getattr(import_module(f"{__name__}.{name}"), name)
        assert isinstance(command, click.Command)
        return command


def _refused(name: str, because: str) -> click.Command:
    def refuse(**_: object) -> None:
        raise click.ClickException(because)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, short_help="Needs Linux.", context_settings=anything)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="workq")
def main() -> None:
    """Publish tasks, watch and control supervisors, handle dead letters, run a private broker."""
    hide_urls()
