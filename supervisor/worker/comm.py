"""What `ps -o comm`, `top` and `pkill` call a process of ours."""

from __future__ import annotations

from pathlib import Path


def name(title: str) -> None:
    """Set the name of this process; the kernel keeps 15 bytes of it (proc(5), /proc/PID/comm)."""
    try:
        Path("/proc/self/comm").write_text(title)
    except OSError:
        pass  # a comfort: no process is worse for its lack


__all__ = ["name"]
