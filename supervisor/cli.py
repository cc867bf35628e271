"""`workq-supervise`: read Settings from command line, environment and file, and run the supervisor.

click passes on plain strings: `settings.load` checks them with the environment and the file, so that one report has
every problem.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from supervisor.linux.proctitle import hide_urls
from supervisor.settings import OPTIONS, Option, Settings, SettingsError, load
from supervisor.settings.command_line import given, parameter, reported
from supervisor.version import __version__
from supervisor.vocabulary import EXIT_KILLED

NAME = "workq-supervise"

_EPILOG = """\
\b
D is a duration: 500ms, 30s, 5m, 2h or plain seconds. SIZE is 512K, 16M, 1G or
plain bytes. Each option is also an environment variable (--max-tasks is
WORKQ_MAX_TASKS) and a key of the TOML file (max_tasks = 1000). The command
line overrides the environment, the environment overrides the file.

\b
Signals:
  TERM, INT   drain: finish the tasks in flight, then exit. Twice: kill the workers
  HUP         rolling reload: new code and settings, one worker at a time
  TTIN, TTOU  add a worker, remove one
  USR1        log the stacks of every worker
  USR2        log the full status

\b
Exit codes:
  0   stopped on request, or --burst finished; every task settled
  1   stopped, but a worker was killed or a task left unsettled; or startup
      failed, and a restart may help
  2   usage error
  75  --burst: broker down, or import failing, for longer than --burst-wait; or a
      delayed retry never came back to the queue
  78  configuration: handler cannot be loaded, bad settings, wrong queue type;
      restarting will not help
"""


class _Supervise(click.Command):
    """Lists the options under the headings of the table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for group, options in groupby(OPTIONS.values(), key=lambda option: option.group):
            rows = [lines.pop(option.name) for option in options]
            if group == "Other":
                rows += lines.values()
            if group:
                with formatter.section(group):
                    formatter.write_dl([row for row in rows if row])


def _parameter(option: Option) -> click.Parameter:
    if option.name == "handler":
        return click.Argument([option.name], metavar=option.metavar, required=False)
    default = option.default
    if not option.metavar:
        default = ("" if default == "true" else "no-") + option.flag.removeprefix("--")
    return parameter(option, f"{option.help}  [default: {default}]" if default else option.help)


def _supervise(**values: Any) -> None:
    hide_urls()
    ctx = click.get_current_context()
    if ctx.args:
        # click's own sentence would quote the argument, and a stray argument may be a URL.
        raise click.UsageError(f"expected one MODULE:FUNCTION, got {len(ctx.args) + 1} arguments")
    started_in = _directory_by_name(os.environ)
    handler = values.pop("handler")
    command_line = given(values)
    settings = _settings(handler, command_line)
    try:
        # Imported late: a usage error or --help does not need the supervisor.
        from supervisor.parent.main import run
    except OSError as error:
        click.echo(f"{NAME}: the supervisor cannot start: {error.filename}: {error.strerror}", err=True)
        sys.exit(EXIT_KILLED)

    def reread() -> Settings:
        """For a reload: read the directory and the files again; command line and environment are unchanged."""
        if started_in is not None:
            _enter(started_in)
        return load(handler, command_line, os.environ)

    sys.exit(run(settings, reread, ctx.obj))


def _directory_by_name(environ: Mapping[str, str]) -> str | None:
    """The working directory as in $PWD (POSIX, pwd(1)), which may be a symbolic link (/srv/app/current): the kernel
    knows only its target. None if $PWD is not this directory."""
    name = environ.get("PWD", "")
    try:
        return name if name.startswith("/") and Path(name).samefile(os.curdir) else None
    except OSError:
        return None


def _enter(directory: str) -> None:
    """Follow the link again, so that code, settings and files are of one release. Raises SettingsError."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise SettingsError([f"cannot enter the working directory {directory}: {error.strerror}"]) from None


def _settings(handler: str | None, command_line: dict[str, Any]) -> Settings:
    with reported(NAME, "nothing was started"):
        try:
            return load(handler, command_line, os.environ)
        except SettingsError as error:
            if error.handler_missing:
                raise click.UsageError("\n".join(error.problems)) from None
            raise


main = _Supervise(
    NAME,
    callback=_supervise,
    params=[_parameter(option) for option in OPTIONS.values()],
    help="Keep N RabbitMQ consumers running. Each calls FUNCTION of MODULE with one task at a time.",
    epilog=_EPILOG,
    options_metavar="[OPTIONS]",
    context_settings={"allow_extra_args": True, "max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
click.version_option(__version__, prog_name=NAME)(main)
