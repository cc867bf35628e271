"""A sample of `scripts/test inject`: what the kernel may refuse the supervisor is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos import injection
from tests.chaos.refusing import KINDS
from tests.node import PrivateNode

WORST = [
    injection.Case("pipe", (2, 4, 6, 8), "EMFILE,ENFILE"),
    injection.Case("pidfd_open", (2, 4, 6), "EMFILE,ESRCH,ENOMEM"),
    injection.Case("waitid", (1, 3, 5, 7, 9), "ECHILD,EINTR"),
    injection.Case("socket.recvmsg", (2, 9, 16, 23, 30), "EIO,ENOMEM"),
    injection.Case("epoll_ctl", (8, 20, 31, 42), "ENOSPC,ENOMEM"),
    injection.Case("epoll_wait", (3, 9, 27, 81), "ENOMEM,EINTR"),
    injection.Case("poll", (1, 3, 5, 7, 9, 11, 13, 15), "ENOMEM,EINTR"),
    injection.Case("set_wakeup_fd", (2,), "EBADF"),
    injection.Case("fork", (1,), "EAGAIN"),
    injection.Case("exec", (1,), "EAGAIN"),
    injection.Case("thread", (1,), "EAGAIN"),
]


@pytest.fixture(scope="module")
def calm(node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> injection.Told:
    """A run in which nothing is refused."""
    told = injection.run(node, tmp_path_factory.mktemp("calm"), injection.Case("none", (), "EIO"))
    assert not told.wrong, f"{told.wrong}\n{told.log}"
    return told


@pytest.mark.parametrize("case", WORST, ids=lambda case: case.kind)
def test_f74_what_the_kernel_refuses_costs_one_worker_one_start_or_one_read(
    node: PrivateNode, tmp_path: Path, calm: injection.Told, case: injection.Case
) -> None:
    told = injection.run(node, tmp_path, case, calm.descriptors)
    assert told.refused
    assert not told.wrong, f"{told.wrong}\n{told.refused}\n{told.log}"


def test_f74_a_refusal_chosen_at_random_does_no_more(node: PrivateNode, tmp_path: Path, calm: injection.Told) -> None:
    seed = random.randrange(2**32)
    cases = random.Random(seed).sample(list(injection.cases(calm, list(KINDS))), 3)
    for case in cases:
        print(f"seed {seed}: {case}")
        told = injection.run(node, tmp_path, case, calm.descriptors)
        assert not told.wrong, f"{case}\n{told.wrong}\n{told.refused}\n{told.log}"


def test_every_kind_of_call_that_is_refused_is_one_that_a_supervisor_makes(calm: injection.Told) -> None:
    """A function that it calls no more would be refused in vain."""
    rare = {"setrlimit", "socket.sendto", "kill", "tgkill", "flock", "socket.recv", "socket.connect"}
    assert {kind for kind in KINDS if not calm.calls.get(kind)} <= rare
