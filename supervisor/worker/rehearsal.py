"""A worker's life, lived before there is a worker: it connects, does a task, is asked to leave and leaves. Supervisor
and broker are played here, the latter on the worker's own loop.

What Python and pika learn from that is learned once, before the fork: caches are full, and code has adapted to what it
works on (PEP 659). Otherwise each worker learns it anew, in pages of its own: docs/decisions/0022.
"""

from __future__ import annotations

import codecs
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, Final

from pika import frame
from pika import spec as annotated

from supervisor import logs
from supervisor.endpoint import Endpoint
from supervisor.link import Link
from supervisor.messages import Begin, Drain
from supervisor.policy.settle import Outcome, Returned
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import Cause
from supervisor.worker.consumer import Consumer
from supervisor.worker.main import Birth, Worker
from supervisor.worker.task import Task

TIMES: Final = 10
"""Python adapts what has run eight times."""
PATIENCE: Final = 0.5
"""Seconds for what takes two milliseconds."""

spec: Any = annotated  # in part only
_QUEUE: Final = "rehearsal"
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


def perform() -> None:
    """Live that life some times. Raises OSError where there is no loopback to live it by."""
    codecs.lookup("idna")  # getaddrinfo() encodes with it what is no address
    with ExitStack() as undo:
        board = Scoreboard.create()
        undo.callback(os.close, board.fd)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        undo.callback(os.close, nowhere)
        for _ in range(TIMES):
            with socket.create_server(("127.0.0.1", 0)) as door:
                _live(door, board, nowhere)


def _live(door: socket.socket, board: Scoreboard, nowhere: int) -> None:
    here = Endpoint("127.0.0.1", door.getsockname()[1])
    supervisor, link = Link.pair()
    with closing(supervisor), closing(link):
        _play(door, here, supervisor, link, board, nowhere)


def _play(door: socket.socket, here: Endpoint, supervisor: Link, link: Link, board: Scoreboard, nowhere: int) -> None:
    birth = Birth(os.getpid(), Settings("", url=(here,), queue=_QUEUE, app_dir="/"), link, board, nowhere, None)

    def handler(_: Task) -> Outcome:
        supervisor.send(Drain(False, Cause.DRAINED))
        return Returned()

    worker = _Understudy(birth, Begin(0, has_queues=True), board.pen(0), logs.Sink(nowhere, board.fd), handler)
    worker.play(door)


class _Understudy(Worker):
    """A worker without a process of its own."""

    def play(self, door: socket.socket) -> None:
        self._tells_starts = self.settling.tells_tasks = False
        broker = _Broker(self._consumer, door)
        self._consumer.watch(door.fileno(), broker.accept)
        # A loopback that drops packets is no reason to start late.
        self._consumer.after(PATIENCE, lambda: self._consumer.leave(Cause.BROKER, "the loopback is silent"))
        with closing(broker):
            end = self.run()
        if end.cause is not Cause.DRAINED:
            raise OSError(end.detail)

    def _be_a_process(self) -> None:
        pass

    def _start_heartbeats(self) -> None:
        pass

    def _open_tracing(self) -> None:
        pass


class _Broker:
    """Answers as RabbitMQ does to somebody who does nothing wrong."""

    def __init__(self, consumer: Consumer, door: socket.socket) -> None:
        self._consumer = consumer
        self._door = door
        self._line = door
        self._heard = b""

    def accept(self) -> None:
        self._line, _ = self._door.accept()
        self._consumer.watch(self._line.fileno(), self._hear)

    def close(self) -> None:
        """Of a worker that has left, nothing more is heard: not even that it has hung up."""
        self._line.close()

    def _hear(self) -> None:
        read = self._line.recv(4096)
        if not read:
            self._consumer.unwatch(self._line.fileno())
            self._line.close()
            return
        self._heard += read
        self._line.sendall(b"".join(self._answers()))

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
            delivery: Any = spec.Basic.Deliver(asked.consumer_tag, 1, False, "", _QUEUE)
            yield frame.Method(channel, delivery).marshal()
            yield frame.Header(channel, 1, spec.BasicProperties(message_id="1", delivery_mode=2)).marshal()
            yield frame.Body(channel, b".").marshal()
