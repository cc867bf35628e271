"""A rehearsal of a worker's life before the fork: it connects, runs a task, drains and exits. Supervisor and broker are
simulated, the latter on the worker's own loop.

So caches are filled and code is specialised (PEP 659) once, before the fork; else each worker does it, in private
memory: docs/decisions/0022.
"""

from __future__ import annotations

import codecs
import os
import socket
from contextlib import ExitStack, closing
from typing import Final

from supervisor import logs
from supervisor.amqp.stand_in import StandIn
from supervisor.endpoint import Endpoint
from supervisor.link import Link
from supervisor.messages import Begin, Drain
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import Cause
from supervisor.worker.consumer import Consumer
from supervisor.worker.handler import Handler
from supervisor.worker.main import Birth, Worker
from supervisor.worker.task import Task

TIMES: Final = 10
"""Python specialises code after eight runs."""
PATIENCE: Final = 0.5
"""Seconds; it takes two milliseconds."""

_QUEUE: Final = "rehearsal"


def perform() -> None:
    """Raises OSError where there is no loopback."""
    codecs.lookup("idna")  # getaddrinfo() encodes host names with it
    with ExitStack() as undo:
        board = Scoreboard.create()
        undo.callback(os.close, board.fd)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        undo.callback(os.close, nowhere)
        sink = logs.configure(role="worker", queue=_QUEUE, fd=nowhere, lock_fd=board.fd, format="json", level="info")
        undo.callback(logs.close)
        for _ in range(TIMES):
            with socket.create_server(("127.0.0.1", 0)) as door:
                supervisor, link = Link.pair()
                with closing(supervisor), closing(link):
                    _live(door, supervisor, link, board, sink, nowhere)


def _live(door: socket.socket, supervisor: Link, link: Link, board: Scoreboard, sink: logs.Sink, nowhere: int) -> None:
    here = Endpoint("127.0.0.1", door.getsockname()[1])
    settings = Settings("", url=(here,), queue=_QUEUE, app_dir="/")
    birth = Birth(os.getpid(), settings, link, board, nowhere, None, nowhere)

    def leave(_: Task) -> None:
        supervisor.send(Drain(False, Cause.DRAINED))

    handler = Handler("rehearsal", leave)
    worker = _Understudy(birth, Begin(0, has_queues=True), board.pen(0), sink, handler)
    worker.play(door)


class _Understudy(Worker):
    """A worker without its own process."""

    def play(self, door: socket.socket) -> None:
        self._tells_starts = self.settling.tells_tasks = False
        host = _Host(self._consumer, door)
        self._consumer.watch(door.fileno(), host.accept)
        # Do not start late because of a loopback that drops packets.
        self._consumer.after(PATIENCE, lambda: self._consumer.leave(Cause.BROKER, "the loopback is silent"))
        with closing(host):
            end = self.run()
        if end.cause is not Cause.DRAINED:
            raise OSError(end.detail)

    def _be_a_process(self) -> None:
        pass

    def _start_heartbeats(self) -> None:
        pass

    def _open_tracing(self) -> None:
        pass


class _Host:
    """The simulated broker, at the end of a real socket."""

    def __init__(self, consumer: Consumer, door: socket.socket) -> None:
        self._consumer = consumer
        self._door = door
        self._line = door
        self._broker = StandIn(_QUEUE)

    def accept(self) -> None:
        self._line, _ = self._door.accept()
        self._consumer.watch(self._line.fileno(), self._hear)

    def close(self) -> None:
        """Ignores a worker that has exited, its hang-up included."""
        self._line.close()

    def _hear(self) -> None:
        read = self._line.recv(4096)
        if not read:
            self._consumer.unwatch(self._line.fileno())
            self._line.close()
            return
        self._line.sendall(self._broker.answer(read))
