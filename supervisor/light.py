"""structlog without rich, which it imports for tracebacks in colour: 4 MB of every process and 30 ms of every start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(module: str) -> Iterator[None]:
    """Meanwhile, importing this module raises ImportError; one that is imported already stays."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with without("rich"):
    import structlog

__all__ = ["structlog", "without"]
