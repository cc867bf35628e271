"""What a bench is given and what it gives back; the words that all of them share.

A bench is a function `(Options) -> list[Row]`, listed with its usual rounds in `scripts/bench.py`. The broker is there
when it begins. Modules of this package import each other relatively: tests and the command line know them as
`scripts.benches.row`, the peers, in whose environment `supervisor` is somebody else's, as `benches.row`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


class BenchError(Exception):
    """It cannot be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a bench may use. Everything it starts ends with it, whatever happens."""

    node_url: str
    """A private RabbitMQ with nothing in it but what the benches of this run have left."""
    place: Path
    """An empty directory of this bench's own."""
    rounds: int
    """How often to measure: rounds of the contenders interleaved, or kills."""
    quick: bool = False
    """Less of everything, to see that it works: the figures are not for the record."""
    contenders: tuple[str, ...] = ()
    """Only these, by name; empty: all that this machine can run."""
    peer_rounds: int = 0
    """The same of the peers, at most; 0: as often as ours. See `contenders.rounds_of`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure, what it should be, and what the others have."""

    what: str
    """What was measured, in a few words: `CPU per no-op task, 4 workers`."""
    ours: str
    """In words, with its unit: `98 us, 1.12x bare pika`."""
    target: str
    """What it must reach: `1.25x bare pika`. Empty: a figure for information, without a verdict."""
    reach: str = ""
    """The ambition; empty: none beyond the target."""
    met: bool = True
    reached: bool = True
    peers: Mapping[str, str] = field(default_factory=dict)
    """By contender, in words: what it needs for the same, or why it has no figure."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The raw figures of all rounds, for JSON and plots: numbers, text, lists and mappings with text as keys.

    `{"plot": "throughput", "series": {contender: {"1": [tasks/s of each round], "2": ...}}}` and
    `{"plot": "recovery", "series": {contender: [seconds, ...]}}` are drawn.
    """
    better: tuple[str, ...] = ()
    """Contenders that did better than we: the document says so in plain words."""
    note: str = ""
    """How the figure was obtained, in a sentence or two, or what a reader must know of it."""

    @property
    def verdict(self) -> str:
        """`reached`, `met`, `MISSED`; empty without a target."""
        if not self.target:
            return ""
        if not self.met:
            return "MISSED"
        return "reached" if self.reached and self.reach else "met"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Raises TypeError when it is not what `to_json` made."""
        return cls(**{**saved, "better": tuple(saved.get("better", ()))})


def at_most(figure: float, must: float, ambition: float, words: Callable[[float], str]) -> dict[str, Any]:
    """What a row says of a figure that must not be larger: target, ambition and verdict."""
    return {"target": words(must), "reach": words(ambition), "met": figure <= must, "reached": figure <= ambition}
