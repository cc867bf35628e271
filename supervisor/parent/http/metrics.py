"""/metrics, collected when somebody scrapes. Why these: docs/decisions/0017-metrics.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from supervisor.clock import now
from supervisor.parent.snapshot import Look, Reported
from supervisor.policy import breaker
from supervisor.policy.condition import State
from supervisor.policy.reload import Stage
from supervisor.policy.status import STATES, readiness, state_of, totals
from supervisor.policy.view import RESTART_BOUNDS, PoolView
from supervisor.version import __version__
from supervisor.vocabulary import BOUNDS, OUTCOMES, Cause, Counts, Reading, slot_of

CONTENT_TYPE = CONTENT_TYPE_LATEST

USUAL_CAUSES: Final = (*map(str, Cause), "SIGABRT", "SIGKILL", "SIGSEGV")
"""Exported from 0: to Prometheus a counter that first appears as 1 has not increased."""


_BREAKER_STATES: Final = {breaker.State.CLOSED: 0, breaker.State.HALF_OPEN: 1, breaker.State.OPEN: 2}


class PoolCollector(Collector):
    """Our metrics. Counters outlive workers and reloads, and start at 0 with each supervisor."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        latest = self._look()
        view, pages = latest.view, latest.pages()
        summed = totals(pages)
        yield from _pool(view, latest.settings.queue, latest.age)
        yield from _tasks(summed, pages)
        yield from _workers(view, pages)
        if latest.settings.rate is not None:
            text = "The limit of --rate, tasks per second; workers that wait for it have the state waiting."
            yield _gauge("workq_rate_limit", text, 1 / latest.settings.rate.interval)
        yield from _exits(view)
        yield from _canary(view)
        yield from _memory(latest.readings, latest.settings.max_memory)
        yield from _queue(view)
        dropped = summed.log_lines_dropped + latest.log_lines_dropped
        text = "Log lines that were not written: no reader, or too many."
        yield CounterMetricFamily("workq_log_lines_dropped", text, value=dropped)
        if latest.reported is not None:
            yield from _reports(latest.reported)


def _pool(view: PoolView, queue: str, age: float) -> Iterator[Metric]:
    info = GaugeMetricFamily("workq_info", "Version and queue; always 1.", labels=["version", "queue"])
    info.add_metric([__version__, queue], 1)
    yield info
    yield _gauge("workq_ready", "1 while /readyz returns 200.", readiness(view)[0])
    yield _gauge("workq_paused", "1 while workq pause is in force.", view.pause is not None)
    state = _BREAKER_STATES[view.breaker.state] if view.breaker else 0
    yield _gauge("workq_breaker_state", "The circuit breaker: 0 closed or off, 1 half-open, 2 open.", state)
    yield _gauge(
        "workq_broker_up", "1 while at least one worker consumes, or would if it were not paused.", view.ready > 0
    )
    yield _one_for_each("workq_state", "1 for the current state of the pool.", State, lambda state: view.state is state)
    yield _gauge("workq_generation", "Generation of the running code: from 1, plus one per reload.", view.generation)
    # Another thread answers, perhaps from old data; only this metric shows it.
    yield _gauge("workq_loop_seconds", "Seconds since the supervisor's loop last ran; at most 1 or 2.", age)


def _tasks(summed: Counts, pages: Sequence[Reading]) -> Iterator[Metric]:
    tasks = CounterMetricFamily("workq_tasks", "Tasks by outcome.", labels=["outcome"])
    for outcome in OUTCOMES:
        tasks.add_metric([outcome], getattr(summed, outcome))
    yield tasks
    yield _histogram(
        "workq_task_seconds", "How long handlers ran, seconds.", BOUNDS, summed.buckets, summed.busy_seconds
    )
    yield CounterMetricFamily("workq_busy_seconds", "Seconds workers spent on tasks.", value=summed.busy_seconds)
    begun = [page.hand.since for page in pages if page.hand is not None]
    oldest = now() - min(begun) if begun else 0.0
    yield _gauge("workq_oldest_task_seconds", "How long the oldest task in flight has been running, seconds.", oldest)


