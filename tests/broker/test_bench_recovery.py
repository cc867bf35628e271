"""The benchmark's kills are real, and so is what it says of them: with our own pool, a few times."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benches import recovery, trials
from scripts.benches.contenders import Workq
from scripts.benches.row import Options
from tests import amqp
from tests.node import PrivateNode

pytestmark = pytest.mark.any_broker


def test_each_kill_hits_a_task_and_is_followed_to_the_end(broker_url: str, queue: str, tmp_path: Path) -> None:
    shooting = recovery.Shooting(Workq("info"), 2, broker_url, queue, tmp_path)
    recoveries = shooting.run(3)
    assert len({each.victim for each in recoveries} | {each.heir for each in recoveries}) >= 4
    assert sum(each.in_hand for each in recoveries) >= 2  # a task may end in the instant of the kill
    for each in recoveries:
        # The replacement may begin its task before the supervisor has logged its start.
        assert -0.001 < each.reached[recovery.SEEN] <= min(each.reached[recovery.FORKED], each.reached[recovery.BEGUN])
        # 2 ms, and the log has only milliseconds.
        assert each.reached[recovery.FINISHED] - each.reached[recovery.BEGUN] >= recovery.TASK
        assert (recovery.AGAIN in each.reached) is each.in_hand


def test_every_task_is_done_though_workers_are_killed(
    node: PrivateNode, broker_url: str, queue: str, tmp_path: Path
) -> None:
    options = Options(broker_url, tmp_path, rounds=1)
    try:
        trial = trials.attempt(Workq(), options, queue, [0.05] * 60, 2, kill_every=0.2)
    finally:
        amqp.delete(node, f"{queue}-workq")
    assert trial.undone == 0
    assert {run.number for run in trial.runs} == set(range(1, 61))
    assert trial.kills >= 5
    assert trial.again <= trial.kills
    assert trial.seconds > 60 * 0.05 / 2
