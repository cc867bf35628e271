"""`workq check`: looks at broker, queue and machine, changes nothing, and prints problems with the lines that fix them.

The facts come from `probe` (AMQP), `management` and `surroundings`; `broker`, `queue` and `machine` judge them.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import click

from supervisor import amqp, queues
from supervisor.commands import codes
from supervisor.commands.check.broker import examine
from supervisor.commands.check.case import delay_of, delays_of
from supervisor.commands.check.facts import Broker, Finding, Level, Managed, problem, warning
from supervisor.commands.check.machine import examine as examine_machine
from supervisor.commands.check.management import ask, checked, consumer_timeout, usual
from supervisor.commands.check.probe import Probe, may_publish
from supervisor.commands.check.probe import look as look_at_nodes
from supervisor.commands.check.surroundings import containers_options, is_loaded
from supervisor.commands.check.surroundings import look as look_at_machine
from supervisor.commands.plain import plain
from supervisor.endpoint import Endpoint
from supervisor.settings import OPTIONS, UNITS, Option, Settings, SettingsError, has_settings, load
from supervisor.settings.command_line import given, parameter, reported

_NOBODY: Final = "workq:check"
"""In place of a handler when none is given; it is not imported."""
_COLOURS: Final = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.PROBLEM: "red"}
_SILENT: Final = frozenset(
    {
        "max_tasks", "max_body", "burst", "burst_wait", "boot_retry", "log_format", "log_level", "retry_delay",
        "preload", "control", "health_host", "reload",
    }
)  # fmt: skip
"""Accepted but not checked, so that a command line of workq-supervise works here."""

_HELP: Final = """\
Check broker, queue and machine for workq-supervise. Changes, declares and consumes nothing. Each finding comes with
the command that fixes it.

Reads the same options, WORKQ_* variables and file as workq-supervise; in a container also the options of the
supervisor that runs there. Imports the handler too, in a separate process,
if there is one (MODULE:FUNCTION, WORKQ_HANDLER or the file).

Most checks use AMQP. Policies and limits need the management API: by default port 15672 of the broker's host (15671
with HTTPS for amqps://), with the URL's credentials. The node's consumer timeout needs rabbitmqctl.

