"""What a child writes to stdout and stderr becomes length-limited log events, and evidence when it dies (faulthandler's
stack). Too many lines are only counted; beyond a larger budget the pipe stays full until the next second."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Final

from supervisor.parent.descriptors import close
from supervisor.parent.dumps import Dumps
from supervisor.redaction import redact

TAIL: Final = 16 * 1024
"""Bytes kept as evidence."""
LINE_MAX: Final = 8 * 1024
"""Bytes of one event's text."""
LINES_PER_SECOND: Final = 1000
TEXT_PER_SECOND: Final = 1024 * 1024
"""Bytes of these lines. Writing one costs the parent ten times more than reading it."""
BYTES_PER_SECOND: Final = 16 * 1024 * 1024
_CHUNK: Final = 64 * 1024
_URL: Final = re.compile(rb"amqps?://", re.IGNORECASE)
_URL_BEGINS: Final = re.compile(rb"a(?:m(?:q(?:ps?(?::/?)?)?)?)?\Z", re.IGNORECASE)

UNMARKED: Final = "[perhaps with output of earlier tasks: where this task begins is not known]"


class Output:
    """The reading end of one child's pipe. `fields` name the child in the log."""

    def __init__(
        self, fd: int, log: Any, note: Callable[..., None] = lambda *_, **__: None, /, **fields: object
    ) -> None:
        """`note` is called around every read, with the number of bytes read so far and `is_reading`."""
        os.set_blocking(fd, False)
        self.fd = fd
        self._note = note
        self._count = 0
        note(0)
        self._log = log.bind(**fields)
        self._dumps = Dumps()
        self._rest = b""
        self._is_torn = False
        """What was cut off before the rest may have been the start of a URL."""
        self._tail = bytearray()
        self._tail_is_torn = False
        self._lines = 0
        self._text = 0
        self._bytes = 0
        self._suppressed = 0

    @property
    def tail(self) -> str:
        """The end of the output, 16 KiB at most, redacted. The last line may be cut by the writer's death."""
        return self._evidence(bytes(self._tail), self._tail_is_torn)

    def since(self, mark: int | None) -> str:
        """The same of what follows the first `mark` bytes. None: not known, which it says."""
        if mark is None or mark > self._count:
            return f"{UNMARKED}\n{self.tail}" if self._tail else ""
        begin = mark - (self._count - len(self._tail))
        return self._evidence(bytes(self._tail[begin:]), False) if begin >= 0 else self.tail

    @staticmethod
    def _evidence(data: bytes, begins_torn: bool) -> str:
        return Dumps.trimmed(redact(data.decode("utf-8", "replace"), begins_torn=begins_torn, ends_torn=True))

    @property
    def is_over_budget(self) -> bool:
        return self._bytes >= BYTES_PER_SECOND

    def refill(self) -> int:
        """Once a second. Returns how many lines were not logged."""
        suppressed = self._suppressed
        if suppressed:
            because = f"more than {LINES_PER_SECOND:,} lines or {TEXT_PER_SECOND >> 20} MiB a second"
            self._log.warning("worker.output", suppressed_lines=suppressed, because=because)
        self._lines = self._text = self._bytes = self._suppressed = 0
        return suppressed

    def read(self) -> bool:
        """Read a chunk at most. False at the end of the file. Raises OSError."""
        try:
            data = self._receive()
        except BlockingIOError:
            return True  # the child opened its end for reading, and read it first
        if not data:
            self._flush()
            return False
        self._take(data)
        return True

    def drain(self) -> int:
        """Read what a dead child left, at most what a pipe holds. Returns how many lines were not logged."""
        for _ in range(32):
            try:
                data = self._receive()
            except OSError:
                break
            if not data:
                break
            self._take(data)
        self._flush()
        return self.refill()

    def close(self) -> None:
        close(self.fd)

    def _receive(self) -> bytes:
        self._note(self._count, is_reading=True)
        try:
            data = os.read(self.fd, _CHUNK)
            self._count += len(data)
        finally:
            self._note(self._count)
        return data

    def _take(self, data: bytes) -> None:
        self._bytes += len(data)
        self._tail += data
        self._tail_is_torn |= len(self._tail) > TAIL
        del self._tail[:-TAIL]
        data = self._rest + data
        if not self._is_full:
            *lines, data = data.split(b"\n", LINES_PER_SECOND)
            for line in lines:
                self._say(line)
            while len(data) >= LINE_MAX and b"\n" not in data:
                data = self._say_piece(data)
        if b"\n" in data or len(data) >= LINE_MAX:
            # Only counted: a pipe delivers lines a hundred times faster than they can be written.
            self._suppressed += max(1, data.count(b"\n"))
            begin = data.rfind(b"\n") + 1
            self._is_torn = len(data) - begin > LINE_MAX or (self._is_torn and not begin)
            data = data[begin:][-LINE_MAX:]
        self._rest = data

    def _say_piece(self, data: bytes) -> bytes:
        """Log the first piece of too long a line, cut before a URL; a longer URL is cut short. Returns the rest."""
        piece, is_torn, ends_torn = data[:LINE_MAX], self._is_torn, False
        urls = [match.start() for match in _URL.finditer(piece)]
        if urls and urls[-1]:
            piece = piece[: urls[-1]]
        elif urls:
            is_torn, ends_torn = True, b"@" not in piece
        elif (begin := _URL_BEGINS.search(piece)) is not None:
            piece = piece[: begin.start()]
        self._say(piece, ends_torn=ends_torn)
        self._is_torn = is_torn
        return data[len(piece) :]

    @property
    def _is_full(self) -> bool:
        return self._lines >= LINES_PER_SECOND or self._text >= TEXT_PER_SECOND

    def _flush(self) -> None:
        if self._rest:
            self._say(self._rest, ends_torn=True)
            self._rest = b""

    def _say(self, line: bytes, *, ends_torn: bool = False) -> None:
        begins_torn, self._is_torn = self._is_torn, False
        line = line.rstrip(b"\r")
        if not line:
            self._dumps.shown("")
            return
        if self._is_full:
            self._suppressed += 1
            return
        text = self._dumps.shown(redact(line.decode("utf-8", "replace"), begins_torn=begins_torn, ends_torn=ends_torn))
        if text is None:
            return
        self._lines += 1
        self._text += min(len(line), LINE_MAX)
        if len(line) > LINE_MAX:
            text = f"{text[:LINE_MAX]}…[{len(line)} bytes]"
        self._log.info("worker.output", line=text)
