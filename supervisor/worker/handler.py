"""`module:function` -> a handler; a task -> an Outcome.

A class is set up in the process that runs it: one instance, with its `with` around the process's life.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from supervisor import failure
from supervisor.policy import retry
from supervisor.policy.settle import TRACEBACK_MAX, Deferred, Outcome, Raised, Rejected, RetryAsked
from supervisor.redaction import clip_end, clip_start
from supervisor.worker import contract, forked
from supervisor.worker.event_loop import RETURNED, EventLoop
from supervisor.worker.task import Reject, Retry, SoftTimeout, Task, Unavailable

if TYPE_CHECKING:
    from supervisor.amqp.ioloop import IOLoop
    from supervisor.policy import passing

_DEEPEST: Final = 16
_TEXT_MAX: Final = 4 * 1024
"""Bytes of what an exception says, where that is the whole story."""


class CannotLoad(Exception):
    """The handler cannot be loaded, or set up. `error` is one line, `traceback` its own, our frames left out;
    `is_passing`: it may be possible later."""

    def __init__(self, error: str, traceback: str = "", *, is_passing: bool = False) -> None:
        # What an import raises, or the signature of what it defines, has any length; a message on the link has not.
        self.error = _short(error)
        self.traceback = clip_end(traceback, TRACEBACK_MAX)
        self.is_passing = is_passing
        super().__init__(self.error)


def load(target: str, app_dir: str) -> Handler:
    """Import `module:function`. Raises CannotLoad."""
    return Handler(target, find(target, app_dir))


def find(target: str, app_dir: str) -> Callable[[Task], Any]:
    """Import `module:function`, and see that it can be a handler.

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
            forked.leave(ended(error))
        failed = _why(error, module_name, app_dir)
        raise CannotLoad(failed, _traceback(error), is_passing=_is_passing(error)) from error
    if os.getpid() != importer:
        # What the import forked has come to the end of it, and is no second nursery or worker.
        forked.leave(RETURNED)
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
    return found  # type: ignore[no-any-return]  # `contract` has looked


def ended(error: BaseException) -> Outcome:
    """How a handler ended that raised this, whose class may be the handler's own: then anything about it may raise."""
    try:
        if isinstance(error, Reject):
            return Rejected(*_text(error))
        if isinstance(error, Retry):
            why, traceback = _text(error)
            return RetryAsked(retry.checked(error.delay), why or "asked for another try", traceback)
        if isinstance(error, Unavailable):
            why, traceback = _text(error)
            return Deferred(retry.checked(error.retry_after) or 0.0, why or "something is unavailable", traceback)
    except BaseException as second:  # noqa: BLE001 - see above
        return Raised(_line(second), _traceback(second), failure.kind(second))
    return Raised(_line(error), _traceback(error), failure.kind(error))


class Handler:
    """What a worker runs. Loaded once for all workers, perhaps; set up and torn down by each for itself."""

    def __init__(self, name: str, found: Any, ended: Callable[[BaseException], Outcome] = ended) -> None:
        """`ended` says how it has ended that raised this."""
        self.name = name
        self._function = found
        self._ended = ended
        self._loop = EventLoop()
        self._leave: Callable[[], Any] | None = None
        self.is_class = contract.is_class(found)
        if contract.is_async(found):
            self._loop.prepare()

    def set_up(self) -> None:
        """Of a class, make an instance and enter it: in the process that runs it, once. Raises CannotLoad."""
        if not self.is_class:
            return
        process = os.getpid()
        try:
            self._function = self._entered()
        except BaseException as error:
            if os.getpid() != process:
                forked.leave(self._ended(error))
            why = f"{self.name} cannot be set up: {_line(error)}"
            raise CannotLoad(why, _traceback(error), is_passing=_is_passing(error)) from error

    def runner(self, soft_timeout: float | None = None) -> Callable[[Task], Outcome]:
        """A function that runs the handler, which is set up, waits for what it handed back, and says how it ended,
        whatever it raises. `soft_timeout` in seconds."""
        run = self._adapted(self._function)
        if (code := contract.hidden_coroutine(self._function)) is not None:
            from supervisor.worker.unawaited import demand_awaited

            run = demand_awaited(run, code)
        if soft_timeout is None:
            return run
        from supervisor.worker.soft_timeout import SoftTimeouts

        self._loop.soft = soft = SoftTimeouts(soft_timeout, run, (self._loop.conclude, self._ended))
        return soft.bound(run)

    def tear_down(self) -> Raised | None:
        """The other half of the `with`, and the end of the event loop. What was raised meanwhile; to be called once."""
        failed = None
        for end in (self._leave, self._loop.close):
            try:
                if end is not None:
                    self._loop.wait_for(end())
            except BaseException as error:  # noqa: BLE001 - theirs, and the process is about to end
                failed = failed or Raised(_line(error), _traceback(error))
        return failed

    @property
    def idle(self) -> Callable[[IOLoop, float], bool]:
        """`EventLoop.run_beside`, of the handler's loop."""
        return self._loop.run_beside

    def _entered(self) -> Any:
        instance = self._function()
        cls = type(instance)
        if hasattr(cls, "__aenter__"):
            self._loop.wait_for(cls.__aenter__(instance))
            self._leave = lambda: cls.__aexit__(instance, None, None, None)
        elif hasattr(cls, "__enter__"):
            cls.__enter__(instance)
            self._leave = lambda: cls.__exit__(instance, None, None, None)
        return instance

    def _adapted(self, function: Callable[[Task], Any]) -> Callable[[Task], Outcome]:
        conclude, ended = self._loop.conclude, self._ended

        def run(task: Task) -> Outcome:
            # BaseException: a handler that raises SystemExit or KeyboardInterrupt has failed; it must not end the
            # worker with the message seemingly done.
            try:
                result = function(task)
                if result is not None:
                    return conclude(result)
            except BaseException as error:  # noqa: BLE001 - a handler may raise anything
                return ended(error)
            return RETURNED

        return run


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


_ROOM: Final = f"{os.path.dirname(__file__)}/"  # noqa: PTH120 - a string, as a frame's file is
_ASYNCIO: Final = f"{os.path.dirname(os.path.dirname(importlib.__file__))}/asyncio/"  # noqa: PTH120


def _is_ours(filename: str) -> bool:
    """Or the import system's, or the event loop's."""
    return filename.startswith((_ROOM, _ASYNCIO, "<frozen importlib")) or filename == importlib.__file__


def _traceback(error: BaseException, or_else: str | None = None) -> str:
    """The traceback from the first frame that is not ours to the last one that is not, its end kept. `or_else`: what
    there is to show when all frames are."""
    start = error.__traceback__
    while start is not None and _is_ours(start.tb_frame.f_code.co_filename):
        start = start.tb_next
    if start is None:
        if or_else is not None:
            return or_else
        if error.__cause__ is None:
            start = error.__traceback__
    if isinstance(error, SoftTimeout):
        _end_before_ours(start)
    return clip_end(failure.rendered(error, start), TRACEBACK_MAX)


def _end_before_ours(last: TracebackType | None) -> None:
    """Cut off the signal's handler, which has raised it."""
    while last is not None and last.tb_next is not None:
        if last.tb_next.tb_frame.f_code.co_filename.startswith(_ROOM):
            last.tb_next = None
        last = last.tb_next
