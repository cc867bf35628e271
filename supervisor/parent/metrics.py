"""/metrics: a collector over the scoreboard, read when somebody scrapes and at no other time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from supervisor.policy.status import STATES, state_of, totals
from supervisor.policy.view import RESTART_BOUNDS
from supervisor.scoreboard import BOUNDS
from supervisor.version import __version__

if TYPE_CHECKING:
    from supervisor.parent.loop import Supervisor

CONTENT_TYPE = CONTENT_TYPE_LATEST

OUTCOMES = ("succeeded", "failed", "retried", "dead_lettered", "quarantined", "redelivered", "unsettled")


class PoolCollector(Collector):
    """Everything in /metrics. Counters come from shared memory and from the pool, so they outlive every worker."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        view = supervisor.view
        pages = [supervisor.board.read(slot.slot) for slot in view.slots]
        summed = totals(pages)

        tasks = CounterMetricFamily("workq_tasks", "Tasks by what became of them.", labels=["outcome"])
        for outcome in OUTCOMES:
            tasks.add_metric([outcome], getattr(summed, outcome))
        yield tasks
        yield _histogram(
            "workq_task_seconds", "How long handlers ran, seconds.", BOUNDS, summed.buckets, summed.busy_seconds
        )
        yield CounterMetricFamily("workq_busy_seconds", "Seconds workers spent on tasks.", value=summed.busy_seconds)

        workers = GaugeMetricFamily("workq_workers", "Workers by state.", labels=["state"])
        states = [state_of(slot, page) for slot, page in zip(view.slots, pages, strict=True)]
        for state in STATES:
            workers.add_metric([state], states.count(state))
        yield workers
        exits = CounterMetricFamily("workq_worker_exits", "Workers that ended, by cause.", labels=["cause"])
        for cause, count in sorted(view.exits.items()):
            exits.add_metric([cause], count)
        yield exits
        yield _histogram(
            "workq_worker_restart_seconds",
            "From a worker's death to its successor consuming, seconds.",
            RESTART_BOUNDS,
            view.restart_buckets,
            view.restart_seconds,
        )
        memory = GaugeMetricFamily("workq_worker_memory_bytes", "Resident memory of a worker, bytes.", labels=["slot"])
        for reading in supervisor.readings:
            memory.add_metric([str(reading.slot)], reading.rss)
        yield memory

        if view.depth is not None:
            yield GaugeMetricFamily(
                "workq_queue_messages_ready", "Messages in the queue that wait for a worker.", value=view.depth.ready
            )
        if view.dead is not None:
            yield GaugeMetricFamily(
                "workq_dead_letters_ready", "Messages in the dead-letter queue.", value=view.dead.ready
            )
        yield GaugeMetricFamily("workq_broker_up", "1 while at least one worker consumes.", value=float(view.ready > 0))
        dropped = summed.log_lines_dropped + supervisor.sink.dropped
        yield CounterMetricFamily("workq_log_lines_dropped", "Log lines that could not be written.", value=dropped)
        info = GaugeMetricFamily("workq_info", "What runs here; always 1.", labels=["version", "queue"])
        info.add_metric([__version__, supervisor.settings.queue], 1)
        yield info


def _histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Metric:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        seen += count
        buckets.append((bound, seen))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


class Metrics:
    """The text of one scrape."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PoolCollector(supervisor))

    def text(self) -> bytes:
        return generate_latest(self._registry)
