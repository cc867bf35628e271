"""What has been measured, in words: a table on the terminal, and docs/benchmarks.md with its pictures.

The document is made from saved figures alone, so that it can be made again without measuring (`--report-from`).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from . import plots
from .row import BenchError, Row

DOCUMENT: Final = Path("docs/benchmarks.md")
IMAGES: Final = Path("docs/images")
WIDTH: Final = 100
CONTENDERS: Final = ("bare pika", "bare pika, forked", "Dramatiq", "Celery", "supervisord", "C client")
"""The columns of the comparison, in this order; others follow."""
NAMES: Final = {"workq": "workq-supervise", "workq info": "workq-supervise, log level info"}


# -------------------------------------------------------------------------------------------------------- terminal


def table(name: str, rows: Sequence[Row], error: str = "") -> str:
    """One bench for a terminal: for each row our figure, what it should be, and the others' below it."""
    lines = [name]
    for row in rows:
        lines += textwrap.wrap(row.what, WIDTH, initial_indent="  ", subsequent_indent="    ")
        figure = f"    {row.ours}"
        if row.target:
            figure += f"   (target {row.target}{f', ambition {row.reach}' if row.reach else ''}: {row.verdict})"
        lines += textwrap.wrap(figure, WIDTH, subsequent_indent="      ")
        beside = "; ".join(f"{peer} {words}" for peer, words in row.peers.items())
        lines += textwrap.wrap(beside, WIDTH, initial_indent="      ", subsequent_indent="      ")
    if error:
        lines += textwrap.wrap(f"could not be measured: {error}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------- saved


def joined(files: Sequence[Path]) -> dict[str, Any]:
    """What several runs have saved, as one; of a bench that is in several, the last. Raises BenchError when a file is
    not what `--json` writes, and when the runs were on different machines or with different versions."""
    whole: dict[str, Any] = {}
    for path in files:
        try:
            saved = json.loads(path.read_text())
            known = {name: saved[name] for name in ("began", "quick", "machine", "versions", "benches")}
            rows_of(known)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} holds no figures of scripts/bench --json ({error!r})") from None
        for name in ("machine", "versions"):
            if whole and whole[name] != known[name]:
                raise BenchError(f"{path} was measured with another {name} than {files[0]}: one document tells of one")
        benches = {**whole.get("benches", {}), **known["benches"]}
        whole = {**known, "quick": known["quick"] or whole.get("quick", False), "benches": benches}
    return whole


def rows_of(saved: Mapping[str, Any]) -> list[Row]:
    """All rows, in the order of the benches."""
    return [Row.from_json(row) for bench in saved["benches"].values() for row in bench["rows"]]


# ------------------------------------------------------------------------------------------------------- document


def write(saved: Mapping[str, Any], root: Path) -> list[Path]:
    """The document and its pictures, below the project's root; what has been written."""
    pictures = draw(rows_of(saved))
    written = []
    for name, svg in pictures.items():
        path = root / IMAGES / f"bench-{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg)
        written.append(path)
    path = root / DOCUMENT
    path.write_text(document(saved, list(pictures)))
    return [path, *written]


def draw(rows: Iterable[Row]) -> dict[str, str]:
    """The pictures by name, of the rows that have something to draw; of several of a kind, the one with the most
    contenders."""
    fullest: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        kind, series = str(row.data.get("plot")), row.data.get("series")
        if kind in plots.KINDS and series and len(series) >= len(fullest.get(kind, ())):
            fullest[kind] = {NAMES.get(name, name).partition(",")[0]: values for name, values in series.items()}
    return {kind: plots.KINDS[kind](series) for kind, series in fullest.items()}


