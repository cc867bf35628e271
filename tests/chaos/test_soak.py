"""The long run in bad weather, cut short: so that it works when it is wanted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import report, soak, workload
from tests.chaos.account import Account, Why

CHECKS: dict[str, list[str]] = {"lost = 0": [], "no task is dead twice": []}
ACCOUNT = Account(
    confirmed=100, done=98, dead=2, runs=104, extra=Counter({Why.KILLED: 4}), doubled=0, twice_dead=0, at_once=0,
    deaths=Counter({"SIGKILL": 4}), kinds=Counter({"quick": 98, "fails": 2}), checks=CHECKS,
)  # fmt: skip
SAMPLE = report.Run(
    name="classic", seed=1, seconds=60.0, rabbitmq="3.10.8", queue_type="classic", nodes=1, workers=3,
    happened=Counter({"worker killed": 4}), never_drawn=["host killed"], left_out=["hangs"], account=ACCOUNT,
)  # fmt: skip
FIRST = {
    "classic": ("worker killed", "supervisor killed", "broker killed", "cut exactly before an acknowledgement"),
    "quorum": ("host killed", "log reader stalled", "spare worker killed", "connections reset"),
}
"""Each of these in any case; the dice may add to them."""
SLOW = ("hangs", "very_long", "bloats")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_some_bad_weather_loses_nothing_and_ends_well(tmp_path: Path, queue_type: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    first = FIRST[queue_type]
    run, told = soak.soak(
        tmp_path, minutes=0, tasks=150, seed=seed, queue_type=queue_type, pace=workload.SHORT,
        without=SLOW, first=first,
    )  # fmt: skip
    print(run)
    print(report.findings(run.account))
    if not run.account.balances:
        (tmp_path / "story").write_text("\n".join(told))
        print(f"the story: {tmp_path}/story")
    assert run.happened.total() >= len(first) - 1, "no acknowledgement came to be cut"
    assert run.account.balances


def test_a_report_says_what_holds_and_what_was_not_tried() -> None:
    assert "holds: lost = 0" in str(SAMPLE)
    assert "Not in this run: host killed, hangs." in str(SAMPLE)
    broken = replace(SAMPLE, account=replace(ACCOUNT, checks={**CHECKS, "lost = 0": ["task-1: begun 0 times"]}))
    assert "**BROKEN**: lost = 0 (1 findings)" in str(broken)
    assert "holds: no task is dead twice" in str(broken)
    assert "task-1: begun 0 times" in report.findings(broken.account)
    assert not report.findings(ACCOUNT)


def test_a_report_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "chaos.md"
    file.write_text(
        "# Before\n<!-- begin of the classic run -->\nthe last one\n<!-- end of the classic run -->\nAfter\n"
    )
    report.write(file, SAMPLE)
    text = file.read_text()
    assert text.startswith("# Before\n") and text.endswith("-->\nAfter\n")
    assert "the last one" not in text and "seed 1" in text
    with pytest.raises(ValueError, match="quorum run"):
        report.write(file, replace(SAMPLE, name="quorum"))
