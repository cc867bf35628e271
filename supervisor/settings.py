"""What the operator asked for: `Settings`, and the table of options that reads it.

`OPTIONS` describes every option once. The command line, the `WORKQ_*` variables, the TOML file, the defaults and the
help all come from it. `load` puts the sources together and reports every problem it finds, not only the first.

Workers import this module, so it is light: no click, and tomllib and difflib only where they are needed.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from supervisor import cgroup
from supervisor.endpoint import Endpoint
from supervisor.queues import TYPES, dead

__all__ = [
    "OPTIONS", "Address", "Option", "Settings", "SettingsError", "Span", "Whereabouts", "has_settings",
    "load", "locate", "parse_duration", "parse_size", "read", "unreloadable",
]  # fmt: skip

ENVIRONMENT_PREFIX: Final = "WORKQ_"
CREDENTIAL: Final = "amqp-url"
"""The name under which systemd's LoadCredential= is expected to hold the URL."""
UNITS: Final = Path("/etc/workq")
"""Where the unit workq-supervise@NAME has NAME.toml and NAME.amqp-url."""
UNITS_RUN: Final = Path("/run/workq")
"""Where it has its control socket, in a directory of its own."""

_OTHERS_VARIABLES: Final = ("rabbitmq_", "test_")
"""`WORKQ_RABBITMQ_HOME` and the like are read elsewhere and never a misspelt option."""
_SHOWN: Final = 60
"""Characters of a refused value that a report quotes."""
_YEAR: Final = 8760 * 3600.0
WORKERS_MOST: Final = 1024
"""As many as the scoreboard has pages."""
AUTO: Final = "auto"
SOCKET_PATH_MOST: Final = 107
"""Bytes of a unix socket's path; with its NUL it fills the 108 of sockaddr_un (unix(7))."""


class SettingsError(Exception):
    """The settings cannot be used. Carries every problem, one line each; none of them quotes a URL."""

    def __init__(self, problems: list[str], *, handler_missing: bool = False) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.handler_missing = handler_missing
        """No source names a handler: the command line is incomplete."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 lets the kernel pick one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Span:
    """How many workers there may be, both ends included; the same number twice where nothing is to be scaled."""

    least: int
    most: int
    by: str = field(default="given", compare=False)
    """What the number comes from; with `auto`, which limit on CPUs it is."""

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most

    def __str__(self) -> str:
        return f"{self.least}" if self.is_fixed else f"{self.least}..{self.most}"


# ------------------------------------------------------------------------------------------------------ parsers
#
# A parser takes what a source holds (text from the command line and the environment, any TOML value from the file) and
# returns the setting, or raises ValueError saying what it expected. It never quotes the value: `load` does, if it may.

Parser = Callable[[object], Any]

_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(ms|s|m|h)?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_SIZE: Final = re.compile(r"([0-9]{1,15})\s*([KMG])?", re.IGNORECASE)
_BYTES: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_FLAGS: Final = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


def parse_duration(value: object) -> float:
    """`500ms`, `30s`, `5m`, `2h`, or plain seconds as text or number -> seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _YEAR:
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration such as 500ms, 30s, 5m or 2h")
    number, unit = float(match[1]), match[2] or "s"
    # Divided, not multiplied by 0.001, so that 500ms is the float nearest to half a second.
    seconds = number / 1000 if unit == "ms" else number * _SECONDS[unit]
    if seconds > _YEAR:
        raise ValueError("a duration of at most 8760h")
    return seconds


