"""What a handler awaits: in a task, and between tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from supervisor import streams
from supervisor.policy.settle import Outcome, Raised, Returned
from supervisor.worker import contract

if TYPE_CHECKING:
    import asyncio

    from supervisor.amqp.ioloop import IOLoop
    from supervisor.worker.soft_timeout import SoftTimeouts

RETURNED: Final = Returned()
_DEEPEST: Final = 16
_FUTURES: Final = (
    ("concurrent.futures", "Future", "result"),
    ("multiprocessing.pool", "ApplyResult", "get"),
    ("gevent", "Greenlet", "get"),
)
"""Handles of work that runs elsewhere: module, class, and the method that waits for its end."""


class Nested(RuntimeError):
    """What is to be awaited is so by a loop of ours, and this thread runs another."""


class EventLoop:
    """One for the worker's life, so that a handler may keep clients open between tasks. Made when it is first needed:
    a loop (its epoll descriptor) must not be shared between forked workers."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self.soft: SoftTimeouts | None = None
        """What bounds a task, if anything does."""

    def prepare(self) -> None:
        """Import what it takes, for all workers."""
        import asyncio  # noqa: F401

    def conclude(self, result: Any) -> Outcome:
        """What follows from a value that a handler returned: an awaitable or a future is waited for, work that has not
        begun is a failure, anything else is ignored. Raises what the awaited work raises.

        Not decided from the function: a decorator, a lambda, a partial or an object with `__call__` looks like any
        other until it returns a coroutine.
        """
        if type(result) in contract.PLAIN:
            return RETURNED
        for _ in range(_DEEPEST):
            if (why := contract.not_run(result)) is not None:
                return Raised(why, contract.place(result))
            former, result = result, self.wait_for(result)
            # Some objects are what awaiting them returns: a pool of connections, for one.
            if result is None or result is former:
                return RETURNED
        return Raised(f"the handler returned awaitables within awaitables, more than {_DEEPEST} deep", "")

    def wait_for(self, result: Any) -> Any:
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

        if asyncio._get_running_loop() is not None:  # only `supervisor.testing` is called like that
            if asyncio.iscoroutine(result):
                result.close()
            raise Nested
        if asyncio.isfuture(result):
            loop = result.get_loop()
            if result.done():
                return result.result()
            if loop.is_running():  # in a thread of the handler's
                return asyncio.run_coroutine_threadsafe(_awaited(result), loop).result()
            return loop.run_until_complete(result)
        if self._runner is None:
            self._runner = asyncio.Runner()
        coroutine = result if asyncio.iscoroutine(result) else _awaited(result)
        if self.soft is not None and (left := self.soft.left()) is not None:
            self.soft.take()
            coroutine = _within(left, coroutine, self.soft.exception)
        # Not the runner's own context, which is that of its first task: each task has a span of its own.
        return self._runner.run(coroutine, context=contextvars.copy_context())

    def run_beside(self, other: IOLoop, seconds: float) -> bool:
        """Let what the handler has left on the loop go on until `other` has something to do, for so many seconds at
        most. Whether it has: not when there is no loop, or when it cannot be used any more."""
        if self._runner is None or (loop := self._runner.get_loop()).is_closed():
            return False
        try:
            loop.run_until_complete(_readable(loop, other.fileno(), other.patience(seconds)))
        except BaseException as error:  # noqa: BLE001 - a callback of theirs may raise SystemExit
            streams.complain_of(error)
            return False
        return True

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


async def _awaited(result: Any) -> Any:
    return await result


async def _within(seconds: float, coroutine: Coroutine[Any, Any, Any], exception: Callable[[], Exception]) -> Any:
    """Cancelled after so long; when it ends by that, the exception is what it has ended by."""
    import asyncio

    try:
        async with asyncio.timeout(seconds) as limit:
            return await coroutine
    except TimeoutError as error:
        if not limit.expired():
            raise
        where = error.__context__  # the cancellation, from the handler's own frame on; 3.11.2 names it no cause
        if where is not None and where.__traceback__ is not None:
            where = where.with_traceback(where.__traceback__.tb_next)
        raise exception() from where


async def _readable(loop: asyncio.AbstractEventLoop, fd: int, seconds: float) -> None:
    over = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    timer = loop.call_later(seconds, end)
    loop.add_reader(fd, end)
    try:
        await over
    finally:
        loop.remove_reader(fd)
        timer.cancel()
