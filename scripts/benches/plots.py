"""The pictures of docs/benchmarks.md: SVG as text, which is small, needs no package, and reads well in a diff.

They have no background, and their words take the colour of the reader's scheme (prefers-color-scheme); the series'
colours stand out from both a white and a black page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

WIDTH: Final = 760
HUES: Final = {
    "workq-supervise": "#0a84d6",
    "bare pika": "#8a8a8a",
    "Dramatiq": "#d1690e",
    "Celery": "#2f9e55",
    "supervisord": "#c2447f",
    "C client": "#8f6fd0",
}
"""By contender, in every picture; told apart also by who does not see all colours, and by the words beside them."""
OTHER: Final = "#7a7a5a"
STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .quiet { fill: #57606a; font-size: 12px; }
  .strong { font-weight: 600; }
  .grid { stroke: #8c959f; stroke-opacity: .3; stroke-width: 1; }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .quiet { fill: #9ba5b0; } }
"""


def hue(name: str) -> str:
    return HUES.get(name, OTHER)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "", fill: str = "") -> str:
    style = f' style="fill: {fill}"' if fill else ""
    shown = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{shown}{style}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def picture(height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


# ------------------------------------------------------------------------------------------------------- throughput


def throughput(series: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Tasks a second against the number of workers: a line for each contender through the medians of its rounds, the
    single rounds as dots."""
    left, right, top, bottom = 64, 610, 44, 340
    counts = sorted({int(count) for values in series.values() for count in values})
    most = max(value for values in series.values() for rounds in values.values() for value in rounds)
    ceiling, step = nice(most)
    gap = (right - left) / max(1, len(counts) - 1)

    def x(count: int) -> float:
        return left + counts.index(count) * gap

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / ceiling

    parts = [text(0, 18, "No-op tasks a second against the number of workers", kind="strong")]
    for tick in range(round(ceiling / step) + 1):
        parts += [line(left, y(tick * step), right, y(tick * step))]
        parts += [text(left - 8, y(tick * step) + 4, f"{tick * step:,.0f}", "end", "quiet")]
    parts += [text(x(count), bottom + 22, f"{count}", "middle", "quiet") for count in counts]
    parts += [text((left + right) / 2, bottom + 44, "workers", "middle", "quiet")]
    ends: dict[str, float] = {}
    for name, values in series.items():
        medians = [(x(int(count)), y(statistics.median(rounds))) for count, rounds in values.items()]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in medians)
        thick = 3 if name == "workq-supervise" else 1.8
        parts += [f'<polyline points="{path}" fill="none" stroke="{hue(name)}" stroke-width="{thick}"/>']
        for count, rounds in values.items():
            for value in rounds:
                dot = f'cx="{x(int(count)):.1f}" cy="{y(value):.1f}" r="2.5" fill="{hue(name)}"'
                parts += [f'<circle {dot} fill-opacity=".7"/>']
        ends[name] = medians[-1][1]
    for name, down in apart(ends, 17).items():
        kind = "strong" if name == "workq-supervise" else ""
        parts += [text(right + 12, down + 4, name, kind=kind, fill=hue(name))]
    return picture(bottom + 56, "No-op tasks a second against the number of workers", parts)


def nice(most: float) -> tuple[float, float]:
    """A round number that is not below this one, and a step that divides it into 4 to 8."""
    power = 10.0 ** math.floor(math.log10(max(most, 1e-9)))
    step = next(power * factor for factor in (0.2, 0.25, 0.5, 1.0, 2.0) if most / (power * factor) <= 6)
    return math.ceil(most / step) * step, step


def apart(places: Mapping[str, float], distance: float) -> dict[str, float]:
    """The same places, moved so that no two are nearer than this: for labels."""
    ordered = sorted(places.items(), key=lambda item: item[1])
    found: dict[str, float] = {}
    last = -math.inf
    for name, place in ordered:
        last = found[name] = max(place, last + distance)
    # Half of what they were pushed down, everything goes up again.
    shift = max((found[name] - place for name, place in ordered), default=0.0) / 2
    return {name: place - shift for name, place in found.items()}


# --------------------------------------------------------------------------------------------------------- recovery


def recovery(series: Mapping[str, Sequence[float]]) -> str:
    """One row a contender, a dot a kill, across a logarithmic axis; a bar at the median, which is written beside it."""
    left, right, top, row = 150, 690, 50, 64
    bottom = top + row * len(series)
    values = [value for each in series.values() for value in each]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(seconds: float) -> float:
        return left + (right - left) * (math.log10(seconds) - low) / (high - low)

    parts = [text(0, 18, "From the SIGKILL of a worker to the first task finished by its replacement", kind="strong")]
    for power in range(low, high + 1):
        parts += [line(x(10.0**power), top, x(10.0**power), bottom)]
        parts += [text(x(10.0**power), bottom + 20, duration(10.0**power), "middle", "quiet")]
        for tenth in range(2, 10) if power < high else ():
            parts += [line(x(tenth * 10.0**power), bottom - 5, x(tenth * 10.0**power), bottom)]
    for number, (name, each) in enumerate(series.items()):
        middle = top + row * (number + 0.5)
        kind = "strong" if name == "workq-supervise" else ""
        parts += [text(left - 12, middle + 4, name, "end", kind, hue(name))]
        for turn, seconds in enumerate(each):
            # The dots of one place are spread over the row's height, always in the same way.
            down = middle + 5 + (turn * 7 % 15 - 7) * 1.2
            dot = f'cx="{x(seconds):.1f}" cy="{down:.1f}" r="2.6" fill="{hue(name)}"'
            parts += [f'<circle {dot} fill-opacity=".5"/>']
        typical = statistics.median(each)
        mark = f'x1="{x(typical):.1f}" y1="{middle - 10:.1f}" x2="{x(typical):.1f}" y2="{middle + 20:.1f}"'
        parts += [f'<line {mark} stroke="{hue(name)}" stroke-width="2.5"/>']
        words = f"median {duration(typical)}, worst of {len(each)}: {duration(max(each))}"
        anchor = "start" if x(typical) < left + 110 else "end" if x(typical) > right - 110 else "middle"
        parts += [text(x(typical), middle - 16, words, anchor, "quiet")]
    return picture(bottom + 34, "From the SIGKILL of a worker to the first task finished by its replacement", parts)


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.3g} ms"


KINDS: Final[Mapping[str, Callable[[Any], str]]] = {"throughput": throughput, "recovery": recovery}
