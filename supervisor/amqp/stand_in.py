"""The simulated broker of a rehearsal: RabbitMQ's answers to correct requests, and one delivery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from pika import frame
from pika import spec as annotated

spec: Any = annotated  # in part only

_CAPABILITIES: Final = dict.fromkeys(
    (
        "publisher_confirms",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "authentication_failure_close",
    ),
    True,
)
_START: Final[Any] = spec.Connection.Start(
    server_properties={"capabilities": _CAPABILITIES, "product": "RabbitMQ", "version": "4.2.0"}
)
_ANSWERS: Final[dict[type[Any], Callable[[Any], Any]]] = {
    spec.Connection.StartOk: lambda _: spec.Connection.Tune(channel_max=2047, frame_max=131072, heartbeat=60),
    spec.Connection.Open: lambda _: spec.Connection.OpenOk(),
    spec.Channel.Open: lambda _: spec.Channel.OpenOk(),
    spec.Queue.Declare: lambda asked: spec.Queue.DeclareOk(asked.queue, 0, 0),
    spec.Basic.Qos: lambda _: spec.Basic.QosOk(),
    spec.Basic.Consume: lambda asked: spec.Basic.ConsumeOk(asked.consumer_tag),
    spec.Basic.Cancel: lambda asked: spec.Basic.CancelOk(asked.consumer_tag),
    spec.Channel.Close: lambda _: spec.Channel.CloseOk(),
    spec.Connection.Close: lambda _: spec.Connection.CloseOk(),
}


class StandIn:
    """The broker's end of one connection."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._heard = b""

    def answer(self, read: bytes) -> bytes:
        """What to send to whoever has sent this."""
        self._heard += read
        return b"".join(self._answers())

    def _answers(self) -> Iterator[bytes]:
        while True:
            size, found = frame.decode_frame(self._heard)
            if found is None:
                return
            self._heard = self._heard[size:]
            if isinstance(found, frame.ProtocolHeader):
                yield frame.Method(0, _START).marshal()
            elif isinstance(found, frame.Method):  # and not a heartbeat
                yield from self._answer(found.channel_number, found.method)

    def _answer(self, channel: int, asked: Any) -> Iterator[bytes]:
        answer = _ANSWERS.get(type(asked))
        if answer is not None:
            yield frame.Method(channel, answer(asked)).marshal()
        if isinstance(asked, spec.Basic.Consume):
            delivery: Any = spec.Basic.Deliver(asked.consumer_tag, 1, False, "", self._queue)
            yield frame.Method(channel, delivery).marshal()
            yield frame.Header(channel, 1, spec.BasicProperties(message_id="1", delivery_mode=2)).marshal()
            yield frame.Body(channel, b".").marshal()
