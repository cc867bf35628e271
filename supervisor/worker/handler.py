"""`module:function` -> a callable; calling it -> an Outcome."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from supervisor import failure
from supervisor.policy import retry
from supervisor.policy.settle import TRACEBACK_MAX, Outcome, Raised, Rejected, RetryAsked, Returned
from supervisor.redaction import clip_end, clip_start
from supervisor.worker import contract, forked
from supervisor.worker.task import Reject, Retry, Task

if TYPE_CHECKING:
    import asyncio

    from supervisor.policy import passing

_RETURNED: Final = Returned()
_DEEPEST: Final = 16
_TEXT_MAX: Final = 4 * 1024
"""Bytes of what an exception says, where that is the whole story."""
_FUTURES: Final = (
    ("concurrent.futures", "Future", "result"),
    ("multiprocessing.pool", "ApplyResult", "get"),
    ("gevent", "Greenlet", "get"),
)
"""Handles of work that runs elsewhere: module, class, and the method that waits for its end."""


class CannotLoad(Exception):
    """The handler cannot be loaded. `error` is one line, `traceback` the import's own, our frames left out;
    `is_passing`: it may be possible later."""

    def __init__(self, error: str, traceback: str = "", *, is_passing: bool = False) -> None:
        # What an import raises, or the signature of what it defines, has any length; a message on the link has not.
        self.error = _short(error)
        self.traceback = clip_end(traceback, TRACEBACK_MAX)
        self.is_passing = is_passing
        super().__init__(self.error)


def load(target: str, app_dir: str) -> Callable[[Task], Outcome]:
    """Import `module:function` and make it callable for us.

    `app_dir` goes to the *end* of sys.path, so that a stray `json.py` beside the handler shadows nothing.
    Raises CannotLoad, whatever the import raised.
    """
    if app_dir not in sys.path:
        sys.path.append(app_dir)
    module_name, _, path = target.partition(":")
    importer = os.getpid()
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:
        if os.getpid() != importer:
            forked.leave(_ended(error))
        failed = _why(error, module_name, app_dir)
        raise CannotLoad(failed, _traceback(error), is_passing=_is_passing(error)) from error
    if os.getpid() != importer:
        # What the import forked has come to the end of it, and is no second nursery or worker.
        forked.leave(_RETURNED)
    try:
        for name in path.split("."):
            found = getattr(found, name)
        if callable(found) and type(found) is not FunctionType:
            found.__call__  # noqa: B018 - a property that raises does so here rather than at each task
    except BaseException as error:
        failed = _why_not_found(error, module_name, path)
        raise CannotLoad(failed, _traceback(error, or_else=""), is_passing=_is_passing(error)) from error
    if (why := contract.refusal(target, found)) is not None:
        raise CannotLoad(why)
    return adapt(found)


def adapt(function: Callable[[Task], Any]) -> Callable[[Task], Outcome]:
    """A function that runs the handler, waits for what it handed back, and says how it ended, whatever it raises."""
    conclude = _Conclusion()
    if contract.is_async(function):
        conclude.prepare()

    def run(task: Task) -> Outcome:
        # BaseException: a handler that raises SystemExit or KeyboardInterrupt has failed; it must not end the worker
        # with the message seemingly done.
        try:
            result = function(task)
            if result is not None:
                return conclude(result)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything
            return _ended(error)
        return _RETURNED

    return run


class _Conclusion:
    """What follows from a value that a handler returned: an awaitable or a future is waited for, work that has not
    begun is a failure, anything else is ignored.

    Not decided from the function: a decorator, a lambda, a partial or an object with `__call__` looks like any other
    until it returns a coroutine.
    """

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def prepare(self) -> None:
        """Import what it takes, for all workers."""
        import asyncio  # noqa: F401

    def __call__(self, result: Any) -> Outcome:
        """Raises what the awaited work raises."""
        if type(result) in contract.PLAIN:
            return _RETURNED
        for _ in range(_DEEPEST):
            if (why := contract.not_run(result)) is not None:
                return Raised(why, contract.place(result))
            former, result = result, self._wait_for(result)
            # Some objects are what awaiting them returns: a pool of connections, for one.
            if result is None or result is former:
                return _RETURNED
        return Raised(f"the handler returned awaitables within awaitables, more than {_DEEPEST} deep", "")

    def _wait_for(self, result: Any) -> Any:
        """What came of it; None for a value that nobody has to wait for."""
        if contract.is_awaitable(result):
            return self._await(result)
        for module, name, method in _FUTURES:
            # Where the module is not imported there are none of its futures.
            kind = getattr(sys.modules.get(module), name, None)
            if isinstance(kind, type) and issubclass(type(result), kind):
                return getattr(result, method)()
        return None

    def _await(self, result: Any) -> Any:
        import asyncio
        import contextvars

        if asyncio.isfuture(result):
            loop = result.get_loop()
            if result.done():
                return result.result()
            if loop.is_running():  # in a thread of the handler's
                return asyncio.run_coroutine_threadsafe(_awaited(result), loop).result()
            return loop.run_until_complete(result)
        # One event loop for the worker's life, so that a handler may keep clients open between tasks. Made at the first
        # task: a loop (its epoll descriptor) must not be shared between forked workers.
        if self._runner is None:
            self._runner = asyncio.Runner()
        coroutine = result if asyncio.iscoroutine(result) else _awaited(result)
        # Not the runner's own context, which is that of its first task: each task has a span of its own.
        return self._runner.run(coroutine, context=contextvars.copy_context())


async def _awaited(result: Any) -> Any:
    return await result


def _ended(error: BaseException) -> Outcome:
    """How a handler ended that raised this, whose class may be the handler's own: then anything about it may raise."""
    try:
        if isinstance(error, Reject):
            return Rejected(*_text(error))
        if isinstance(error, Retry):
            why, traceback = _text(error)
            return RetryAsked(retry.checked(error.delay), why or "asked for another try", traceback)
    except BaseException as second:  # noqa: BLE001 - see above
        return Raised(_line(second), _traceback(second), failure.kind(second))
    return Raised(_line(error), _traceback(error), failure.kind(error))


