"""What ps shows of this process's URLs.

The command line is readable by every user (/proc/PID/cmdline), the environment by every process of our own, workers
included (/proc/PID/environ). Both are windows on the process's own stack (proc(5)), so a URL that was given there can
be blotted out there, as database clients do with theirs. Python has copied it by then; but it was there to be seen for
as long as an interpreter takes to start. A file has no such moment: --url-file, or systemd's credentials.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Final

_URL: Final = re.compile(rb"amqps?://([^\0]*)@", re.IGNORECASE)
_ARG_START: Final = 48
_ENV_END: Final = 51
_FIRST_AFTER_NAME: Final = 3
"""Numbers of fields of /proc/PID/stat, as proc_pid_stat(5) counts them; the second is a name that may hold blanks."""


def hide_urls() -> None:
    """Write stars over user and password wherever this process's arguments and environment hold an AMQP URL.

    os.environ and sys.argv keep what they have. A child that is given no environment of its own inherits the stars.
    """
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return  # no /proc, and nothing to be seen in it
    start, end = (int(fields[number - _FIRST_AFTER_NAME]) for number in (_ARG_START, _ENV_END))
    if not 0 < start < end:
        return  # a sandbox that does not tell
    for found in _URL.finditer(ctypes.string_at(start, end - start)):
        ctypes.memset(start + found.start(1), ord("*"), len(found[1]))
