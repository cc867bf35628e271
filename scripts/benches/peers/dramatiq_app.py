"""Dramatiq's side: its broker and one actor. With `encode` it makes messages instead of running them.

    dramatiq benches.peers.dramatiq_app --processes 4 --threads 1
    python -m benches.peers.dramatiq_app encode <WHAT >MESSAGES     see `wire`

The middleware is its default list, which its documentation says to keep but for Prometheus, no longer part of it
(https://dramatiq.io/reference.html#middleware). No results backend. `dramatiq_queue_prefetch=1` is set by who runs it.
"""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benches.peers import wire
from benches.tasks import run

broker = RabbitmqBroker(url=os.environ["BENCH_URL"])
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=os.environ["BENCH_QUEUE"])
def work(text: str) -> None:
    run(text.encode("latin-1"))


def encode(text: str) -> tuple[str, dict[str, Any]]:
    # As RabbitmqBroker.enqueue sends it.
    return work.message(text).encode().decode(), {"delivery_mode": 2}


if __name__ == "__main__":
    broker.declare_queue(os.environ["BENCH_QUEUE"], ensure=True)
    wire.serve(encode)
