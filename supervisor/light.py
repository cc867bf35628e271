"""structlog without what it imports if it is installed: rich, for coloured tracebacks (4 MB in every process and 30 ms
at every start), and greenlet, which SQLAlchemy and gevent bring along, for a module of its own that is deprecated
(structlog.threadlocal; 1 MB in a pool of four). And, like pika, without asyncio until something uses it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor.late import later, without


@contextmanager
def _no_task_asked_for() -> Iterator[None]:
    """Inside, a log record does not look into asyncio for the name of a task, as each does since Python 3.12. structlog
    makes one while it is imported, to see what it has."""
    asks = getattr(logging, "logAsyncioTasks", None)
    if not asks:
        yield
        return
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging.logAsyncioTasks = asks  # type: ignore[attr-defined]


with without("rich"), without("greenlet"), later("asyncio"), _no_task_asked_for():
    import structlog

__all__ = ["structlog"]
