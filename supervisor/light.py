"""Libraries without what they import only because it might be wanted.

structlog imports rich, for tracebacks in colour. Nobody here asks for it, and it takes 4 MB of every process and 30 ms
of every start. Who imports it later gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(module: str) -> Iterator[None]:
    """Meanwhile, who imports this module gets an ImportError, which it must foresee. A module that is there already
    stays."""
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
