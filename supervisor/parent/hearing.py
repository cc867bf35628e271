"""Reading a child's link, within a budget. The handler can write there too: an invalid report ends the reading. Log
lines beyond the budget are dropped and counted; beyond a larger one the writer blocks."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from typing import Any, Final

from supervisor import frames, logs
from supervisor.clock import now
from supervisor.frames import BadFrame
from supervisor.link import Link
from supervisor.messages import Record

LINES_PER_SECOND: Final = 1000
LINE_BYTES_PER_SECOND: Final = 4 * 1024 * 1024
FRAMES_PER_SECOND: Final = 10_000
"""A redelivered task sends one, and no task takes less than 0.1 ms."""
BYTES_PER_SECOND: Final = 32 * 1024 * 1024
FRAMES_PER_TURN: Final = 32
LAST_FRAMES: Final = 4096
"""The most to read from a dead child's link: the kernel keeps some 280, but its own children may still write."""


class Hearing:
    """One child's link, as its parent reads it. `fields` name the child in the log."""

    def __init__(self, link: Link, kinds: frozenset[type[Any]], sink: logs.Sink, log: Any, **fields: object) -> None:
        self._link = link
        self._kinds = kinds
        self._sink = sink
        self._log = log.bind(**fields)
        self.is_over = False
        """The link is at its end."""
        self.garbled = ""
        """What was wrong with the last message, which ends the link."""
        self._frames = self._bytes = 0
        self._lines = self._line_bytes = 0
        self._dropped = 0
        self._is_bursting = False

    @property
    def is_over_budget(self) -> bool:
        return self._frames >= FRAMES_PER_SECOND or self._bytes >= BYTES_PER_SECOND

    def refill(self) -> None:
        """Once a second."""
        if self._dropped and not self._is_bursting:
            limit = f"{LINES_PER_SECOND:,} long log lines or {LINE_BYTES_PER_SECOND >> 20} MiB of them a second"
            because = f"more than {limit}: the rest is dropped and counted in workq_log_lines_dropped_total"
            self._log.warning("worker.log_dropped", suppressed_lines=self._dropped, because=because)
        self._is_bursting = self._dropped > 0
        self._frames = self._bytes = self._lines = self._line_bytes = self._dropped = 0

    def read(self, until: float) -> Iterator[Any]:
        """The waiting reports: a turn's share, and after `until` (monotonic seconds) one at most."""
        if not self.is_over and not self.is_over_budget:
            yield from self._read(FRAMES_PER_TURN, until)

    def last_words(self) -> Iterator[Any]:
        """The last reports of a dead child."""
        self._bytes = 0
        yield from self._read(LAST_FRAMES, math.inf)
        self.refill()

    def _read(self, most: int, until: float) -> Iterator[Any]:
        for count in range(most):
            if (count and now() >= until) or self._bytes > BYTES_PER_SECOND:
                return
            try:
                data = self._link.hear()
                if data is None:
                    self.is_over = True
                    return
                report = self._understood(data)
            except BadFrame as error:
                self.garbled = self.garbled or str(error)
                self.is_over = True
                continue
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EBADF):
                    return  # empty, or closed earlier in the same round
                raise
            if report is not None:
                yield report

    def _understood(self, data: bytes) -> Any:
        """The report; None for a log line, which is written or dropped. Raises BadFrame."""
        self._frames += 1
        self._bytes += len(data)
        if self.garbled:
            return None
        if data.startswith(frames.RECORD):
            self._line_bytes += len(data)
            self._lines += 1
            if self._lines > LINES_PER_SECOND or self._line_bytes > LINE_BYTES_PER_SECOND:
                self._dropped += 1
                self._sink.dropped += 1
                return None
        report = frames.read(data, self._kinds)
        if not isinstance(report, Record):
            return report
        if not logs.is_line(report.line):
            raise BadFrame("the line of a Record is not a line of this log")
        self._sink.write(report.line.encode())
        return None
