"""What a test asks of a broker, by real AMQP. Each call opens and closes a connection of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker

from tests.node import PrivateNode

NOT_FOUND = 404

Taken = tuple[pika.spec.Basic.GetOk, pika.BasicProperties, bytes]


@contextmanager
def connection(url: str) -> Iterator[BlockingConnection]:
    link = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield link
    finally:
        if link.is_open:
            link.close()


def publish(
    url: str, queue: str, bodies: Iterable[bytes] | Iterable[str], ids: Iterable[str] = (), **properties: Any
) -> None:
    """Publish persistent messages and return when the broker has all of them. Declares the queue plain and durable
    unless it exists, of whatever type.

    `ids` are message ids, one a body. `properties` are pika.BasicProperties', the same for every message.
    """
    with connection(url) as link:
        if look(link, queue) is None:
            link.channel().queue_declare(queue, durable=True)
        channel = link.channel()
        # A transaction: one answer for thousands of messages. Commit-ok comes when every queue has confirmed its share
        # (rabbitmq.com/docs/semantics); pika's blocking confirms would cost a round trip a message.
        channel.tx_select()
        names = iter(ids)
        for body in bodies:
            mine = {"delivery_mode": 2, "message_id": next(names, None)} | properties
            data = body.encode() if isinstance(body, str) else body
            channel.basic_publish("", queue, data, pika.BasicProperties(**mine))
        channel.tx_commit()


def depth(url: str, queue: str) -> int:
    """Messages ready to be delivered; 0 when there is no such queue."""
    with connection(url) as link:
        counts = look(link, queue)
    return counts[0] if counts else 0


def consumers(url: str, queue: str) -> int:
    """Consumers the broker counts on the queue; 0 when there is no such queue."""
    with connection(url) as link:
        counts = look(link, queue)
    return counts[1] if counts else 0


def drain(url: str, queue: str) -> list[Taken]:
    """Take every ready message out of the queue, oldest first; nothing when there is no such queue."""
    taken: list[Taken] = []
    with connection(url) as link:
        if look(link, queue) is None:
            return []
        channel = link.channel()
        # pika's annotation says a body is str or None: it is bytes, and None comes with a method that is None.
        while (got := cast(Taken, channel.basic_get(queue, auto_ack=True)))[0]:
            taken.append(got)
    return taken


def unacked(node: PrivateNode, queue: str) -> int:
    """Messages delivered and not settled yet; 0 when there is no such queue."""
    answer = node.eval(
        f'case rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, {binary(queue)})) of '
        "{ok, Q} -> proplists:get_value(messages_unacknowledged, rabbit_amqqueue:info(Q, [messages_unacknowledged])); "
        "{error, not_found} -> 0 end"
    )
    return int(answer)


def delete(node: PrivateNode, queue: str) -> None:
    """Delete the queue and all whose names go on from its own with a dot: its dead letters, its delays.

    A quorum queue that is deleted in its first milliseconds crashes its dead-letter worker, and that the supervisor of
    all such workers, for good (https://github.com/rabbitmq/rabbitmq-server/issues/16652): no quorum queue with
    at-least-once dead-lettering could be declared or deleted any more. So that one is started again.
    """
    revive = (
        "case whereis(rabbit_fifo_dlx_sup) of undefined -> supervisor:restart_child(rabbit_sup, rabbit_fifo_dlx_sup); "
        "_ -> alive end"
    )
    node.eval(
        f"{revive}, Types = [begin "
        'rabbit_amqqueue:delete(Q, false, false, <<"test">>), amqqueue:get_type(Q) end '
        f'|| Q <- rabbit_amqqueue:list(<<"/">>), N <- [element(4, amqqueue:get_name(Q))], N =:= {binary(queue)} orelse '
        f"string:prefix(N, {binary(queue + '.')}) =/= nomatch], "
        f"lists:member(rabbit_quorum_queue, Types) andalso begin timer:sleep(100), {revive} end"
    )


def look(link: BlockingConnection, queue: str) -> tuple[int, int] | None:
    """Messages ready and consumers, by a passive declare; None when there is no such queue."""
    channel: BlockingChannel = link.channel()
    try:
        found = channel.queue_declare(queue, passive=True).method
    except ChannelClosedByBroker as closed:
        if closed.reply_code == NOT_FOUND:
            return None
        raise
    channel.close()
    return found.message_count or 0, found.consumer_count or 0


def binary(text: str) -> str:
    """An Erlang binary."""
    return f"<<{','.join(str(byte) for byte in text.encode())}>>"
