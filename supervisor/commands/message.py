"""What the command line says of a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from supervisor import queues
from supervisor.commands.plain import plain

__all__ = ["check_short", "headers"]

_HEADER_OVERHEAD: Final = 6
"""Bytes of a header beside its name and its text (AMQP 0-9-1, 4.2.5.5)."""
_HEADERS_MOST: Final = 126 * 1024
"""Bytes: properties go in one frame, of 128 KiB unless the broker is configured otherwise; a larger one ends the
connection (501)."""


def headers(pairs: Sequence[str]) -> dict[str, Any] | None:
    """Of NAME=VALUE; None of nothing. Raises click.UsageError."""
    found: dict[str, Any] = {}
    size = 0
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--header {plain(pair)[:60]}: expected NAME=VALUE.")
        check_short("--header", "name of a header", name)
        try:
            size += len(name.encode()) + len(value.encode()) + _HEADER_OVERHEAD
        except UnicodeEncodeError:
            raise click.UsageError(f"--header {plain(name)}: the value is not UTF-8.") from None
        found[name] = value
    if size > _HEADERS_MOST:
        raise click.UsageError(f"--header: {size:,} bytes of headers are more than the {_HEADERS_MOST:,} of a frame.")
    return found or None


def check_short(option: str, what: str, text: str) -> None:
    """Raises click.UsageError for what AMQP has no room for."""
    try:
        queues.check_short(what, text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}.") from None
