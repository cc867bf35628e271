"""The one table of options, for command line, variables, file and help; and `Settings`, with a field for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, Final

from supervisor.endpoint import Endpoint
from supervisor.queues import TYPES
from supervisor.settings.parsers import (
    AUTO,
    Address,
    Parser,
    Rate,
    Span,
    Threshold,
    address,
    choice,
    control,
    directory,
    duration,
    flag,
    handler,
    heartbeat,
    host_names,
    number,
    or_off,
    path,
    queue,
    rate,
    size,
    threshold,
    urls,
    workers,
)  # fmt: skip
from supervisor.values import dataclass

ENVIRONMENT_PREFIX: Final = "WORKQ_"


@dataclass(frozen=True, slots=True)
class Option:
    """One option, under all its names: `max_tasks` in the file, `--max-tasks`, and `WORKQ_MAX_TASKS`."""

    name: str
    group: str
    """The heading under which the help lists it."""
    metavar: str
    """What the help calls the value; empty for an on/off option."""
    parse: Parser
    default: str
    """As text; `Settings` gets its defaults by parsing it. Empty: none."""
    help: str
    secret: bool = False
    """Values are never quoted."""
    in_file: bool = True
    """May stand in the TOML file."""
    repeatable: bool = False
    reloadable: bool = True
    """A reload may change it; the others are fixed at start."""

    @property
    def flag(self) -> str:
        return "MODULE:FUNCTION" if self.name == "handler" else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


_TABLE: Final = (
    Option("handler", "", "MODULE:FUNCTION", handler, "", "The function to call with each task."),
    Option(
        "url", "Broker", "URL", urls, "amqp://guest:guest@127.0.0.1:5672/%2F",
        "Broker node. Repeat it for a cluster: nodes are tried in random order. amqps:// verifies certificates.",
        secret=True, repeatable=True,
    ),
    Option("url_file", "Broker", "FILE", path, "", "Read the URLs from a file, one per line. Keeps secrets out of ps."),
    Option(
        "queue", "Broker", "NAME", queue, "task_queue", "Name of the queue. An existing queue is used as it is.",
        reloadable=False,
    ),
    Option(
        "queue_type", "Broker", "TYPE", choice(*TYPES), "default",
        "Type to declare if the queue is missing: quorum, classic, or default, which lets the broker choose.",
    ),
    Option(
        "declare", "Broker", "", flag, "true",
        "Declare a missing queue. Turn off for a user without configure permission.",
    ),
    Option(
        "prefetch", "Broker", "N", number(1, 65535), "1",
        "Unacked messages per worker, including the one in flight.",
    ),
    Option("heartbeat", "Broker", "D", heartbeat, "15s", "AMQP heartbeat interval, rounded up to whole seconds."),
    Option(
        "workers", "Workers", "N", workers, "auto",
        "Number of workers: N, MIN..MAX to scale with the backlog, or auto for one per CPU (affinity or cgroup quota).",
    ),
    Option("app_dir", "Workers", "DIR", directory, ".", "Directory of the handler's module, appended to sys.path."),
    Option(
        "preload", "Workers", "", flag, "true",
        "Import the handler once, before the workers are forked; with --no-preload in each worker.",
    ),
    Option(
        "boot_timeout", "Workers", "D", duration(0.001, "60s"), "60s",
        "Kill a worker that has not imported and connected within this time. Broker outages do not count.",
    ),
    Option(
        "boot_retry", "Workers", "", flag, "false",
        "Retry an import that fails for a transient reason: database down, file not there yet.",
    ),
    Option(
        "grace", "Workers", "D", duration(0, "30s"), "30s",
        "How long a stop waits for tasks in flight; then their workers are killed.",
    ),
    Option(
        "lost_grace", "Workers", "D", duration(0, "30s"), "30s",
        "How long a task may keep running after its connection is lost.",
    ),
    Option(
        "burst", "Workers", "", flag, "false", "Exit once the queue is empty and every task is settled.",
        reloadable=False,
    ),
    Option(
        "burst_wait", "Workers", "D", duration(0, "30s"), "30s",
        "With --burst: exit with 75 after this long without a broker or a successful import.",
    ),
    Option(
        "reload", "Workers", "", flag, "false",
        "For development: reload when a Python file in --app-dir changes. Needs watchfiles (the extra reload).",
        reloadable=False,
    ),
    Option(
        "task_timeout", "Limits", "D", or_off(duration(0.001, "5m")), "off",
        "Hard limit per task: kill the worker and blame the message.",
    ),
    Option(
        "soft_timeout", "Limits", "D", or_off(duration(0.001, "4m")), "off",
        "Soft limit per task: raise SoftTimeout in the handler.",
    ),
    Option(
        "rate", "Limits", "N/UNIT", or_off(rate), "off",
        "At most N tasks begin in a second, minute or hour (20/s, 600/m, 1000/h), for all workers of this supervisor "
        "together.",
    ),
    Option("max_tasks", "Limits", "N", or_off(number(1, 2**31)), "off", "Replace a worker after N tasks."),
    Option(
        "max_memory", "Limits", "SIZE", or_off(size("1M", "512M")), "off",
        "Replace a worker above this size, between tasks. Above twice this size, kill it and blame the message.",
    ),
    Option("retries", "Limits", "N", number(0, 1000), "3", "Retries after an exception, then dead-letter."),
    Option(
        "retry_delay", "Limits", "D", duration(0.001, "1s"), "1s",
        "Delay before the first retry; four times longer for each further one, up to 15m.",
    ),
    Option(
        "max_crashes", "Limits", "N", number(1, 1000), "3",
        "Quarantine a message after it has killed N workers.",
    ),
    Option(
        "breaker", "Limits", "RATIO/COUNT", or_off(threshold), "off",
        "Stop consuming when this share of at least COUNT tasks within a minute has failed: 50%/20.",
    ),
    Option(
        "breaker_reset", "Limits", "D", duration(1, "30s"), "30s",
        "How long the breaker stays open before one worker runs a task as a trial. Doubled with each opening, up "
        "to 5m, until it stays closed.",
    ),
    Option("max_body", "Limits", "SIZE", size("1", "16M"), "16M", "Dead-letter larger messages without running them."),
    Option(
        "health", "Health and logs", "HOST:PORT", or_off(address), "127.0.0.1:9191",
        "Address of /healthz, /readyz, /metrics and /status, or off. Port 0 picks a free port and logs it.",
        reloadable=False,
    ),
    Option(
        "health_host", "Health and logs", "NAME", host_names, "",
        "Host name the health port also answers to, besides IP addresses, localhost and this host's name. Repeatable.",
        repeatable=True,
    ),
    Option(
        "ready_when", "Health and logs", "WHEN", choice("consuming", "subscribed"), "consuming",
        "consuming or subscribed. subscribed: also ready while another host is the queue's single active consumer.",
    ),
    Option(
        "control", "Health and logs", "PATH", control, AUTO,
        "Unix socket for the workq commands that control a supervisor (status, scale, reload, ...), or off. auto: "
        "$RUNTIME_DIRECTORY/workq.sock, else $XDG_RUNTIME_DIR/workq-QUEUE.sock, else off.",
        reloadable=False,
    ),
    Option(
        "log_format", "Health and logs", "FORMAT", choice("auto", "json", "console"), "auto",
        "auto, json or console. auto is console on a terminal, else json.", reloadable=False,
    ),
    Option(
        "log_level", "Health and logs", "LEVEL", choice("debug", "info", "warning", "error"), "info",
        "debug, info, warning or error.",
    ),
    Option(
        "report", "Health and logs", "MODULE:FUNCTION", or_off(handler), "off",
        "Function to call, in a process of its own, with each event about a worker's exit, a dead letter, the broker "
        "or a reload.",
    ),
    Option(
        "config", "Other", "FILE", path, "", "Read options from a TOML file; keys use underscores.",
        in_file=False,
    ),
)  # fmt: skip

OPTIONS: Final[Mapping[str, Option]] = {option.name: option for option in _TABLE}


# -------------------------------------------------------------------------------------------------- the settings


def _default(name: str) -> Any:
    # A factory: the CPU count and the working directory are read when Settings are made, not at import.
    return field(default_factory=lambda: OPTIONS[name].parse(OPTIONS[name].default))


@dataclass(frozen=True, slots=True)
class Settings:
    """Durations are seconds, sizes bytes. The defaults are those of `OPTIONS`. Its repr shows no password."""

    handler: str
    """`module:function`."""
    url: tuple[Endpoint, ...] = _default("url")
    """The nodes of one broker, at least one."""
    url_open: str = ""
    """The file that they came from, if other users can read it."""
    url_mode: str = ""
    """Its mode then: `0644`."""
    queue: str = _default("queue")
    queue_type: str = _default("queue_type")
    """`default` (send no type), `quorum` or `classic`."""
    declare: bool = _default("declare")
    workers: Span = _default("workers")
    prefetch: int = _default("prefetch")
    heartbeat: float = _default("heartbeat")
    """Whole seconds, at least 1."""
    task_timeout: float | None = _default("task_timeout")
    soft_timeout: float | None = _default("soft_timeout")
    boot_timeout: float = _default("boot_timeout")
    boot_retry: bool = _default("boot_retry")
    grace: float = _default("grace")
    lost_grace: float = _default("lost_grace")
    rate: Rate | None = _default("rate")
    max_tasks: int | None = _default("max_tasks")
    max_memory: int | None = _default("max_memory")
    retries: int = _default("retries")
    retry_delay: float = _default("retry_delay")
    max_crashes: int = _default("max_crashes")
    breaker: Threshold | None = _default("breaker")
    breaker_reset: float = _default("breaker_reset")
    max_body: int = _default("max_body")
    health: Address | None = _default("health")
    health_explicit: bool = False
    """Given, not the default."""
    health_host: tuple[str, ...] = _default("health_host")
    """Further host names that the health port answers to."""
    ready_when: str = _default("ready_when")
    """`consuming`, or `subscribed`: a standby is ready too."""
    control: str | None = None
    """The control socket's absolute path."""
    control_explicit: bool = False
    """Given, not the default."""
    log_format: str = _default("log_format")
    log_level: str = _default("log_level")
    report: str | None = _default("report")
    """`module:function`, called with events."""
    app_dir: str = _default("app_dir")
    """Absolute."""
    preload: bool = _default("preload")
    burst: bool = _default("burst")
    burst_wait: float = _default("burst_wait")
    reload: bool = _default("reload")

    @property
    def exposure(self) -> str:
        """Why the file with the password is exposed, in words; empty: it is not."""
        if not self.url_open:
            return ""
        return f"{self.url_open} has mode {self.url_mode}: every user here can read the broker's password in it"

    def to_wire(self) -> dict[str, Any]:
        """As JSON, passwords included: for a private socket only."""
        wire: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        wire["url"] = [endpoint.to_wire() for endpoint in self.url]
        wire["workers"] = [self.workers.least, self.workers.most]
        wire["rate"] = [self.rate.count, self.rate.unit] if self.rate else None
        wire["breaker"] = [self.breaker.ratio, self.breaker.count] if self.breaker else None
        wire["health"] = [self.health.host, self.health.port] if self.health else None
        return wire

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Settings:
        """The inverse of `to_wire`."""
        health = Address(*wire["health"]) if wire["health"] else None
        breaker = Threshold(*wire["breaker"]) if wire["breaker"] else None
        urls = tuple(map(Endpoint.from_wire, wire["url"]))
        rate = Rate(*wire["rate"]) if wire["rate"] else None
        changed = {"url": urls, "workers": Span(*wire["workers"]), "health": health, "rate": rate, "breaker": breaker}
        return cls(**{**wire, **changed, "health_host": tuple(wire["health_host"])})


def unreloadable(former: Settings, settings: Settings) -> list[str]:
    """The options that differ, but cannot be changed by a reload."""
    fixed = (option.name for option in OPTIONS.values() if not option.reloadable)
    return [name for name in fixed if getattr(former, name) != getattr(settings, name)]
