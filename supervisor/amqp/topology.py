"""How a queue is declared, on any connection with pika's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from supervisor import queues
from supervisor.amqp.errors import explain, is_missing
from supervisor.vocabulary import Kind


def declare_or_take(
    connection: Any,
    declaration: queues.Declaration,
    *,
    declare: bool = True,
    on_done: Callable[[Any, Any, queues.Declaration], None],
    on_failed: Callable[[BaseException], None],
) -> None:
    """Take a queue as it is, or declare it: `queues.attempts`, sent one after the other.

    `connection` is an open pika.SelectConnection. Each attempt opens a channel of its own, since a refusal closes the
    channel that it came by. Exactly one callback is called, from the connection's loop: `on_done(channel, ok, sent)`
    with the open channel, now the caller's, pika's Queue.DeclareOk (`message_count`, `consumer_count`) and the attempt
    that it answers; or `on_failed(error)`, which `explain` knows.
    """
    remaining: Iterator[queues.Declaration] = iter(queues.attempts(declaration, declare))

    def attempt(wanted: queues.Declaration) -> None:
        settled = False

        def opened(channel: Any) -> None:
            channel.queue_declare(**wanted, callback=lambda frame: done(channel, frame))

        def done(channel: Any, frame: Any) -> None:
            nonlocal settled
            settled = True
            on_done(channel, frame.method, wanted)

        def closed(_channel: Any, error: BaseException) -> None:
            nonlocal settled
            if settled:
                return
            settled = True
            following = next(remaining, None) if is_missing(error) else None
            if following is None:
                on_failed(error)
            else:
                # Later: pika is still taking this channel down, and would hand its number to the next one.
                connection.ioloop.call_later(0, lambda: again(following, error))

        connection.channel(on_open_callback=opened).add_on_close_callback(closed)

    def again(wanted: queues.Declaration, error: BaseException) -> None:
        if connection.is_open:
            attempt(wanted)
        else:
            on_failed(error)

    first = next(remaining)
    attempt(first)


def declare_anyway(
    connection: Any,
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

        def opened(channel: Any) -> None:
            for each in wanted:
                channel.queue_declare(**each, callback=lambda answer: done(channel, answer))

        def done(channel: Any, answer: Any) -> None:
            answers.append(answer)
            if len(answers) == len(wanted):
                channel.close()
                on_done(is_new)

        def closed(_channel: Any, error: BaseException) -> None:
            if not answers and not is_new and is_missing(error) and explain(error).kind is Kind.MISSING:
                # Later: pika is still taking that channel down.
                connection.ioloop.call_later(0, lambda: missing(error))
            elif len(answers) < len(wanted):
                on_failed(error)

        connection.channel(on_open_callback=opened).add_on_close_callback(closed)

    def missing(error: BaseException) -> None:
        if connection.is_open:
            ask(declaration, is_new=True)
        else:
            on_failed(error)

    inquiry = queues.inquiry(declaration["queue"])
    ask(inquiry, *([declaration] if declaration["arguments"] else []), is_new=False)
