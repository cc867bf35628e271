"""One worker with pika and nothing around it: what a program in Python costs at least.

pika's SelectConnection, prefetch 1, the acknowledgement inside the callback, after the work; no error handling, no log,
no thread.
"""

import os
from typing import Any

import pika

from benches.login import parameters
from benches.tasks import run


def opened(connection: Any) -> None:
    connection.channel(on_open_callback=declare)


def declare(channel: Any) -> None:
    channel.queue_declare(os.environ["BENCH_QUEUE"], durable=True, callback=lambda _: limit(channel))


def limit(channel: Any) -> None:
    channel.basic_qos(prefetch_count=1, callback=lambda _: consume(channel))


def consume(channel: Any) -> None:
    channel.basic_consume(os.environ["BENCH_QUEUE"], delivered)


def delivered(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
    run(body)
    channel.basic_ack(method.delivery_tag)


def consume_forever() -> None:
    worker = pika.SelectConnection(parameters(os.environ["BENCH_URL"]), on_open_callback=opened)
    worker.ioloop.start()


if __name__ == "__main__":
    consume_forever()
