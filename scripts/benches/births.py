"""A worker without anything around it, from the fork to its first task: what a recovery is compared with."""

from __future__ import annotations

import os
import time

import pika

from supervisor import Publisher
from supervisor.clock import now

from .contenders import Workq
from .login import parameters
from .recovery import FINISHED, TASK, Shooting
from .row import BenchError, Options


def beside_births(
    options: Options, name: str, kills: int, *, before: int, after: int = 0, reach: str | None = None
) -> tuple[list[float], list[float]]:
    """Seconds of ours, from the SIGKILL of the one worker to the next finished task; and of bare workers, from the fork
    to the first: so many `before` the kills, so many `after` them. `reach`: how workers reach the broker, if not by
    `options.node_url`."""
    way = reach or options.node_url
    bare = births(options.node_url, way, before)
    shooting = Shooting(Workq("info", reach), 1, options.node_url, name, options.place / name)
    ours = [each.reached[FINISHED] for each in shooting.run(kills)]
    return ours, bare + births(options.node_url, way, after)


def births(url: str, reach: str, count: int) -> list[float]:
    """Seconds from a fork until the child, which has all it needs imported, has connected and done a task of its own:
    what a replacement has to do at least. By `reach`, while the tasks are published by `url`."""
    queue = "births"
    with Publisher(url, queue) as publisher:
        publisher.publish_many(("", {}) for _ in range(count))
    return [_birth(reach, queue) for _ in range(count)]


def _birth(url: str, queue: str) -> float:
    reader, writer = os.pipe()
    began = now()
    pid = os.fork()
    if pid == 0:
        try:
            _first_task(url, queue)
            os.write(writer, b".")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        done = os.read(reader, 1)
        took = now() - began
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    if not done:
        raise BenchError("a bare worker could not do a task: is the broker well?")
    return took


def _first_task(url: str, queue: str) -> None:
    channel = pika.BlockingConnection(parameters(url)).channel()
    channel.basic_qos(prefetch_count=1)
    for method, _, _ in channel.consume(queue):
        time.sleep(TASK)
        assert method is not None
        channel.basic_ack(method.delivery_tag)
        return
