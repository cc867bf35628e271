"""pytest's fixture `workq_broker`: a private RabbitMQ node for a test session.

pytest loads this module wherever the distribution is installed (entry point `pytest11`), so that it imports nothing
until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from supervisor.commands.node import LocalNode


@pytest.fixture(scope="session")
def workq_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNode]:
    """A RabbitMQ of the test session's own, on a free port of 127.0.0.1: `.url` for publishers, supervisors and pika.
    It takes some 3 s to boot, and is gone with the session.

        def test_the_queue_is_emptied(workq_broker):
            with Publisher(workq_broker.url, "jobs") as publisher: ...

    Raises NodeError when RabbitMQ is not installed, and says how to install it.
    """
    from supervisor.commands.node import LocalNode

    with LocalNode(tmp_path_factory.mktemp("workq-broker")) as node:
        yield node
