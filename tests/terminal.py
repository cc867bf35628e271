"""A terminal for tests: a pty with one program on it, whose screen pyte keeps."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pyte

from tests.supervision import PATIENCE, eventually

WORKQ = str(Path(sys.executable).with_name("workq"))


class Terminal:
    """A terminal of 80 by 24 with one program on it."""

    def __init__(self, *arguments: str, rows: int = 24, program: str = WORKQ) -> None:
        columns = 80
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._master, self.slave = pty.openpty()
        ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        ours = {
            name: value for name, value in os.environ.items() if not name.startswith(("WORKQ_", "COLUMNS", "LINES"))
        }
        self.process = subprocess.Popen(
            # For Ctrl-C: it is to be its controlling terminal, and who runs tests in the background has SIGINT ignored.
            ["setsid", "--ctty", "env", "--default-signal=INT", program, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=ours | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        )
        self.raw = b""
        self._lock = threading.Lock()
        self._end, self._ended = os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while self._end not in select.select([self._master, self._end], [], [])[0]:
            data = os.read(self._master, 65536)
            with self._lock:
                self.raw += data
                self._stream.feed(data)

    def lines(self) -> list[str]:
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    def text(self) -> str:
        return "\n".join(self.lines())

    def see(self, pattern: str) -> str:
        """Wait until the screen shows this; the screen."""
        try:
            eventually(lambda: re.search(pattern, self.text(), re.MULTILINE))
            return self.text()
        except AssertionError:
            raise AssertionError(f"never seen: {pattern}\n{self.text()}") from None

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def rows(self) -> list[list[str]]:
        """The workers' table: the words of each row."""
        lines = self.lines()
        start = next((number for number, line in enumerate(lines) if re.match(r" *slot +pid", line)), len(lines))
        return [line.split() for line in lines[start + 1 :] if re.match(r" *\d+ ", line)]

    def cells(self) -> list[list[pyte.screens.Char]]:
        """Every character of the screen, with its colours."""
        with self._lock:
            return [
                [row[column] for column in range(self._screen.columns)]
                for row in (self._screen.buffer[line] for line in range(self._screen.lines))
            ]

    def is_restored(self) -> bool:
        return termios.tcgetattr(self.slave)[:4] == self.before[:4]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.write(self._ended, b"x")
        self._reader.join(PATIENCE)
        for fd in (self._master, self.slave, self._end, self._ended):
            os.close(fd)


@contextmanager
def terminal(*arguments: str, rows: int = 24, program: str = WORKQ) -> Iterator[Terminal]:
    shown = Terminal(*arguments, rows=rows, program=program)
    try:
        yield shown
    finally:
        shown.end()
