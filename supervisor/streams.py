"""Standard streams that a handler may replace or close. Descriptor 2 is what the supervisor reads as evidence."""

from __future__ import annotations

import os
import sys

from supervisor import failure


def flush() -> None:
    """Hand to the kernel what was printed, as far as that can be done. Raises nothing."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:  # noqa: BLE001 - closed, None, detached, or a class of the handler's
            pass


def complain(text: str) -> None:
    """Write to standard error's descriptor, whatever `sys.stderr` is by now. Raises nothing."""
    left = text.encode("utf-8", "backslashreplace")
    try:
        while left:
            left = left[os.write(2, left) :]
    except OSError:
        pass


def complain_of(error: BaseException) -> None:
    """Write its traceback likewise. Raises nothing, whatever the error's class does."""
    complain(failure.rendered(error, error.__traceback__))


def occupy() -> None:
    """Occupy all three numbers, so that nothing opened later is taken for a stream. Raises OSError."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
