"""The edges, each by itself, at some thousand throws a second: nothing is raised, kept open or waited for. Those of the
parent, and that of a worker to its broker."""

from __future__ import annotations

import array
import contextlib
import datetime
import fcntl
import itertools
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pika import frame

from supervisor import amqp, logs
from supervisor.clock import now
from supervisor.frames import kinds_of
from supervisor.link import Link
from supervisor.messages import NurseryReport, WorkerReport
from supervisor.parent.hearing import Hearing
from supervisor.parent.output import Output
from supervisor.policy import hung, status
from supervisor.policy.events import Sampled
from supervisor.policy.pool import Pool
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings, Span
from supervisor.vocabulary import LOG_SPACE
from tests import differential
from tests.fuzz import material

REPORTS = {union: kinds_of(union) for union in (WorkerReport, NurseryReport)}
ROOM = 3
"""Descriptors that may come to be in a process that runs meanwhile, for reasons of its own."""


class Quiet:
    """A logger that keeps nothing; what it is told has to be text that can be written."""

    def bind(self, **_: object) -> Quiet:
        return self

    def info(self, _: str, **fields: object) -> None:
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()

    warning = info


class Written(logs.Sink):
    """A sink to nowhere, that checks what it is given."""

    def __init__(self) -> None:
        self.dropped = 0

    def write(self, line: bytes) -> bool:
        assert line.endswith(b"\n") and line.count(b"\n") == 1 and json.loads(line) is not None
        return True


@contextlib.contextmanager
def nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + ROOM, "descriptors were left open"


def link(dice: random.Random) -> None:
    """Some messages, some of them with descriptors, come on a link; then, perhaps, its end."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.setblocking(False)
    union = dice.choice([*REPORTS])
    hearing = Hearing(Link(here), REPORTS[union], Written(), Quiet())
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    for _ in range(dice.randrange(1, 8)):
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if dice.random() < 0.1 else []
        try:
            there.sendmsg([material.frame(dice)], extra)
        except OSError:
            break  # the link is full, or this is too large for it
    for fd in fds:
        os.close(fd)
    if dice.random() < 0.5:
        there.close()
    heard = [*hearing.read(now() + dice.choice([0.0, 1.0]))]
    hearing.refill()
    heard += hearing.last_words()
    assert {type(report) for report in heard} <= REPORTS[union]
    assert hearing.is_over or there.fileno() >= 0
    here.close()
    there.close()


def output(dice: random.Random) -> None:
    """A child writes to its pipe, and is gone."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, dice.choice([4096, 65_536, 1 << 20]))
    os.set_blocking(writer, False)
    out = Output(reader, Quiet())
    for _ in range(dice.randrange(1, 6)):
        with contextlib.suppress(BlockingIOError):
            os.write(writer, material.printed(dice))
        if dice.random() < 0.7:
            assert out.read()
        if dice.random() < 0.2:
            out.refill()
    if dice.random() < 0.5:
        os.close(writer)
        writer = -1
    out.drain()
    out.tail.encode()
    out.close()
    if writer >= 0:
        os.close(writer)


BOARD = Scoreboard.create()
SETTINGS = replace(Settings("tasks:handle"), workers=Span(2, 4), task_timeout=1.0, max_memory=1 << 20, burst=True)


def page(dice: random.Random) -> None:
    """Something is written over two pages; what follows from them is decided, shown and measured."""
    pool = Pool(SETTINGS)
    pool.start(now())
    slots = (0, 1)
    before = status.totals(BOARD.read(slot) for slot in slots)
    for slot in slots:
        content = material.page(dice)
        os.pwrite(BOARD.fd, content[: dice.choice([4096, 600])], LOG_SPACE + 4096 * slot + dice.choice([0, 0, 8, 512]))
    readings = [replace(BOARD.read(slot), rss=dice.choice([0, 1 << 30])) for slot in slots]
    for reading in readings:
        hung.examine(reading, SETTINGS, is_ready=True, held_up=False, now=now())
    pool.handle(Sampled(tuple(readings)), now())
    pages = [BOARD.read(slot.slot) for slot in pool.view(now()).slots]
    wall = datetime.datetime.now(datetime.UTC)
    shown = status.status(pool.view(now()), pages, readings, [], SETTINGS, now(), wall)
    json.dumps(shown, allow_nan=False, ensure_ascii=False).encode()
    after = status.totals(readings)
    for name in ("succeeded", "failed", "busy_seconds", "log_lines_dropped"):
        assert getattr(after, name) >= getattr(before, name), f"{name} goes backwards"
    assert all(new >= old for new, old in zip(after.buckets, before.buckets, strict=True))


def deliveries(dice: random.Random) -> None:
    """A broker sends deliveries, more or less, in pieces: what comes of them is what pika makes of them."""
    stream = material.deliveries(dice)
    cuts = sorted(dice.randrange(len(stream) + 1) for _ in range(dice.randrange(5)))
    pieces = [stream[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(stream)])]
    ours, pikas = differential.Ours(), differential.Pikas()
    try:
        assert ours.feed(*pieces) == pikas.feed(*pieces), stream
    finally:
        ours.close()
        pikas.close()


def broker(dice: random.Random) -> None:
    """A broker says whatever it likes, from its first word on or to a worker that consumes; then, perhaps, its end."""
    ours = differential.WiredOurs([dice.randrange(100) for _ in range(dice.randrange(5))])
    try:
        connection, peer, first = ours.connection, ours.wire.peer, ours.connection._channels[1]
        if dice.random() < 0.5:
            connection.has_opened = False
        for _ in range(dice.randrange(1, 6)):
            with contextlib.suppress(OSError):
                peer.send(material.said_by_a_broker(dice))
            if dice.random() < 0.3:
                connection.channel(lambda opened: opened.queue_declare("q", passive=True))
            if dice.random() < 0.3:
                first.basic_ack(1)
            ours.turn()
        if is_over := dice.random() < 0.5:
            peer.close()
        for _ in range(30):
            ours.turn()
        assert connection.is_closed or not is_over
        assert len(ours.ends) == connection.is_closed
        if connection.is_closed:
            assert not connection.has_written and not connection._channels
            assert amqp.explain(connection.error).reason
        elif not is_over and connection._stream is ours.stream:
            whole(ours.wire.arrived())
    finally:
        ours.close()


def whole(sent: bytes) -> None:
    """What a connection has sent are frames."""
    while sent:
        size, found = frame.decode_frame(sent)
        assert found is not None, sent
        sent = sent[size:]


EDGES: dict[str, Any] = {
    "link": link,
    "output": output,
    "page": page,
    "deliveries": deliveries,
    "broker": broker,
}


def throw(name: str, seed: int) -> None:
    """Once, at one edge."""
    with nothing_is_left_open():
        EDGES[name](random.Random(seed))
