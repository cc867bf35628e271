"""The public names, loaded lazily: by the package, and by `workq` (`alias/workq.py`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from supervisor.linux import lacking

_HOMES: Final = {
    "Publisher": "supervisor.publisher",
    "Reject": "supervisor.worker.task",
    "Retry": "supervisor.worker.task",
    "SoftTimeout": "supervisor.worker.task",
    "Task": "supervisor.worker.task",
    "Unavailable": "supervisor.worker.task",
    "__version__": "supervisor.version",
    "once": "supervisor.inbox",
    "testing": "supervisor.testing",
}


def load(module: str, name: str) -> Any:
    """For a module's `__getattr__` (PEP 562). Raises AttributeError for that module, and ImportError on Windows."""
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    if said := lacking(f"supervisor.{name}", macos=True):
        raise ImportError(said)
    module_at_home = import_module(home)
    return module_at_home if home.endswith(f".{name}") else getattr(module_at_home, name)
