"""prctl(2): die with the parent, and be the child subreaper."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_SET_CHILD_SUBREAPER: Final = 36
_GET_CHILD_SUBREAPER: Final = 37
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def follow(parent: int) -> None:
    """Have the kernel SIGKILL this process when `parent` exits. Exits if that has already happened, which the kernel
    would not notice: hence getppid(). Raises OSError."""
    if _LIBC.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def be_subreaper(is_one: bool) -> None:
    """Become, or stop being, the child subreaper. Raises OSError."""
    if _LIBC.prctl(_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def is_subreaper() -> bool:
    is_one = ctypes.c_int(0)
    _LIBC.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(is_one), 0, 0, 0)
    return bool(is_one.value)
