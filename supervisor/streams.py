"""Standard streams, which a handler may replace or close. The supervisor reads descriptor 2 as evidence."""

from __future__ import annotations

import os
import sys

from supervisor import failure


def flush() -> None:
    """Flush printed output as far as possible. Raises nothing."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:  # noqa: BLE001 - closed, None, detached, or a class of the handler's
            pass


def complain(text: str) -> None:
    """Write to descriptor 2, whatever `sys.stderr` is. Raises nothing."""
    left = text.encode("utf-8", "backslashreplace")
    try:
        while left:
            left = left[os.write(2, left) :]
    except OSError:
        pass


def complain_of(error: BaseException) -> None:
    """Write its traceback to descriptor 2. Raises nothing, whatever the error's class does."""
    complain(failure.rendered(error, error.__traceback__))


def occupy() -> None:
    """Open missing ones of the three, so that no later descriptor becomes a standard stream. Raises OSError."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
