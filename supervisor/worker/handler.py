"""`module:function` -> a callable; calling it -> an Outcome."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from typing import Any

from supervisor.policy.settle import TRACEBACK_MAX, Outcome, Raised, Rejected, RetryAsked, Returned, clip_end
from supervisor.worker.task import Reject, Retry, Task

_RETURNED = Returned()


class CannotLoad(Exception):
    """The handler cannot be loaded. `error` is one line, `traceback` the import's own, our frames left out."""

    def __init__(self, error: str, traceback: str = "") -> None:
        super().__init__(error)
        self.error = error
        self.traceback = traceback


def load(target: str, app_dir: str) -> Callable[[Task], Outcome]:
    """Import `module:function` and make it callable for us.

    `app_dir` goes to the *end* of sys.path, so that a stray `json.py` beside the handler shadows nothing.
    Raises CannotLoad, whatever the import raised.
    """
    if app_dir not in sys.path:
        sys.path.append(app_dir)
    module_name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:
        raise CannotLoad(_why(error, module_name, app_dir), _traceback(error)) from error
    try:
        for name in path.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise CannotLoad(f"module {module_name!r} was imported and has no {path!r}: {error}") from error
    if not callable(found):
        raise CannotLoad(
            f"{target} is a {type(found).__name__}, which cannot be called; name a function of one argument"
        )
    return adapt(found)


def adapt(function: Callable[[Task], Any]) -> Callable[[Task], Outcome]:
    """A function that runs the handler and says how it ended, whatever it raises."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return _adapt_async(function)

    def run(task: Task) -> Outcome:
        # BaseException: a handler that raises SystemExit or KeyboardInterrupt has failed; it must not end the worker
        # with the message seemingly done.
        try:
            function(task)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything
            return _ended(error)
        return _RETURNED

    return run


def _adapt_async(function: Callable[[Task], Any]) -> Callable[[Task], Outcome]:
    import asyncio
    import contextvars

    # One event loop for the worker's life, so that a handler may keep clients open between tasks. Made at the first
    # task: a loop (its epoll descriptor) must not be shared between forked workers.
    runner: asyncio.Runner | None = None

    def run(task: Task) -> Outcome:
        nonlocal runner
        if runner is None:
            runner = asyncio.Runner()
        try:
            # Not the runner's own context, which is that of its first task: each task has a span of its own.
            runner.run(function(task), context=contextvars.copy_context())
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything
            return _ended(error)
        return _RETURNED

    return run


def _ended(error: BaseException) -> Outcome:
    match error:
        case Reject():
            return Rejected(str(error))
        case Retry():
            return RetryAsked(error.delay, str(error) or "asked for another try")
        case _:
            return Raised(_line(error), _traceback(error), _kind(error))


def _line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - __str__ is theirs
        text = "(its text cannot be had: __str__ raises)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _kind(error: BaseException) -> str:
    """As a traceback names it."""
    kind = type(error)
    has_module = kind.__module__ not in ("builtins", "__main__")
    return f"{kind.__module__}.{kind.__qualname__}" if has_module else kind.__qualname__


def _why(error: BaseException, module_name: str, app_dir: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and module_name.split(".")[0] == error.name.split(".")[0]:
        return f"no module named {error.name!r} on sys.path, whose last entry is --app-dir {app_dir}"
    return f"importing {module_name} raised {_line(error)}"


def _is_ours(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


def _traceback(error: BaseException) -> str:
    """The traceback from the first frame that is neither ours nor the import system's, its end kept."""
    start = error.__traceback__
    while start is not None and _is_ours(start.tb_frame.f_code.co_filename):
        start = start.tb_next
    try:
        lines = traceback.format_exception(type(error), error, start)
    except Exception:  # noqa: BLE001 - __str__ is theirs
        lines = [_line(error)]
    return clip_end("".join(lines), TRACEBACK_MAX)
