"""Does a worker's page of the scoreboard show that it hangs, or exceeds its memory limit?

| its page | action |
|---|---|
| a task runs longer than `--task-timeout` | SIGABRT, as `timeout` |
| more than twice the memory limit, mid-task | SIGABRT, as `memory` |
| more than the memory limit, between two tasks | drained |
| no activity for long, and stopped by a signal or idle | SIGABRT, as `hung` |

Without `--task-timeout` a task may run for any time, so inactivity with a task in flight proves nothing.

When a worker takes more than `--max-memory` before its first task, no task is to blame and a replacement is no smaller:
the limit then counts on top of its initial size. Rejected: no limit at all (a leak would grow until the kernel kills),
and refusing to start (a reload with a larger import would be an outage).
"""

from __future__ import annotations

import math
from typing import Final

from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import Cause, Phase, Reading

SAMPLE_GAP: Final = 3.0
"""Seconds without a sample that mean the supervisor itself was held up: then no worker counts as hung."""
HUNG_AFTER: Final = 5.0
"""Seconds without a turn of its loop in which nobody is stuck, however short the heartbeat."""
SILENT_AFTER: Final = 3.0
"""Missed heartbeats after which every broker has closed the connection."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    cause: str
    because: str
    is_hung: bool = True
    """False: it works, and is only to be replaced."""


def memory_limit(max_memory: int | None, began_with: int) -> int | None:
    """Above this a worker is replaced between tasks, above twice this it is aborted mid-task; None: never."""
    if max_memory is None or began_with <= max_memory:
        return max_memory
    return began_with + max_memory


def too_small(max_memory: int | None, began_with: int) -> str | None:
    """Why the limit is too small for a worker of this initial size, and the remedy; None: it is not."""
    if max_memory is None or began_with <= max_memory:
        return None
    mib = 1024 * 1024
    return (
        f"--max-memory {max_memory // mib}M is less than the {began_with // mib} MiB that a worker takes before its "
        f"first task: workers are replaced after growing by {max_memory // mib} MiB beyond that; set it to "
        f"{math.ceil(1.5 * began_with / mib)}M or more, or import less"
    )


def stands_still_after(limits: Settings) -> float:
    """Seconds without a turn of its loop after which a worker is stuck: it turns twice in a heartbeat, and the broker
    waits for two of those."""
    return max(limits.heartbeat, HUNG_AFTER)


def examine(
    reading: Reading, limits: Settings, *, began_with: int = 0, is_ready: bool, held_up: bool, now: float
) -> Diagnosis | None:
    """`limits`: the settings it was started with; `began_with`: its initial size in bytes; `is_ready`: not draining;
    `held_up`: the supervisor itself was, so that missing activity proves nothing."""
    memory = memory_limit(limits.max_memory, began_with)
    of = "--max-memory" if memory == limits.max_memory else f"the {memory} that --max-memory allows here"
    if reading.hand is not None:
        busy = now - reading.hand.since
        if limits.task_timeout is not None and busy > limits.task_timeout and reading.phase is Phase.BUSY:
            because = f"task {reading.hand.name} has run for {busy:.1f} s, --task-timeout is {limits.task_timeout:g} s"
            return Diagnosis(Cause.TIMEOUT, because)
        if memory is not None and reading.rss > 2 * memory:
            because = f"{reading.rss} bytes resident, more than twice {of}, mid-task"
            return Diagnosis(Cause.MEMORY, because)
    stands_still = not held_up and now - reading.beat > stands_still_after(limits)
    if stands_still and reading.is_stopped:
        because = f"stopped by a signal (SIGSTOP) for {now - reading.beat:.1f} s"
        return Diagnosis(Cause.HUNG, because)
    if reading.hand is not None:
        return None
    if reading.phase in (Phase.IDLE, Phase.ASKING, Phase.WAITING) and stands_still:
        return Diagnosis(Cause.HUNG, f"its idle loop has been stuck for {now - reading.beat:.1f} s")
    if is_ready and memory is not None and reading.rss > memory:
        because = f"{reading.rss} bytes resident, above {of}: recycled between tasks"
        return Diagnosis(Cause.MEMORY, because, is_hung=False)
    return None
