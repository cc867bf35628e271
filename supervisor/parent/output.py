"""What a child writes to stdout and stderr: log events, and evidence.

Its pipe is ours to read, so stray prints become tagged, length-limited events, and the last of them (faulthandler's
stack, say) is at hand when the child dies. A child that writes too much slows itself: past the budget its pipe is left
full until the next second.
"""

from __future__ import annotations

import os
from typing import Any, Final

from supervisor.parent.descriptors import close

TAIL: Final = 16 * 1024
"""Bytes kept as evidence."""
LINE_MAX: Final = 8 * 1024
"""Bytes of one event's text."""
LINES_PER_SECOND: Final = 1000
BYTES_PER_SECOND: Final = 16 * 1024 * 1024
_CHUNK: Final = 64 * 1024


class Output:
    """The reading end of one child's pipe. `fields` name the child in the log."""

    def __init__(self, fd: int, log: Any, **fields: object) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._log = log.bind(**fields)
        self._rest = b""
        self._tail = bytearray()
        self._lines = 0
        self._bytes = 0
        self._suppressed = 0

    @property
    def tail(self) -> str:
        """The last of it, 16 KiB at most."""
        return bytes(self._tail).decode("utf-8", "replace")

    @property
    def is_over_budget(self) -> bool:
        return self._bytes >= BYTES_PER_SECOND

    def refill(self) -> None:
        """A second has passed."""
        if self._suppressed:
            because = f"more than {LINES_PER_SECOND} lines a second"
            self._log.warning("worker.output", suppressed_lines=self._suppressed, because=because)
        self._lines = self._bytes = self._suppressed = 0

    def read(self) -> bool:
        """Read what is there, a chunk at most. False at the end of the file, and when there is nothing. Raises
        OSError."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._flush()
            return False
        self._bytes += len(data)
        self._tail += data
        del self._tail[:-TAIL]
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)
        while len(self._rest) >= LINE_MAX:
            self._say(self._rest[:LINE_MAX])
            self._rest = self._rest[LINE_MAX:]
        return True

    def drain(self) -> None:
        """Read to the end, when the writer is dead: what a pipe can hold, and no more if somebody else still writes."""
        for _ in range(32):
            try:
                if not self.read():
                    break
            except OSError:
                break
        self._flush()
        self.refill()

    def close(self) -> None:
        close(self.fd)

    def _flush(self) -> None:
        if self._rest:
            self._say(self._rest)
            self._rest = b""

    def _say(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if not line:
            return
        if self._lines >= LINES_PER_SECOND:
            self._suppressed += 1
            return
        self._lines += 1
        text = line[:LINE_MAX].decode("utf-8", "replace")
        if len(line) > LINE_MAX:
            text += f"…[{len(line)} bytes]"
        self._log.info("worker.output", line=text)
