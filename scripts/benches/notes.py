"""What tasks note of themselves for a bench that times them: their format, the writing, the reading.

Every process appends to one file, named by BENCH_NOTES: a record when a task begins and one when it has ended. It
costs a task 4 us in all, needs no parent and no second process, outlives SIGKILL, and can be read when the moment that
matters is over. Times are CLOCK_MONOTONIC, which is one clock for all processes. Standard library only: the peers'
environment imports this, too.

    task = notes.Pen(path); task.begin(17, time.monotonic()); ...; task.end(17)
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

RECORD = struct.Struct("<IIQd8x")
"""pid, whether it has ended, the task's number, when (seconds). An append with O_APPEND is one piece (write(2)); 32
bytes, a divisor of the page, because the kernel does in pieces what crosses a page, and heeds SIGKILL in between."""


class Pen:
    """The task's side. It may be made before a fork."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self, number: int, at: float) -> None:
        """`at`: when the task was called, before it knew its number."""
        os.write(self._fd, RECORD.pack(os.getpid(), 0, number, at))

    def end(self, number: int) -> None:
        os.write(self._fd, RECORD.pack(os.getpid(), 1, number, time.monotonic()))


class Note(NamedTuple):
    """One record."""

    pid: int
    has_ended: bool
    number: int
    at: float


class Notes:
    """The reader's side: what has been written since the last look. Makes the file, and the directory that it is in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = 0

    def read(self) -> list[Note]:
        """What is new by now, and not what is added while it is read. A few microseconds when nothing is."""
        new = os.fstat(self._fd).st_size - self._offset
        chunk = os.pread(self._fd, new - new % RECORD.size, self._offset)
        self._offset += len(chunk)
        return [Note(pid, bool(ended), number, at) for pid, ended, number, at in RECORD.iter_unpack(chunk)]

    def close(self) -> None:
        os.close(self._fd)


class Run(NamedTuple):
    """One task that came to its end."""

    pid: int
    number: int
    began: float
    ended: float


def runs(notes: Iterable[Note]) -> list[Run]:
    """The tasks that have ended, in the order of their ends; what was begun by a process that was killed is none."""
    begun: dict[int, Note] = {}
    found = []
    for note in notes:
        if not note.has_ended:
            begun[note.pid] = note
        elif (start := begun.pop(note.pid, None)) is not None and start.number == note.number:
            found.append(Run(note.pid, note.number, start.at, note.at))
    return found
