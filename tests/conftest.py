"""The brokers that tests use: one private node for the whole session, a fresh queue for each test, and a node of its
own for a test that kills it."""

from __future__ import annotations

import gc
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from supervisor.commands.node import NodeError, find_installation
from tests import amqp
from tests.browser import Chromium, Tab, chromium, installed
from tests.node import PrivateNode, SpareNode
from tests.supervision import Runs

# A busy machine makes any example slow: that is no property of what is tested.
hypothesis.settings.register_profile("workq", deadline=None)
hypothesis.settings.load_profile("workq")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "rabbitmq(at_least='4.3', below='4.0'): skip this test unless the nodes are of such a version. What a newer "
        "broker does otherwise needs a test of its own: see docs/testing.md",
    )


def pytest_collection() -> None:
    """What is collected stays: looking through it for garbage, again and again, takes a second in each process."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_report_header() -> str:
    try:
        server = find_installation()
    except NodeError as error:
        return str(error)
    return f"RabbitMQ {server.version} ({server.home})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("rabbitmq"):
        demand(**mark.kwargs)


def demand(at_least: str = "0", below: str = "999") -> None:
    """Skip the test unless the nodes are of such a version."""
    version = find_installation().version
    if not release(at_least) <= release(version) < release(below):
        range_ = f"RabbitMQ {at_least} or newer" if below == "999" else f"a RabbitMQ before {below}"
        pytest.skip(f"needs {range_}, this is {version}: scripts/test --rabbitmq VERSION")


def release(version: str) -> tuple[int, ...]:
    """`4.3.6` -> (4, 3, 6)"""
    return tuple(int(number) for number in re.findall(r"\d+", version))


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


@pytest.fixture(scope="session")
def spare_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpareNode]:
    spare = SpareNode(tmp_path_factory)
    try:
        yield spare
    finally:
        spare.kill()


@pytest.fixture
def own_node(spare_node: SpareNode) -> Iterator[PrivateNode]:
    """A running node of this test's own, to kill, stop and start at will."""
    broker = spare_node.wake()
    yield broker
    spare_node.rest()


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that refuses connections for as long as the test runs: bound, and not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(installed(), tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def tab(browser: Chromium) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    tab.close()
