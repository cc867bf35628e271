"""Tasks of our own, told from others by a header, which names a file where the handler notes what it does with them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from supervisor.commands.chaos.account import Marked, noted
from supervisor.publisher import Message, Options, Publisher, PublishError

HEADER: Final = "x-workq-chaos"
TIMEOUT: Final = 10.0
"""Seconds to wait for the broker's confirms."""


class Record:
    """The file, beside the control socket: whoever serves that can reach it. Removed at the end of the block."""

    def __init__(self, socket: str) -> None:
        self.run = secrets.token_hex(4)
        self.path = Path(socket).with_name(f"chaos-{self.run}")
        self._owner = os.lstat(socket)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raises OSError."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() != self._owner.st_uid:
                os.fchown(fd, self._owner.st_uid, self._owner.st_gid)
            yield
        finally:
            os.close(fd)
            self.path.unlink(missing_ok=True)

    def read(self, confirmed: int, parked: frozenset[str]) -> Marked:
        with self.path.open(encoding="utf-8", errors="replace") as file:
            return noted(file, confirmed, frozenset(name for name in parked if name.startswith(f"chaos-{self.run}-")))


class Sending:
    """Publishes so many tasks, spread evenly over a time."""

    def __init__(self, publisher: Publisher, record: Record, count: int, seconds: float) -> None:
        self._publisher = publisher
        self._record = record
        self._count = count
        self._seconds = seconds
        self._sent = 0
        self.confirmed = 0
        self.trouble = ""
        """Why no more are sent."""

    def send(self, elapsed: float) -> None:
        """Those that are due by now."""
        due = self._count if elapsed >= self._seconds else int(self._count * elapsed / self._seconds)
        if due <= self._sent or self.trouble:
            return
        numbers = range(self._sent, due)
        self._sent = due
        try:
            self._publisher.publish_many(map(self._message, numbers), timeout=TIMEOUT, on_confirmed=self._confirm)
        except PublishError as error:
            self.trouble = error.reason

    def _message(self, number: int) -> Message:
        run = self._record.run
        body = json.dumps({"workq_chaos": run, "number": number}).encode()
        headers = {HEADER: str(self._record.path)}
        return body, Options(message_id=f"chaos-{run}-{number}", headers=headers)

    def _confirm(self, _position: int, _message_id: str) -> None:
        self.confirmed += 1
