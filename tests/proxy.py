"""A TCP proxy on loopback that misbehaves as a network does: slow, sliced, silent, reset, cut, refusing.

Between a client and a broker, changeable while connections run through it. It runs on a thread of its own; its methods
may be called from any thread, and what they ask for has been done when they return.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from supervisor.commands.node import Port

CHUNK = 65536
READ_AHEAD = 256
"""Chunks that are read ahead of a slow or silent direction; after that TCP's own back-pressure holds the sender."""
LINGER_ZERO = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close(2) sends a RST and throws away what is unsent (socket(7))."""
WITHIN = 30.0
"""Seconds that the proxy's thread has to do what it is asked for."""

Method = tuple[int, int]
"""Class and method of AMQP 0-9-1."""
ACK: Method = (60, 80)
"""To the broker: of a delivery. To the client: the confirm of a publish."""
DELIVER: Method = (60, 60)
METHOD = 1
PROTOCOL_HEADER = 8
FRAME_HEADER = 7
FRAME_OVERHEAD = 8
"""With the octet at a frame's end."""


class Frames:
    """Where the frames are in a stream of AMQP: chunks go in, the method frames that begin in each come out."""

    def __init__(self, skip: int = 0) -> None:
        self._left = skip
        """Bytes until the next frame begins."""
        self._head = b""
        """The beginning of a frame that is not known yet."""

    def feed(self, chunk: bytes) -> list[tuple[int, Method, int]]:
        """The offset in this chunk, the method and the size of each. One whose first bytes came with the chunk before
        is passed over: it cannot be cut before them any more."""
        shift = len(self._head)
        data, self._head = self._head + chunk, b""
        found, at = [], self._left
        while at < len(data):
            head = data[at : at + FRAME_HEADER + 4]
            if len(head) < FRAME_HEADER + 4 * (head[0] == METHOD):
                self._head, at = head, len(data)
                break
            if head[0] == METHOD and at >= shift:
                found.append((at - shift, struct.unpack_from(">HH", head, FRAME_HEADER), _size(head)))
            at += _size(head)
        self._left = at - len(data)
        return found


def _size(head: bytes) -> int:
    return int(struct.unpack_from(">I", head, 3)[0]) + FRAME_OVERHEAD


