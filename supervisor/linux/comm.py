"""What `ps`, `top` and `pkill`, with and without `-f`, call a process of ours."""

from __future__ import annotations

import os

from supervisor.linux import proctitle


def name(title: str) -> None:
    """Set the name of this process; the kernel keeps 15 bytes of it (proc(5), /proc/PID/comm)."""
    proctitle.title(title)
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # a comfort: no process is worse for its lack
    try:
        os.write(fd, title.encode())
    except OSError:
        pass
    finally:
        os.close(fd)


__all__ = ["name"]
