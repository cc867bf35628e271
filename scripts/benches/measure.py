"""What can be read of processes and of a queue from outside, and what is made of such readings.

Everything here is read while the processes run, without touching them: the kernel keeps the books.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from supervisor.clock import now
from supervisor.commands.node import Installation, find_installation

from .contenders import contenders
from .row import BenchError

_TICK: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_SCHED: Final = 2
"""The clock of a process that counts its nanoseconds on a CPU (`CPUCLOCK_SCHED`, linux/posix-timers.h)."""


# ----------------------------------------------------------------------------------------------------- processes


def cpu(pids: Iterable[int]) -> dict[int, float]:
    """Seconds on a CPU, user and system, of each process that lives: all its threads, those that have ended included.

    Read from the process's CPU clock (clock_getcpuclockid(3)), which has nanoseconds; /proc/PID/stat has hundredths of
    a second. What its dead children used is not in it: see `reaped`.
    """
    spent = {}
    for pid in pids:
        with suppress(OSError):
            spent[pid] = time.clock_gettime((~pid << 3) | _SCHED)
    return spent


def reaped(pid: int) -> float:
    """Seconds on a CPU of the children for which this process has waited, and of theirs; in hundredths (`cutime` and
    `cstime`, proc(5)); 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) * _TICK


def pss(pid: int) -> int:
    """Bytes of memory, each shared page counted in equal parts for those who share it (`Pss` of
    /proc/PID/smaps_rollup, proc(5)); 0 when the process is gone."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def rss(pid: int) -> int:
    """Bytes of resident memory, shared pages in full (`VmRSS` of /proc/PID/status); 0 when the process is gone."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def private(pid: int) -> int:
    """Bytes that nobody else has (`Private_Clean` and `Private_Dirty` of /proc/PID/smaps_rollup); 0 when it is gone."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Private_")


def _kilobytes(path: Path, prefix: str) -> int:
    """Of the lines that begin like that, together, in bytes."""
    with suppress(OSError):
        lines = path.read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(prefix))
    return 0


def wakeups(pid: int) -> int:
    """How often its threads have given up a CPU to wait, or lost it, so far: the context switches of all threads
    (/proc/PID/task/TID/status). Of a process that idles, that is how often it woke up."""
    switches = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for line in (task / "status").read_text().splitlines():
                    if "ctxt_switches" in line:
                        switches += int(line.split()[1])
    return switches


# ------------------------------------------------------------------------------------------------------- readings


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of a pool at work."""

    at: float
    """Monotonic seconds."""
    ready: int
    """Messages in the queue."""
    cpu: Mapping[int, float]
    """Of every process, by pid, in seconds."""

    @classmethod
    def take(cls, pids: Sequence[int], ready: int) -> Reading:
        return cls(now(), ready, cpu(pids))

    def spent(self, before: Reading, pids: Iterable[int] | None = None) -> float:
        """Seconds on a CPU since an earlier reading; of these processes only, if given. Raises BenchError when one of
        them has come or gone in between: then nobody knows."""
        of = set(self.cpu) if pids is None else set(pids)
        if not of <= self.cpu.keys() or not of <= before.cpu.keys():
            raise BenchError("a process has come or gone while its CPU time was measured")
        return sum(self.cpu[pid] - before.cpu[pid] for pid in of)


# -------------------------------------------------------------------------------------------------------- figures


def median(values: Iterable[float]) -> float:
    """Raises BenchError when there is none."""
    known = list(values)
    if not known:
        raise BenchError("there is no figure to take the median of")
    return statistics.median(known)


def rank(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f} ms" if seconds < 1 else f"{seconds:.2f} s"


def surroundings() -> dict[str, dict[str, Any]]:
    """This machine, and the versions of all that is measured on it and with it."""
    return {"machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """In words, by whose they are."""
    broker = find_installation()
    found = {"Python": platform.python_version(), "RabbitMQ": broker.version, "Erlang": _erlang(broker)}
    found.update((each.name, each.version()) for each in contenders())
    return found


def _erlang(broker: Installation) -> str:
    """Its release: `25`; empty when it cannot be asked."""
    ask = "io:put_chars(erlang:system_info(otp_release)), halt()."
    try:
        done = subprocess.run(broker.command("erl", "-noshell", "-eval", ask), capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
