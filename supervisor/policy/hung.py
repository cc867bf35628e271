"""Does a worker's page of the scoreboard say that it hangs, or has outgrown its memory?

| what its page says | what is done |
|---|---|
| a task runs longer than `--task-timeout` | SIGABRT, as `timeout` |
| more than twice the memory limit, in the middle of a task | SIGABRT, as `memory` |
| more than the memory limit, between two tasks | it is told to leave |
| it has stood still for long, and a signal has stopped it or its loop is idle | SIGABRT, as `hung` |

A task may take as long as it likes where no limit was set: while one is in hand, standing still alone says nothing.

Where a worker takes more than `--max-memory` before its first task, no task is to blame and no replacement is smaller,
so the limit counts on top of what it began with. Left out: no limit at all (a leak would go on until the kernel kills),
and refusing to start (a reload whose import is larger would be an outage).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Phase, Reading

SAMPLE_GAP: Final = 3.0
"""Seconds without a sample that say that the supervisor itself was held up: then nobody else is called hung."""
HUNG_AFTER: Final = 5.0
"""Seconds without a turn of an idle loop, more when the heartbeat is longer: the broker waits for two of those."""
SILENT_AFTER: Final = 3.0
"""Heartbeats that were not sent, after which every broker has given the connection up."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    cause: str
    because: str
    is_hung: bool = True
    """False: it does well, and need only be replaced."""


def memory_limit(max_memory: int | None, began_with: int) -> int | None:
    """Above this a worker is replaced between tasks, and above twice this in the middle of one; None: never."""
    if max_memory is None or began_with <= max_memory:
        return max_memory
    return began_with + max_memory


def too_small(max_memory: int | None, began_with: int) -> str | None:
    """Why the limit is too small for a worker that takes so much before its first task, and what to do."""
    if max_memory is None or began_with <= max_memory:
        return None
    mib = 1024 * 1024
    return (
        f"--max-memory {max_memory // mib}M is less than the {began_with // mib} MiB that a worker takes before its "
        f"first task: workers are replaced after growing by {max_memory // mib} MiB beyond that; set it to "
        f"{math.ceil(1.5 * began_with / mib)}M or more, or import less"
    )


def examine(
    reading: Reading, limits: Settings, *, began_with: int = 0, is_ready: bool, held_up: bool, now: float
) -> Diagnosis | None:
    """`limits` are those under which it has begun, `began_with` the bytes that it took then; `is_ready`: it was not
    told to leave yet; `held_up`: the supervisor was, so that its samples say nothing about who stands still."""
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
    stands_still = not held_up and now - reading.beat > max(limits.heartbeat, HUNG_AFTER)
    if stands_still and reading.is_stopped:
        because = f"stopped by a signal (SIGSTOP) for {now - reading.beat:.1f} s"
        return Diagnosis(Cause.HUNG, because)
    if reading.hand is not None:
        return None
    if reading.phase in (Phase.IDLE, Phase.ASKING) and stands_still:
        return Diagnosis(Cause.HUNG, f"its idle loop has been stuck for {now - reading.beat:.1f} s")
    if is_ready and memory is not None and reading.rss > memory:
        because = f"{reading.rss} bytes resident, above {of}: recycled between tasks"
        return Diagnosis(Cause.MEMORY, because, is_hung=False)
    return None
