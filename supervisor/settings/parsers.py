"""Parsers from text, or any TOML value, to the setting. Raise ValueError with what was expected, quoting nothing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from supervisor.endpoint import Endpoint
from supervisor.linux import cgroup
from supervisor.queues import dead
from supervisor.values import dataclass

WORKERS_MOST: Final = 1024
"""As many as the scoreboard has pages."""
AUTO: Final = "auto"
SOCKET_PATH_MOST: Final = 107
"""Bytes of a unix socket's path: 108 in sockaddr_un (unix(7)), less a NUL."""
_YEAR: Final = 8760 * 3600.0

Parser = Callable[[object], Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 lets the kernel pick one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Span:
    """The number of workers, both ends included."""

    least: int
    most: int
    by: str = field(default="given", compare=False)
    """The origin of the number; with `auto`, the limit on CPUs."""

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most

    def __str__(self) -> str:
        return f"{self.least}" if self.is_fixed else f"{self.least}..{self.most}"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many tasks in so much time."""

    count: int
    unit: str
    """`s`, `m` or `h`."""

    @property
    def interval(self) -> float:
        """Seconds from one task to the next."""
        return _SECONDS[self.unit] / self.count

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


@dataclass(frozen=True, slots=True)
class Threshold:
    """Of the circuit breaker."""

    ratio: float
    """Of failed tasks, above 0, at most 1."""
    count: int
    """Of ended tasks, at least."""

    def __str__(self) -> str:
        return f"{self.ratio * 100:g}%/{self.count}"


_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(ms|s|m|h)?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_RATE: Final = re.compile(r"([0-9]{1,7})\s*/\s*([smh])")
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
    # Divided, not multiplied by 0.001, so that 500ms is exactly half a second.
    seconds = number / 1000 if unit == "ms" else number * _SECONDS[unit]
    if seconds > _YEAR:
        raise ValueError("a duration of at most 8760h")
    return seconds


def rate(value: object) -> Rate:
    """`20/s`, `600/m` or `1000/h`. Raises ValueError."""
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not int(match[1]):
        raise ValueError("a number of tasks, at most 9999999, in a second, minute or hour, such as 20/s, 600/m, 1000/h")
    return Rate(int(match[1]), match[2])


def parse_size(value: object) -> int:
    """`512K`, `512M`, `1G` (powers of 1024), or plain bytes as text or number -> bytes. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size such as 512K, 16M or 1G")
    return int(match[1]) * _BYTES[(match[2] or "").upper()]


def duration(least: float, example: str) -> Parser:
    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if seconds < least:
            raise ValueError(f"a duration of at least {least:g}s, such as {example}")
        return seconds

    return parse


def size(least: str, example: str) -> Parser:
    def parse(value: object) -> int:
        size = parse_size(value)
        if not parse_size(least) <= size < 2**63:
            raise ValueError(f"a size of at least {least}, such as {example}")
        return size

    return parse


def or_off(parse: Parser) -> Parser:
    def parse_or_off(value: object) -> Any:
        if value == "off":
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or off") from None

    return parse_or_off


_THRESHOLD: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)\s*%\s*/\s*([0-9]{1,7})")


def threshold(value: object) -> Threshold:
    match = _THRESHOLD.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not 0 < float(match[1]) <= 100 or int(match[2]) < 1:
        raise ValueError("a percentage of failed tasks and a number of tasks, such as 50%/20")
    return Threshold(float(match[1]) / 100, int(match[2]))


def number(least: int, most: int) -> Parser:
    def parse(value: object) -> int:
        text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
        # Not int() alone, which also reads 1_000 and the digits of every script.
        number = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else -1
        if not least <= number <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return number

    return parse


def choice(*choices: str) -> Parser:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return parse


def flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError("true or false")
    return flag


@dataclass(frozen=True, slots=True)
class Cpus:
    """The CPUs that this process may use, limited by containers, CPUAffinity= and CPUQuota=."""

    affinity: int
    quota: float | None
    """CPU time of its cgroup, in CPUs; None: no limit."""

    @property
    def workers(self) -> int:
        """One for each; a fraction counts as one."""
        return min(self.affinity, WORKERS_MOST, self.affinity if self.quota is None else math.ceil(self.quota))

    @property
    def count(self) -> float:
        return float(self.affinity) if self.quota is None else min(self.affinity, self.quota)

    @property
    def is_quota(self) -> bool:
        """Whether the quota is the limit, not the affinity."""
        return self.quota is not None and self.quota < self.affinity

    def __str__(self) -> str:
        """The reason for the number, for the log."""
        if self.is_quota:
            return f"auto: the cgroup's CPU quota of {self.quota:g}"
        return f"auto: {self.affinity} CPU{'s' if self.affinity > 1 else ''} by affinity"


def usable_cpus() -> Cpus:
    return Cpus(len(os.sched_getaffinity(0)), cgroup.cpu_quota())


