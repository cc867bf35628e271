"""supervisord's distribution, `supervisor`, installs a package of the same name: in one environment the later one
overwrites `supervisor/__init__.py`, and uninstalling removes it. Everything else works without that file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

_DISTRIBUTION: Final = re.compile(r"supervisor-([0-9][\w.+!]*?)(?:-py[0-9.]+)?\.(?:dist|egg)-info")
_OWN: Final = "give this one an environment of its own"
_APART: Final = "python3 -m venv .venv && .venv/bin/pip install .  # in a clone"
_REINSTALL: Final = "pip install --force-reinstall --no-deps .  # in a clone"
_LOST: Final = "`from supervisor import Retry` fails in a handler, `from workq import Retry` works"


def clash() -> tuple[str, str] | None:
    """The problem with the installation, and its fix; None when the package is ours alone.

    Looks only at the directory that Python has imported.
    """
    other = _other(Path(__file__).parents[1])
    # Looked up, not imported: a room that imports the package would know all rooms. Theirs is empty.
    is_ours = hasattr(sys.modules["supervisor"], "__version__")
    if other and is_ours:
        what = f"supervisord ({other}) is installed in the same environment, and both are the package `supervisor`"
        return f"{what}: to upgrade or uninstall either breaks the other; {_OWN}", _APART
    if other:
        what = f"supervisord ({other}) is installed in the same environment and has overwritten supervisor/__init__.py"
        return f"{what}: {_LOST}; {_OWN}", _APART
    if not is_ours:
        what = "supervisor/__init__.py is missing or not ours, as after supervisord was uninstalled from here"
        return f"{what}: {_LOST}; install it again", _REINSTALL
    return None


def _other(site: Path) -> str:
    """The name and version of the other distribution; empty: not installed."""
    names = (path.name for path in site.glob("supervisor-*"))  # empty if the directory cannot be read
    return next((f"supervisor {found[1]}" for name in names if (found := _DISTRIBUTION.fullmatch(name))), "")
