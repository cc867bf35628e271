"""A supervisor whose kernel says no: the n-th call of one kind fails, in the parent and nowhere else.

    python -m tests.chaos.refusing REPORT KIND NUMBERS ERRNOS -- the arguments of workq-supervise

Calls are counted by kind where Python makes them: functions of `os`, methods of `socket.socket`, `select.epoll`,
`open`. Not close(2): Linux lets go of pipes, sockets and pidfds without an error. NUMBERS (`3,17`; `0` for none) are
those that raise, each with the next of ERRNOS (`EMFILE,EAGAIN`). What the import machinery and C libraries call is not
counted. Forked children, and what is executed, are left alone.

REPORT gets a line of JSON for each call that was refused, with the place that made it, and one at the end: how many
calls of each kind there were, how many of them before the loop began, and for how long the loop stood still at most.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import fcntl
import functools
import io
import json
import mmap
import os
import resource
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from supervisor.linux import threads

FUNCTIONS: Final = {
    "pipe": (os, "pipe2", "EMFILE,ENFILE"),
    "socketpair": (socket, "socketpair", "EMFILE,ENFILE,ENOBUFS"),
    "fork": (os, "fork", "EAGAIN,ENOMEM"),
    "exec": (subprocess, "_fork_exec", "EAGAIN,ENOMEM,ENOENT"),
    "pidfd_open": (os, "pidfd_open", "EMFILE,ENOMEM,ESRCH"),
    "pidfd_send_signal": (signal, "pidfd_send_signal", "ESRCH,EAGAIN,EPERM"),
    "tgkill": (threads, "signal_main", "ESRCH,EAGAIN,EPERM"),
    "kill": (os, "kill", "ESRCH,EPERM"),
    "killpg": (os, "killpg", "ESRCH,EPERM"),
    "waitid": (os, "waitid", "ECHILD,EINTR,EBADF"),
    "open": (os, "open", "EMFILE,ENFILE,ENOMEM,EACCES"),
    "listdir": (os, "listdir", "EMFILE,ENFILE,EIO,ENOENT"),
    "read": (os, "read", "EIO,EBADF,ENOMEM"),
    "write": (os, "write", "EIO,ENOSPC,EAGAIN"),
    "dup": (os, "dup", "EMFILE"),
    "set_blocking": (os, "set_blocking", "EBADF,ENOMEM"),
    "memfd_create": (os, "memfd_create", "ENOSYS,EMFILE"),
    "ftruncate": (os, "ftruncate", "ENOSPC"),
    "eventfd": (os, "eventfd", "EMFILE"),
    "eventfd_read": (os, "eventfd_read", "EAGAIN,EIO"),
    "eventfd_write": (os, "eventfd_write", "EAGAIN,EIO"),
    "mmap": (mmap, "mmap", "ENOMEM"),
    "lockf": (fcntl, "lockf", "ENOLCK,EIO"),
    "flock": (fcntl, "flock", "ENOLCK,EINTR"),
    "prlimit": (resource, "prlimit", "EPERM,ESRCH"),
    "setrlimit": (resource, "setrlimit", "EPERM"),
    "set_wakeup_fd": (signal, "set_wakeup_fd", "EBADF"),
}
METHODS: Final = {
    "sendmsg": "ENOBUFS,ENOMEM,EMFILE",  # EPIPE and EAGAIN say of a nursery that it is dead or stuck: 10 s each
    "recvmsg": "EIO,ENOMEM,ECONNRESET,EAGAIN",
    "send": "ENOBUFS,EPIPE",
    "recv": "EIO,ENOMEM,ECONNRESET",
    "sendto": "EAGAIN,ENOBUFS,ECONNREFUSED",
    "bind": "EADDRINUSE,EACCES",
    "listen": "EADDRINUSE",
    "accept": "EMFILE,ECONNABORTED,ENFILE",
    "connect": "ECONNREFUSED,EAGAIN",
    "setsockopt": "ENOMEM,EINVAL",
    "dup": "EMFILE",
}
OTHERS: Final = {
    "open_file": "EMFILE,ENFILE,ENOENT,EIO",
    "socket": "EMFILE,ENFILE,ENOBUFS",
    "epoll_create": "EMFILE,ENOMEM",
    "epoll_ctl": "ENOSPC,ENOMEM,EBADF",
    "epoll_wait": "EINTR,EBADF,ENOMEM",
    "poll": "ENOMEM,EINTR",
    "thread": "EAGAIN",
}
KINDS: Final = (
    {kind: errors for kind, (_, _, errors) in FUNCTIONS.items()}
    | {f"socket.{name}": errors for name, errors in METHODS.items()}
    | OTHERS
)


class Kernel:
    """Counts calls, and refuses some."""

    def __init__(self, report: str, kind: str, numbers: list[int], errors: list[int]) -> None:
        self._report = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        self._write = os.write
        self._kind = kind
        self._refused = {number: errors[i % len(errors)] for i, number in enumerate(numbers)}
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.before_the_loop: dict[str, int] | None = None
        self.still = 0.0
        self._turned_at: float | None = None

    def call(self, kind: str) -> None:
        """Raises OSError when it is this one's turn."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self.calls[kind] += 1
            number = self.calls[kind]
            code = self._refused.get(number) if kind == self._kind else None
        if code is not None:
            self.tell({"refused": kind, "number": number, "errno": errno.errorcode[code], "at": _site()})
            raise OSError(code, os.strerror(code))

    def tell(self, entry: dict[str, Any]) -> None:
        self._write(self._report, json.dumps(entry).encode() + b"\n")

    def waits(self) -> None:
        """The loop is about to wait."""
        if self.before_the_loop is None:
            self.before_the_loop = dict(self.calls)
        if self._turned_at is not None:
            self.still = max(self.still, time.monotonic() - self._turned_at)

    def waited(self) -> None:
        self._turned_at = time.monotonic()

    def end(self) -> None:
        if os.getpid() == self._pid:
            self.tell({"calls": self.calls, "before": self.before_the_loop or {}, "still": round(self.still, 3)})


