"""Facts about this machine, for `workq check`: by reading, and by one import in another process."""

from __future__ import annotations

import grp
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from supervisor import namesake
from supervisor.commands.check.container import KUBERNETES, Container, arguments_of
from supervisor.commands.check.machine import PROPERTIES, Health, Host, Imported, unit_of, units
from supervisor.commands.running import NoAnswer, Running
from supervisor.linux import cgroup
from supervisor.redaction import redact
from supervisor.settings import Address, Settings, usable_cpus
from supervisor.vocabulary import EXIT_DONE

UNITS: Final = ("workq-supervise.service", "workq-supervise@*.service")
_SYSTEMCTL_TIMEOUT: Final = 10.0
_HTTP_TIMEOUT: Final = 2.0
_TROUBLE_MOST: Final = 500
"""Characters that are taken over."""
_UNLIMITED: Final = 2**60
"""What the first version of cgroups says for "no limit" is a little less than 2^63."""

_IMPORT: Final = """
import json, os, sys, time
from supervisor import originals
from supervisor.worker import aftermath, shared
from supervisor.worker.handler import CannotLoad, load
target, app_dir, fd = sys.argv[1:]
before = shared.opened()
begun, error, raised = time.monotonic(), "", False
try:
    load(target, app_dir)
except CannotLoad as refused:
    error, raised = refused.error, bool(refused.traceback)
threads = len(aftermath.threads() if originals.replaced() else aftermath.threads_after_a_fork())
with open("/proc/self/statm") as told:
    resident = int(told.read().split()[1]) * os.sysconf("SC_PAGESIZE")
inherited = shared.found(before)
inherited = shared.sentence(inherited) if inherited else ""
found = [error, time.monotonic() - begun, threads, raised, originals.replaced(), resident, inherited]
os.write(int(fd), json.dumps(found).encode())
os._exit(0)
"""
"""As the nursery does it: the same loader, the same sys.path. Then gone, whatever threads or atexit there are."""
_FIND: Final = "import os, sys; from supervisor.reporter import find; find(*sys.argv[1:3]); os._exit(0)"


def look(settings: Settings, has_handler: bool, unit_names: Sequence[str]) -> Host:
    counter = cgroup.find_counter()
    memory, by = _memory(counter)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Host(
        cpus=usable_cpus(),
        memory=memory,
        memory_by=by,
        files=-1 if files == resource.RLIM_INFINITY else files,
        health=_health(settings.health) if settings.health else None,
        app_dir_open_to=_open_to(Path(settings.app_dir)),
        imported=import_handler(settings) if has_handler else None,
        report=import_report(settings.report, settings) if settings.report is not None else None,
        clash=namesake.clash(),
        units=_units(unit_names),
        container=_container(counter),
    )


def _container(counter: Path | None) -> Container | None:
    """`counter`: in its memory cgroup."""
    # A machine may be a container, or have been one, without anybody stopping supervisors by it.
    is_for_us = os.getpid() == 1 or (_read(Path("/proc/1/comm")) or "").startswith("workq")
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        engine = KUBERNETES
    elif not is_for_us:
        return None
    elif os.environ.get("container") == "podman" or Path("/run/.containerenv").exists():  # noqa: SIM112 (its own)
        engine = "podman"
    elif Path("/.dockerenv").exists():
        engine = "docker"
    else:
        return None
    is_killed_whole = counter is not None and _read(counter.with_name("memory.oom.group")) == "1"
    return Container(engine, is_killed_whole, _has_hosts_network())


def _has_hosts_network() -> bool:
    """A network of a container's own has no hardware and no bridge, only ends of pairs and tunnels."""
    return any(Path("/sys/class/net").glob("*/device")) or any(Path("/sys/class/net").glob("*/bridge"))


def containers_options() -> list[str]:
    """The command line of the supervisor that is PID 1 of this container; empty: there is none."""
    if os.getpid() == 1 or _container(None) is None:
        return []
    return arguments_of((_read(Path("/proc/1/cmdline")) or "").rstrip("\0").split("\0"))


# ------------------------------------------------------------------------------------------------------- limits


def _memory(counter: Path | None) -> tuple[int, str]:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for limit in _limits(counter.parent if counter else None) if limit < min(machine, _UNLIMITED)]
    return (min(limits), "cgroup") if limits else (machine, "machine")


