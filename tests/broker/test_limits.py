"""What a broker allows, from the least to the most: consumed by one connection, whatever it proposes."""

from __future__ import annotations

import re

import pytest

from supervisor.endpoint import Endpoint
from supervisor.messages import Depth, Measure
from supervisor.policy import advice
from supervisor.settings import Settings
from supervisor.worker.consumer import Consumer
from supervisor.worker.inquiries import Inquiries
from tests import amqp
from tests.node import PrivateNode

pytestmark = pytest.mark.usefixtures("patient")

BODIES = [b"", b"1", bytes(range(256)) * 16, bytes(range(256)) * 4000]


def agreed(node: PrivateNode) -> list[int]:
    """The size of a frame, and how many channels, as the broker says for the one connection there is."""
    said = node.eval(
        "[{proplists:get_value(frame_max, I), proplists:get_value(channel_max, I)} || "
        "I <- rabbit_networking:connection_info_all([frame_max, channel_max])]."
    )
    return [int(number) for number in re.findall(r"\d+", said)]


def test_frames_from_the_smallest_on_and_few_channels_are_enough_to_consume(own_node: PrivateNode) -> None:
    # AMQP's own least, which RabbitMQ has raised in 4.1.
    least = 8192 if (advice.release_of(own_node.version) or (0, 0)) >= (4, 1) else 4096
    for frame_max, channel_max, settled in (
        (least, 2047, [least, 128]),
        (8192, 0, [8192, 128]),
        (0, 2047, [131072, 128]),
        (131072, 8, [131072, 8]),
        (1048576, 65535, [131072, 128]),
        (least, 2, [least, 2]),
    ):
        set_env = "application:set_env(rabbit, {}, {})"
        both = set_env.format("frame_max", frame_max), set_env.format("channel_max", channel_max)
        own_node.eval(", ".join(both) + ".")
        queue = f"limits-{frame_max}-{channel_max}"
        amqp.publish(own_node.url, queue, BODIES)
        settings = Settings(handler="any:thing", url=(Endpoint.parse(own_node.url),), queue=queue)
        reports: list[object] = []
        consumer = Consumer(settings, queue, lambda: None, lambda _: None)
        consumer.open(declare_ours=True)
        assert agreed(own_node) == settled
        assert ("channel_max" in consumer.own_queues.refused) == (channel_max == 2)
        for body in BODIES:
            delivery = consumer.next()
            assert delivery is not None and delivery.body == body
            consumer.ack(delivery)
        Inquiries(settings, consumer.open_channel, reports.append).make(Measure())
        while not reports:
            consumer.turn()
        assert reports == [Depth(0, 1, None)]
        assert consumer.close()
        assert amqp.depth(own_node.url, queue) == 0