def _text(error: BaseException) -> tuple[str, str]:
    """What it says, and the traceback of its failure to say so."""
    try:
        return _short(str.__str__(str(error))), ""
    except BaseException as second:  # noqa: BLE001 - __str__ is theirs, SystemExit included
        return f"{type(error).__name__}, whose __str__ raises {type(second).__name__}", _traceback(second)


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else f"{clip_start(text, _TEXT_MAX)}…[{len(text):,} characters]"


def _line(error: BaseException) -> str:
    text, unreadable = _text(error)
    if unreadable:
        return f"{type(error).__name__} (its text cannot be had: __str__ raises)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _why(error: BaseException, module_name: str, app_dir: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and module_name.split(".")[0] == error.name.split(".")[0]:
        return f"no module named {error.name!r} on sys.path, whose last entry is --app-dir {app_dir}"
    return f"importing {module_name} raised {_line(error)}"


def _why_not_found(error: BaseException, module_name: str, path: str) -> str:
    if isinstance(error, AttributeError):
        return f"module {module_name!r} was imported and has no {path!r}: {_line(error).partition(': ')[2]}"
    return f"module {module_name!r} was imported, and looking up {path!r} in it raised {_line(error)}"


def _is_passing(error: BaseException) -> bool:
    from supervisor.policy import passing  # seldom needed, and not worth a place in every worker

    try:
        return passing.is_passing(_link(error, passing.DEEPEST))
    except BaseException:  # noqa: BLE001 - anything about their class may raise
        return False


def _link(error: BaseException, most: int) -> passing.Chained:
    """What the policy is to know of it, and of `most` exceptions that led to it."""
    from supervisor.policy import passing

    number: Any = None
    if isinstance(error, OSError):
        number = vars(OSError)["errno"].__get__(error)  # not theirs: a subclass may have an `errno` of its own
    elif isinstance(error, SystemExit):
        number = error.code
    cause = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return passing.Chained(
        names=tuple(f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__),
        number=number if isinstance(number, int) else None,
        text=_text(error)[0],
        members=tuple(_link(member, most // 4) for member in members[:_DEEPEST]) if most else (),
        cause=_link(cause, most - 1) if most and cause is not None else None,
    )


def _is_ours(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


def _traceback(error: BaseException, or_else: str | None = None) -> str:
    """The traceback from the first frame that is neither ours nor the import system's, its end kept. `or_else`: what
    there is to show when all frames are."""
    start = error.__traceback__
    while start is not None and _is_ours(start.tb_frame.f_code.co_filename):
        start = start.tb_next
    if start is None and or_else is not None:
        return or_else
    return clip_end(failure.rendered(error, start), TRACEBACK_MAX)
