"""Variables that no child of the supervisor inherits."""

from __future__ import annotations

from typing import Final

SECRETS: Final = ("WORKQ_URL",)
"""They leak through /proc/PID/environ."""
NOTIFY: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""A process that has them can notify in our name (sd_notify(3), `unset_environment`)."""
