"""workq-supervise: crash-proof consumers on a RabbitMQ queue.

A handler needs nothing from here. For control it may raise `Retry` or `Reject`; for types, `Task`; to send work,
`Publisher`. Names are loaded when first used, so that a worker pays only for what it touches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.version import __version__

if TYPE_CHECKING:
    from supervisor.publisher import Publisher
    from supervisor.worker.task import Reject, Retry, Task

__all__ = ["Publisher", "Reject", "Retry", "Task", "__version__"]

_HOMES = {
    "Publisher": "supervisor.publisher",
    "Reject": "supervisor.worker.task",
    "Retry": "supervisor.worker.task",
    "Task": "supervisor.worker.task",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'supervisor' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
