"""Parking: publish a message to another queue, confirmed; only then may the original be acknowledged.

A dead letter stays in its queue; a failed task comes back from its delay queue by itself.

Uses a second connection, opened when first needed: a broker under a memory or disk alarm stops reading from connections
that publish, and so their acknowledgements (https://www.rabbitmq.com/docs/alarms).
"""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from supervisor import logs, queues
from supervisor.clock import now
from supervisor.policy.settle import Afresh, DeadLetter, Later
from supervisor.publisher import Publisher, Refused, Unroutable
from supervisor.settings import Settings
from supervisor.worker.labels import labelled

if TYPE_CHECKING:
    from supervisor.worker.delivery import Delivery

CONFIRM_TIMEOUT = 60.0
"""Seconds to wait for the confirm, as for a broker under an alarm; meanwhile the message stays unacked."""


class Parking:
    """Publishes messages that must not run now. Reconnects by itself; closed with the process."""

    def __init__(
        self, settings: Settings, name: str, blocked: Callable[[], None], *, has_queues: bool, burst: str
    ) -> None:
        """`blocked` is called when the broker blocks publishing (an alarm). `has_queues` as in `Begin`. `burst`: the
        supervisor that waits for delayed messages; empty: none does."""
        self._burst = burst
        self._settings = settings
        self._name = name
        self._dead: Publisher | None = None
        self._safe_at: dict[str, float] = {}
        """By queue known to exist: when it may be published to, monotonic seconds."""
        self._refusing: set[str] = set()
        """Queues that have refused a message since they last accepted one."""
        self._has_queues = has_queues
        self._blocked = blocked
        self._signs = True

    def learn(self, declared: Iterable[str]) -> None:
        """These queues exist, for an unknown time."""
        self._safe_at.update(dict.fromkeys(declared, now() + queues.SETTLES_IN))

    def park(self, delivery: Delivery, settlement: DeadLetter) -> None:
        """Publish the message as it came, with our headers added, to the dead-letter queue, and wait for the confirm.

        A message from before an upgrade may be larger than the broker now accepts (16 MiB from 4.0 on). It is then
        published in parts, each with all headers, which `workq dead show --body` joins. (Skipped, it would stay unacked
        until the acknowledgement timeout; and each such return brings a quorum queue nearer to dropping it.)

        Raises PublishError: it is not known to be there, so the original must not be acknowledged.
        """
        headers: dict[str, Any] = {
            # An exception, or the line that raised it, may quote a URL with its password.
            **{name: logs.redact(said) if isinstance(said, str) else said for name, said in settlement.headers.items()},
            queues.FIRST_SEEN: self._first_seen(delivery, settlement.headers),
            queues.REASON: settlement.reason,
            queues.ATTEMPT: min(delivery.attempt, self._settings.retries + 1),
            queues.HOST: socket.gethostname(),
            queues.QUEUE: self._settings.queue,
        }
        declaration = queues.declaration(queues.dead(self._settings.queue))
        try:
            self._publish(delivery, headers, declaration)
        except Refused as error:
            if error.trouble is None or not error.trouble.max_message_size:
                raise
            self._park_in_parts(delivery, headers, declaration, error.trouble.max_message_size)

    def _park_in_parts(
        self, delivery: Delivery, headers: dict[str, Any], declaration: queues.Declaration, limit: int
    ) -> None:
        body, count = delivery.body, -(-len(delivery.body) // limit)
        logs.get_logger().warning(
            "task.parked_in_parts",
            message_id=delivery.name,
            size=len(body),
            parts=count,
            because=f"its body has {len(body)} bytes, and the broker now accepts only {limit} "
            f"(max_message_size): its dead letter is split into {count} parts",
            **delivery.trace,
        )
        for number in range(count):
            part = copy.copy(delivery)
            part.body = body[number * limit : (number + 1) * limit]
            about = {queues.PART: number + 1, queues.PARTS: count, queues.PART_OF: delivery.name}
            # One name for all parts: digests would differ.
            name = None if delivery.properties.message_id else delivery.name
            self._publish(part, headers | about, declaration, message_id=name)

    def have_return(self, delivery: Delivery, settlement: Later | Afresh) -> None:
        """Publish the message as it came, and wait for the confirm: to a delay queue, with the number of its next try;
        or to the end of its own queue, where the broker counts its returns from 0 (and a TTL starts again).

        Raises PublishError, as `park` does; Refused if it is larger than the broker now accepts.
        """
        queue, expiration = self._settings.queue, delivery.properties.expiration
        if isinstance(settlement, Later):
            headers = {queues.FIRST_SEEN: self._first_seen(delivery, {}), queues.ATTEMPT: settlement.attempt}
            if settlement.is_deferred or delivery.deferred:
                headers[queues.DEFERRED] = delivery.deferred + settlement.is_deferred
            if self._burst:
                headers[queues.BURST] = self._burst
            # The queue's own TTL is not enough. A quorum queue accepts messages some milliseconds before it has its
            # arguments (rabbit_quorum_queue:start_cluster/1 of 3.10 sets them last): such a message would never expire,
            # and would block all messages behind it.
            declaration, expiration = queues.delayed(queue, settlement.ms), str(settlement.ms)
        else:
            headers = {queues.PUT_BACK: delivery.put_back + 1, queues.ATTEMPT: delivery.attempt}
            self._safe_at.setdefault(queue, 0.0)  # it is consumed
            declaration = queues.declaration(queue, self._settings.queue_type)
        try:
            self._publish(delivery, headers, declaration, expiration=expiration, signed=self._signs)
        except Refused as error:
            if not self._signs or "user_id" not in error.reason:
                raise
            # The broker's name for us differs from the URL's (OAuth 2).
            self._signs = False
            self._publish(delivery, headers, declaration, expiration=expiration)

    def _publish(
        self,
        delivery: Delivery,
        headers: dict[str, Any],
        declaration: queues.Declaration,
        expiration: str | None = None,
        message_id: str | None = None,
        signed: bool = False,
    ) -> None:
        is_ours = self._is_ours(delivery)
        for name, header in (("expiration", queues.EXPIRATION), ("user_id", queues.USER_ID)):
            if (value := getattr(delivery.properties, name)) is not None and not (is_ours and name == "user_id"):
                headers[header] = value
        if (copies := (delivery.properties.headers or {}).get("CC")) is not None:
            headers[queues.COPIES] = copies
        publisher, queue = self._open(), declaration["queue"]
        publisher.connect()  # which negotiates the frame size
        # Our signature on delayed messages: the broker refuses a user id other than the publisher's login.
        properties = labelled(
            delivery.properties,
            headers,
            publisher.frame_max,
            queue=self._settings.queue,
            is_ours=is_ours,
            message_id=message_id,
            expiration=expiration,
            user_id=publisher.endpoint.user if signed else None,
        )
        self._await_safe(publisher, declaration)
        try:
            publisher.publish(delivery.body, properties=properties, routing_key=queue, timeout=CONFIRM_TIMEOUT)
        except (Unroutable, Refused) as error:
            if isinstance(error, Unroutable):
                # It was deleted after it was declared.
                del self._safe_at[queue]
            elif error.trouble is None and queue not in self._refusing:
                # Perhaps another worker has just declared it again: a queue without a leader refuses. Retried once, so
                # as not to wait each time for a full one.
                self._refusing.add(queue)
                self.learn([queue])
            else:
                raise
            self._await_safe(publisher, declaration)
            publisher.publish(delivery.body, properties=properties, routing_key=queue, timeout=CONFIRM_TIMEOUT)
        self._refusing.discard(queue)

    def _is_ours(self, delivery: Delivery) -> bool:
        """Whether it came back from a delay queue in which a worker of ours had put it, so that its `x-workq-*` headers
        are ours. Anybody can set such headers; our user id needs our login
        (https://www.rabbitmq.com/docs/validated-user-id)."""
        properties = delivery.properties
        has_tried = queues.ATTEMPT in (properties.headers or {})
        return has_tried and properties.user_id in {endpoint.user for endpoint in self._settings.url}

    def _first_seen(self, delivery: Delivery, ours: Mapping[str, object]) -> str:
        """When this message first failed: from its header, else from the supervisor, else now."""
        own = delivery.properties.headers if self._is_ours(delivery) else None
        for headers in (own or {}, ours):
            if isinstance(seen := headers.get(queues.FIRST_SEEN), str):
                return seen
        return logs.utc()

    def _await_safe(self, publisher: Publisher, declaration: queues.Declaration) -> None:
        """Make sure that the queue exists, and is old enough for its confirmed messages to survive a broker crash."""
        queue = declaration["queue"]
        if queue not in self._safe_at:
            is_new = publisher.declare(declaration, timeout=CONFIRM_TIMEOUT)
            is_safe = not self._settings.declare or (self._has_queues and not is_new)
            self._safe_at[queue] = now() + (0.0 if is_safe else queues.SETTLES_IN)
        # Meanwhile the heartbeat thread serves the consuming connection.
        time.sleep(max(0.0, self._safe_at[queue] - now()))

    def _open(self) -> Publisher:
        if self._dead is None:
            self._dead = Publisher(
                self._settings.url,
                queues.dead(self._settings.queue),
                declare=self._settings.declare,
                heartbeat=self._settings.heartbeat,
                name=f"{self._name} parking",
                on_blocked=self._blocked,
            )
        return self._dead
