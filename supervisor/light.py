"""structlog without rich, which it imports where it is installed, for tracebacks in colour that nobody here asks for.

With all that it brings along rich is 4 MB in every process, and 30 ms of every start. Who imports it later gets it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "rich" in sys.modules:
    import structlog
else:
    sys.modules["rich"] = None  # an ImportError, which structlog foresees
    try:
        import structlog
    finally:
        del sys.modules["rich"]

__all__ = ["structlog"]
