"""A signal for the main thread of another process: tgkill(2)."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_TGKILL: Final[Any] = getattr(_LIBC, "tgkill", None)
"""glibc has it from 2.30 on. None: the signal is for whichever thread the kernel picks."""


def signal_main(pid: int, number: int) -> None:
    """`pid`: a child that is not yet reaped, so that the number is its own. Raises OSError.

    A signal for a process is for any of its threads. Of one that is stopped the kernel prefers none: it goes to the
    thread that is first to run when it is continued (kernel/signal.c, `wants_signal`).
    """
    if _TGKILL is None:
        os.kill(pid, number)
    elif _TGKILL(pid, pid, number) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
