"""The one place that reads monotonic time.

CLOCK_MONOTONIC counts from boot for every process of the machine alike (clock_gettime(2)), so a worker may write a time
on the scoreboard and the parent may subtract it from its own. Wall-clock time is for people and is written by `logs`
only.
"""

from time import monotonic as now

__all__ = ["now"]
