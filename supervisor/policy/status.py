"""Readiness and /status, from pool and scoreboard. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from supervisor import queues
from supervisor.policy.admission import Pause
from supervisor.policy.breaker import BreakerView
from supervisor.policy.canary import Canary, Progress, Score
from supervisor.policy.condition import State
from supervisor.policy.reload import Reload
from supervisor.policy.slot import SlotState
from supervisor.policy.view import OrphanView, PoolView, SlotView
from supervisor.settings import Settings
from supervisor.version import __version__
from supervisor.vocabulary import OUTCOMES, Counts, Phase, Reading, other_page

STATES = ("starting", "connecting", "idle", "waiting", "busy", "draining", "backoff", "empty", "orphaned")
"""A worker's state in /status and /metrics. An orphan has no slot: its replacement has."""

AT_WORK = frozenset({Phase.BUSY, Phase.SETTLING, Phase.PARKING, Phase.ASKING})
_SLOT_STATES = {
    SlotState.EMPTY: "empty",
    SlotState.WAITING: "backoff",
    SlotState.FORKING: "starting",
    SlotState.BOOTING: "starting",
    SlotState.CONNECTING: "connecting",
    SlotState.DRAINING: "draining",
    SlotState.ABORTING: "draining",
    SlotState.KILLED: "draining",
}


def page_of(slot: SlotView, read: Callable[[int], Reading]) -> Reading:
    """The page of a slot's worker, with the counts of both pages of the slot."""
    page = read(slot.page)
    if not slot.has_both:
        return page
    return dataclasses.replace(page, counts=totals((page, read(other_page(slot.page)))))


def totals(pages: Iterable[Reading]) -> Counts:
    """The sum over all slots, dead workers included."""
    counts = [page.counts for page in pages]
    names = (*OUTCOMES, "log_lines_dropped", "busy_seconds")
    buckets = zip(*(each.buckets for each in counts), strict=True)
    return Counts(
        **{name: sum(getattr(each, name) for each in counts) for name in names}, buckets=tuple(map(sum, buckets))
    )


def state_of(slot: SlotView, page: Reading) -> str:
    """One of STATES."""
    if slot.state is SlotState.READY:
        return "busy" if page.phase in AT_WORK else "waiting" if page.phase is Phase.WAITING else "idle"
    return _SLOT_STATES[slot.state]


def readiness(view: PoolView) -> tuple[bool, str]:
    """Whether the pool consumes, and why not. While degraded, only a worker that has consumed for a while counts."""
    if view.state in (State.DRAINING, State.STOPPED):
        return False, f"{view.state}: {view.because}"
    if view.refusal:
        return False, view.refusal
    if view.state is State.DEGRADED and not view.steady:
        return False, f"degraded: {view.because}"
    if not view.ready:
        why = view.shortage or view.not_imported or view.trouble
        return False, f"no worker consumes: {why}" if why else f"no worker consumes yet ({view.state})"
    if view.standby and not view.may_stand_by:
        hint = "--ready-when subscribed counts a standby as ready"
        return False, "; ".join(filter(None, (view.standby, view.trouble, hint)))
    if view.is_starved and not view.standby:
        return False, f"no worker gets messages: {view.trouble}"
    if view.is_held_up:
        return False, f"no worker accepts tasks: {view.trouble}"
    # Not out of all slots: a pool that shrank keeps empty ones. While it shrinks, more consume than are wanted.
    consuming = f"{view.taking} of {max(view.ready, view.wanted)} workers consume"
    said = (consuming, view.restriction, view.standby, view.shortage, view.not_imported, view.trouble)
    return True, "; ".join(filter(None, said))


