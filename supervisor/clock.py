"""The one place that reads monotonic time. CLOCK_MONOTONIC counts from boot for every process alike (clock_gettime(2)),
so the parent may compare a worker's times with its own. Wall-clock time is for people: `logs`."""

from time import monotonic as now

__all__ = ["now"]
