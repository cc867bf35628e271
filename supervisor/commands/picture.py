"""/status as rich texts and tables, for `workq status` and `workq top`.

Message ids and reasons are foreign text, and pass through `plain`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from supervisor.commands.plain import plain
from supervisor.vocabulary import OUTCOMES

COLOURS: Final = {
    "running": "green", "starting": "cyan", "connecting": "cyan", "degraded": "red", "draining": "yellow",
    "waiting": "yellow", "stopped": "red", "busy": "green", "idle": "", "backoff": "red", "empty": "dim",
    "failed": "red", "finished": "green",
}  # fmt: skip
_ALWAYS: Final = ("succeeded", "failed")


def head(document: dict[str, Any]) -> list[Text]:
    """The supervisor as a whole, line by line."""
    queue, scale, state = document["queue"], document["scale"], str(document["state"])
    wanted = f"{scale['wanted']} workers"
    if scale["least"] != scale["most"]:
        wanted += f" of {scale['least']}..{scale['most']}"
    lines = [
        Text.assemble(
            (plain(queue["name"]), "bold"), "  ", (state, f"bold {COLOURS.get(state, '')}"),
            f" for {_age(document, document['since'])}  {wanted}  generation {document['generation']}",
        ),
        _line("because", plain(document["because"])),
        _line("broker", plain(document["broker"] or "not reached yet")),
        _line("queue", _depth(queue)),
        _line("totals", _totals(document["totals"])),
    ]  # fmt: skip
    if not document["ready"]:
        lines.insert(2, _line("ready", Text(f"no: {plain(document['readiness'])}", "red")))
    elif document.get("trouble"):
        lines.insert(3, _line("trouble", Text(plain(document["trouble"]), "yellow")))
    if document.get("rate"):
        lines.append(_line("rate", _rate(document)))
    breaker = document.get("breaker")
    if breaker and breaker["state"] != "closed":
        state = str(breaker["state"]).replace("_", "-")
        lines.append(_line("breaker", Text(f"{state} for {_age(document, breaker['since'])}", "red")))
    if document["reload"]:
        lines.append(_line("reload", _reload(document)))
        lines += _canary(document)
    return lines


def workers(document: dict[str, Any], first: int = 0, count: int | None = None, *, fit: bool = True) -> Table:
    """A row for each slot, or for `count` from index `first` on. `fit`: to the width of the terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=fit, header_style="bold")
    for name, width in (
        ("slot", 4), ("pid", 7), ("state", -10), ("in flight", 0), ("for", 6), ("done", 7), ("fail", 5), ("rst", 4),
        ("mem", 5), ("last exit", 0),
    ):  # fmt: skip
        # Figures right, words left; columns without a width share the rest.
        justify: JustifyMethod = "right" if width > 0 else "left"
        ratio = 1 if fit and not width else None
        table.add_column(name, justify=justify, width=abs(width) or None, ratio=ratio, no_wrap=True)
    shown = document["workers"][first:] if count is None else document["workers"][first : first + count]
    for worker in shown:
        state = str(worker["state"])
        table.add_row(
            str(worker["slot"]),
            str(worker["pid"] or ""),
            Text(state, COLOURS.get(state, "")),
            plain(worker["message_id"] or ""),
            duration(worker["busy_seconds"]) if worker["busy_seconds"] is not None else "",
            number(worker["succeeded"]),
            number(worker["failed"]),
            str(worker["restarts"]),
            size(worker["rss_bytes"]) if worker["pid"] else "",
            _exit(document, worker["last_exit"]),
        )
    return table


def decision(entry: dict[str, Any]) -> Text:
    """One of `recent`, in a line."""
    slot = f" slot {entry['slot']}" if "slot" in entry else ""
    cause = f" {plain(str(entry['cause']))}" if "cause" in entry else ""
    time = _local(str(entry["at"]))
    because = plain(str(entry.get("because") or ""))
    return Text.assemble((time, "dim"), f" {plain(str(entry['event']))}{slot}{cause}: ", (because, "dim"))