@dataclass(eq=False, slots=True)
class Cut:
    """An order to end one connection at one frame: the next such frame that goes this way."""

    method: Method
    to_broker: bool
    at: int
    """Bytes of the frame that still arrive; 0: none of it."""
    after_confirm: bool = False
    """Only of a client, by its connections' name, that has had a publish confirmed since: on another connection."""
    confirmed: set[bytes] = field(default_factory=set)
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False, slots=True)
class Connection:
    """One client's connection through the proxy."""

    client: socket.socket
    broker: socket.socket
    to_broker: int = 0
    """Bytes that have been forwarded."""
    to_client: int = 0
    carried_at: float = 0.0
    """When it last carried a byte, or began; the loop's time."""
    is_over: bool = False
    is_forgotten: bool = False
    name: bytes = b""
    """As the client has named it (`connection_name`); empty unless frames are seen."""
    frames: tuple[Frames, Frames] = field(default_factory=lambda: (Frames(PROTOCOL_HEADER), Frames()))
    """To the broker, to the client."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def carried(self, way: Way, size: int) -> None:
        if way.leads_to_broker:
            self.to_broker += size
        else:
            self.to_client += size
        self.carried_at = asyncio.get_running_loop().time()

    def left(self, way: Way) -> int:
        """How many bytes it may carry this way before it is cut."""
        return CHUNK if way.cut is None else way.cut - (self.to_broker if way.leads_to_broker else self.to_client)


@dataclass(eq=False, slots=True)
class Way:
    """What is done to the bytes that go one way, of every connection."""

    leads_to_broker: bool
    latency: float = 0.0
    slice: int = CHUNK
    pause: float = 0.0
    cut: int | None = None
    cut_resets: bool = False
    is_open: asyncio.Event = field(default_factory=asyncio.Event)


Queue = asyncio.Queue[tuple[float, bytes | OSError]]
"""What was read, and when; an empty chunk is the end of the stream."""


class Proxy:
    """A context manager. Until told otherwise it forwards faithfully, a half-close included.

        with Proxy(node.port) as proxy:
            ...  # connect to proxy.url
            proxy.silence()

    Silence is that of a network that drops packets: nothing is forwarded, no end of a connection either, and new
    connections are accepted and hear nothing. What was sent meanwhile arrives after `heal`, as TCP would send it again.
    """

    def __init__(
        self,
        target: int,
        *,
        host: str = "127.0.0.1",
        sees_frames: bool = False,
    ) -> None:
        """`target` is a port on 127.0.0.1. `host` is where the proxy listens. `cut_at` needs `sees_frames`."""
        self.host = host
        self.connections: list[Connection] = []
        """Every one that ever was, oldest first."""
        self._target = ("127.0.0.1", target)
        self._port = Port()  # claimed: nobody else takes it while the proxy refuses connections
        self._ways = (Way(leads_to_broker=True), Way(leads_to_broker=False))
        self._sees_frames = sees_frames
        self._armed: Cut | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._accepting: tuple[socket.socket, asyncio.Task[None]] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_idle(None)
        self.refuse()
        self.reset()
        asyncio.run_coroutine_threadsafe(self._settled(), self._loop).result(WITHIN)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN)
        self._loop.close()

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}/%2F"

    @property
    def live(self) -> list[Connection]:
        """The connections that run now, oldest first."""
        return [connection for connection in list(self.connections) if not connection.is_over]

    # ---------------------------------------------------------------------------------------------- the faults

    def reset(self, *chosen: Connection) -> int:
        """RST to both ends of these connections; of all, when none is given. Returns how many were running."""
        return self._on_each(chosen, lambda connection: self._cut(connection, reset=True))

    def close(self, *chosen: Connection) -> int:
        """The same with a FIN, as a load balancer ends them in order."""
        return self._on_each(chosen, lambda connection: self._cut(connection, reset=False))

    def close_idle(self, after: float | None) -> None:
        """A FIN to both ends of each connection that has carried nothing, either way, for so many seconds; None: to no
        more."""

        def change() -> None:
            if self._reaping is not None:
                self._reaping.cancel()
            self._reaping = None if after is None else self._loop.create_task(self._reap(after))

        self._do(change)

    def silence(self, *, to_broker: bool = True, to_client: bool = True) -> None:
        """Forward nothing that goes this way, ends of connections included, until `heal`."""
        self._each(to_broker, to_client, lambda way: way.is_open.clear())

    def forget(self, *chosen: Connection) -> int:
        """Silence for these connections (all that run, when none is given) in both directions and for good, and for no
        others: a firewall that has lost its table. Returns how many."""
        return self._on_each(chosen, lambda connection: setattr(connection, "is_forgotten", True))

    def latency(self, seconds: float, *, to_broker: bool = True, to_client: bool = True) -> None:
        """Every byte arrives so much later. Order and bandwidth stay as they are."""

        def change(way: Way) -> None:
            way.latency = seconds

        self._each(to_broker, to_client, change)

    def slice(self, size: int, *, pause: float = 0.0, to_broker: bool = True, to_client: bool = True) -> None:
        """Forward in segments of `size` bytes, `pause` seconds apart."""

        def change(way: Way) -> None:
            way.slice, way.pause = size, pause

        self._each(to_broker, to_client, change)

    def cut_after(self, *, to_broker: int | None = None, to_client: int | None = None, reset: bool = False) -> None:
        """End each connection, new ones too, once it has carried so many bytes this way in its life: exactly so many
        arrive, then a FIN, or a RST. With 0, the first byte is the one too many."""

        def change(way: Way) -> None:
            way.cut, way.cut_resets = to_broker if way.leads_to_broker else to_client, reset

        self._each(True, True, change)

    def cut_at(self, method: Method, *, to_broker: bool, at: int = 0, after_confirm: bool = False) -> Cut:
        """Reset the connection that carries the next such frame, when `at` bytes of it have been forwarded. Once; until
        `heal`. `Cut.done` is set when it has happened."""
        cut = Cut(method, to_broker, at, after_confirm)

        def arm() -> None:
            self._armed = cut

        self._do(arm)
        return cut

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED) until `heal`; those that run go on."""
        self._do(self._stop_listening)

    def heal(self) -> None:
        """A perfect network, from here on."""

        def change(way: Way) -> None:
            way.latency, way.slice, way.pause, way.cut = 0.0, CHUNK, 0.0, None
            way.is_open.set()

        def disarm() -> None:
            self._armed = None

        self._each(True, True, change)
        self._do(disarm)
        self._do(self._listen)

    # -------------------------------------------------------------------------------- on the thread of the loop

    def _do(self, what: Callable[[], None]) -> None:
        async def carry_out() -> None:
            what()

        asyncio.run_coroutine_threadsafe(carry_out(), self._loop).result(WITHIN)

    async def _settled(self) -> None:
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def _each(self, to_broker: bool, to_client: bool, change: Callable[[Way], None]) -> None:
        def every() -> None:
            for way in self._ways:
                if to_broker if way.leads_to_broker else to_client:
                    change(way)

        self._do(every)

    def _on_each(self, chosen: tuple[Connection, ...], act: Callable[[Connection], None]) -> int:
        reached: list[Connection] = []

        def every() -> None:
            reached.extend(connection for connection in chosen or self.live if not connection.is_over)
            for connection in reached:
                act(connection)

        self._do(every)
        return len(reached)

    async def _reap(self, after: float) -> None:
        while True:
            for connection in self.live:
                if self._loop.time() - connection.carried_at >= after:
                    self._cut(connection, reset=False)
            await asyncio.sleep(after / 50)

    def _listen(self) -> None:
        if self._accepting is None:
            listener = socket.create_server((self.host, self.port), backlog=128)
            listener.setblocking(False)
            self._accepting = listener, self._loop.create_task(self._accept(listener))

    def _stop_listening(self) -> None:
        if self._accepting is not None:
            listener, task = self._accepting
            self._accepting = None
            task.cancel()
            self._loop.remove_reader(listener)
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            broker = socket.socket()
            for end in (client, broker):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(client, broker, carried_at=self._loop.time())
            self.connections.append(connection)
            try:
                await self._loop.sock_connect(broker, self._target)
            except OSError:
                self._cut(connection, reset=True)
                continue
            for way in self._ways:
                source, target = (client, broker) if way.leads_to_broker else (broker, client)
                queue: Queue = asyncio.Queue(READ_AHEAD)
                # Two tasks with a queue between them: latency then delays the bytes without thinning them out.
                connection.tasks.append(self._loop.create_task(self._read(source, queue)))
                connection.tasks.append(self._loop.create_task(self._write(connection, way, target, queue)))

    async def _read(self, source: socket.socket, queue: Queue) -> None:
        chunk: bytes | OSError = b"-"
        while chunk and isinstance(chunk, bytes):
            try:
                chunk = await self._loop.sock_recv(source, CHUNK)
            except OSError as error:
                chunk = error
            await queue.put((self._loop.time(), chunk))

    async def _write(self, connection: Connection, way: Way, target: socket.socket, queue: Queue) -> None:
        try:
            while True:
                came, chunk = await queue.get()
                await asyncio.sleep(max(0.0, came + way.latency - self._loop.time()))
                await self._open(connection, way)
                if isinstance(chunk, OSError):
                    raise chunk
                if not chunk:
                    break
                await self._send(connection, way, target, chunk)
        except OSError:
            self._cut(connection, reset=True)
            return
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        if all(task.done() for task in connection.tasks if task is not asyncio.current_task()):
            self._cut(connection, reset=False)

    async def _send(self, connection: Connection, way: Way, target: socket.socket, chunk: bytes) -> None:
        at = 0
        end = self._look(connection, way, chunk) if self._sees_frames else None
        while at < len(chunk):
            if at == end:
                self._cut(connection, reset=True)
                await asyncio.sleep(0)  # we are cancelled, and end here
            piece = chunk[at : min(at + max(0, min(way.slice, connection.left(way))), end or CHUNK)]
            await self._loop.sock_sendall(target, piece)
            connection.carried(way, len(piece))
            at += len(piece)
            if connection.left(way) <= 0:
                self._cut(connection, way.cut_resets)
                await asyncio.sleep(0)  # we are cancelled, and end here
            if at < len(chunk) and way.slice < CHUNK:
                await asyncio.sleep(way.pause)
                await self._open(connection, way)

    def _look(self, connection: Connection, way: Way, chunk: bytes) -> int | None:
        """Where in this chunk the connection is to be cut."""
        if not connection.name and way.leads_to_broker:
            found = re.search(rb"connection_nameS....([\w.-]+-\d+-\d+)", chunk, re.DOTALL)
            connection.name = found[1] if found else b""
        frames = connection.frames[0 if way.leads_to_broker else 1].feed(chunk)
        cut = self._armed
        if cut is None:
            return None
        for offset, method, size in frames:
            if cut.after_confirm and method == ACK and not way.leads_to_broker and connection.name:
                cut.confirmed.add(connection.name)
            elif method == cut.method and way.leads_to_broker is cut.to_broker:
                if cut.after_confirm and connection.name not in cut.confirmed:
                    continue
                end = offset + min(cut.at, size - 1)
                if end < len(chunk):
                    self._armed = None
                    cut.done.set()
                    return end
        return None

    async def _open(self, connection: Connection, way: Way) -> None:
        """Wait until something may be forwarded."""
        await way.is_open.wait()
        if connection.is_forgotten:
            await asyncio.Event().wait()

    def _cut(self, connection: Connection, reset: bool) -> None:
        """End it at both ends, at once."""
        if connection.is_over:
            return
        connection.is_over = True
        for task in connection.tasks:
            task.cancel()
        for end in (connection.client, connection.broker):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            # Before the number of the descriptor is somebody else's: cancelled tasks clean up after themselves later.
            self._loop.remove_reader(end)
            self._loop.remove_writer(end)
            end.close()