def _workers(view: PoolView, pages: Sequence[Reading]) -> Iterator[Metric]:
    states = [state_of(slot, page) for slot, page in zip(view.slots, pages, strict=True)]
    states += ["orphaned"] * len(view.orphans)
    yield _one_for_each("workq_workers", "Workers by state.", STATES, states.count)
    blocked = now() - view.blocked_since if view.blocked_since is not None else 0.0
    text = "How long a worker has been waiting to park a message, seconds; it takes no other until then."
    yield _gauge("workq_parking_blocked_seconds", text, blocked)
    yield _gauge("workq_workers_wanted", "Number of workers wanted.", view.wanted)


def _exits(view: PoolView) -> Iterator[Metric]:
    counts = dict.fromkeys(USUAL_CAUSES, 0) | view.exits
    exits = CounterMetricFamily("workq_worker_exits", "Worker exits by cause.", labels=["cause"])
    for cause, count in sorted(counts.items()):
        exits.add_metric([cause], count)
    yield exits
    yield CounterMetricFamily(
        "workq_worker_crashes", "Worker exits blamed on a message, or unexplained.", value=view.crashes
    )
    yield _histogram(
        "workq_worker_restart_seconds",
        "From a worker's death to its successor consuming, seconds.",
        RESTART_BOUNDS,
        view.restart_buckets,
        view.restart_seconds,
    )


def _canary(view: PoolView) -> Iterator[Metric]:
    """Both sides by role, not by generation, of which there are ever more."""
    progress = view.reload.progress if view.reload is not None and view.reload.stage is Stage.CANARY else None
    workers = progress.workers if progress is not None else 0
    yield _gauge("workq_canary_workers", "Workers that run a canary's code; 0 while there is no canary.", workers)
    text = "Tries while canaries ran, by role and outcome."
    tasks = CounterMetricFamily("workq_canary_tasks", text, labels=["role", "outcome"])
    for role, score in zip(("canary", "stable"), view.scores, strict=True):
        for outcome, count in (("succeeded", score.succeeded), ("failed", score.failed), ("crashed", score.crashes)):
            tasks.add_metric([role, outcome], count)
    yield tasks
    busy = CounterMetricFamily("workq_canary_busy_seconds", "Seconds of these tasks, by role.", labels=["role"])
    for role, score in zip(("canary", "stable"), view.scores, strict=True):
        busy.add_metric([role], score.busy_seconds)
    yield busy


def _memory(readings: Sequence[Reading], limit: int | None) -> Iterator[Metric]:
    memory = GaugeMetricFamily("workq_worker_memory_bytes", "Resident memory of a worker, bytes.", labels=["slot"])
    rss: Counter[int] = Counter()
    for reading in readings:
        rss[slot_of(reading.page)] += reading.rss  # plus an orphan's
    for slot, size in rss.items():
        memory.add_metric([str(slot)], size)
    yield memory
    if limit is not None:
        text = "Above this a worker is replaced between tasks, at twice this it is killed, bytes."
        yield _gauge("workq_max_memory_bytes", text, limit)


def _queue(view: PoolView) -> Iterator[Metric]:
    """The last measurement; nothing rather than an old one."""
    if view.depth is not None:
        text = "Messages in the queue that wait for a worker."
        yield _gauge("workq_queue_messages_ready", text, view.depth.ready)
        text = "Consumers that the broker counts on the queue, other programs' included."
        yield _gauge("workq_queue_consumers", text, view.depth.consumers)
    if view.dead is not None:
        yield _gauge("workq_dead_letters_ready", "Messages in the dead-letter queue.", view.dead.ready)


def _reports(reported: Reported) -> Iterator[Metric]:
    text = "Events that were not given to --report: its process is slower than they come."
    yield CounterMetricFamily("workq_reports_dropped", text, value=reported.dropped)
    text = "Restarts of the process of --report: it had exited, or could not be started."
    yield CounterMetricFamily("workq_report_restarts", text, value=reported.restarts)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _one_for_each(name: str, text: str, states: Iterable[str], value: Callable[[Any], float]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        metric.add_metric([str(state)], float(value(state)))
    return metric


def _histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Metric:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        seen += count
        buckets.append((bound, seen))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


class Metrics:
    def __init__(self, look: Look) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PoolCollector(look))
        # The standard process_* metrics, of the supervisor itself.
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