def document(saved: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """docs/benchmarks.md."""
    rows = rows_of(saved)
    parts = [
        _head(saved),
        _verdict(saved, rows),
        _targets(rows),
        _losses(saved, rows),
        _side_by_side(rows),
        *(_PICTURES[name] for name in pictures),
        _how(rows),
        _machine(saved),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(saved: Mapping[str, Any]) -> str:
    quick = "\n**A quick look, with fewer rounds than a figure for the record needs.**\n" if saved["quick"] else ""
    return f"""# Benchmarks

workq-supervise compared with bare pika, Dramatiq, Celery, supervisord with the worker of RabbitMQ's tutorial, and a
client in C. Written by `scripts/bench` on {saved["began"][:10]}; each row is from one run, all are from one machine.
{quick}
    scripts/bench                   # all of it again, on your machine
    scripts/bench recovery start    # selected benchmarks, to the terminal
    scripts/bench guard             # the ratios that CI checks"""


def _verdict(saved: Mapping[str, Any], rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row.target]
    missed = [row for row in judged if not row.met]
    failed = [name for name, bench in saved["benches"].items() if bench["error"]]
    said = f"**{len(judged) - len(missed)} of {len(judged)} targets are met.**"
    if failed:
        said += f" Not measured, because something went wrong: {', '.join(failed)}."
    return said


def _targets(rows: Sequence[Row]) -> str:
    lines = [["what", "measured", "must reach", "reach for", ""]]
    for row in rows:
        if row.target:
            verdict = f"**{row.verdict.lower()}**" if not row.met else row.verdict
            lines.append([row.what, row.ours, row.target, row.reach, verdict])
    return "## The targets\n\n" + markdown(lines) if len(lines) > 1 else ""


def _losses(saved: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """In plain words, what is not as it should be and who does better."""
    lines = [f"- Missed: {row.what} is {row.ours}; it should be {row.target}." for row in rows if not row.met]
    for row in rows:
        if row.better:
            others = ", ".join(f"{name} ({row.peers.get(name, '?')})" for name in row.better)
            lines.append(f"- {row.what}: {row.ours}. Better: {others}.")
    for name, bench in saved["benches"].items():
        if bench["error"]:
            first = bench["error"].splitlines()[0]
            lines.append(f"- {name} could not be measured: {first}")
    return "## Where we lose\n\n" + "\n".join(lines) if lines else ""


def _side_by_side(rows: Sequence[Row]) -> str:
    compared = [row for row in rows if row.peers]
    if not compared:
        return ""
    present = {name for row in compared for name in row.peers}
    columns = [name for name in CONTENDERS if name in present] + sorted(present.difference(CONTENDERS))
    lines = [["what", "workq-supervise", *columns]]
    lines += [[row.what, row.ours, *(row.peers.get(name, "") for name in columns)] for row in compared]
    return "## Side by side\n\n" + markdown(lines)


_PICTURES: Final = {
    "throughput": "## Throughput against workers\n\n![No-op tasks a second against the number of workers, "
    "by contender](images/bench-throughput.svg)",
    "recovery": "## From a SIGKILL to the next finished task\n\n![Time from the SIGKILL of a worker to the first task "
    "finished by its replacement, each kill a dot, by contender](images/bench-recovery.svg)",
}


def _how(rows: Sequence[Row]) -> str:
    general = """## How it was measured

One private RabbitMQ node a bench, on loopback, with a durable classic queue; persistent messages, prefetch 1, the
acknowledgement after the work. Everybody runs the same task (`scripts/benches/tasks.py`), in as many processes as we
have workers, with the settings that its documentation advises for the same guarantees (`scripts/benches/contenders.py`,
`scripts/benches/peers/`). The contenders take turns within each round; a figure is the median of its rounds, a ratio
that of two contenders in the same round. CPU is the kernel's account of every process of a contender, and hardly
depends on what else the machine does; times do."""
    notes = "\n".join(f"- {row.what}: {row.note}" for row in rows if row.note)
    return f"{general}\n\n{notes}" if notes else general


def _machine(saved: Mapping[str, Any]) -> str:
    machine, again = saved["machine"], ("workq info", "bare pika, forked")
    versions = {name: words for name, words in saved["versions"].items() if words and name not in again}
    lines = [
        ["", ""],
        ["processor", f"{machine['cpu']}, {machine['cpus']} cores"],
        ["memory", f"{machine['memory_bytes'] / (1 << 30):.0f} GiB"],
        ["kernel", machine["kernel"]],
        *([NAMES.get(name, name), words] for name, words in versions.items()),
    ]
    loads = [bench["load"] for bench in saved["benches"].values()]
    busy = f"The load average when a bench began was between {min(loads):.1f} and {max(loads):.1f}." if loads else ""
    rounds = ", ".join(f"{name} {_rounds(bench)}" for name, bench in saved["benches"].items())
    return f"## The machine\n\n{markdown(lines)}\n\n{busy}\nRounds (or kills): {rounds}.".replace("\n\n\n", "\n\n")


def _rounds(bench: Mapping[str, Any]) -> str:
    fewer = bench.get("peer_rounds")
    return (
        f"{bench['rounds']} (of peers other than bare pika and the C client {fewer})" if fewer else str(bench["rounds"])
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
