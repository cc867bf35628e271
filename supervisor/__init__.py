"""workq-supervise: crash-proof consumers on a RabbitMQ queue.

A handler needs nothing from here. For control it may raise `Retry` or `Reject`; for types, `Task`; to send work,
`Publisher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.version import __version__

if TYPE_CHECKING:
    from supervisor import testing
    from supervisor.inbox import once
    from supervisor.publisher import Publisher
    from supervisor.worker.task import Reject, Retry, SoftTimeout, Task, Unavailable

__all__ = [
    "Publisher", "Reject", "Retry", "SoftTimeout", "Task", "Unavailable", "__version__", "once", "testing",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from supervisor.public import load

    return load(__name__, name)
