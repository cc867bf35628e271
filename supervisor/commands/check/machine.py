"""`workq check`'s findings about the machine: limits, systemd, the handler, the health port. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from supervisor.commands.check.container import Container, traps
from supervisor.commands.check.facts import Finding, Level, note, ok, problem, warning
from supervisor.policy import hung
from supervisor.settings import Cpus, Settings
from supervisor.values import dataclass

MIB: Final = 1024**2
OVERHEAD: Final = 100 * MIB
"""Supervisor and nursery, without what the handler's module holds."""
BASE_FILES, FILES_EACH = 64, 8
"""Descriptors: of the supervisor itself, and for each worker link, pipe and pidfd, twice while a reload replaces it."""
BASE_TASKS, TASKS_EACH = 16, 4
"""Processes and threads, as the kernel's pids controller counts them: a worker, its heartbeats and its parking."""
STOP_MARGIN: Final = 5.0
"""Seconds that a stop takes beyond the grace."""

PROPERTIES: Final = (
    "Id", "LoadState", "ActiveState", "Type", "Restart", "KillMode", "OOMPolicy", "TimeoutStopUSec",
    "RestartPreventExitStatus", "WatchdogUSec", "LimitNOFILESoft", "TasksMax", "MemoryMax",
)  # fmt: skip
"""Of `systemctl show`. Never Environment, which may hold a URL."""


@dataclass(frozen=True, slots=True)
class Imported:
    """How importing the handler went."""

    error: str = ""
    seconds: float = 0.0
    threads: int = 1
    """That it left behind, the main one included."""
    raised: bool = True
    """Whether the error is one of the import; else the module is well, and what was named in it is no handler."""
    replaced: Sequence[str] = ()
    """Functions of the standard library that it replaced: gevent and eventlet do."""
    resident: int = 0
    """Bytes that the process took then; a worker takes a little more. 0: not known."""
    shared: str = ""
    """What it opened that workers forked after it would share, in words."""


@dataclass(frozen=True, slots=True)
class Health:
    """Who listens where the supervisor wants to."""

    error: str = ""
    """Why the address cannot be bound; empty: it can."""
    supervisor: str = ""
    """One of ours answers there, and says that it is in this state."""
    trouble: str = ""
    """What it has met while it runs, and a short look does not."""


@dataclass(frozen=True, slots=True)
class Host:
    """What could be found out. None: not known, or not there."""

    cpus: Cpus
    memory: int
    """Bytes that it may use, by cgroup and machine."""
    memory_by: str
    """`cgroup` or `machine`."""
    files: int
    """Descriptors that it may have; -1 for as many as it likes."""
    health: Health | None = None
    app_dir_open_to: str = ""
    """Who else may write to `--app-dir`: `everybody`, `group games`; empty: nobody but its owner and root."""
    imported: Imported | None = None
    """None: no handler was named."""
    report: str | None = None
    """Why the function of --report cannot be imported; empty: it can. None: there is none."""
    clash: tuple[str, str] | None = None
    """What is wrong with our own installation, and what sets it right."""
    units: Sequence[Mapping[str, str]] | None = None
    """`systemctl show` of each unit; None: systemd does not run here."""
    container: Container | None = None
    """What this runs in; None: in no container."""


def examine(host: Host, settings: Settings) -> list[Finding]:
    """All findings about the machine."""
    return [
        *([warning("installation", *host.clash)] if host.clash else []),
        *_handler(host, settings),
        *_report(host, settings),
        *_app_dir(host, settings),
        *_url_file(settings),
        *_cpus(host, settings),
        *_memory(host.memory, f"the {host.memory_by}", settings),
        *_memory_limit(host.imported, settings),
        *_files(host, settings),
        *_health(host, settings),
        *_systemd(host, settings),
        *(traps(host.container, host.cpus, settings, STOP_MARGIN) if host.container else []),
    ]


def _handler(host: Host, settings: Settings) -> Iterator[Finding]:
    imported = host.imported
    if imported is None:
        yield ok("handler", "none is named, none was imported: `workq check MODULE:FUNCTION` does")
    elif imported.error:
        # The same as the nursery does, so that whoever runs the line sees the whole traceback.
        module = shlex.quote(settings.handler.partition(":")[0])
        fix = f"PYTHONPATH={shlex.quote(settings.app_dir)} python -P -c 'import sys; __import__(sys.argv[1])' {module}"
        what = f"{settings.handler} cannot be loaded: {imported.error}"
        yield problem("handler", what, fix if imported.raised else "")
    elif (imported.replaced or imported.threads > 1) and settings.preload:
        harm = f"leaves {imported.threads - 1} threads behind"
        if imported.replaced:
            harm = f"replaces functions of the standard library ({', '.join(imported.replaced)})"
        what = f"importing {settings.handler} {harm}, so it cannot be imported once for all: each worker imports it"
        yield note("handler", what, "export WORKQ_PRELOAD=false")
    elif imported.shared and settings.preload:
        what = f"the import of {settings.handler} changes its process: {imported.shared}"
        yield warning("handler", what, "export WORKQ_PRELOAD=false")
    else:
        yield ok("handler", f"{settings.handler} is imported in {imported.seconds:.1f} s")