def parse_size(value: object) -> int:
    """`512K`, `512M`, `1G` (powers of 1024), or plain bytes as text or number -> bytes. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size such as 512K, 16M or 1G")
    return int(match[1]) * _BYTES[(match[2] or "").upper()]


def _duration(least: float, example: str) -> Parser:
    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if seconds < least:
            raise ValueError(f"a duration of at least {least:g}s, such as {example}")
        return seconds

    return parse


def _size(least: str, example: str) -> Parser:
    def parse(value: object) -> int:
        size = parse_size(value)
        if not parse_size(least) <= size < 2**63:
            raise ValueError(f"a size of at least {least}, such as {example}")
        return size

    return parse


def _or_off(parse: Parser) -> Parser:
    def parse_or_off(value: object) -> Any:
        if value == "off":
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or off") from None

    return parse_or_off


def _number(least: int, most: int) -> Parser:
    def parse(value: object) -> int:
        text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
        # Not int() alone, which also reads 1_000 and the digits of every script.
        number = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else -1
        if not least <= number <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return number

    return parse


def _choice(*choices: str) -> Parser:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return parse


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError("true or false")
    return flag


@dataclass(frozen=True, slots=True)
class Cpus:
    """What this process may use of the machine's CPUs: containers, CPUAffinity= and CPUQuota= narrow it."""

    affinity: int
    quota: float | None
    """CPUs' worth of time that its cgroup gets; None: no limit."""

    @property
    def workers(self) -> int:
        """One for each. A part of a CPU counts as one: what is left of a quota is worth a worker."""
        return min(self.affinity, WORKERS_MOST, self.affinity if self.quota is None else math.ceil(self.quota))

    @property
    def count(self) -> float:
        return float(self.affinity) if self.quota is None else min(self.affinity, self.quota)

    @property
    def is_quota(self) -> bool:
        """Whether the quota rules, or else the affinity."""
        return self.quota is not None and self.quota < self.affinity

    def __str__(self) -> str:
        """What `auto` goes by."""
        if self.is_quota:
            return f"auto: the cgroup's CPU quota of {self.quota:g}"
        return f"auto: {self.affinity} CPU{'s' if self.affinity > 1 else ''} by affinity"


def usable_cpus() -> Cpus:
    return Cpus(len(os.sched_getaffinity(0)), cgroup.cpu_quota())


def _workers(value: object) -> Span:
    least, is_range, most = value.partition("..") if isinstance(value, str) else (value, "", "")
    if value == "auto":
        cpus = usable_cpus()
        return Span(cpus.workers, cpus.workers, str(cpus))
    number = _number(1, WORKERS_MOST)
    try:
        low = number(least)
        if is_range and most.strip() == "auto":
            # Not an error on a machine with fewer CPUs: one file shall do for large hosts and small ones.
            cpus = usable_cpus()
            return Span(low, max(low, cpus.workers), str(cpus))
        high = number(most) if is_range else low
    except ValueError as error:
        raise ValueError(f"{error}, MIN..MAX of two such numbers, or auto for one per CPU") from None
    if low > high:
        raise ValueError(f"MIN..MAX with the smaller number first, such as {high}..{low}")
    return Span(low, high)


def _heartbeat(value: object) -> float:
    # Connection.Tune carries whole seconds in 16 bits, and 0 would switch heartbeats off (AMQP 0-9-1, 1.4.2.6): then
    # nobody notices a peer that vanished without a word.
    try:
        seconds = math.ceil(parse_duration(value)) if parse_duration(value) >= 1 else 0
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 65535:
        raise ValueError("a duration from 1s to 65535s, such as 15s (heartbeats cannot be off)")
    return float(seconds)


