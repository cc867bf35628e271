"""The supervisor's questions about queues, answered by a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from supervisor import amqp, queues
from supervisor.amqp.channel import Channel
from supervisor.messages import DeadDepth, Depth, Measure, Nature
from supervisor.policy import retry
from supervisor.settings import Settings
from supervisor.vocabulary import Kind

MOST_DIFFERENCES: Final = 40
"""Of a queue from a plain one."""


class Inquiries:
    """Asks the broker on separate channels: a missing queue closes those, not the consuming one. Without a connection
    there is no answer."""

    def __init__(
        self,
        settings: Settings,
        open_channel: Callable[[], Channel | None],
        report: Callable[[Depth | DeadDepth | Nature], object],
    ) -> None:
        """`report` receives each answer; `open_channel` as `Consumer.open_channel`."""
        self._settings = settings
        self._queue = settings.queue
        self._open_channel = open_channel
        self._report = report
        self._depth_channel: Channel | None = None
        self._dead_channel: Channel | None = None

    def make(self, order: Measure) -> None:
        """Ask, without waiting for the answers."""
        if order.delays:
            # First, so that a task that comes back meanwhile is seen in one of the queues.
            steps = retry.steps(self._settings.retries, self._settings.retry_delay)
            self._count_delays(deque(queues.delay(self._queue, ms) for ms in steps), 0)
        else:
            self._measure(None)
        if order.dead:
            self._count_dead()
        if order.nature:
            self._describe({"durable": True, "auto_delete": False}, {}, MOST_DIFFERENCES)

    def _count_delays(self, left: deque[str], found: int) -> None:
        """Count the remaining delay queues, then the main one."""

        def ask(channel: Channel) -> None:
            if left:
                channel.queue_declare(**queues.inquiry(left[0]), callback=lambda frame: answered(channel, frame))
            else:
                channel.close()
                self._measure(found)

        def answered(channel: Channel, frame: Any) -> None:
            nonlocal found
            found += frame.method.message_count
            left.popleft()
            ask(channel)

        def closed(_: Channel, reason: BaseException) -> None:
            if left and amqp.explain(reason).kind in (Kind.MISSING, Kind.PERMISSION):
                left.popleft()
                self._count_delays(left, found)

        channel = self._open_channel()
        if channel is not None:
            channel.add_on_close_callback(closed)
            ask(channel)

    def _measure(self, delayed: int | None) -> None:
        def answered(frame: Any) -> None:
            self._report(Depth(frame.method.message_count, frame.method.consumer_count, delayed))

        channel = self._depth_channel
        if channel is None or not channel.is_open:
            channel = self._depth_channel = self._open_channel()
        if channel is not None:
            channel.queue_declare(**queues.inquiry(self._queue), callback=answered)

    def _count_dead(self) -> None:
        """Usually there is no such queue, which closes the channel."""

        def answered(frame: Any) -> None:
            self._report(DeadDepth(frame.method.message_count))

        def closed(_: Channel, reason: BaseException) -> None:
            if amqp.explain(reason).kind is Kind.MISSING:
                self._report(DeadDepth(0))

        channel = self._dead_channel
        if channel is None or not channel.is_open:
            channel = self._dead_channel = self._open_channel()
            if channel is not None:
                channel.add_on_close_callback(closed)
        if channel is not None:
            channel.queue_declare(**queues.inquiry(queues.dead(self._queue)), callback=answered)

    def _describe(self, found: dict[str, Any], arguments: dict[str, Any], left: int) -> None:
        """Ask what kind of queue it is, if our user may know.

        AMQP has no such request, but refusals show it: a declaration with an unknown type is refused with one
        difference, which the next one adopts, and so on. Each is a line in the broker's log, so do this rarely.
        """

        def refused(_: Channel, reason: BaseException) -> None:
            name, value = queues.difference(str(getattr(reason, "reply_text", ""))) or ("", None)
            place = found if name in found else arguments
            if name in (queues.SINGLE, "x-queue-type"):
                self._report(Nature(name == queues.SINGLE and value is True))
            elif value is not None and place.get(name) != value:
                place[name] = value
                self._describe(found, arguments, left - 1)

        channel = self._open_channel() if left else None
        if channel is not None:
            channel.add_on_close_callback(refused)
            channel.queue_declare(self._queue, arguments={**arguments, "x-queue-type": queues.NO_TYPE}, **found)
