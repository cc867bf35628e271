"""`from workq import Retry`, also where supervisord has overwritten our `__init__.py`. In the wheel beside the
package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.public import load

if TYPE_CHECKING:
    from supervisor import testing
    from supervisor.inbox import once
    from supervisor.publisher import Publisher
    from supervisor.version import __version__
    from supervisor.worker.task import Reject, Retry, SoftTimeout, Task, Unavailable

__all__ = [
    "Publisher", "Reject", "Retry", "SoftTimeout", "Task", "Unavailable", "__version__", "once", "testing",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    return load(__name__, name)