def _report(host: Host, settings: Settings) -> Iterator[Finding]:
    if host.report:
        what = f"{settings.report} cannot be loaded, so no event is reported; tasks run all the same: {host.report}"
        yield problem("report", what)
    elif host.report is not None:
        yield ok("report", f"{settings.report} can be imported")


def _app_dir(host: Host, settings: Settings) -> Iterator[Finding]:
    if host.app_dir_open_to:
        what = f"{host.app_dir_open_to} can write to --app-dir {settings.app_dir}, and so change what workers run"
        yield warning("app dir", what, f"chmod go-w {shlex.quote(settings.app_dir)}")
    else:
        yield ok("app dir", settings.app_dir)


def _url_file(settings: Settings) -> Iterator[Finding]:
    if settings.exposure:
        yield warning("url file", settings.exposure, f"chmod 600 {shlex.quote(settings.url_open)}")


def _cpus(host: Host, settings: Settings) -> Iterator[Finding]:
    workers, cpus = settings.workers.most, host.cpus.count
    by = f"by the cgroup's CPU quota, of {host.cpus.affinity} by affinity" if host.cpus.is_quota else "by affinity"
    if workers > 4 * cpus and workers > 4:
        what = f"{workers} workers share {cpus:g} CPUs ({by}); fine if tasks mostly wait"
        yield note("CPUs", what, f"export WORKQ_WORKERS={max(1, int(cpus))}")
    else:
        yield ok("CPUs", f"{cpus:g} ({by}) for {settings.workers} workers")


def _memory(memory: int, whose: str, settings: Settings) -> Iterator[Finding]:
    workers, each = settings.workers.most, settings.max_memory
    room = max(0, memory - OVERHEAD) // workers // MIB
    fix = f"export WORKQ_MAX_MEMORY={room}M" if room >= 16 else f"export WORKQ_WORKERS={max(1, workers // 2)}"
    if each is not None and workers * each + OVERHEAD > memory:
        what = f"{workers} workers of --max-memory {_size(each)} and a supervisor do not fit into the {_size(memory)} "
        what += f"of {whose}: the kernel kills before --max-memory replaces"
        yield warning("memory", what, fix)
    elif each is None and whose != "the machine":
        what = f"--max-memory is off, and {whose} ends at {_size(memory)}: a handler that leaks is killed in mid-task"
        yield note("memory", what, fix)
    else:
        yield ok("memory", f"{_size(memory)} of {whose} for {settings.workers} workers")


def _memory_limit(imported: Imported | None, settings: Settings) -> Iterator[Finding]:
    """Whether a worker is within `--max-memory` before its first task."""
    if imported is None or (why := hung.too_small(settings.max_memory, imported.resident)) is None:
        return
    fix = f"export WORKQ_MAX_MEMORY={math.ceil(1.5 * imported.resident / MIB)}M"
    yield warning("memory limit", why, fix)


def _files(host: Host, settings: Settings) -> Iterator[Finding]:
    needed = BASE_FILES + FILES_EACH * settings.workers.most
    if 0 <= host.files < needed:
        what = f"this process may open {host.files} files, the supervisor of {settings.workers} workers needs {needed}"
        yield warning("open files", what, f"ulimit -Sn {needed}")
    else:
        yield ok("open files", f"{'any number' if host.files < 0 else host.files} of {needed} needed")


def _health(host: Host, settings: Settings) -> Iterator[Finding]:
    health = host.health
    if settings.health is None or health is None:
        yield ok("health port", "off")
    elif health.supervisor:
        yield ok("health port", f"a supervisor answers at {settings.health}: {health.supervisor}")
        if health.trouble:
            yield warning("supervisor", f"the one at {settings.health} says: {health.trouble}")
    elif health.error and not settings.health_explicit:
        yield ok("health port", f"{settings.health}, the default: {health.error}; a free port is taken instead")
    elif health.error:
        what = f"{settings.health} is not available: {health.error}; workq-supervise will not start"
        yield problem("health port", what, f"ss -ltnp 'sport = :{settings.health.port}'")
    else:
        yield ok("health port", f"{settings.health} is free")


# ------------------------------------------------------------------------------------------------------ systemd


def units(text: str) -> list[dict[str, str]]:
    """The units of `systemctl show`'s output that exist, each its properties."""
    blocks = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n"))
    return [block for block in blocks if block.get("LoadState") not in (None, "not-found")]


def seconds(text: str) -> float | None:
    """systemd's way to write a duration (systemd.time(7)): `1min 30s` -> 90. None: for ever, or no duration."""
    total = 0.0
    for word in text.split():
        found = re.fullmatch(r"([\d.]+)([a-z]*)", word)
        if found is None or found[2] not in _UNITS:
            return None
        total += float(found[1]) * _UNITS[found[2]]
    return total if text.split() else None


_UNITS: Final = {
    "": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0,
    "month": 2629800.0, "y": 31557600.0,
}  # fmt: skip


