"""pika's own connection, for publishing, dead letters and `workq check`: it says when it has met no broker, and notices
silence sooner."""

from __future__ import annotations

from typing import Any, Final

import pika
from pika.heartbeat import HeartbeatChecker

START: Final = b"\x01\x00\x00"
"""How the first frame begins: a method, on channel 0 (AMQP 0-9-1, 4.2.3)."""


class Heartbeats(HeartbeatChecker):
    """Notices silence after 2 to 2.5 heartbeats.

    pika's own looks every 5 s more than a heartbeat whether anything has come: that is up to 12 s at a heartbeat of 1.
    The broker says something twice a heartbeat (https://www.rabbitmq.com/docs/heartbeats#heartbeats-interval).
    """

    def __init__(self, connection: pika.SelectConnection, timeout: int) -> None:
        super().__init__(connection, timeout)  # type: ignore[no-untyped-call]
        begun: Any = self
        begun.stop()
        begun._check_interval = timeout / 2
        begun._start_send_timer()
        begun._start_check_timer()

    @property
    def connection_is_idle(self) -> bool:
        return bool(self._idle_byte_intervals >= 4)


class Connection(pika.SelectConnection):
    """One that knows whether it has met a broker at all, and soon notices when that is silent."""

    _was_strange = False

    @property
    def is_strange(self) -> bool:
        """Whether what listens there has said something, and not a broker's first word."""
        return self._was_strange or self._sounds_strange()

    def _sounds_strange(self) -> bool:
        said_more = self.bytes_received > 0 or not START.startswith(self._frame_buffer[: len(START)])
        return self.server_properties is None and said_more

    def _on_stream_terminated(self, error: Any) -> None:
        self._was_strange = self._sounds_strange()  # before pika forgets everything
        super()._on_stream_terminated(error)

    def _create_heartbeat_checker(self) -> HeartbeatChecker | None:
        seconds: Any = self.params.heartbeat  # as agreed with the broker by now
        return Heartbeats(self, seconds) if seconds else None
