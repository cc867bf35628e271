"""The long run in bad weather, cut short: so that it works when it is wanted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import soak

SAMPLE = soak.Account(
    seed=1, seconds=60.0, rabbitmq="3.10.8", queue_type="classic", happened=Counter({"worker killed": 3}),
    confirmed=100, done=99, dead=1, lost=[], extra=3, kills=3, connections=1, doubted=0, exits={"SIGKILL": 3},
    consumers=soak.WORKERS,
)  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_some_bad_weather_loses_nothing_and_ends_well(tmp_path: Path, queue_type: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    account = soak.soak(tmp_path, minutes=0.3, tasks=300, seed=seed, queue_type=queue_type, say=print)
    print(account)
    assert account.happened
    assert account.verdicts == dict.fromkeys(account.verdicts, True), account.lost


@pytest.mark.parametrize("wrong", [{"lost": ["task-1"]}, {"extra": 5}, {"consumers": soak.WORKERS - 1}])
def test_an_account_that_does_not_balance_is_broken(wrong: dict[str, object]) -> None:
    assert all(SAMPLE.verdicts.values())
    account = replace(SAMPLE, **wrong)
    assert list(account.verdicts.values()).count(False) == 1
    assert "**BROKEN**" in str(account)


def test_a_report_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "reliability.md"
    file.write_text(
        "# Before\n<!-- begin of the classic run -->\nthe last one\n<!-- end of the classic run -->\nAfter\n"
    )
    soak.write_report(file, SAMPLE)
    text = file.read_text()
    assert text.startswith("# Before\n") and text.endswith("-->\nAfter\n")
    assert "the last one" not in text and "seed 1" in text
    with pytest.raises(ValueError, match="quorum run"):
        soak.write_report(file, replace(SAMPLE, queue_type="quorum"))
