"""The queues for retries and dead letters, declared while a worker starts."""

from __future__ import annotations

from functools import partial

from supervisor import amqp, queues
from supervisor.amqp.connection import Connection
from supervisor.endpoint import Endpoint
from supervisor.policy import retry
from supervisor.settings import Settings


class OwnQueues:
    """Uses the consuming connection: the publishing one is opened only after a failure, when a new queue would be too
    young (`queues.SETTLES_IN`). A queue that cannot be declared is `refused`, and retried when needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._undeclared: set[str] = set()
        self.declared: set[str] = set()
        """Those that exist."""
        self.refused = ""
        """Why another cannot be declared."""

    @property
    def is_answered(self) -> bool:
        return not self._undeclared

    def declare(self, connection: Connection, endpoint: Endpoint | None) -> None:
        """Start; another node may have been asked before."""
        steps = retry.steps(self._settings.retries, self._settings.retry_delay)
        wanted = queues.ours(self._settings.queue, steps)
        self._undeclared = {declaration["queue"] for declaration in wanted}
        self.refused = ""
        for declaration in wanted:
            queue = declaration["queue"]
            done, failed = partial(self._has_declared, queue), partial(self._cannot_declare, queue, endpoint)
            try:
                amqp.declare_anyway(connection, declaration, on_done=done, on_failed=failed)
            except Exception as error:  # noqa: BLE001 - no channel is left
                failed(error)

    def give_up(self, patience: float) -> None:
        """The broker has not answered within so many seconds, perhaps because a queue's node is down. To consume, these
        queues are not needed yet."""
        if self._undeclared:
            names = ", ".join(sorted(self._undeclared))
            self.refused = f"the broker has not answered within {patience:.0f} s whether it has {names}"

    def _has_declared(self, queue: str, _is_new: bool) -> None:
        self._undeclared.discard(queue)
        self.declared.add(queue)

    def _cannot_declare(self, queue: str, endpoint: Endpoint | None, error: BaseException) -> None:
        self._undeclared.discard(queue)
        self.refused = f"queue {queue} cannot be declared: {amqp.explain(error, endpoint).reason}"