Exit code: 0 no problems, 1 problems (with --strict, also warnings), 2 usage error, 78 invalid settings.
"""


def _check(
    handler: str | None,
    api: str | None,
    rabbitmqctl: str | None,
    unit_names: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    strict: bool,
    **values: Any,
) -> None:
    if click.get_current_context().args:
        # click's own sentence would quote the argument, and a stray argument may be a URL.
        raise click.UsageError("expected one MODULE:FUNCTION, got more arguments.")
    if api not in (None, "off"):
        try:
            api = checked(str(api))
        except ValueError as error:
            raise click.UsageError(f"--management: {error}.") from None
    command_line = given(values)
    unit_names = tuple(map(_unit, unit_names))
    if len(unit_names) == 1 and "config" not in command_line and has_settings(unit_names[0]):
        command_line["unit"] = unit_names[0]
    if "unit" not in command_line:
        command_line = _of_the_container(command_line) | command_line
    settings, has_handler = _settings(handler, command_line)
    try:
        broker = examine_broker(settings, api, rabbitmqctl)
        findings = [*broker, *examine_machine(look_at_machine(settings, has_handler, unit_names), settings)]
    except KeyboardInterrupt:
        sys.exit(codes.INTERRUPTED)
    if as_json:
        for finding in findings:
            click.echo(json.dumps(asdict(finding)))
    else:
        _print(findings, settings, verbose)
    bad = {Level.PROBLEM, Level.WARNING} if strict else {Level.PROBLEM}
    sys.exit(codes.INCOMPLETE if any(finding.level in bad for finding in findings) else 0)


def _unit(name: str) -> str:
    """As systemd names it: one of ours by the NAME of its settings, else any that is loaded. Exits if there is none."""
    if has_settings(name):
        return name if name.endswith(".service") or "@" in name else f"workq-supervise@{name}.service"
    # The template has each instance: systemd calls one loaded that has no settings and cannot start.
    is_ours = name.startswith("workq-supervise@") and "*" not in name
    if is_ours or not is_loaded(name):
        instance = name.removeprefix("workq-supervise@").removesuffix(".service")
        raise click.UsageError(f"--unit: no unit {name}: neither {UNITS}/{instance}.toml nor a unit of that name.")
    return name


def _of_the_container(command_line: dict[str, Any]) -> dict[str, Any]:
    """The options of the supervisor in whose container this is. Not its handler, which it has imported already."""
    if not (words := containers_options()):
        return {}
    try:
        context = _OPTIONS.make_context("workq-supervise", words, resilient_parsing=True)
    except click.UsageError:
        return {}  # another version's
    options = given({name: value for name, value in context.params.items() if name != "handler"})
    is_hidden = any("*@" in url for url in options.get("url", ()))  # proctitle.hide_urls
    if is_hidden or {"url", "url_file"} & command_line.keys():
        options = {name: value for name, value in options.items() if name not in ("url", "url_file")}
    return options


def _settings(handler: str | None, command_line: dict[str, Any]) -> tuple[Settings, bool]:
    """The settings, and whether they have a handler, which is optional here."""
    with reported("workq check", "nothing was checked"):
        try:
            return load(handler, command_line, os.environ), True
        except SettingsError as error:
            if not error.handler_missing:
                raise
            return load(_NOBODY, command_line, os.environ), False


# --------------------------------------------------------------------------------------------------- the broker


def examine_broker(settings: Settings, api: str | None = None, rabbitmqctl: str | None = None) -> list[Finding]:
    """Ask the broker everything. `api`: URL of the management API, `off`, or None for the usual one."""
    nodes = look_at_nodes(settings.url, settings.heartbeat)
    broker = Broker(nodes)
    findings = []
    if broker.node is not None:
        endpoint = broker.node.endpoint
        off = ("--management is off", "")
        managed = off if api == "off" else ask(api or usual(endpoint), endpoint, settings.queue)
        if isinstance(managed, Managed):
            broker = replace(broker, managed=managed)
        else:
            broker = replace(broker, unmanaged=managed[0], unmanaged_fix=managed[1])
        if rabbitmqctl:
            try:
                broker = replace(broker, consumer_timeout=consumer_timeout(rabbitmqctl))
            except (OSError, ValueError) as error:
                what = f"--rabbitmqctl does not tell the acknowledgement timeout: {error}"
                findings.append(warning("rabbitmqctl", what))
        try:
            broker = _by_amqp(broker, endpoint, settings)
        except Exception as error:  # noqa: BLE001 - whatever the broker, ssl and the OS have to say
            trouble = amqp.explain(error, endpoint)
            findings.append(problem("broker", f"while it was looked at: {trouble.reason}"))
    return [*examine(broker, settings), *findings]


def _by_amqp(broker: Broker, endpoint: Endpoint, settings: Settings) -> Broker:
    refusals: dict[str, str | None] = {}
    with Probe(endpoint, settings.heartbeat) as asked:
        asked.node()
        names = (settings.queue, queues.dead(settings.queue))
        queue, dead = (asked.properties(each) if each.exists else each for each in map(asked.queue, names))
        delays = [] if settings.declare else [asked.queue(name) for name in delays_of(settings)]
        delay = delay_of(settings)
        for name in (queue.name, dead.name, delay):
            refusals[f"configure {name}"] = asked.may_declare(name)
        for name in (queue.name, delay):
            refusals[f"read {name}"] = asked.may_consume(name)
    refusals["write"], blocked = may_publish(endpoint)
    return replace(broker, queue=queue, dead=dead, delays=delays, refusals=refusals, blocked=blocked)


# ---------------------------------------------------------------------------------------------------- the report


def _print(findings: Sequence[Finding], settings: Settings, verbose: bool) -> None:
    order = list(Level)
    shown = [finding for finding in findings if verbose or finding.level is not Level.OK]
    shown.sort(key=lambda finding: -order.index(finding.level))
    width = max((len(finding.subject) for finding in shown), default=0)
    for finding in shown:
        level = click.style(f"{finding.level:7}", fg=_COLOURS[finding.level], bold=finding.level is Level.PROBLEM)
        click.echo(f"{level}  {finding.subject:{width}}  {plain(finding.what)}")
        if finding.fix:
            # Nothing after it and no frame around it, so that it can be copied.
            click.echo(f"         {click.style(plain(finding.fix), bold=True)}")
    counts = Counter(finding.level for finding in findings)
    said = [f"{counts[level]} {level if level is Level.OK or counts[level] == 1 else level + 's'}" for level in order]
    hint = "" if verbose or not counts[Level.OK] else " (--verbose shows what is ok)"
    click.echo(f"{settings.queue} on {', '.join(map(str, settings.url))}: {', '.join(said)}{hint}")


# --------------------------------------------------------------------------------------------------- the options


def _parameter(option: Option) -> click.Parameter:
    """As workq-supervise has it; the help is there."""
    if option.name == "handler":
        return click.Argument([option.name], metavar=f"[{option.metavar}]", required=False)
    return parameter(option, option.help, hidden=option.name in _SILENT)


_OPTIONS: Final = click.Command(
    "workq-supervise",
    params=[_parameter(option) for option in OPTIONS.values()],
    context_settings={"allow_extra_args": True},
)

check = click.Command(
    "check",
    callback=_check,
    params=[
        *(_parameter(option) for option in OPTIONS.values()),
        click.Option(["--management", "api"], metavar="URL", help="URL of the management API, or off."),
        click.Option(
            ["--rabbitmqctl"], metavar="COMMAND", help='Command to run rabbitmqctl, such as "sudo rabbitmqctl".'
        ),
        click.Option(
            ["--unit", "unit_names"],
            multiple=True,
            metavar="UNIT",
            help="systemd unit to check: NAME of workq-supervise@NAME, with /etc/workq/NAME.toml, or any other unit.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object per finding, including ok."),
        click.Option(["--verbose", "-v"], is_flag=True, help="Also print what is ok."),
        click.Option(["--strict"], is_flag=True, help="Fail on warnings too."),
    ],
    help=_HELP,
    context_settings={"allow_extra_args": True, "max_content_width": 100},
)
