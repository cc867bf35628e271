"""The line that installs what an optional feature needs, for messages. Imported when that is missing."""

from __future__ import annotations

import shlex
import sys


def line(extra: str) -> str:
    """Of libraries, not of `workq-supervise[extra]`, which pip can get only where an index has this package."""
    from importlib import metadata

    try:
        wanted = metadata.requires("workq-supervise") or []
    except metadata.PackageNotFoundError:
        wanted = []  # a copy of the directory, on PYTHONPATH
    found = [each.partition(";") for each in wanted]
    names = [name.strip() for name, _, marker in found if marker.replace('"', "'").strip() == f"extra == '{extra}'"]
    return shlex.join([sys.executable, "-m", "pip", "install", *names]) if names else f"the extra {extra} has it"