def unit_of(cgroups: str) -> str | None:
    """The service that a process is in, from its /proc/PID/cgroup (cgroups(7))."""
    for line in cgroups.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" or controllers == "name=systemd":
            services = [part for part in path.split("/") if part.endswith(".service")]
            # Below user@1000.service lie a user's own services, which another systemd answers for.
            if services and not services[0].startswith("user@"):
                return services[-1]
    return None


def _systemd(host: Host, settings: Settings) -> Iterator[Finding]:
    if host.units is None:
        yield ok("systemd", "not running here")
    elif not host.units:
        yield ok("systemd", "no unit named workq-supervise is loaded (--unit names another)")
    for unit in host.units or ():
        found = [*_unit(unit, settings)]
        yield from found or [ok("systemd", f"{unit['Id']} is set up well")]


def _unit(unit: Mapping[str, str], settings: Settings) -> Iterator[Finding]:
    name = unit.get("Id", "the unit")

    def wrong(key: str, value: str, what: str, level: Level = Level.WARNING) -> Finding:
        return Finding(level, "systemd", f"{name}: {what}", _drop_in(name, key, value))

    restart = unit.get("Restart")
    if restart == "no":
        yield wrong("Restart", "always", "Restart=no, so a supervisor that dies is not restarted", Level.PROBLEM)
    elif restart not in (None, "always"):
        yield wrong("Restart", "always", f"Restart={restart}, so a supervisor that got SIGTERM is not restarted")
    if "78" not in re.findall(r"\w+", unit.get("RestartPreventExitStatus", "78")):
        yield wrong("RestartPreventExitStatus", "78", "it is restarted for ever when its settings are wrong (exit 78)")
    kill = unit.get("KillMode", "mixed")
    if kill == "control-group":
        yield wrong("KillMode", "mixed", "KillMode=control-group: workers get the signal too, instead of being drained")
    elif kill != "mixed":
        yield wrong("KillMode", "mixed", f"KillMode={kill}: what handlers have started outlives a stop")
    if unit.get("OOMPolicy", "continue") != "continue":
        what = f"OOMPolicy={unit['OOMPolicy']}: one worker killed by the OOM killer stops the whole unit"
        yield wrong("OOMPolicy", "continue", what)
    stop, needed = seconds(unit.get("TimeoutStopUSec", "")), settings.grace + STOP_MARGIN
    if stop is not None and stop < needed:
        what = f"TimeoutStopSec is {stop:g} s: tasks in flight are killed before --grace {settings.grace:g}s is over"
        yield wrong("TimeoutStopSec", f"{needed:g}", what)
    # Before its first start systemd tells none, whatever is set.
    is_active, notifies = unit.get("ActiveState") == "active", unit.get("Type", "").startswith("notify")
    if is_active and notifies and seconds(unit.get("WatchdogUSec", "")) in (None, 0.0):
        what = "no watchdog: a supervisor that hangs is not noticed"
        yield wrong("WatchdogSec", "30", what, Level.NOTE)
    yield from _unit_limits(unit, settings, wrong)


def _unit_limits(unit: Mapping[str, str], settings: Settings, wrong: _Wrong) -> Iterator[Finding]:
    workers = settings.workers.most
    for prop, key, needed, of_what in (
        ("LimitNOFILESoft", "LimitNOFILE", BASE_FILES + FILES_EACH * workers, "open files"),
        ("TasksMax", "TasksMax", BASE_TASKS + TASKS_EACH * workers, "processes and threads"),
    ):
        limit = _number(unit.get(prop, ""))
        if limit is not None and limit < needed:
            what = f"{key}={limit}, and {workers} workers need {needed} {of_what}, those of handlers not counted"
            yield wrong(key, str(2 * needed), what)
    memory, each = _number(unit.get("MemoryMax", "")), settings.max_memory
    if memory is not None and each is not None and workers * each + OVERHEAD > memory:
        what = f"MemoryMax is {_size(memory)}, and {workers} workers of --max-memory {_size(each)} do not fit into it"
        yield wrong("MemoryMax", f"{-(-(workers * each + OVERHEAD) // MIB)}M", what)


class _Wrong(Protocol):
    def __call__(self, key: str, value: str, what: str, level: Level = Level.WARNING) -> Finding: ...


def _drop_in(name: str, key: str, value: str) -> str:
    """A file for each key, so that the fixes of several findings do not replace one another."""
    directory = shlex.quote(f"/etc/systemd/system/{re.sub('@.*', '@.service', name)}.d")
    setting = shlex.quote(f"[Service]\\n{key}={value}\\n")
    return f"mkdir -p {directory} && printf {setting} > {directory}/workq-{key}.conf && systemctl daemon-reload"


def _number(text: str) -> int | None:
    """None: no limit. systemd writes `infinity`, or 2^64 - 1."""
    return int(text) if text.isdigit() and int(text) < 2**63 else None


def _size(size: int) -> str:
    return f"{size / 1024**3:.1f}G" if size >= 10 * 1024**3 else f"{size // MIB}M"
