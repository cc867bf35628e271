"""What ps shows of this process: no URLs, and a name.

Every user can read the command line (/proc/PID/cmdline), our own processes the environment (/proc/PID/environ). Both
are on the process's stack (proc(5)), where a URL is overwritten once Python has copied it. A file is never shown
(--url-file).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from pathlib import Path
from typing import Final

_URL: Final = re.compile(rb"amqps?://([^\0]*)@", re.IGNORECASE)
_ARG_START: Final = 48
_ARG_END: Final = 49
_ENV_START: Final = 50
_ENV_END: Final = 51
_FIRST_AFTER_NAME: Final = 3
"""Numbers of fields of /proc/PID/stat, as proc_pid_stat(5) counts them; the second is a name that may hold blanks."""


def name(text: str) -> None:
    """Set the name in ps, top and pkill, with and without -f."""
    window = _window(_ARG_START, _ARG_END)
    if window is not None:
        # As far as it fits. The last byte stays zero: else the kernel takes the environment for more of it
        # (fs/proc/base.c, get_mm_cmdline).
        start, end = window
        ctypes.memmove(start, text.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)
    try:
        with open("/proc/self/comm", "wb", 0) as comm:  # noqa: PTH123 - in each worker, which pathlib costs memory
            comm.write(text.encode())  # the kernel keeps 15 bytes of it (proc(5), /proc/PID/comm)
    except OSError:
        pass  # a convenience only


@functools.cache
def _window(first: int, last: int) -> tuple[int, int] | None:
    """These fields of /proc/self/stat, the same in forks; None if not readable."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None  # no /proc, so nothing to hide
    start, end = (int(fields[number - _FIRST_AFTER_NAME]) for number in (first, last))
    return (start, end) if 0 < start < end else None  # hidden by a sandbox


def hide_removed_variables() -> None:
    """Overwrite removed variables with zeros: unsetenv(3) leaves them in memory."""
    window = _window(_ENV_START, _ENV_END)
    if window is None:
        return
    at, end = window
    for entry in ctypes.string_at(at, end - at).split(b"\0"):
        if entry and entry.partition(b"=")[0] not in os.environb:
            ctypes.memset(at, 0, len(entry))
        at += len(entry) + 1


def hide_urls() -> None:
    """Overwrite user and password of AMQP URLs in arguments and environment; os.environ and sys.argv stay."""
    window = _window(_ARG_START, _ENV_END)
    if window is None:
        return
    start, end = window
    for found in _URL.finditer(ctypes.string_at(start, end - start)):
        ctypes.memset(start + found.start(1), ord("*"), len(found[1]))