def _site() -> str:
    """The innermost function of ours that made the call."""
    ours = [f for f in traceback.extract_stack() if "/supervisor/" in f.filename]
    if not ours:
        return "elsewhere"
    return f"{ours[-1].filename.rpartition('/supervisor/')[2]}:{ours[-1].lineno} {ours[-1].name}"


def install(kernel: Kernel) -> None:
    """In this process alone: what it forks has the real ones, or a nursery would take them for a handler's patches."""
    reals: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, ours: Any) -> None:
        reals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, ours)

    for kind, (module, name, _) in FUNCTIONS.items():
        put(module, name, _counted(kernel, kind, getattr(module, name)))
    for name in METHODS:
        put(socket.socket, name, _counted(kernel, f"socket.{name}", getattr(socket.socket, name)))
    opened = _counted(kernel, "open_file", builtins.open)
    put(builtins, "open", opened)
    put(io, "open", opened)
    begin, start = socket.socket.__init__, threading.Thread.start

    def making(self: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        if fileno is None:
            kernel.call("socket")
        begin(self, family, type, proto, fileno)

    def starting(self: threading.Thread) -> None:
        try:
            kernel.call("thread")
        except OSError:
            raise RuntimeError("can't start new thread") from None
        start(self)

    put(socket.socket, "__init__", making)
    put(threading.Thread, "start", starting)

    class Epoll:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kernel.call("epoll_create")
            self._real = _epoll(*args, **kwargs)
            self._is_the_loops = threading.current_thread() is threading.main_thread()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._real.close()

        def register(self, *args: Any) -> Any:
            kernel.call("epoll_ctl")
            return self._real.register(*args)

        def poll(self, *args: Any, **kwargs: Any) -> Any:
            if self._is_the_loops:
                kernel.waits()
            kernel.call("epoll_wait")
            try:
                return self._real.poll(*args, **kwargs)
            finally:
                if self._is_the_loops:
                    kernel.waited()

    class Poll:
        def __init__(self) -> None:
            self._real = _poll()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def poll(self, *args: Any) -> Any:
            kernel.call("poll")
            return self._real.poll(*args)

    _epoll, _poll = select.epoll, select.poll
    put(select, "epoll", Epoll)
    put(select, "poll", Poll)
    put(selectors.EpollSelector, "_selector_cls", Epoll)
    os.register_at_fork(after_in_child=lambda: [setattr(*real) for real in reals])


def _counted(kernel: Kernel, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        kernel.call(kind)
        return real(*args, **kwargs)

    return call


def main() -> None:
    report, kind, numbers, errors, _, *arguments = sys.argv[1:]
    kernel = Kernel(
        report, kind, [int(n) for n in numbers.split(",") if n != "0"], [getattr(errno, e) for e in errors.split(",")]
    )
    # Imported before: what the imports call is not what this is about.
    import supervisor.parent.main  # noqa: F401
    from supervisor.__main__ import main as supervise

    install(kernel)
    atexit.register(kernel.end)
    sys.argv[:] = ["workq-supervise", *arguments]
    supervise()


if __name__ == "__main__":
    main()
