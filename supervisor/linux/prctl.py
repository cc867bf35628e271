"""Die with the supervisor: PR_SET_PDEATHSIG."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def follow(parent: int) -> None:
    """Have the kernel SIGKILL this process when `parent`, its parent now, ends (prctl(2)).

    The setting counts for the parent at the time of the death, and a parent that died before it was made is noticed by
    nobody: hence the look at getppid() afterwards. Does not return when `parent` is gone already.
    """
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)
