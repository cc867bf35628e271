"""Python as it is on macOS or Windows, as far as a Linux can show it: without what only Linux has, or only POSIX.

    python -m tests.elsewhere darwin|win32 PROGRAM [ARGUMENT...]     a line of Python; its sys.argv

The standard library, and libraries that look at the platform when they are imported, come first.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import multiprocessing  # noqa: F401
import os
import platform
import select
import signal
import socket
import ssl  # noqa: F401
import subprocess  # noqa: F401
import sys
from typing import Any

import click  # noqa: F401
import pika  # noqa: F401
import rich.console  # noqa: F401
import structlog  # noqa: F401

LINUX: dict[Any, tuple[str, ...]] = {
    os: ("EFD_", "MFD_", "O_PATH", "O_TMPFILE", "P_PIDFD", "SCHED_", "eventfd", "memfd", "pidfd", "pipe2", "posix_f",
         "sched_", "splice"),
    select: ("EPOLL", "epoll"),
    signal: ("SIGPOLL", "SIGPWR", "SIGRT", "SIGSTKFLT", "sigtimedwait", "sigwaitinfo"),
    socket: ("SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_PASSCRED", "SO_PEERCRED", "TCP_KEEPIDLE", "TCP_QUICKACK",
             "TCP_USER_TIMEOUT"),
}  # fmt: skip
"""Beginnings of names."""
POSIX: dict[Any, tuple[str, ...]] = {
    os: ("fork", "getpgid", "geteuid", "getuid", "killpg", "mkfifo", "register_at_fork", "setsid", "waitid"),
    select: ("poll",),
    signal: ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGTT", "SIGUSR", "pthread_sigmask", "setitimer"),
    socket: ("AF_UNIX", "SCM_RIGHTS", "recv_fds", "send_fds"),
}  # fmt: skip
MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty")


def main() -> None:
    system, program = sys.argv[1:3]
    platform.platform()
    lacking = [LINUX, POSIX] if system == "win32" else [LINUX]
    for module, beginnings in (each for table in lacking for each in table.items()):
        for name in [name for name in dir(module) if name.startswith(beginnings)]:
            delattr(module, name)
    if system == "win32":
        sys.modules.update(dict.fromkeys(MODULES))  # type: ignore[arg-type]
    sys.platform = system
    del sys.argv[1:3]
    exec(program, {"__name__": "__main__"})


if __name__ == "__main__":
    main()
