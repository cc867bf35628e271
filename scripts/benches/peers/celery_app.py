"""Celery's side: an app with one task. With `encode` it makes messages instead of running them.

    celery -A benches.peers.celery_app worker --concurrency 4 ...
    python -m benches.peers.celery_app encode <WHAT >MESSAGES       see `wire`

The settings are those with which Celery gives the guarantees that we give: acknowledged after the work
(https://docs.celeryq.dev/en/stable/userguide/optimizing.html#reserve-one-task-at-a-time), given back when the process
that had it was killed, one message a process. Nothing is kept or sent that nobody reads: results, events, remote
control.
"""

import os
from typing import Any
from uuid import uuid4

from celery import Celery
from kombu import Exchange, Queue
from kombu.serialization import dumps

from benches.peers import wire
from benches.tasks import run

NAME = os.environ["BENCH_QUEUE"]
RETRIES = os.environ.get("BENCH_CELERY_LOST") == "retry"
"""Since 5.7 Celery can count the workers that a message has killed, as tries."""

app = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.update(
    task_queues=[Queue(NAME, Exchange(NAME, type="direct"), routing_key=NAME)],
    task_default_queue=NAME,
    task_acks_late=True,
    task_reject_on_worker_lost=not RETRIES,
    task_retry_on_worker_lost=RETRIES,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    worker_send_task_events=False,
    task_send_sent_event=False,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=True,
)


@app.task(name="work", max_retries=3, default_retry_delay=1)
def work(text: str) -> None:
    run(text.encode("latin-1"))


def encode(text: str) -> tuple[str, dict[str, Any]]:
    message = app.amqp.as_task_v2(uuid4().hex, "work", args=[text], kwargs={})
    content_type, content_encoding, body = dumps(message.body, serializer="json")
    properties = {"content_type": content_type, "content_encoding": content_encoding, "headers": message.headers}
    return body, {**message.properties, **properties, "priority": 0, "delivery_mode": 2}


if __name__ == "__main__":
    with app.connection_for_write() as connection:
        app.amqp.queues[NAME](connection.default_channel).declare()
    wire.serve(encode)
