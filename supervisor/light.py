"""Libraries without what they import only because it might be wanted.

structlog imports rich, for tracebacks in colour; uvicorn imports watchfiles, for its own --reload, and multiprocessing,
for its own supervisors. Nobody here asks for any of it. It takes 4 MB of every process and 30 ms of every start, and
2 MB more of the supervisor. Who imports it later gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without(module: str, *names: str) -> Iterator[None]:
    """Meanwhile, who imports this module gets an ImportError, which it must foresee. Or, for one who does not, a module
    that has these names and nothing behind them. A module that is there already stays."""
    if module in sys.modules:
        yield
        return
    substitute = ModuleType(module) if names else None
    for name in names:
        setattr(substitute, name, None)
    sys.modules[module] = substitute  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with without("rich"):
    import structlog

__all__ = ["structlog", "without"]
