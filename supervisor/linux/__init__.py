"""The kernel's interfaces, and what is said where they are missing."""

from __future__ import annotations

import sys


def lacking(program: str, *, macos: bool = False) -> str:
    """Why this program cannot run on this system, and where it can, in a line; empty on Linux. `macos`: there, too."""
    system: str = sys.platform  # a type checker takes it to be the one that it runs on
    if system == "linux" or (macos and system == "darwin"):
        return ""
    name = {"darwin": "macOS", "win32": "Windows"}.get(system, system)
    how = "in WSL 2 or a container" if system == "win32" else "in a container"
    return f"{program} needs Linux, and this is {name}: run it {how}, see docs/containers.md"