def workers(value: object) -> Span:
    least, is_range, most = value.partition("..") if isinstance(value, str) else (value, "", "")
    if value == "auto":
        cpus = usable_cpus()
        return Span(cpus.workers, cpus.workers, str(cpus))
    whole = number(1, WORKERS_MOST)
    try:
        low = whole(least)
        if is_range and most.strip() == "auto":
            # Not an error on a machine with fewer CPUs: one file should work on large and small hosts.
            cpus = usable_cpus()
            return Span(low, max(low, cpus.workers), str(cpus))
        high = whole(most) if is_range else low
    except ValueError as error:
        raise ValueError(f"{error}, MIN..MAX of two such numbers, or auto for one per CPU") from None
    if low > high:
        raise ValueError(f"MIN..MAX, smaller number first, such as {high}..{low}")
    return Span(low, high)


def heartbeat(value: object) -> float:
    # Connection.Tune has whole seconds in 16 bits, and 0 would disable heartbeats (AMQP 0-9-1, 1.4.2.6): then a peer
    # that vanished is never noticed.
    try:
        seconds = math.ceil(parse_duration(value)) if parse_duration(value) >= 1 else 0
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 65535:
        raise ValueError("a duration from 1s to 65535s, such as 15s (heartbeats cannot be off)")
    return float(seconds)


def handler(value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    module, _, function = text.partition(":")
    if not all(name.isidentifier() for name in [*module.split("."), *function.split(".")]):
        raise ValueError("module:function, such as tasks:resize")
    return text


def queue(value: object) -> str:
    # A queue name has at most 255 bytes of UTF-8, and names with amq. in front are the broker's own: declaring one is
    # refused with 403 (https://www.rabbitmq.com/docs/queues#names). The dead-letter queue is named after ours.
    most = 255 - len(dead(""))
    if not isinstance(value, str) or not 1 <= len(value.encode(errors="surrogateescape")) <= most:
        raise ValueError(f"a queue name of 1 to {most} bytes, so that {dead('')} can be appended")
    if value.startswith("amq."):
        raise ValueError("a queue name that does not begin with amq., which RabbitMQ reserves")
    if not value.isprintable():
        raise ValueError("a queue name in UTF-8 without control characters")
    if "://" in value:
        # RabbitMQ would accept it. But it is a URL in the wrong place, and every log line has the queue's name.
        raise ValueError("a queue name, not a URL")
    return value


def address(value: object) -> Address:
    host, colon, port = value.strip().rpartition(":") if isinstance(value, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*" if bracketed else r"[A-Za-z0-9._-]+", host):
        raise ValueError("HOST:PORT, such as 127.0.0.1:9191 or [::1]:9191")
    try:
        return Address(host, number(0, 65535)(port))
    except ValueError:
        raise ValueError("HOST:PORT with a port from 0 to 65535") from None


def host_names(value: object) -> tuple[str, ...]:
    """Text with one or more names, or a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a host name or a list of host names")
    names = [name for text in texts for name in re.split(r"[\s,]+", text) if name]
    if not all(re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", name) for name in names):
        raise ValueError("host names without scheme or port, such as workers.example.org")
    return tuple(dict.fromkeys(name.lower().removesuffix(".") for name in names))


def directory(value: object) -> str:
    place = path(value)
    if not holds(place.is_dir):
        raise ValueError("a directory that exists")
    try:
        return str(place.absolute())
    except FileNotFoundError:
        # It still exists as `.`, but has no path.
        raise ValueError("a directory that exists; the working directory has been deleted") from None


def control(value: object) -> str | None:
    """None for `off`; `auto` stays, since it depends on the queue and the environment."""
    return None if value == "off" else AUTO if value == AUTO else _socket(value)


def _socket(value: object) -> str:
    place = path(value).absolute()
    if len(os.fsencode(place)) > SOCKET_PATH_MOST:
        raise ValueError(f"a path of at most {SOCKET_PATH_MOST} bytes, the kernel's limit for a socket")
    if not holds(place.parent.is_dir):
        raise ValueError("a path for a socket, in a directory that exists")
    if holds(place.exists) and not holds(place.is_socket):
        # Never replace another file by a socket.
        raise ValueError("a path for a socket, where no other file exists")
    return str(place)


def path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path")
    return Path(value)


def holds(test: Callable[[], bool]) -> bool:
    """`test`, or False for an OSError: pathlib lets EACCES and ENAMETOOLONG through."""
    try:
        return test()
    except OSError:
        return False


def urls(value: object) -> tuple[Endpoint, ...]:
    """One or more URLs, or a list of such texts. A comma separates only before a URL: passwords may have commas."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("a URL or a list of URLs")
    urls = [url for text in texts for url in re.split(r"(?i)[\s,]+(?=amqps?://)", text.strip(" \t\r\n,"))]
    return named_urls([(f"URL {number} of {len(urls)}", url) for number, url in enumerate(urls, 1)])


def named_urls(named: list[tuple[str, str]]) -> tuple[Endpoint, ...]:
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
        if path is not None and ("\0" in path or not holds(Path(path).is_file)):
            raise ValueError(f"its {name} is not a file")
