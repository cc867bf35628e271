"""structlog without what it imports if it is installed: rich, for coloured tracebacks (4 MB in every process and 30 ms
at every start), and greenlet, which SQLAlchemy and gevent bring along, for a module of its own that is deprecated
(structlog.threadlocal; 1 MB in a pool of four). And, like pika, without asyncio until something uses it."""

from __future__ import annotations

from supervisor.late import later, without

with without("rich"), without("greenlet"), later("asyncio"):
    import structlog

__all__ = ["structlog"]
