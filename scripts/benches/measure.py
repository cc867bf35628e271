"""What can be read of processes and of a queue from outside, and what is made of such readings.

Everything here is read while the processes run, without touching them: the kernel keeps the books.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from supervisor.clock import now
from supervisor.commands.node import find_installation

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
                counts = re.findall(r"ctxt_switches:\s*(\d+)", (task / "status").read_text())
                switches += sum(map(int, counts))
    return switches


# ------------------------------------------------------------------------------------------------------- readings


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of a pool at work."""

    at: float
    """Monotonic seconds."""
    ready: int
    """Messages in the queue, if it was looked at."""
    cpu: Mapping[int, float]
    """Of every process, by pid, in seconds."""

    @classmethod
    def take(cls, pids: Sequence[int], ready: int = 0) -> Reading:
        return cls(now(), ready, cpu(pids))

    def spent(self, before: Reading, pids: Iterable[int] | None = None) -> float:
        """Seconds on a CPU since an earlier reading; of these processes only, if given. Raises BenchError when one of
        them has come or gone in between: then nobody knows."""
        of = set(self.cpu) if pids is None else set(pids)
        if not of <= self.cpu.keys() or not of <= before.cpu.keys():
            raise BenchError("a process has come or gone while its CPU time was measured")
        return sum(self.cpu[pid] - before.cpu[pid] for pid in of)

    def share(self, before: Reading, pids: Iterable[int]) -> float:
        """Of one CPU, that these processes have used since an earlier reading. Raises BenchError like `spent`."""
        return self.spent(before, pids) / (self.at - before.at)


# -------------------------------------------------------------------------------------------------------- figures


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f} ms" if seconds < 1 else f"{seconds:.2f} s"


def surroundings() -> dict[str, dict[str, Any]]:
    """This machine, and the versions of all that is measured on it and with it: in words, by whose they are."""
    model = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    broker = find_installation()
    erlang = ""  # its release, `25`, where it can be asked
    with suppress(OSError):
        ask = ("erl", "-noshell", "-eval", "io:put_chars(erlang:system_info(otp_release)), halt().")
        erlang = subprocess.run(broker.command(*ask), capture_output=True, text=True).stdout.strip()
    return {
        "machine": {
            "cpu": model[1].strip() if model else platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "kernel": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "Python": platform.python_version(),
            "RabbitMQ": broker.version,
            "Erlang": erlang,
            **{each.name: each.version() for each in contenders()},
        },
    }
