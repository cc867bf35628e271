"""Exit codes of `workq`, beside those that it shares with `workq-supervise` (`supervisor.vocabulary`)."""

from __future__ import annotations

from typing import Final

INCOMPLETE: Final = 1
"""The request was not, or not fully, carried out; `workq check`: there are problems."""
UNAVAILABLE: Final = 69
"""No answer (EX_UNAVAILABLE, sysexits.h)."""
NO_PERMISSION: Final = 77
"""EX_NOPERM."""
INTERRUPTED: Final = 130
"""Ctrl-C, as a shell reports it."""
