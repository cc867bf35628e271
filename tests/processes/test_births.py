"""A birth that fails, wherever it fails, leaves nothing open."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from supervisor.link import Link
from supervisor.parent.descriptors import Descriptors
from supervisor.parent.forks import Births

STARTS = 200


def refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Nursery:
    """The other end of the link: it takes what it is sent, and says that this very process is the worker."""

    def __init__(self) -> None:
        ours, self.theirs = Link.pair()
        self.link = ours
        self.refused: list[int] = []
        self.births = Births(ours, Descriptors(), lambda slot, _: self.refused.append(slot))

    def forks(self) -> None:
        received = self.theirs.receive(wait=False)
        assert received is not None
        order, fds = received
        for fd in fds:
            os.close(fd)
        assert self.births.born(order.ticket, os.getpid(), set()) is None


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.link.close()
    made.theirs.close()


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.mark.parametrize(
    ("owner", "name", "forks"),
    [
        (Descriptors, "claim", False),
        (Link, "pair", False),
        (os, "pipe2", False),
        (socket.socket, "sendmsg", False),
        (os, "pidfd_open", True),
        (os, "waitid", True),
    ],
)
def test_f74_a_thousand_starts_that_fail_leave_no_descriptor_open(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, forks: bool
) -> None:
    before = descriptors()
    monkeypatch.setattr(owner, name, refuse)
    follow: Callable[[], None] = nursery.forks if forks else lambda: None
    for slot in range(STARTS):
        nursery.births.ask(slot)
        follow()
    assert nursery.refused == list(range(STARTS))
    assert descriptors() == before
    assert not nursery.births.are_due


def test_f74_of_many_workers_that_wait_only_sixteen_have_descriptors(nursery: Nursery) -> None:
    before = len(descriptors())
    for slot in range(300):
        nursery.births.ask(slot)
    assert len(descriptors()) - before == 16 * 2
    assert len(nursery.births) == 300
    nursery.births.forget()
    assert len(descriptors()) == before
