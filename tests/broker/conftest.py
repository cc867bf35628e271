"""Dead letters in a queue of each type, and a consumer that is patient."""

from __future__ import annotations

import pytest

from tests.dead_letters import KINDS, declare


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def buried(broker_url: str, queue: str, kind: str) -> str:
    """A queue and its dead letters, both of a type."""
    declare(broker_url, queue, kind)
    return queue


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy broker may say goodbye late."""
    monkeypatch.setattr("supervisor.worker.consumer.CLOSE_TIMEOUT", 10.0)
