"""A process that a handler forks is not a worker: it gets default signal handlers, and ends where the handler ends.

`os.fork`, and so multiprocessing's `fork` context, copies the whole worker. Without this, SIGTERM to such a child
(`Pool.terminate`) would be ignored and write a byte into the worker's wakeup pipe, which would drain the worker; and a
child that returns from the handler would continue as a second worker on the same AMQP connection.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from supervisor import streams
from supervisor.policy.settle import Outcome, Raised, Returned
from supervisor.worker.task import Task


class _Signals:
    """Resets the worker's signal handlers to Python's defaults in each process that it forks.

    Signals are blocked between the fork and that: their byte would go to the worker.
    """

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self._held = threading.local()

    def hold(self) -> None:
        self._held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)

    def release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held.mask)

    def reset(self) -> None:
        signal.set_wakeup_fd(-1)
        fresh: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is handler:  # else the handler's module has set its own
                signal.signal(number, fresh[number])
        self.release()


def contain(handler: Callable[[Task], Outcome]) -> Callable[[Task], Outcome]:
    """Wrap the handler so that only the calling process continues after it. Call once, after installing signal
    handlers."""
    signals = _Signals()
    os.register_at_fork(before=signals.hold, after_in_parent=signals.release, after_in_child=signals.reset)
    worker = os.getpid()

    def run(task: Task) -> Outcome:
        outcome = handler(task)
        if os.getpid() != worker:
            leave(outcome)
        return outcome

    return run


def leave(outcome: Outcome) -> NoReturn:
    """Exit as Python does, but without the worker's atexit functions."""
    code = 0 if isinstance(outcome, Returned) else 1
    try:
        if isinstance(outcome, Raised):
            name, _, text = outcome.error.partition(": ")
            if name == "SystemExit":
                code = 0 if text in ("", "None") else int(text) & 0xFF if text.lstrip("-").isdecimal() else 1
            else:
                streams.complain(outcome.traceback)
        streams.flush()
    finally:
        os._exit(code)
