"""Exit codes of `workq`, beside those that it shares with `workq-supervise` (`supervisor.vocabulary`)."""

from __future__ import annotations

from typing import Final

INCOMPLETE: Final = 1
"""It was asked for, and is not done, or not all of it; of `workq check`: there are problems."""
UNAVAILABLE: Final = 69
"""Nobody there (EX_UNAVAILABLE, sysexits.h)."""
NO_PERMISSION: Final = 77
"""EX_NOPERM."""
INTERRUPTED: Final = 130
"""By Ctrl-C, as a shell tells it."""
