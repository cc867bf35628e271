"""Parking: put a message into another queue, have that confirmed; only then may the original be acknowledged.

A dead letter stays where it is put; a failed task comes back from its delay queue by itself.

On a second connection, opened when first needed: a broker under a memory or disk alarm stops reading from a connection
that publishes, and with it that connection's acknowledgements (https://www.rabbitmq.com/docs/alarms).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from supervisor import logs, queues
from supervisor.policy.settle import DeadLetter, Later
from supervisor.publisher import Publisher, PublishError
from supervisor.settings import Settings
from supervisor.worker.labels import labelled

if TYPE_CHECKING:
    from supervisor.worker.consumer import Delivery

CONFIRM_TIMEOUT = 60.0
"""Seconds to wait for the confirm. A broker under an alarm may need them; the message stays unacknowledged
meanwhile."""


class Parking:
    """Where messages go that shall not run now. Closed with the process; reconnects by itself."""

    def __init__(self, settings: Settings, name: str, blocked: Callable[[bool], None]) -> None:
        """`blocked` is called when the broker takes no messages for now (an alarm), and again when it has taken one."""
        self._settings = settings
        self._name = name
        self._dead: Publisher | None = None
        self._blocked = blocked
        self._is_blocked = False

    def park(self, delivery: Delivery, settlement: DeadLetter) -> None:
        """Publish the message as it came, with our headers added, to the dead-letter queue, and wait for the confirm.

        Raises PublishError: it is not known to be there, so the original must not be acknowledged.
        """
        headers: dict[str, Any] = {
            # An exception, or the line that raised it, may quote a URL with its password.
            **{name: logs.redact(said) if isinstance(said, str) else said for name, said in settlement.headers.items()},
            queues.FIRST_SEEN: _first_seen(delivery, settlement.headers),
            queues.REASON: settlement.reason,
            queues.ATTEMPT: delivery.attempt,
            queues.HOST: socket.gethostname(),
            queues.QUEUE: self._settings.queue,
        }
        self._publish(delivery, headers, queues.dead(self._settings.queue))

    def delay(self, delivery: Delivery, settlement: Later) -> None:
        """Publish the message as it came, with the number of its next try, to a delay queue, and wait for the confirm.

        Raises PublishError, as `park` does.
        """
        declaration = queues.delayed(self._settings.queue, settlement.ms)
        # Each time: somebody may have deleted it.
        self._open().declare(declaration, timeout=CONFIRM_TIMEOUT)
        headers = {queues.FIRST_SEEN: _first_seen(delivery, {}), queues.ATTEMPT: settlement.attempt}
        # The queue's own time to live is not enough. A quorum queue can be published to some milliseconds before it has
        # its arguments (rabbit_quorum_queue:start_cluster/1 of 3.10 sets them last): what another worker puts there
        # meanwhile would never expire, and at the head it would hold back all behind it, for ever.
        self._publish(delivery, headers, declaration["queue"], expiration=str(settlement.ms))

    def _publish(self, delivery: Delivery, headers: dict[str, Any], queue: str, expiration: str | None = None) -> None:
        # A message that expires while it is parked is evidence, or work, lost; a user id other than our own is refused
        # (406, https://www.rabbitmq.com/docs/validated-user-id). RabbitMQ's own dead-lettering drops the first
        # likewise.
        for name, header in (("expiration", queues.EXPIRATION), ("user_id", queues.USER_ID)):
            if (value := getattr(delivery.properties, name)) is not None:
                headers[header] = value
        if (copies := (delivery.properties.headers or {}).get("CC")) is not None:
            headers[queues.COPIES] = copies
        publisher = self._open()
        publisher.connect()  # what fits into a frame is agreed upon then
        properties = labelled(delivery.properties, headers, publisher.frame_max)
        properties.expiration, properties.user_id = expiration, None
        publisher.publish(delivery.body, properties=properties, routing_key=queue, timeout=CONFIRM_TIMEOUT)
        if self._is_blocked:
            self._is_blocked = False
            self._blocked(False)

    def _block(self) -> None:
        if not self._is_blocked:
            self._is_blocked = True
            self._blocked(True)

    def _open(self) -> Publisher:
        if self._dead is None:
            self._dead = Publisher(
                self._settings.url,
                queues.dead(self._settings.queue),
                declare=self._settings.declare,
                heartbeat=self._settings.heartbeat,
                name=f"{self._name} parking",
                on_blocked=self._block,
            )
        return self._dead


def _first_seen(delivery: Delivery, ours: Mapping[str, object]) -> str:
    """When this message first went wrong: as it says itself, else as the supervisor says, else now."""
    for headers in (delivery.properties.headers or {}, ours):
        if isinstance(seen := headers.get(queues.FIRST_SEEN), str):
            return seen
    return logs.utc()


__all__ = ["Parking", "PublishError"]
