"""What a bench says while it works: on a terminal one line that changes, elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator


def progress(rounds: int, what: str) -> Iterator[int]:
    """Count, and show it on a terminal."""
    try:
        for number in range(rounds):
            say(f"{what}: {number + 1} of {rounds}")
            yield number
    finally:
        say("")


def say(text: str) -> None:
    """Replace the line; empty: take it away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text[:100]}\x1b[K")
        sys.stderr.flush()
