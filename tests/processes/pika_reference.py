"""pika's own connection, which knows nothing of ours: what the consuming connection is held to."""

from __future__ import annotations

from typing import Any

import pika
from pika import frame, spec
from pika.adapters.base_connection import _StreamingProtocolShim
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel

from supervisor.amqp import undecodable


class Reference(pika.SelectConnection):
    """One that nobody has connected, and that takes undecodable messages, too. What it would send is in `sent`."""

    def __init__(self) -> None:
        self.loop: Any = IOLoop()
        self.loop.activate_poller()
        super().__init__(pika.ConnectionParameters(), custom_ioloop=self.loop, internal_connection_workflow=False)

    def _read_frame(self) -> Any:
        """A header as pika decodes it, with the bytes that it was decoded from; or what remains of it."""
        buffer = self._frame_buffer
        try:
            read = frame.decode_frame(buffer)
        except Exception:
            end = 7 + int.from_bytes(buffer[3:7])
            if buffer[0] != spec.FRAME_HEADER or end < 21 or buffer[end] != spec.FRAME_END:
                raise
            if int.from_bytes(buffer[7:9]) != spec.BasicProperties.INDEX:
                raise
            properties = undecodable.decode(buffer[19:end])
            assert isinstance(properties, undecodable.Remains)
            return end + 1, frame.Header(int.from_bytes(buffer[1:3]), int.from_bytes(buffer[11:19]), properties)
        if type(read[1]) is frame.Header:
            read[1].properties.raw = buffer[19 : read[0] - 1]
        return read

    def open_channel(self, number: int, consume: Any, *tags: str) -> Any:
        channel: Any = Channel(self, number, lambda _: None)
        channel._set_state(channel.OPEN)
        channel._consumers.update(dict.fromkeys(tags, consume))
        self._channels[number] = channel
        return channel

    def attach(self, sock: Any) -> None:
        """To a socket that is connected."""
        services = SelectorIOServicesAdapter(self.loop)
        self._transport = _AsyncPlaintextTransport(sock, _StreamingProtocolShim(self), services)

    def turn(self) -> None:
        self.loop.call_later(0, lambda: None)
        self.loop.poll()
        self.loop.process_timeouts()
