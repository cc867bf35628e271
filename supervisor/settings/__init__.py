"""The settings. `parsers` turn text into values. Workers import this package, so it is light: no click."""

from __future__ import annotations

from supervisor.settings.options import OPTIONS, Option, Settings, unreloadable
from supervisor.settings.parsers import (
    SOCKET_PATH_MOST,
    WORKERS_MOST,
    Address,
    Cpus,
    Rate,
    Span,
    parse_duration,
    parse_size,
    usable_cpus,
)  # fmt: skip
from supervisor.settings.sources import UNITS, SettingsError, Whereabouts, has_settings, load, locate, read

__all__ = [
    "OPTIONS", "SOCKET_PATH_MOST", "UNITS", "WORKERS_MOST", "Address", "Cpus", "Option", "Rate", "Settings",
    "SettingsError", "Span", "Whereabouts", "has_settings", "load", "locate", "parse_duration", "parse_size", "read",
    "unreloadable", "usable_cpus",
]  # fmt: skip
