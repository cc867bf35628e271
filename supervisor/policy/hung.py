"""Does a worker's page of the scoreboard say that it hangs, or has outgrown its memory?

| what its page says | what is done |
|---|---|
| a task runs longer than `--task-timeout` | SIGABRT, as `timeout` |
| more than twice `--max-memory`, in the middle of a task | SIGABRT, as `memory` |
| more than `--max-memory`, between two tasks | it is told to leave |
| it has stood still for long, and a signal has stopped it or its loop is idle | SIGABRT, as `hung` |

A task may take as long as it likes where no limit was set: while one is in hand, standing still alone says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Phase, Reading

SAMPLE_GAP: Final = 3.0
"""Seconds without a sample that say that the supervisor itself was held up: then nobody else is called hung."""
HUNG_AFTER: Final = 5.0
"""Seconds without a turn of an idle loop that nobody takes for starvation; more when the heartbeat is longer. The
broker itself gives up after two heartbeats."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a worker."""

    cause: str
    because: str
    is_hung: bool = True
    """False: it does well, and need only be replaced."""


def examine(reading: Reading, limits: Settings, *, is_ready: bool, held_up: bool, now: float) -> Finding | None:
    """`limits` are those under which it has begun; `is_ready`: it was not told to leave yet; `held_up`: the supervisor
    was, so that its samples say nothing about who stands still."""
    if reading.hand is not None:
        busy = now - reading.hand.since
        if limits.task_timeout is not None and busy > limits.task_timeout and reading.phase is Phase.BUSY:
            because = f"task {reading.hand.name} runs for {busy:.1f} s, --task-timeout is {limits.task_timeout:g} s"
            return Finding(Cause.TIMEOUT, because)
        if limits.max_memory is not None and reading.rss > 2 * limits.max_memory:
            because = f"{reading.rss} bytes resident, more than twice --max-memory, in the middle of a task"
            return Finding(Cause.MEMORY, because)
    stands_still = not held_up and now - reading.beat > max(limits.heartbeat, HUNG_AFTER)
    if stands_still and reading.is_stopped:
        because = f"a signal has stopped it (SIGSTOP), and it has not moved for {now - reading.beat:.1f} s"
        return Finding(Cause.HUNG, because)
    if reading.hand is not None:
        return None
    if reading.phase is Phase.IDLE and stands_still:
        return Finding(Cause.HUNG, f"its idle loop has not turned for {now - reading.beat:.1f} s")
    if is_ready and limits.max_memory is not None and reading.rss > limits.max_memory:
        because = f"{reading.rss} bytes resident, above --max-memory: recycled between tasks"
        return Finding(Cause.MEMORY, because, is_hung=False)
    return None