def _limits(directory: Path | None) -> list[int]:
    """The memory limits of a cgroup and those above it: `memory.max` (v2) or `memory.limit_in_bytes` (v1)."""
    found = []
    while directory is not None:
        texts = [_read(directory / name) for name in ("memory.max", "memory.limit_in_bytes")]
        found += [int(text) for text in texts if text and text.isdigit()]
        above = directory.parent
        directory = above if (above / "cgroup.procs").exists() else None
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _open_to(directory: Path) -> str:
    try:
        found = directory.stat()
    except OSError:
        return ""
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    if found.st_mode & stat.S_IWGRP and found.st_gid != 0 and not _is_private(found.st_gid, found.st_uid):
        try:
            return f"group {grp.getgrgid(found.st_gid).gr_name}"
        except KeyError:
            return f"group {found.st_gid}"
    return ""


def _is_private(gid: int, uid: int) -> bool:
    """The group that Debian makes for each user, with nobody else in it."""
    try:
        return gid == uid and not grp.getgrgid(gid).gr_mem
    except KeyError:
        return gid == uid


# ------------------------------------------------------------------------------------------------------- handler


def import_handler(settings: Settings) -> Imported:
    """Import it as the nursery would."""
    code, said = _run(_IMPORT, settings.handler, settings)
    if code is None:
        return Imported(_late(settings))
    if code != EXIT_DONE:
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return Imported(f"its import ended the process ({how})")
    return Imported(*json.loads(said or b'["its import ended the process (exit 0)", 0, 1, true, []]'))


def import_report(target: str, settings: Settings) -> str:
    """Import the function of --report as its process would. Returns why that fails, in one line, or nothing."""
    code, said = _run(_FIND, target, settings, is_told_by_stderr=True)
    if code is None:
        return _late(settings)
    lines = said.decode(errors="replace").splitlines()
    if code == EXIT_DONE:
        return ""
    return redact(lines[-1].strip()[:_TROUBLE_MOST]) if lines else f"its import ended the process (exit {code})"


def _late(settings: Settings) -> str:
    return f"its import is not done within --boot-timeout {settings.boot_timeout:g}s"


def _run(script: str, target: str, settings: Settings, *, is_told_by_stderr: bool = False) -> tuple[int | None, bytes]:
    """Run it with this target in another process. Its exit code, None if it was not done in time, and what it wrote to
    its last argument, a descriptor, or to stderr."""
    environ = {name: value for name, value in os.environ.items() if name != "WORKQ_URL"}  # as for the nursery
    with tempfile.TemporaryFile() as said:  # not a pipe, which a child of the import may hold open
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", script, target, settings.app_dir, str(said.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said if is_told_by_stderr else subprocess.DEVNULL,
            pass_fds=(said.fileno(),),
            env=environ,
            start_new_session=True,
        )
        code = None
        try:
            code = child.wait(settings.boot_timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        said.seek(0)
        return code, said.read()


# --------------------------------------------------------------------------------------------------- health port


def _health(address: Address) -> Health:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return Health(error.strerror or str(error), *_answer(address))
    return Health()


def _answer(address: Address) -> tuple[str, str]:
    """The state in which a supervisor that listens there says it is, and its trouble; empty: there is none."""
    try:
        status = Running(address).status(_HTTP_TIMEOUT)
    except NoAnswer:
        return "", ""
    return str(status.get("state", "")), " ".join(str(status.get("trouble") or "").split())[:_TROUBLE_MOST]


# ------------------------------------------------------------------------------------------------------- systemd


def is_loaded(unit: str) -> bool:
    return bool(_show([unit]))


def _units(names: Sequence[str]) -> list[Mapping[str, str]] | None:
    own = unit_of(_read(Path("/proc/self/cgroup")) or "")
    return _show(list(dict.fromkeys([*(names or UNITS), *([own] if own else [])])))


def _show(names: Sequence[str]) -> list[Mapping[str, str]] | None:
    # sd_booted(3)
    if not Path("/run/systemd/system").is_dir():
        return None
    command = ["systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", "--", *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SYSTEMCTL_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return list(units(done.stdout))
