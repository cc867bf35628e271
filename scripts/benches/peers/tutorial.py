"""The worker of RabbitMQ's tutorial "Work Queues" (https://www.rabbitmq.com/tutorials/tutorial-two-python), with our
task in the place of its own and without its prints: BlockingConnection, prefetch 1, the acknowledgement after the work.
supervisord runs it.
"""

import os
from typing import Any

import pika

from benches.tasks import run

connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"]))
channel = connection.channel()
channel.queue_declare(queue=os.environ["BENCH_QUEUE"], durable=True)


def callback(ch: Any, method: Any, properties: Any, body: bytes) -> None:
    run(body)
    ch.basic_ack(delivery_tag=method.delivery_tag)


channel.basic_qos(prefetch_count=1)
channel.basic_consume(queue=os.environ["BENCH_QUEUE"], on_message_callback=callback)
channel.start_consuming()
