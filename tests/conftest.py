"""The brokers that tests use: one private node for the whole session, a fresh queue for each test, and a node of its
own for a test that kills it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from supervisor.commands.node import PrivateNode
from tests import amqp
from tests.supervision import Runs


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """Everybody's node: leave it as you found it."""
    broker = PrivateNode(tmp_path_factory.mktemp("node"))
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def broker_url(node: PrivateNode) -> str:
    return node.url


@pytest.fixture
def queue(node: PrivateNode) -> Iterator[str]:
    """The name of a queue that does not exist yet. It, its dead letters and its delays are deleted after the test."""
    name = f"queue-{uuid4().hex[:12]}"
    yield name
    amqp.delete(node, name)


@pytest.fixture(params=["classic", "quorum"])
def typed_queue(request: pytest.FixtureRequest, broker_url: str, queue: str) -> str:
    """A queue of either type: the test runs on both."""
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": request.param})
    return queue


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """What the handlers of this test do, as they note it."""
    return Runs(tmp_path / "runs")


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[PrivateNode]:
    """A running node of this test's own, to kill, stop and start at will."""
    broker = PrivateNode(tmp_path / "own-node")
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()
