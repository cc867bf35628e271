"""A handler that does to its supervisor what no handler should: it writes to the worker's own link, page and output.

A task's body is a JSON object that says what to do; see `act`. Bytes are given as text in Latin-1.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import random
import resource
import signal
import socket
import struct
import time
from typing import Any

from handlers import note

from supervisor.vocabulary import LOG_SPACE


def act(task: Any) -> None:
    note("began", task.message_id)
    order = task.json()
    for deed in DEEDS.keys() & order.keys():
        DEEDS[deed](order[deed], order)
    time.sleep(order.get("then", 0.0))
    if "exit" in order:
        os._exit(order["exit"])
    note("done", task.message_id)


def link() -> socket.socket:
    """The worker's end of its link: its one socket of whole messages."""
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            return sock
        sock.close()
    raise LookupError("no link")


def scoreboard() -> int:
    """The descriptor of the whole scoreboard."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if "workq-scoreboard" in os.readlink(f"/proc/self/fd/{name}"):
                return int(name)
        except OSError:
            continue
    raise LookupError("no scoreboard")


def send_frames(frames: list[str], _: dict[str, Any]) -> None:
    sock = link()
    for frame in frames:
        try:
            sock.send(frame.encode("latin-1"))
        except OSError:
            return  # it is too large, or we are on our way out


def send_descriptors(count: int, order: dict[str, Any]) -> None:
    """So many frames, each with some descriptors; one that lingers when it is closed is among them, if that is asked
    for: then the supervisor's is the last."""
    sock = link()
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(order.get("each", 4))]
    supervisor, sent = os.getppid(), 0
    if order.get("linger"):
        fds[-1:] = [lingering()]  # in place of one: the kernel takes 253 at a time
        os.kill(supervisor, signal.SIGSTOP)
    try:
        sock.setblocking(False)
        frame = order.get("frame", '["Connecting",{}]').encode("latin-1")
        for _n in range(count):
            sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            sent += 1
    except OSError:
        pass  # the link is full, or takes no such frame
    finally:
        if not sent:
            os.kill(supervisor, signal.SIGCONT)  # it is for us to wait
        for fd in fds:
            os.close(fd)
        os.kill(supervisor, signal.SIGCONT)


def lingering() -> int:
    """A connection whose close blocks for a minute, unless it is not the last one."""
    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname())
    sock.setblocking(False)
    try:
        while True:
            sock.send(b"x" * 65_536)
    except BlockingIOError:
        pass
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    if os.fork() == 0:
        sock.close()
        time.sleep(90)  # it keeps the listener, so that the connection stays and nobody reads from it
        os._exit(0)
    listener.close()
    return sock.detach()


def flood(seconds: float, order: dict[str, Any]) -> None:
    """So many processes send this frame as fast as they can, for so long."""
    frame = order["frame"].encode("latin-1")
    sock = link()
    until = time.monotonic() + seconds
    children = []
    for _ in range(order.get("processes", 3)):
        pid = os.fork()
        if pid == 0:
            try:
                while time.monotonic() < until:
                    sock.send(frame)
            finally:
                os._exit(0)
        children.append(pid)
    if order.get("leave"):
        return
    for pid in children:
        os.waitpid(pid, 0)


def spoil(how: str, order: dict[str, Any]) -> None:
    """Write to every page of the scoreboard but our own, the log's included, and then, if that is asked for, to our own
    too."""
    fd = scoreboard()
    size = os.fstat(fd).st_size
    if how == "truncate":
        for length in (0, 4096, size * 2):
            try:
                os.ftruncate(fd, length)
                note("truncated", str(length))
            except OSError:
                note("refused", str(length))
        return
    board = mmap.mmap(fd, size)
    dice = random.Random(order.get("seed", 0))
    until = time.monotonic() + order.get("seconds", 0.0)
    while True:
        for start in range(0, LOG_SPACE + 4096 * order.get("pages", 8), 4096):
            board[start : start + 4096] = _page(how, dice)
        if time.monotonic() >= until:
            break


def write_pages(pages: list[str], _: dict[str, Any]) -> None:
    """Over the first pages, whoever's they are."""
    for number, page in enumerate(pages):
        os.pwrite(scoreboard(), page.encode("latin-1"), LOG_SPACE + 4096 * number)


def _page(how: str, dice: random.Random) -> bytes:
    match how:
        case "ones":
            return b"\xff" * 4096
        case "zeroes":
            return bytes(4096)
        case "nan":
            return struct.pack("<d", float("nan")) * 512
        case "infinity":
            return struct.pack("<d", float("inf")) * 512
        case "negative":
            return struct.pack("<d", -1e300) * 512
        case "busy":
            # Well-formed, and a lie: a task without end, with a key as long as the field can say.
            return struct.pack("<BBHId", 4, 1, 0, 1, 1e308) + b"\xff\xff" * 2040
        case _:
            return dice.randbytes(4096)


def pour(text: str, order: dict[str, Any]) -> None:
    """Write to the worker's output, from some processes, as fast as they can, for so long."""
    data = (text.encode("latin-1") * (65_536 // max(1, len(text)) + 1))[:65_536]
    until = time.monotonic() + order.get("seconds", 2.0)
    children = []
    for _ in range(order.get("processes", 2)):
        pid = os.fork()
        if pid == 0:
            try:
                os.set_blocking(1, False)
                while time.monotonic() < until:
                    try:
                        os.write(1, data)
                    except BlockingIOError:
                        time.sleep(0.001)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def steal(_: Any, order: dict[str, Any]) -> None:
    """Read from the pipe that the supervisor reads, by another description of it, and change what it can hold."""
    fd = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, order.get("size", 4096))
    until = time.monotonic() + order.get("seconds", 1.0)
    while time.monotonic() < until:
        os.write(1, b"now you see it\n")
        try:
            os.read(fd, 65_536)
        except BlockingIOError:
            pass
    os.close(fd)


def starve(soft: int, _: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


DEEDS = {
    "frames": send_frames,
    "descriptors": send_descriptors,
    "flood": flood,
    "spoil": spoil,
    "page": write_pages,
    "pour": pour,
    "steal": steal,
    "starve": starve,
}
