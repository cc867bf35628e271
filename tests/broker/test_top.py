"""`workq top` on a real terminal (a pty, whose screen pyte keeps), beside a real supervisor."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pyte

from supervisor.commands.node import PrivateNode
from tests import amqp
from tests.supervision import PATIENCE, Runs, Supervision, eventually, gone, supervised

WORKQ = str(Path(sys.executable).with_name("workq"))
CONTROL = ("--control", "x")
PORT_ONLY = "by the health port one can only look"


class Terminal:
    """A terminal of 80 by 24 with one program on it."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **environ: str) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._master, self.slave = pty.openpty()
        ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("WORKQ_", "COLUMNS", "LINES"))}
        self.process = subprocess.Popen(
            [WORKQ, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=ours | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environ,
            start_new_session=True,
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
        start = next(number for number, line in enumerate(lines) if re.match(r" *slot +pid", line))
        return [line.split() for line in lines[start + 1 :] if re.match(r" *\d+ ", line)]

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
def terminal(*arguments: str, **options: str) -> Iterator[Terminal]:
    shown = Terminal(*arguments, **options)
    try:
        yield shown
    finally:
        shown.end()


def leaves_well(shown: Terminal, code: int) -> None:
    """It has ended, with the terminal as it was: settings, the other screen, the cursor."""
    assert shown.process.wait(PATIENCE) == code
    assert shown.is_restored()
    eventually(lambda: shown.raw.rfind(b"\x1b[?1049l") > shown.raw.rfind(b"\x1b[?1049h"))
    eventually(lambda: shown.raw.rfind(b"\x1b[?25h") > shown.raw.rfind(b"\x1b[?25l"))
