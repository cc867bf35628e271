"""What a handler forks is not a worker: it shares neither the worker's signals nor its story.

`os.fork`, and with it multiprocessing's `fork` context, copies the whole worker. Without this, SIGTERM sent to such a
child (`Pool.terminate`) would do nothing to it and write a byte into the worker's wakeup pipe, which would drain; and
a child that returns from the handler would go on as a second worker on the same AMQP connection.
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
    """The worker's own handlers, put back to what they are in a fresh Python in whatever it forks.

    A signal between the fork and that is held back: its byte would be the worker's.
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
            if signal.getsignal(number) is handler:  # else the handler's module has its own
                signal.signal(number, fresh[number])
        self.release()


def contain(handler: Callable[[Task], Outcome]) -> Callable[[Task], Outcome]:
    """The same handler, after which nobody goes on but the process that calls this. Once in a worker, when its signal
    handlers are installed."""
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
    """End as Python ends a script, but without atexit: those functions are the worker's."""
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
