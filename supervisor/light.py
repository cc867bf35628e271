"""structlog without what it imports if it is installed: rich, for coloured tracebacks (4 MB in every process and 30 ms
at every start), and greenlet, which SQLAlchemy and gevent bring along, for a module of its own that is deprecated
(structlog.threadlocal; 1 MB in a pool of four)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(module: str) -> Iterator[None]:
    """Inside, importing this module raises ImportError unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with without("rich"), without("greenlet"):
    import structlog

__all__ = ["structlog", "without"]
