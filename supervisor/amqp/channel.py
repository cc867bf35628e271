"""One channel of a connection of ours."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from pika import exceptions, frame
from pika import spec as annotated

from supervisor.amqp.properties import BasicProperties, Properties

spec: Any = annotated  # in part only

GOODBYE: Final = 200, "Normal shutdown"
_ACK: Final = struct.Struct(">BHLLQBB")
"""All of basic.ack: type, channel, size of the payload; class and method, delivery tag, whether it is for all before,
too; the end."""
_OVERHEAD: Final = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_ACK_SIZE: Final = _ACK.size - spec.FRAME_HEADER_SIZE - 1

Consume = Callable[["Channel", Any, Properties, bytes], None]
Answered = Callable[[Any], None]
Confirmed = Callable[[int, bool, bool], None]
"""The delivery tag; whether it is for all before, too; whether they are refused."""
Returned = Callable[[Any, Properties], None]
"""basic.return, and the message's properties."""


class Line(Protocol):
    """What a channel needs of its connection."""

    @property
    def frame_max(self) -> int: ...
    def send(self, channel: int, method: Any) -> None: ...
    def write(self, data: bytes) -> None: ...
    def forget(self, channel: Channel) -> None: ...


class Channel:
    """One channel. Callbacks have the signatures of pika's channel."""

    def __init__(self, connection: Line, channel_number: int) -> None:
        self._connection = connection
        self.channel_number = channel_number
        self.is_open = True
        """Whether requests can be made: from the start until either side closes it."""
        self.is_closed = False
        self.error: BaseException | None = None
        """Why it has ended, if it was not closed by us."""
        self.on_confirm: Confirmed = ignore
        self.on_return: Returned = ignore
        self._asked: deque[tuple[Any, type, Answered | None]] = deque()
        self._consumers: dict[str, Consume] = {}
        self._cancelled: set[str] = set()
        self._on_close: list[Callable[[Channel, BaseException], None]] = []
        self._on_cancel: list[Callable[[Any], None]] = []
        self._method: Any = None
        self._header: Any = None
        self._fragments: list[bytes] = []
        self._size = 0

    def ask(self, method: Any, answer: type, callback: Answered | None = None) -> None:
        if self.is_open:
            self._asked.append((method, answer, callback))
            self._connection.send(self.channel_number, method)

    @property
    def awaited(self) -> str:
        """The oldest unanswered request, such as `basic.qos`; empty if there is none."""
        return str(self._asked[0][0].NAME).lower() if self._asked else ""

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        callback: Answered | None = None,
    ) -> None:
        method = spec.Queue.Declare(
            queue=queue, passive=passive, durable=durable, auto_delete=auto_delete, arguments=arguments or {}
        )
        self.ask(method, spec.Queue.DeclareOk, callback)

    def basic_qos(self, prefetch_count: int, callback: Answered | None = None) -> None:
        self.ask(spec.Basic.Qos(0, prefetch_count, False), spec.Basic.QosOk, callback)

    def basic_consume(
        self,
        queue: str,
        on_message_callback: Consume,
        consumer_tag: str,
        arguments: Mapping[str, Any] | None = None,
        callback: Answered | None = None,
    ) -> None:
        self._consumers[consumer_tag] = on_message_callback
        method = spec.Basic.Consume(queue=queue, consumer_tag=consumer_tag, arguments=arguments or {})
        self.ask(method, spec.Basic.ConsumeOk, callback)

    def basic_cancel(self, consumer_tag: str, callback: Answered | None = None) -> None:
        """Deliveries that arrive before the answer are requeued."""
        self._cancelled.add(consumer_tag)
        self.ask(spec.Basic.Cancel(consumer_tag), spec.Basic.CancelOk, callback)

    def basic_ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        if self.is_open:
            number, index = self.channel_number, spec.Basic.Ack.INDEX
            self._connection.write(
                _ACK.pack(spec.FRAME_METHOD, number, _ACK_SIZE, index, delivery_tag, multiple, spec.FRAME_END)
            )

    def basic_nack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """Requeue. From 4.3 on RabbitMQ does not count this against the message, as it counts basic.reject."""
        if self.is_open:
            self._connection.send(self.channel_number, spec.Basic.Nack(delivery_tag, multiple, requeue=True))

    def confirm_select(self, on_confirm: Confirmed, callback: Answered) -> None:
        """Have what is published confirmed."""
        self.on_confirm = on_confirm
        self.ask(spec.Confirm.Select(), spec.Confirm.SelectOk, callback)

    def basic_publish(self, exchange: str, routing_key: str, body: bytes, properties: BasicProperties) -> None:
        """Publish, and have it returned (`on_return`) if no queue takes it. Raises what pika's encoder does for what
        AMQP cannot carry: then nothing was sent."""
        if self.is_open:
            number, most = self.channel_number, self._connection.frame_max - _OVERHEAD
            method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
            frames: list[Any] = [
                frame.Method(number, method),
                frame.Header(number, len(body), properties),
                *(frame.Body(number, body[at : at + most]) for at in range(0, len(body), most)),
            ]
            self._connection.write(b"".join(each.marshal() for each in frames))

    def close(self) -> None:
        self.ask(spec.Channel.Close(*GOODBYE, 0, 0), spec.Channel.CloseOk, self._gone)
        self.is_open = False

    def add_on_close_callback(self, callback: Callable[[Channel, BaseException], None]) -> None:
        """Called when the broker closes it, or the connection ends."""
        self._on_close.append(callback)

    def add_on_cancel_callback(self, callback: Callable[[Any], None]) -> None:
        """Called when the broker cancels a consumer."""
        self._on_cancel.append(callback)

    # ------------------------------------------------------------------------------------- what the broker says

    @property
    def is_expecting(self) -> bool:
        """Whether part of a message has arrived, and the rest is outstanding."""
        return self._method is not None or self._header is not None

    def take(self, came: Any) -> None:
        """Handle a frame. Raises UnexpectedFrameError and BodyTooLongError."""
        if isinstance(came, frame.Method):
            self._obey(came)
        elif isinstance(came, frame.Header):
            self._header = came
            if came.body_size == 0:
                self._finish()
        elif isinstance(came, frame.Body):
            self._fragments.append(came.fragment)
            self._size += len(came.fragment)
            if self._header is None:
                raise exceptions.UnexpectedFrameError(came)
            if self._size > self._header.body_size:
                raise exceptions.BodyTooLongError(self._size, self._header.body_size)
            if self._size == self._header.body_size:
                self._finish()

    def deliver(self, method: Any, properties: Properties, body: bytes) -> None:
        tag = method.consumer_tag
        if tag in self._cancelled:
            self.basic_nack(method.delivery_tag)
        elif (consumer := self._consumers.get(tag)) is not None:
            consumer(self, method, properties, body)

    def end(self, reason: BaseException) -> None:
        """The channel, or its connection, has ended."""
        self.is_open, self.is_closed, self.error = False, True, reason
        self._asked.clear()
        for callback in self._on_close:
            callback(self, reason)

    def _obey(self, came: Any) -> None:
        """Ignores unexpected methods."""
        method = came.method
        match method:
            case spec.Channel.Close():
                self._connection.send(self.channel_number, spec.Channel.CloseOk())
                if self.is_open:
                    self._connection.forget(self)
                    self.end(exceptions.ChannelClosedByBroker(method.reply_code, method.reply_text))
                else:  # our channel.close is still answered; requests before it are not
                    self._asked = deque([self._asked[-1]])
            case spec.Channel.Flow():
                self._connection.send(self.channel_number, spec.Channel.FlowOk(method.active))
            case spec.Basic.Cancel():
                if not method.nowait:
                    self._connection.send(self.channel_number, spec.Basic.CancelOk(method.consumer_tag))
                if method.consumer_tag not in self._cancelled:
                    self._consumers.pop(method.consumer_tag, None)
                for callback in self._on_cancel:
                    callback(came)
            case spec.Basic.Ack() | spec.Basic.Nack():
                self.on_confirm(method.delivery_tag, method.multiple, isinstance(method, spec.Basic.Nack))
            case _ if self._asked and type(method) is self._asked[0][1]:
                answered = self._asked.popleft()[2]
                if isinstance(method, spec.Basic.CancelOk):
                    self._consumers.pop(method.consumer_tag, None)
                    self._cancelled.discard(method.consumer_tag)
                if answered is not None:
                    answered(came)
            case _ if spec.has_content(method.INDEX):
                self._method = came

    def _gone(self, _: Any) -> None:
        self.is_closed = True
        self._connection.forget(self)

    def _finish(self) -> None:
        method, header, body = self._method, self._header, b"".join(self._fragments)
        self._method, self._header, self._fragments, self._size = None, None, [], 0
        if method is None:
            raise exceptions.UnexpectedFrameError(header)
        if isinstance(method.method, spec.Basic.Deliver):
            self.deliver(method.method, header.properties, body)
        elif isinstance(method.method, spec.Basic.Return):
            self.on_return(method.method, header.properties)


def ignore(*_: Any) -> None:
    """A callback that is not needed."""
