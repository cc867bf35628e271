"""How a script looks at queues: by a connection that never keeps Ctrl-C waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from supervisor.clock import now

from .row import BenchError


@contextmanager
def connection(url: str) -> Iterator[BlockingConnection]:
    """A connection without heartbeats: nobody serves it while something else is measured."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    link = pika.BlockingConnection(parameters)
    yield link
    # Not in a `finally`. Ctrl-C may have torn pika's reading of a frame in two, and its close() then waits forever for
    # an answer that is never recognised (seen in 32 of 120 tries). The socket ends with the process.
    link.close()


@contextmanager
def channel(url: str) -> Iterator[BlockingChannel]:
    """A channel of such a connection."""
    with connection(url) as link:
        yield link.channel()


def depth(link: BlockingChannel, queue: str) -> int:
    """Messages ready to be delivered; those in workers' hands are not counted."""
    method: Any = link.queue_declare(queue, passive=True).method
    return int(method.message_count)


def wait_depth(link: BlockingChannel, queue: str, at_most: int, timeout: float) -> None:
    """Until no more than `at_most` messages are ready. `timeout` in seconds. Raises BenchError."""
    deadline = now() + timeout
    while (ready := depth(link, queue)) > at_most:
        if now() > deadline:
            raise BenchError(f"{ready} messages are left in {queue} after {timeout:g} s")
        time.sleep(0.01)