def status(
    view: PoolView,
    pages: list[Reading],
    readings: Iterable[Reading],
    recent: list[dict[str, Any]],
    settings: Settings,
    now: float,
    wall: datetime,
) -> dict[str, Any]:
    """The document at /status. `now`: monotonic seconds; `wall`: the same instant, UTC."""

    def iso(then: float) -> str:
        return (wall - timedelta(seconds=now - then)).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    sampled = {reading.pid: reading for reading in readings}
    rss = {pid: reading.rss for pid, reading in sampled.items()}
    summed = totals(pages)
    ready, because = readiness(view)
    shut = view.refusal if view.state is State.RUNNING else None
    return {
        "now": iso(now),
        "state": str(view.state),
        "because": shut or view.restriction or view.because,
        "since": iso(view.since),
        "version": __version__,
        "ready": ready,
        "readiness": because,
        "handler": settings.handler,
        "broker": view.broker,
        "trouble": view.trouble or view.shortage or view.not_imported,
        "queue": {
            "name": settings.queue,
            "type": settings.queue_type,
            "ready": view.depth.ready if view.depth else None,
            "consumers": view.depth.consumers if view.depth else None,
        },
        "paused": _pause(view.pause, iso) if view.pause else None,
        "rate": str(settings.rate) if settings.rate else None,
        "breaker": _breaker(view.breaker, iso) if view.breaker else None,
        "generation": view.generation,
        "reload": _reload(view.reload, iso) if view.reload else None,
        "scale": {"wanted": view.wanted, "least": settings.workers.least, "most": settings.workers.most},
        "workers": [_worker(slot, page, rss, now, iso) for slot, page in zip(view.slots, pages, strict=True)],
        "orphans": [_orphan(orphan, sampled.get(orphan.pid), now, iso) for orphan in view.orphans],
        "totals": {
            **{name: getattr(summed, name) for name in OUTCOMES},
            "worker_exits": sum(view.exits.values()),
        },
        "recent": recent,
        "dead_letters": {
            "queue": queues.dead(settings.queue),
            "ready": view.dead.ready if view.dead else None,
            "recent": [dataclasses.asdict(parked) for parked in view.parked],
        },
    }


def without_evidence(document: dict[str, Any]) -> dict[str, Any]:
    """Short enough for a log line."""
    letters = document["dead_letters"]
    slim = [{name: value for name, value in letter.items() if name != "evidence"} for letter in letters["recent"]]
    return document | {"dead_letters": letters | {"recent": slim}}


def _pause(pause: Pause, iso: Callable[[float], str]) -> dict[str, Any]:
    until = iso(pause.until) if pause.until < math.inf else None
    return {"by": pause.by, "since": iso(pause.since), "until": until}


def _breaker(breaker: BreakerView, iso: Callable[[float], str]) -> dict[str, Any]:
    return {
        "state": str(breaker.state),
        "because": breaker.because or None,
        "since": iso(breaker.since),
        "until": iso(breaker.until) if breaker.until is not None else None,
    }


def _reload(latest: Reload, iso: Callable[[float], str]) -> dict[str, Any]:
    return {
        "number": latest.number,
        "state": str(latest.stage),
        "generation": latest.generation,
        "by": latest.by,
        "at": iso(latest.began),
        "ended_at": iso(latest.ended) if latest.ended is not None else None,
        "error": latest.error or None,
        "canary": _canary(latest.canary, latest.progress, iso) if latest.canary else None,
    }


def _canary(canary: Canary, progress: Progress | None, iso: Callable[[float], str]) -> dict[str, Any]:
    return {
        "percent": canary.percent,
        "seconds": canary.seconds,
        "workers": progress.workers if progress else 0,
        "until": iso(progress.until) if progress else None,
        "tasks": {"canary": _score(progress.new), "stable": _score(progress.old)} if progress else None,
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "tries": score.tries,
        "succeeded": score.succeeded,
        "failed": score.failed,
        "crashes": score.crashes,
        "mean_seconds": None if score.mean is None else round(score.mean, 6),
        "p95_seconds": None if score.p95 in (None, math.inf) else score.p95,
    }


def _worker(
    slot: SlotView, page: Reading, rss: dict[int, int], now: float, iso: Callable[[float], str]
) -> dict[str, Any]:
    hand = page.hand if slot.pid == page.pid else None
    last = slot.last_exit
    last_exit = last and {
        "cause": last.cause,
        "message_id": last.message_id,
        "at": iso(last.at),
        "planned": last.is_planned,
    }
    return {
        "slot": slot.slot,
        "pid": slot.pid,
        "state": state_of(slot, page),
        "message_id": hand.name if hand else None,
        "busy_seconds": round(now - hand.since, 3) if hand else None,
        "generation": slot.generation,
        "rss_bytes": rss.get(slot.pid or 0, 0),
        "restarts": slot.restarts,
        "succeeded": page.counts.succeeded,
        "failed": page.counts.failed,
        "last_exit": last_exit,
    }


def _orphan(orphan: OrphanView, page: Reading | None, now: float, iso: Callable[[float], str]) -> dict[str, Any]:
    hand = page.hand if page else None
    return {
        "slot": orphan.slot,
        "pid": orphan.pid,
        "message_id": (hand.message_id or hand.key) if hand else None,
        "busy_seconds": round(now - hand.since, 3) if hand else None,
        "rss_bytes": page.rss if page else 0,
        "until": iso(orphan.until),
    }