def in_flight(document: dict[str, Any]) -> list[str]:
    """A line for each message in flight."""
    return [
        f"worker {worker['slot']} (pid {worker['pid']}) has been running {plain(worker['message_id'])} for "
        f"{duration(worker['busy_seconds'])}"
        for worker in document["workers"]
        if worker["message_id"] is not None
    ]


# --------------------------------------------------------------------------------------------------------- pieces


def duration(seconds: float) -> str:
    """Six characters at most: `0.4s`, `59s`, `12m05s`, `3h20m`, `12d`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d"


def size(count: int) -> str:
    """Five characters at most, up to a terabyte: `38M`, `1.2G`."""
    if count < 1 << 30:
        return f"{count / (1 << 20):.0f}M"
    return f"{count / (1 << 30):.1f}G"


def number(count: int) -> str:
    """Seven characters at most: `12,345`, `1.23M`."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.2f}M" if count < 1e9 else f"{count / 1e9:.2f}G"


def _line(name: str, text: str | Text) -> Text:
    return Text.assemble((f"{name:<9}", "dim"), text)


def _depth(queue: dict[str, Any]) -> str:
    if queue["ready"] is None:
        return "not measured yet"
    return f"{queue['ready']:,} ready, {queue['consumers']} consumers"


def _rate(document: dict[str, Any]) -> str:
    waiting = sum(worker["state"] == "waiting" for worker in document["workers"])
    return f"at most {plain(document['rate'])}; {waiting} workers wait for it"


def _totals(totals: dict[str, Any]) -> str:
    said = [f"{totals[name]:,} {name.replace('_', '-')}" for name in OUTCOMES if totals[name] or name in _ALWAYS]
    return ", ".join([*said, f"{totals['worker_exits']:,} worker exits"])


def _reload(document: dict[str, Any]) -> Text:
    reload = document["reload"]
    state = str(reload["state"])
    to = f"to generation {reload['generation']} ({plain(reload['by'])}) "
    when = f" {_age(document, reload['ended_at'])} ago" if reload["ended_at"] else ""
    error = f": {plain(reload['error'])}" if reload["error"] else ""
    return Text.assemble(to, (state, COLOURS.get(state, "cyan")), when, error)


def _canary(document: dict[str, Any]) -> list[Text]:
    """Of one that runs: how much of the pool it has, for how long, and what both sides have done."""
    reload = document["reload"]
    canary = reload.get("canary")
    if reload["state"] != "canary" or not canary or not canary["tasks"]:
        return []
    left = duration(max(0.0, -_seconds_since(document, canary["until"])))
    share = f"{canary['workers']} of {document['scale']['wanted']} workers, {left} left: "
    tasks = canary["tasks"]
    return [
        _line("canary", share + _tries(tasks["canary"])),
        _line("others", _tries(tasks["stable"])),
    ]


def _tries(score: dict[str, Any]) -> str:
    said = f"{number(score['tries'])} tries, {number(score['failed'])} failed, {number(score['crashes'])} crashes"
    return said if score["mean_seconds"] is None else f"{said}, {score['mean_seconds']:.3g} s a task"


def _exit(document: dict[str, Any], last: dict[str, Any] | None) -> Text:
    if last is None:
        return Text("")
    message = f" {plain(last['message_id'])}" if last["message_id"] else ""
    cause = (plain(str(last["cause"])), "" if last.get("planned") else "red")
    return Text.assemble(cause, f" {_age(document, last['at'])}{message}")


def _age(document: dict[str, Any], then: str) -> str:
    """How long ago, by the supervisor's own clock."""
    return duration(max(0.0, _seconds_since(document, then)))


def _seconds_since(document: dict[str, Any], then: str) -> float:
    """Negative: it is to come."""
    return (datetime.fromisoformat(document["now"]) - datetime.fromisoformat(then)).total_seconds()


def _local(timestamp: str) -> str:
    try:
        return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return plain(timestamp)