def _handler(value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    module, _, function = text.partition(":")
    if not all(name.isidentifier() for name in [*module.split("."), *function.split(".")]):
        raise ValueError("module:function, such as tasks:resize")
    return text


def _queue(value: object) -> str:
    # A queue name has at most 255 bytes of UTF-8, and names with amq. in front are the broker's own: declaring one is
    # refused with 403 (https://www.rabbitmq.com/docs/queues#names). The dead-letter queue is named after ours.
    most = 255 - len(dead(""))
    if not isinstance(value, str) or not 1 <= len(value.encode(errors="surrogateescape")) <= most:
        raise ValueError(f"a queue's name of 1 to {most} bytes ({dead('')} must fit behind it)")
    if value.startswith("amq."):
        raise ValueError("a name that does not begin with amq., which RabbitMQ keeps for itself")
    if not value.isprintable():
        raise ValueError("a queue's name in UTF-8 without control characters")
    if "://" in value:
        # RabbitMQ would take it. It is a URL in the wrong place, and the queue's name is in every log line.
        raise ValueError("a queue's name, not a URL")
    return value


def _address(value: object) -> Address:
    host, colon, port = value.strip().rpartition(":") if isinstance(value, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*" if bracketed else r"[A-Za-z0-9._-]+", host):
        raise ValueError("HOST:PORT, such as 127.0.0.1:9191 or [::1]:9191")
    try:
        return Address(host, _number(0, 65535)(port))
    except ValueError:
        raise ValueError("HOST:PORT with a port from 0 to 65535") from None


def _host_names(value: object) -> tuple[str, ...]:
    """Text with one name or several, or a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a host's name or a list of names")
    names = [name for text in texts for name in re.split(r"[\s,]+", text) if name]
    if not all(re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", name) for name in names):
        raise ValueError("host names without scheme and port, such as workers.example.org")
    return tuple(dict.fromkeys(name.lower().removesuffix(".") for name in names))


def _directory(value: object) -> str:
    path = _path(value)
    if not _holds(path.is_dir):
        raise ValueError("a directory that exists")
    try:
        return str(path.absolute())
    except FileNotFoundError:
        # It can still be looked at as `.`, and has no name any more.
        raise ValueError("a directory that exists; the working directory has been deleted") from None


def _control(value: object) -> str | None:
    """None for `off`; `auto` stays, since it depends on the queue and the environment."""
    return None if value == "off" else AUTO if value == AUTO else _socket(value)


def _socket(value: object) -> str:
    path = _path(value).absolute()
    if len(os.fsencode(path)) > SOCKET_PATH_MOST:
        raise ValueError(f"a path of at most {SOCKET_PATH_MOST} bytes: the kernel takes no longer one for a socket")
    if not _holds(path.parent.is_dir):
        raise ValueError("a path for a socket, in a directory that exists")
    if _holds(path.exists) and not _holds(path.is_socket):
        # Whatever it is, it is not to be replaced by a socket.
        raise ValueError("a path for a socket, where nothing else is yet")
    return str(path)


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path")
    return Path(value)


def _holds(test: Callable[[], bool]) -> bool:
    """`test`, or False where the path cannot even be looked at: pathlib lets EACCES and ENAMETOOLONG through."""
    try:
        return test()
    except OSError:
        return False


def _urls(value: object) -> tuple[Endpoint, ...]:
    """Text with one URL or several, or a list of such texts. A comma separates only where a URL follows: it may also
    stand in a password."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("a URL or a list of URLs")
    urls = [url for text in texts for url in re.split(r"(?i)[\s,]+(?=amqps?://)", text.strip(" \t\r\n,"))]
    return _parse_urls([(f"URL {number} of {len(urls)}", url) for number, url in enumerate(urls, 1)])


def _parse_urls(named: list[tuple[str, str]]) -> tuple[Endpoint, ...]:
    endpoints, wrong = [], []
    for name, url in named:
        try:
            endpoint = Endpoint.parse(url)
            _check_files(endpoint)
            endpoints.append(endpoint)
        except ValueError as error:
            wrong.append(str(error) if len(named) == 1 else f"{name}: {error}")
    if wrong:
        raise ValueError("amqp://USER:PASSWORD@HOST:PORT/VHOST, but " + "; ".join(wrong))
    return tuple(endpoints)


def _check_files(endpoint: Endpoint) -> None:
    for name in ("cafile", "certfile", "keyfile"):
        path = endpoint.option(name)
        if path is not None and ("\0" in path or not _holds(Path(path).is_file)):
            raise ValueError(f"its {name} is not a file")


# ---------------------------------------------------------------------------------------------------- the table


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
    """As one would write it; `Settings` gets its defaults by parsing this. Empty: none."""
    help: str
    secret: bool = False
    """Values are never quoted."""
    in_file: bool = True
    """May stand in the TOML file."""
    repeatable: bool = False
    reloadable: bool = True
    """A reload may change it; of the others the running supervisor has made something that stays."""

    @property
    def flag(self) -> str:
        return "MODULE:FUNCTION" if self.name == "handler" else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


_TABLE: Final = (
    Option("handler", "", "MODULE:FUNCTION", _handler, "", "The function that is called with each task."),
    Option(
        "url", "Broker", "URL", _urls, "amqp://guest:guest@127.0.0.1:5672/%2F",
        "A broker node; repeat it for a cluster, tried in random order. amqps:// verifies certificates.",
        secret=True, repeatable=True,
    ),
    Option("url_file", "Broker", "FILE", _path, "", "Read the URLs from a file, one a line: keeps secrets out of ps."),
    Option(
        "queue", "Broker", "NAME", _queue, "task_queue", "The queue. If it exists it is used as it is.",
        reloadable=False,
    ),
    Option(
        "queue_type", "Broker", "TYPE", _choice(*TYPES), "default",
        "How to declare it if it is missing: default, quorum or classic. default sends no type.",
    ),
    Option("declare", "Broker", "", _flag, "true", "Declare the queue; off for users without the permission."),
    Option("prefetch", "Broker", "N", _number(1, 65535), "1", "Messages a worker holds, with the one in hand."),
    Option("heartbeat", "Broker", "D", _heartbeat, "15s", "AMQP heartbeat, in whole seconds: rounded up."),
    Option(
        "workers", "Workers", "N", _workers, "auto",
        "How many workers: N, MIN..MAX to scale by the queue's backlog, or auto: one per CPU of the affinity or quota.",
    ),
    Option("app_dir", "Workers", "DIR", _directory, ".", "Where the handler's module is; put at the end of sys.path."),
    Option("preload", "Workers", "", _flag, "true", "Import the handler once and fork, or anew in every worker."),
    Option(
        "boot_timeout", "Workers", "D", _duration(0.001, "60s"), "60s",
        "Hard limit for importing and connecting; waiting for an absent broker does not count.",
    ),
    Option("grace", "Workers", "D", _duration(0, "30s"), "30s", "How long a stop waits for tasks in hand."),
    Option(
        "lost_grace", "Workers", "D", _duration(0, "30s"), "30s",
        "How long a task whose connection is lost may run on beside the next worker.",
    ),
    Option(
        "burst", "Workers", "", _flag, "false", "Leave when the queue is empty and every task is settled.",
        reloadable=False,
    ),
    Option(
        "burst_wait", "Workers", "D", _duration(0, "30s"), "30s",
        "How long --burst waits for a broker that is away, before it exits with 75.",
    ),
    Option(
        "reload", "Workers", "", _flag, "false",
        "For development: reload when a Python file in --app-dir changes. Needs workq-supervise[reload].",
        reloadable=False,
    ),
    Option("task_timeout", "Limits", "D", _or_off(_duration(0.001, "5m")), "off", "Hard limit for one task."),
    Option("max_tasks", "Limits", "N", _or_off(_number(1, 2**31)), "off", "Replace a worker after N tasks."),
    Option(
        "max_memory", "Limits", "SIZE", _or_off(_size("1M", "512M")), "off",
        "Replace a worker that holds more memory, between tasks.",
    ),
    Option("retries", "Limits", "N", _number(0, 1000), "3", "More tries after an exception, before the dead letter."),
    Option(
        "retry_delay", "Limits", "D", _duration(0.001, "1s"), "1s",
        "Before the first of them; four times as long before each further one, 15m at most.",
    ),
    Option(
        "max_crashes", "Limits", "N", _number(1, 1000), "3",
        "Workers that one message may kill before it is quarantined.",
    ),
    Option("max_body", "Limits", "SIZE", _size("1", "16M"), "16M", "Larger bodies are dead-lettered unread."),
    Option(
        "health", "Health and logs", "HOST:PORT", _or_off(_address), "127.0.0.1:9191",
        "Where /healthz, /readyz, /metrics and /status are served, or off. Port 0 picks one and logs it.",
        reloadable=False,
    ),
    Option(
        "health_host", "Health and logs", "NAME", _host_names, "",
        "A name by which the health port may be asked, beside addresses, localhost and this host's; repeat it.",
        repeatable=True,
    ),
    Option(
        "ready_when", "Health and logs", "WHEN", _choice("consuming", "subscribed"), "consuming",
        "consuming or subscribed: whether a standby behind another host's single active consumer is ready.",
    ),
    Option(
        "control", "Health and logs", "PATH", _control, AUTO,
        "The unix socket for workq status, top, scale, reload, drain; or off. auto: $RUNTIME_DIRECTORY/workq.sock, "
        "else $XDG_RUNTIME_DIR/workq-QUEUE.sock, else off.",
        reloadable=False,
    ),
    Option(
        "log_format", "Health and logs", "FORMAT", _choice("auto", "json", "console"), "auto",
        "auto, json or console. auto is console on a terminal and JSON elsewhere.", reloadable=False,
    ),
    Option(
        "log_level", "Health and logs", "LEVEL", _choice("debug", "info", "warning", "error"), "info",
        "debug, info, warning or error.",
    ),
    Option(
        "config", "Other", "FILE", _path, "", "Read options from a TOML file, where dashes are underscores.",
        in_file=False,
    ),
)  # fmt: skip

OPTIONS: Final[Mapping[str, Option]] = {option.name: option for option in _TABLE}


# -------------------------------------------------------------------------------------------------- the settings


def _default(name: str) -> Any:
    # A factory: the CPU count and the working directory are read when Settings are made, not when this is imported.
    return field(default_factory=lambda: OPTIONS[name].parse(OPTIONS[name].default))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a supervisor, a nursery and a worker need to know. Durations are seconds, sizes bytes.

    The defaults are those of `OPTIONS`. Its repr shows no password, `to_wire` does.
    """

    handler: str
    """`module:function`."""
    url: tuple[Endpoint, ...] = _default("url")
    """The nodes of one broker, at least one."""
    url_open: str = ""
    """The file that they came from, where everybody on this machine can read it."""
    url_mode: str = ""
    """Its mode then: `0644`."""
    queue: str = _default("queue")
    queue_type: str = _default("queue_type")
    """`default` (send no type), `quorum` or `classic`."""
    declare: bool = _default("declare")
    workers: Span = _default("workers")  # noqa: RUF009 (a Field, not a value)
    prefetch: int = _default("prefetch")
    heartbeat: float = _default("heartbeat")
    """Whole seconds, at least 1."""
    task_timeout: float | None = _default("task_timeout")
    boot_timeout: float = _default("boot_timeout")
    grace: float = _default("grace")
    lost_grace: float = _default("lost_grace")
    max_tasks: int | None = _default("max_tasks")
    max_memory: int | None = _default("max_memory")
    retries: int = _default("retries")
    retry_delay: float = _default("retry_delay")
    max_crashes: int = _default("max_crashes")
    max_body: int = _default("max_body")
    health: Address | None = _default("health")  # noqa: RUF009 (a Field, not a value)
    health_explicit: bool = False
    """Whether somebody asked for this address, or it is only the default."""
    health_host: tuple[str, ...] = _default("health_host")
    """Names by which the health port may be asked, beside those that are always right."""
    ready_when: str = _default("ready_when")
    """`consuming`, or `subscribed`: a pool that stands by is ready, too."""
    control: str | None = None
    """Where the control socket is to be, absolute."""
    control_explicit: bool = False
    """Whether somebody asked for this path, or it is only the default."""
    log_format: str = _default("log_format")
    log_level: str = _default("log_level")
    app_dir: str = _default("app_dir")
    """Absolute."""
    preload: bool = _default("preload")
    burst: bool = _default("burst")
    burst_wait: float = _default("burst_wait")
    reload: bool = _default("reload")

    @property
    def exposure(self) -> str:
        """What is wrong with the file that holds the password, in words; empty: nothing."""
        if not self.url_open:
            return ""
        return f"{self.url_open} has mode {self.url_mode}: every user here can read the broker's password in it"

    def to_wire(self) -> dict[str, Any]:
        """As JSON, passwords included: for a private socket only."""
        wire: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        wire["url"] = [endpoint.to_wire() for endpoint in self.url]
        wire["workers"] = [self.workers.least, self.workers.most]
        wire["health"] = [self.health.host, self.health.port] if self.health else None
        return wire

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Settings:
        """The inverse of `to_wire`."""
        health = Address(*wire["health"]) if wire["health"] else None
        urls = tuple(map(Endpoint.from_wire, wire["url"]))
        changed = {"url": urls, "workers": Span(*wire["workers"]), "health": health}
        return cls(**{**wire, **changed, "health_host": tuple(wire["health_host"])})


# ------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True)
class _Given:
    """A value somebody gave, and the name of the place where to correct it."""

    value: object
    source: str


_Source = dict[str, _Given]


def load(
    handler: str | None, command_line: Mapping[str, str | tuple[str, ...] | bool], environ: Mapping[str, str]
) -> Settings:
    """Put the settings together: command line over environment over file over default.

    `command_line` maps names of `OPTIONS` to what was given there, and holds nothing that was not given. An environment
    variable that is set and empty counts as not set. Raises SettingsError with every problem; of an option given in
    several places only the value that counts is checked.
    """
    problems: list[str] = []
    found = _look(handler, command_line, environ, problems)
    sources, file_read = found.sources, found.file_read
    values = _take_all([name for name in OPTIONS if name not in ("url_file", "config")], found, problems)
    values["health_explicit"] = any("health" in source for source in sources)
    values["control_explicit"] = values.get("control") != AUTO and any("control" in source for source in sources)
    if values.get("control") == AUTO and "queue" in values:
        values["control"] = _default_control(values["queue"], found.runtime, environ)
    if values.get("reload") and not _has_watchfiles():
        problems.append("reload: needs the library watchfiles: pip install 'workq-supervise[reload]'")

    # When the file cannot be read, it may be the one that names the handler.
    missing = file_read and not any("handler" in source for source in sources)
    if missing:
        problems.append("no handler: name it as MODULE:FUNCTION, WORKQ_HANDLER or handler in the file")
    if problems:
        raise SettingsError(problems, handler_missing=missing)
    return Settings(**values)


def read(
    names: Sequence[str], command_line: Mapping[str, str | tuple[str, ...] | bool], environ: Mapping[str, str]
) -> dict[str, Any]:
    """These settings by name, for a command that needs no others: from the places where `load` finds them; with `unit`
    in the command line, from those of that unit.

    What is wrong with other settings is not looked at, but for names that nobody knows: a misspelt `queue` would have
    the command act on another one. Raises SettingsError.
    """
    problems: list[str] = []
    found = _look(None, command_line, environ, problems)
    values = _take_all(names, found, problems)
    if problems:
        raise SettingsError(problems)
    return values


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a running supervisor may be found."""

    queue: str
    control: str | None
    health: Address | None
    explicit: frozenset[str]
    """Which of the three somebody named."""


def locate(
    command_line: Mapping[str, str | tuple[str, ...] | bool],
    environ: Mapping[str, str],
    names: tuple[str, ...] = ("queue", "control", "health"),
) -> Whereabouts:
    """Where the supervisor with these sources of settings would be, for whoever wants a word with it.

    Only these three are looked at: what else is wrong with the settings is the supervisor's business. Of sources that
    `names` leaves out the default counts. Raises SettingsError.
    """
    unread: list[str] = []
    found = _look(None, command_line, environ, unread)
    problems = [] if found.file_read else [problem for problem in unread if problem not in found.misspelt]
    values: dict[str, Any] = {}
    explicit = set()
    for name in ("queue", "control", "health"):
        sources = found.sources if name in names else []
        given = next((source[name] for source in sources if name in source), None)
        if given is not None and given.value != AUTO:
            explicit.add(name)
        given = given or _Given(OPTIONS[name].default, OPTIONS[name].flag)
        # A socket that is not there, or not for us, is found out by trying it.
        option = replace(OPTIONS[name], parse=_anywhere) if name == "control" else OPTIONS[name]
        _take(values, option, given, problems)
    if problems:
        raise SettingsError(problems)
    if values["control"] == AUTO:
        values["control"] = _default_control(values["queue"], found.runtime, environ)
    return Whereabouts(values["queue"], values["control"], values["health"], frozenset(explicit))


def _anywhere(value: object) -> str | None:
    return None if value == "off" else AUTO if value == AUTO else str(_path(value).absolute())


def _default_control(queue: str, runtime: str, environ: Mapping[str, str]) -> str | None:
    """Where the control socket is unless somebody says so. Nothing is checked: whoever binds it says what is wrong."""
    if runtime:
        return str(Path(runtime).absolute() / "workq.sock")
    if user := environ.get("XDG_RUNTIME_DIR"):
        from urllib.parse import quote

        return str(Path(user).absolute() / f"workq-{quote(queue, safe='')}.sock")
    return None


def _has_watchfiles() -> bool:
    from importlib.util import find_spec

    return find_spec("watchfiles") is not None


def unreloadable(former: Settings, settings: Settings) -> list[str]:
    """The names of the options that differ, and that a reload cannot change."""
    fixed = (option.name for option in OPTIONS.values() if not option.reloadable)
    return [name for name in fixed if getattr(former, name) != getattr(settings, name)]


@dataclass(frozen=True, slots=True)
class _Found:
    """What all sources hold."""

    sources: list[_Source]
    """The one that counts most first."""
    file_read: bool
    misspelt: list[str]
    """Problems with variables that nobody knows."""
    credential: _Given | None
    """Where the URL is when none of them has it."""
    runtime: str
    """The directory for what is there while a supervisor runs; empty where there is none."""


def _look(
    handler: str | None,
    command_line: Mapping[str, str | tuple[str, ...] | bool],
    environ: Mapping[str, str],
    problems: list[str],
) -> _Found:
    named = dict(command_line)
    unit = named.pop("unit", None)
    if unit is not None:
        return _look_at_unit(str(unit), _from_command_line(handler, named), problems)
    given = _from_command_line(handler, named)
    misspelt: list[str] = []
    variables = _from_environment(environ, misspelt)
    problems += misspelt
    file, file_read = _from_file(given.get("config") or variables.get("config"), problems)
    credential = Path(environ.get("CREDENTIALS_DIRECTORY") or os.devnull) / CREDENTIAL
    # systemd names several directories, with colons between, if the unit has several (systemd.exec(5)).
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return _Found(
        [given, variables, file], file_read, misspelt, _credential(credential, "$CREDENTIALS_DIRECTORY/"), runtime
    )


def _look_at_unit(unit: str, given: _Source, problems: list[str]) -> _Found:
    """The variables of whoever asks are not the unit's: one that names another queue would win over its file."""
    name = _instance(unit)
    if "config" in given or not re.fullmatch(r"[\w.:\\-]+", name):
        wrong = "and --config: give one of them" if "config" in given else "expected the NAME of workq-supervise@NAME"
        problems.append(f"--unit {wrong}")
        return _Found([given], False, [], None, "")
    file, file_read = _from_file(_Given(str(UNITS / f"{name}.toml"), "--unit"), problems)
    credential = _credential(UNITS / f"{name}.{CREDENTIAL}", f"{UNITS}/{name}.")
    return _Found([given, file], file_read, [], credential, str(UNITS_RUN / name))


def _instance(unit: str) -> str:
    return unit.removeprefix("workq-supervise@").removesuffix(".service")


def has_settings(unit: str) -> bool:
    """Whether this is a unit of ours, with settings where those have them."""
    return _holds((UNITS / f"{_instance(unit)}.toml").exists)


def _credential(path: Path, where: str) -> _Given | None:
    return _Given(str(path), f"{where}{CREDENTIAL}") if _holds(path.exists) else None


def _from_command_line(handler: str | None, command_line: Mapping[str, str | tuple[str, ...] | bool]) -> _Source:
    given = {name: _Given(value, OPTIONS[name].flag) for name, value in command_line.items()}
    if handler is not None:
        given["handler"] = _Given(handler, OPTIONS["handler"].flag)
    return given


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> _Source:
    """Foreign `WORKQ_*` variables are left alone, since the prefix is not ours alone; near misses are problems."""
    given: _Source = {}
    for variable, text in sorted(environ.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text.strip() or name.startswith(_OTHERS_VARIABLES):
            continue
        if name in OPTIONS and variable == OPTIONS[name].variable:
            given[name] = _Given(text, variable)
        elif nearest := _nearest(name, 0.8):
            problems.append(f"{variable}: unknown, did you mean {OPTIONS[nearest].variable}?")
    return given


def _from_file(config: _Given | None, problems: list[str]) -> tuple[_Source, bool]:
    """What the TOML file holds, and whether it could be read (or was not asked for)."""
    if config is None:
        return {}, True
    import tomllib

    try:
        path = _path(config.value)
    except ValueError as error:
        problems.append(_problem(config, str(error), secret=False))
        return {}, False
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{config.source}: cannot read {_shown(config.value)}: {error.strerror}")
        return {}, False
    except ValueError as error:
        # Only the place: tomllib quotes characters and keys, and the broken line may be the one with the password.
        place = re.search(r"at line \d+, column \d+|at end of document", str(error))
        problems.append(f"{path.name}: not valid TOML {place[0] if place else '(is it UTF-8?)'}")
        return {}, False
    return dict(_from_document(document, path.name, problems)), True


def _from_document(document: dict[str, Any], file: str, problems: list[str]) -> Iterator[tuple[str, _Given]]:
    for key, value in document.items():
        if key in OPTIONS and OPTIONS[key].in_file:
            yield key, _Given(value, f"{file}: {key}")
            continue
        source = f"{file}: {_shown(key).strip(chr(39))}"
        if key in OPTIONS:
            problems.append(f"{source}: not for the file, give {OPTIONS[key].flag} or {OPTIONS[key].variable}")
        else:
            nearest = _nearest(key, 0.6, in_file=True)
            problems.append(f"{source}: unknown key" + (f", did you mean {nearest}?" if nearest else ""))


def _take_all(names: Sequence[str], found: _Found, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in names:
        option = OPTIONS[name]
        if name == "url":
            _take_urls(values, found, problems)
            continue
        given = next((source[name] for source in found.sources if name in source), None)
        if given is None and option.default:
            # Checked as well: `.` may be a directory that has been removed.
            given = _Given(option.default, f"{option.flag} (the default)")
        if given is not None:
            _take(values, option, given, problems)
    return values


def _take(values: dict[str, Any], option: Option, given: _Given, problems: list[str]) -> None:
    try:
        values[option.name] = option.parse(given.value)
    except ValueError as error:
        problems.append(_problem(given, str(error), secret=option.secret))


def _take_urls(values: dict[str, Any], found: _Found, problems: list[str]) -> None:
    """`url` and `url_file` are two ways to say one thing: the first source that has either decides."""
    for source in found.sources:
        url, file = source.get("url"), source.get("url_file")
        if url and file:
            problems.append(f"{url.source} and {file.source}: give one of them")
        elif url:
            _take(values, OPTIONS["url"], url, problems)
        elif file:
            _take_url_file(values, file, problems)
        if url or file:
            return
    if found.credential is not None:
        _take_url_file(values, found.credential, problems)
    else:
        values["url"] = OPTIONS["url"].parse(OPTIONS["url"].default)


def _take_url_file(values: dict[str, Any], given: _Given, problems: list[str]) -> None:
    try:
        path = _path(given.value)
    except ValueError as error:
        problems.append(_problem(given, str(error), secret=False))
        return
    try:
        values["url"] = _read_urls(path)
        if mode := _mode_for_all(path):
            values |= {"url_open": str(path), "url_mode": mode}
    except OSError as error:
        problems.append(f"{given.source}: cannot read {_shown(given.value)}: {error.strerror}")
    except ValueError as error:
        problems.append(_problem(given, str(error), secret=True))


def _mode_for_all(path: Path) -> str:
    """The mode of a file that others can read. Empty where they cannot: by the mode, since a directory on the way there
    is closed to them (as systemd's credentials are), or since it is a pipe."""
    try:
        real = path.resolve()
        mode = real.stat().st_mode
        is_open = stat.S_ISREG(mode) and mode & stat.S_IROTH
        return f"{stat.S_IMODE(mode):04o}" if is_open and all(map(_is_passable, real.parents)) else ""
    except OSError:
        return ""  # it has been read, so this is no name in the file system: /dev/fd/3


def _is_passable(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IXOTH)


def _read_urls(path: Path) -> tuple[Endpoint, ...]:
    # Bytes that are not UTF-8 become escapes that Endpoint refuses: a decoding error would hold the file's content.
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    named = [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1)]
    named = [(name, line) for name, line in named if line and not line.startswith("#")]
    if not named:
        raise ValueError("a file with a URL on a line of its own, but it has none")
    return _parse_urls(named)


# ---------------------------------------------------------------------------------------------------- the report


def _problem(given: _Given, expected: str, *, secret: bool) -> str:
    return f"{given.source}: {'' if secret else f'got {_shown(given.value)}, '}expected {expected}"


def _shown(value: object) -> str:
    """A refused value, for a report. A URL in the wrong place (`--queue "$URL"`) is not shown there either."""
    text = repr(value)
    if "://" in text or "@" in text:
        return "something like a URL (not shown)"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _nearest(name: str, likeness: float, *, in_file: bool = False) -> str | None:
    from difflib import get_close_matches

    known = [option.name for option in OPTIONS.values() if option.in_file or not in_file]
    return next(iter(get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=likeness)), None)
