"""Processes that stand still while something is decided about them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from supervisor.clock import now
from supervisor.parent.child import Child

PATIENCE: Final = 0.05
"""Seconds to wait for one to stop: it may be in an uninterruptible call of the kernel, and the loop must turn."""
_PAUSE: Final = 0.000_2


@contextmanager
def of(children: Iterable[Child]) -> Iterator[None]:
    """SIGSTOP for the block. A signal sent meanwhile is the first thing that they hear; SIGKILL does not wait."""
    stopped: list[Child] = []
    try:
        for child in children:
            try:
                child.signal(signal.SIGSTOP)
                stopped.append(child)
                _await_stop(child)
            except OSError:
                pass  # it has just died, or this process lacks something: then its page is what there is
        yield
    finally:
        for child in stopped:
            try:
                child.signal(signal.SIGCONT)
            except OSError:
                pass


def _await_stop(child: Child) -> None:
    """Raises OSError."""
    until = now() + PATIENCE
    while os.waitid(os.P_PIDFD, child.pidfd, os.WSTOPPED | os.WNOHANG) is None and now() < until:
        time.sleep(_PAUSE)
