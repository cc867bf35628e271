"""Parking: put a message into another queue, have that confirmed; only then may the original be acknowledged.

On a second connection, opened when first needed: a broker under a memory or disk alarm stops reading from a connection
that publishes, and with it that connection's acknowledgements (https://www.rabbitmq.com/docs/alarms).
"""

from __future__ import annotations

import copy
import datetime
import socket
from typing import TYPE_CHECKING

from supervisor import queues
from supervisor.policy.settle import DeadLetter
from supervisor.publisher import Publisher, PublishError
from supervisor.settings import Settings

if TYPE_CHECKING:
    from supervisor.worker.consumer import Delivery

CONFIRM_TIMEOUT = 60.0
"""Seconds to wait for the confirm. A broker under an alarm may need them; the message stays unacknowledged
meanwhile."""


class Parking:
    """Where messages go that shall not run again. Closed with the process; `park` reconnects by itself."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._dead: Publisher | None = None

    def park(self, delivery: Delivery, settlement: DeadLetter) -> None:
        """Publish the message as it came, with our headers added, to the dead-letter queue, and wait for the confirm.

        Raises PublishError: it is not known to be there, so the original must not be acknowledged.
        """
        properties = copy.copy(delivery.properties)
        headers = dict(properties.headers or {})
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        headers.setdefault(queues.FIRST_SEEN, now)
        headers |= settlement.headers
        headers |= {
            queues.REASON: settlement.reason,
            queues.ATTEMPT: delivery.attempt,
            queues.HOST: socket.gethostname(),
            queues.QUEUE: self._settings.queue,
        }
        # A dead letter that expires is evidence lost; a user id other than our own is refused (406,
        # https://www.rabbitmq.com/docs/validated-user-id). RabbitMQ's own dead-lettering drops the first likewise.
        for name, header in (("expiration", queues.EXPIRATION), ("user_id", queues.USER_ID)):
            if (value := getattr(properties, name)) is not None:
                headers[header] = value
                setattr(properties, name, None)
        properties.headers = headers
        self._open().publish(delivery.body, properties=properties, timeout=CONFIRM_TIMEOUT)

    def _open(self) -> Publisher:
        if self._dead is None:
            self._dead = Publisher(
                self._settings.url,
                queues.dead(self._settings.queue),
                declare=self._settings.declare,
                heartbeat=self._settings.heartbeat,
                name=f"{self._name} parking",
            )
        return self._dead


__all__ = ["Parking", "PublishError"]
