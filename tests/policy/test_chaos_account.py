"""What `workq chaos` makes of the supervisor's figures and of what the marked tasks have noted."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.commands.chaos.account import Account, in_words, noted
from supervisor.vocabulary import OUTCOMES


def status(
    *recent: dict[str, Any], ready: int | None = 0, states: tuple[str, ...] = ("idle", "idle"), **totals: int
) -> dict[str, Any]:
    return {
        "queue": {"name": "q", "ready": ready},
        "scale": {"wanted": len(states)},
        "workers": [{"slot": slot, "pid": slot + 100, "state": state} for slot, state in enumerate(states)],
        "totals": dict.fromkeys((*OUTCOMES, "worker_exits"), 0) | totals,
        "recent": [{"at": number, "because": "", **entry} for number, entry in enumerate(recent)],
    }


def exited(pid: int, slot: int = 0) -> dict[str, Any]:
    return {"event": "worker.exited", "pid": pid, "slot": slot}


def ready(pid: int, seconds: float, slot: int = 0) -> dict[str, Any]:
    return {"event": "worker.ready", "pid": pid, "slot": slot, "seconds": seconds}


def killed(account: Account, pid: int, slot: int = 0, message_id: str | None = None) -> None:
    account.kill({"pid": pid, "slot": slot, "message_id": message_id})


def test_what_follows_the_deaths_it_has_caused_is_measured_and_nothing_else() -> None:
    before = (ready(90, 9.0, slot=1),)
    account = Account(status(*before))
    killed(account, 100, message_id="a")
    assert not account.is_settled
    account.look(status(*before, exited(100), ready(110, 0.02), exited(101, slot=1), ready(111, 5.0, slot=1)))
    account.look(status(*before, exited(100), ready(110, 0.02), exited(101, slot=1), ready(111, 5.0, slot=1)))
    account.look(status(worker_exits=2))
    found = account.document(1.0, 0.2, None)
    assert (found["killed"], found["killed_with_task"], found["other_exits"]) == (1, 1, 1)
    assert found["recovery_seconds"] == {"count": 1, "p50": 0.02, "p95": 0.02, "max": 0.02}
    assert found["ok"] and found["published"] is None


def test_a_slot_that_does_not_consume_again_is_told() -> None:
    account = Account(status())
    killed(account, 100)
    account.look(status(exited(100), worker_exits=1))
    found = account.document(1.0, 0.2, None)
    assert not found["ok"] and found["not_recovered"] == 1
    assert any("1 slots do not consume again" in line for line in in_words(found))


def test_the_distribution_is_by_the_nearest_rank() -> None:
    account = Account(status())
    for number in range(1, 21):
        killed(account, 200 + number)
        account.look(status(exited(200 + number), ready(300 + number, number / 100), worker_exits=number))
    assert account.document(1.0, 0.2, None)["recovery_seconds"] == {"count": 20, "p50": 0.1, "p95": 0.19, "max": 0.2}


def test_if_more_has_happened_than_is_remembered_that_is_said_and_the_workers_states_count() -> None:
    account = Account(status(exited(1)))
    killed(account, 100)
    account.look(status(ready(7, 0.1), states=("idle", "starting")))
    assert account.has_gaps and not account.is_settled
    account.look(status(ready(7, 0.1)))
    found = account.document(1.0, 0.2, None)
    assert found["ok"] and any("more happened between" in line for line in in_words(found))


LINES = ["a began", "a done", "b began", "b began", "b done", "c began", "c done", "c began", "c done"]


@pytest.mark.parametrize(
    ("confirmed", "ready", "retried", "lost", "unfinished"),
    [(3, 0, 0, 0, 0), (5, 0, 0, 2, 0), (5, 4, 0, 0, 2), (5, None, 0, 0, 2), (5, 0, 1, 1, 1), (5, 0, 9, 0, 2)],
)
def test_lost_is_what_was_confirmed_and_is_neither_done_nor_anywhere(
    confirmed: int, ready: int | None, retried: int, lost: int, unfinished: int
) -> None:
    account = Account(status())
    account.look(status(ready=ready, retried=retried))
    found = account.document(1.0, 0.2, noted(LINES, confirmed, frozenset()))
    assert (found["published"]["lost"], found["published"]["unfinished"]) == (lost, unfinished)
    assert (found["published"]["extra_runs"], found["published"]["done_twice"]) == (2, 1)
    assert found["ok"] == (not lost and not unfinished)


def test_a_dead_letter_is_not_lost() -> None:
    account = Account(status())
    account.look(status(dead_lettered=1))
    published = account.document(1.0, 0.2, noted(LINES, 4, frozenset({"d"})))["published"]
    assert (published["lost"], published["unfinished"], published["dead_lettered"]) == (0, 0, 1)


def test_what_a_handler_does_not_note_is_not_counted_as_lost_or_as_none() -> None:
    found = Account(status()).document(1.0, 0.2, noted(["nonsense", ""], 9, frozenset()))
    assert found["published"]["lost"] is None and not found["published"]["is_exact"]
    assert any("not counted" in line for line in in_words(found)) and not found["ok"]
