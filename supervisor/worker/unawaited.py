"""A decorator around an `async def` that calls it and drops the coroutine: the task has not run, and nothing that the
handler returns shows it. Python warns of such a coroutine when it is freed, which is before the handler's return value
is looked at."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

from supervisor.policy.settle import Outcome, Raised
from supervisor.worker.event_loop import RETURNED
from supervisor.worker.task import Task

_WARN: Final = "_warn_unawaited_coroutine"
"""Of the module `warnings`: the interpreter calls it, whatever the filters are (Objects/genobject.c). Private: without
it nothing is noticed, as before."""
_WHY: Final = (
    "the handler returned, but its coroutine was never awaited: nothing of it has run; does a decorator call it "
    "without returning or awaiting it?"
)


def demand_awaited(run: Callable[[Task], Outcome], code: CodeType) -> Callable[[Task], Outcome]:
    """`run`, but a task whose coroutine with this code nobody awaited has failed."""
    warn: Any = getattr(warnings, _WARN, None)
    if warn is None:
        return run
    dropped = 0

    def note(coroutine: Any) -> None:
        nonlocal dropped
        if coroutine.cr_code is code:
            dropped += 1
        warn(coroutine)

    setattr(warnings, _WARN, note)
    place = f'  File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_qualname}\n'

    def demanding(task: Task) -> Outcome:
        before = dropped
        outcome = run(task)
        return Raised(_WHY, place) if outcome is RETURNED and dropped != before else outcome

    return demanding
