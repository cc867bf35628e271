"""How workers follow one another after an outage, without a stampede on what has just come back: one tries; once it
works 3 follow, then 9, then 27."""

from __future__ import annotations


def room(proven: int) -> int:
    """How many more may try at a time while so many are known to work."""
    return 1 + 2 * proven
