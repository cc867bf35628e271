"""How a queue of our own is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from supervisor import queues
from supervisor.amqp.channel import Channel
from supervisor.amqp.connection import Connection
from supervisor.amqp.errors import explain, is_missing
from supervisor.vocabulary import Kind


def declare_anyway(
    connection: Connection,
    declaration: queues.Declaration,
    *,
    on_done: Callable[[bool], None],
    on_failed: Callable[[BaseException], None],
) -> None:
    """Declare a queue of our own, and learn whether it is new, which queue.declare-ok does not say: ask first.

    One that exists is still compared, where the declaration has arguments: a delay queue without its dead-letter
    exchange would swallow tasks. Exactly one callback is called, from the connection's loop: `on_done(is_new)`, or
    `on_failed(error)`, which `explain` knows. The channels are closed again.
    """

    def ask(*wanted: queues.Declaration, is_new: bool) -> None:
        """One behind the other. Of what comes behind a refusal the broker takes no notice."""
        answers: list[Any] = []
        channel = connection.channel()

        def done(answer: Any) -> None:
            answers.append(answer)
            if len(answers) == len(wanted):
                channel.close()
                on_done(is_new)

        def closed(_: Channel, error: BaseException) -> None:
            if not answers and not is_new and is_missing(error) and explain(error).kind is Kind.MISSING:
                ask(declaration, is_new=True)
            elif len(answers) < len(wanted):
                on_failed(error)

        channel.add_on_close_callback(closed)
        for each in wanted:
            channel.queue_declare(**each, callback=done)

    inquiry = queues.inquiry(declaration["queue"])
    ask(inquiry, *([declaration] if declaration["arguments"] else []), is_new=False)
