"""Totals that never go backwards, of pages that any code can write on. A step back, or one too large, adds nothing."""

from __future__ import annotations

from typing import Final

from supervisor.vocabulary import Counts

LEAP: Final = 1e9
"""More than any figure grows from one look to the next. Random bytes are nearly always above it."""


class Tally:
    """One page's. Not thread-safe."""

    __slots__ = ("_integers", "_seconds", "_shown")

    def __init__(self) -> None:
        self._integers: tuple[int, ...] = ()
        self._seconds = 0.0
        self._shown = Counts()

    def look(self, names: tuple[str, ...], numbers: tuple[int, ...], seconds: float, due: float) -> Counts:
        """What the page holds now: a number for each name, then the histogram; `due` is kept as it is."""
        before = self._integers or (0,) * len(numbers)
        if (numbers, seconds, due) == (before, self._seconds, self._shown.due) and self._shown.buckets:
            return self._shown
        shown = self._shown
        was = (*(getattr(shown, name) for name in names), *(shown.buckets or (0,) * (len(numbers) - len(names))))
        total = tuple(
            old + new - last if 0 <= new - last <= LEAP else old
            for old, last, new in zip(was, before, numbers, strict=True)
        )
        grown = seconds - self._seconds
        self._shown = Counts(
            **dict(zip(names, total, strict=False)),
            busy_seconds=shown.busy_seconds + (grown if 0 <= grown <= LEAP else 0.0),
            due=due,
            buckets=total[len(names) :],
        )
        self._integers, self._seconds = numbers, seconds
        return self._shown
