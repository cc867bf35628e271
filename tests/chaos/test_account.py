"""Would the account notice? A small run in which every kind of thing happens balances; then one discrepancy after the
other is planted, and each must be found, by the check whose business it is and by no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos.account import (
    AFTERMATH,
    Evidence,
    Fault,
    Kind,
    Letter,
    Line,
    Run,
    Sample,
    Supervisor,
    Task,
    Why,
    judge,
)

START = 1_800_000_000.0
STEADY, DOOMED = 10, 20
"""Pids of two supervisors."""

LOST = "lost = 0"
NEVER_RAN = "nothing is acknowledged that has not run"
EXTRA = "each extra run has a cause of its own"
TWICE = "no task is dead twice"
REASON = "who is dead has a reason"
KILLERS = "a message kills at most 3 workers of a supervisor"
AT_ONCE = "no task runs twice at once under one supervisor"
GROUNDLESS = "no worker ends for a reason that is not there"
LEFT = "nothing is left in a queue"
METRICS = "the metrics say what the log says"
JSON = "each line of the log is one JSON object"
FLAT = "the supervisors' descriptors and memory stay flat"
BEHIND = "no process is left behind"
WELL = "all is well at the end"

Change = Callable[[Evidence], Evidence]


def line(at: float, event: str, **fields: Any) -> Line:
    return {"timestamp": datetime.fromtimestamp(START + at, UTC).isoformat(), "event": event, **fields}


def ran(
    task: str, pid: int, began: float, ended: float | None = None, how: str = "returned", *, attempt: int = 1,
    supervisor: int = STEADY,
) -> Run:  # fmt: skip
    until = None if ended is None else START + ended
    return Run(task, attempt, pid, f"boot of {pid}", supervisor, START + began, until, how if ended is not None else "")


def died(at: float, pid: int, cause: str, task: str | None = None, **fields: Any) -> Line:
    return line(at, "worker.exited", pid=pid, cause=cause, message_id=task, **fields)


def succeeded(at: float, pid: int, task: str, attempt: int = 1) -> Line:
    return line(at, "task.succeeded", pid=pid, message_id=task, attempt=attempt)


def fault(name: str, kind: Kind, began: float, ended: float) -> Fault:
    return Fault(name, kind, START + began, START + ended)


TASKS = {
    each.name: each
    for each in (
        Task("plain", "quick"),
        Task("killed", "quick"),
        Task("cut", "quick"),
        Task("orphan", "quick"),
        Task("twice", "fails_once"),
        Task("bad", "fails", reason="exception"),
        Task("bomb", "crashes", reason="crash"),
        Task("doubt", "quick", publishes=2),
        Task("never sent", "quick", is_confirmed=False),
    )
}
RUNS = (
    ran("plain", 101, 1, 2),
    ran("killed", 101, 3),  # the nemesis
    ran("killed", 102, 4, 5),
    ran("cut", 103, 3, 6),  # ends after its connection
    ran("cut", 104, 6.5, 7),
    ran("orphan", 201, 3, supervisor=DOOMED),  # the supervisor is killed
    ran("orphan", 102, 6, 7),
    ran("twice", 102, 8, 9, "raised ValueError"),
    ran("twice", 104, 9.5, 10, attempt=2),
    ran("bad", 102, 11, 12, "raised ValueError"),
    ran("bad", 102, 13, 14, "raised ValueError", attempt=2),
    ran("bomb", 105, 11),
    ran("bomb", 106, 13),
    ran("bomb", 107, 15),
    ran("doubt", 102, 16, 17),
    ran("doubt", 104, 16, 17),
)
LOG = (
    succeeded(2, 101, "plain"),
    died(3.5, 101, "SIGKILL", "killed"),
    succeeded(5, 102, "killed"),
    line(6, "task.unsettled", pid=103, message_id="cut", attempt=1),
    died(6.2, 103, "broker"),
    succeeded(7, 104, "cut"),
    succeeded(7, 102, "orphan"),
    line(9, "task.failed", pid=102, message_id="twice", attempt=1),
    line(9, "task.retried", pid=102, message_id="twice", attempt=1),
    succeeded(10, 104, "twice", 2),
    line(12, "task.failed", pid=102, message_id="bad", attempt=1),
    line(12, "task.retried", pid=102, message_id="bad", attempt=1),
    died(12, 105, "SIGSEGV", "bomb"),
    line(14, "task.failed", pid=102, message_id="bad", attempt=2),
    line(14, "task.dead_lettered", pid=102, message_id="bad", attempt=2),
    died(14, 106, "SIGSEGV", "bomb"),
    died(16, 107, "SIGSEGV", "bomb"),
    line(17, "task.quarantined", pid=102, message_id="bomb", attempt=1),
    succeeded(17, 102, "doubt"),
    succeeded(17, 104, "doubt"),
    line(90, "supervisor.stopping"),
    died(91, 102, "drained"),
)
METRIC_VALUES = {
    **{("workq_tasks_total", outcome): count for outcome, count in (
        ("succeeded", 7.0), ("failed", 3.0), ("retried", 2.0), ("dead_lettered", 1.0), ("quarantined", 1.0),
        ("unsettled", 1.0), ("redelivered", 6.0),
    )},
    **{("workq_worker_exits_total", cause): count for cause, count in (
        ("SIGKILL", 1.0), ("SIGSEGV", 3.0), ("broker", 1.0), ("drained", 0.0),
    )},
}  # fmt: skip
GOOD = Evidence(
    queue_type="quorum",
    tasks=TASKS,
    runs=RUNS,
    supervisors=(
        Supervisor(
            STEADY, LOG, metrics=METRIC_VALUES,
            samples=[Sample(START + at, 40, 50 * 2**20, 3) for at in (0, 30, 60)],
        ),
        Supervisor(DOOMED, (), invalid=['{"timestamp": "cut sho'], was_killed=True),
    ),
    faults=(fault("supervisor killed", Kind.SUPERVISOR, 4, 5),),
    killed={101: START + 3.4},
    letters=(Letter("bad", "exception"), Letter("bomb", "crash", "SIGSEGV")),
    leftovers={"soak": 0},
)  # fmt: skip


def found(evidence: Evidence) -> set[str]:
    """What does not hold."""
    return {what for what, findings in judge(evidence).checks.items() if findings}


def test_a_run_in_which_all_is_explained_balances_and_names_each_cause() -> None:
    account = judge(GOOD)
    assert account.balances, account.checks
    assert account.extra == {Why.KILLED: 1, Why.CONNECTION: 1, Why.SUPERVISOR: 1, Why.OWN: 2}
    assert (account.confirmed, account.done, account.dead, account.twice_dead) == (8, 6, 2, 0)
    assert account.runs == len(RUNS)


def with_runs(*more: Run) -> Change:
    return lambda good: replace(good, runs=(*good.runs, *more))


def without_runs(task: str, *, of: str = "") -> Change:
    return lambda good: replace(good, runs=[run for run in good.runs if run.task != task or (of and run.how != of)])


def with_log(*more: Line) -> Change:
    def change(good: Evidence) -> Evidence:
        steady, doomed = good.supervisors
        return replace(good, supervisors=(replace(steady, log=sorted([*steady.log, *more], key=_timestamp)), doomed))

    return change


def without_log(event: str, **fields: Any) -> Change:
    def change(good: Evidence) -> Evidence:
        steady, doomed = good.supervisors
        log = [
            line
            for line in steady.log
            if line["event"] != event or any(line.get(name) != value for name, value in fields.items())
        ]
        return replace(good, supervisors=(replace(steady, log=log), doomed))

    return change


def with_steady(**changes: Any) -> Change:
    def change(good: Evidence) -> Evidence:
        steady, doomed = good.supervisors
        return replace(good, supervisors=(replace(steady, **changes), doomed))

    return change


def counted(outcome: str, count: float) -> Change:
    return with_steady(metrics={**METRIC_VALUES, ("workq_tasks_total", outcome): count})


def task(name: str, **changes: Any) -> Change:
    return lambda good: replace(
        good, tasks={**good.tasks, name: replace(good.tasks.get(name, Task(name, "quick")), **changes)}
    )


def changed(**changes: Any) -> Change:
    return lambda good: replace(good, **changes)


def _timestamp(line: Line) -> str:
    return str(line["timestamp"])


PLANTED: list[tuple[str, Change, set[str]]] = [
    ("a task is lost that never ran", task("gone"), {LOST}),
    ("a task that only fails is gone", changed(letters=(Letter("bomb", "crash", "SIGSEGV"),)), {LOST}),
    ("a task is acknowledged that never ran", without_runs("plain"), {LOST, NEVER_RAN}),
    ("a task is acknowledged by one that began it and did not end it", with_log(succeeded(5, 107, "bomb")),
     {NEVER_RAN, METRICS}),
    ("a run more, by a worker that lives", with_runs(ran("plain", 102, 2.5, 2.8)), {EXTRA}),
    ("a run more, though the first was not the last of its worker's life",
     with_runs(ran("plain", 104, 20, 21)), {EXTRA}),
    ("two runs more of one death", with_runs(ran("killed", 104, 5.1, 5.2)), {EXTRA}),
    ("a run more of a worker that left as planned", with_runs(ran("doubt", 105, 10, 10.5)), {EXTRA}),
    ("a run whose worker's death is not in the log", without_log("worker.exited", pid=101), {EXTRA, METRICS}),
    ("a second copy of a try, of one failure", with_runs(ran("twice", 104, 18, 19, attempt=2)), {EXTRA}),
    ("a try after the last", with_runs(ran("bad", 104, 18, 19, "raised ValueError", attempt=4)), {EXTRA}),
    ("a run of a task that nobody published", with_runs(ran("stranger", 104, 18, 19)), {EXTRA}),
    ("a task is dead twice", changed(letters=(*GOOD.letters, Letter("bad", "exception"))), {TWICE}),
    ("an innocent one is quarantined", changed(letters=(*GOOD.letters, Letter("killed", "crash", "SIGKILL"))),
     {REASON}),
    ("an innocent one has come back often",
     changed(letters=(*GOOD.letters, Letter("plain", "crash", "returned 10 times"))), {REASON}),
    ("a dead letter of another reason", changed(letters=(Letter("bad", "rejected"), GOOD.letters[1])), {REASON}),
    ("a dead letter that nobody published", changed(letters=(*GOOD.letters, Letter("stranger", "exception"))),
     {REASON}),
    ("a dead letter of one that should be done", changed(letters=(*GOOD.letters, Letter("plain", "exception"))),
     {REASON}),
    ("one that cannot be done is done", with_runs(ran("bomb", 108, 18, 19)), {REASON}),
    ("a fourth worker is killed by one message", lambda good: with_log(died(19, 108, "SIGSEGV", "bomb"))(
        with_runs(ran("bomb", 108, 18))(with_steady(metrics={
            **METRIC_VALUES, ("workq_worker_exits_total", "SIGSEGV"): 4.0})(good))), {KILLERS}),
    ("the second run begins while the first one goes on",
     lambda good: replace(good, runs=[replace(run, began=START + 5) if run == RUNS[4] else run for run in RUNS]),
     {AT_ONCE}),
    ("a task waits in a delay queue", lambda good: replace(task("late")(good), leftovers={"soak.delay.9": 1}), {LEFT}),
    ("one task waits in a delay queue, another one is lost",
     lambda good: replace(task("late")(task("gone")(good)), leftovers={"soak.delay.100": 1}), {LOST, LEFT}),
    ("a message is left in a delay queue", changed(leftovers={"soak.delay.100": 1}), {LEFT}),
    ("one success more is counted than logged", counted("succeeded", 8.0), {METRICS}),
    ("one success less is counted than logged", counted("succeeded", 6.0), {METRICS}),
    ("a failure is not counted", counted("failed", 1.0), {METRICS}),
    ("a quarantine is counted twice", counted("quarantined", 2.0), {METRICS}),
    ("a death is logged and not counted",
     with_steady(metrics={**METRIC_VALUES, ("workq_worker_exits_total", "SIGSEGV"): 2.0}), {METRICS}),
    ("a death is counted and not logged",
     with_steady(metrics={**METRIC_VALUES, ("workq_worker_exits_total", "OOM"): 1.0}), {METRICS}),
    ("a worker finds fault with settings that are good", lambda good: with_log(died(20, 110, "config"))(with_steady(
        metrics={**METRIC_VALUES, ("workq_worker_exits_total", "config"): 1.0})(good)), {GROUNDLESS}),
    ("two lines in one", with_steady(invalid=['{"event": "a"{"event": "b"}\n']), {JSON}),
    ("a line cut short by one that lives on", with_steady(invalid=['{"event": "a']), {JSON}),
    ("a line of garbage by one that is killed later", lambda good: replace(
        good, supervisors=(good.supervisors[0], replace(good.supervisors[1], invalid=["garbage\n"]))), {JSON}),
    ("descriptors are leaked",
     with_steady(samples=[Sample(START + at, 40 + at, 2**20, 3) for at in (0, 30, 60)]), {FLAT}),
    ("memory is leaked",
     with_steady(samples=[Sample(START + at, 40, at * 2**20, 3) for at in (0, 30, 60)]), {FLAT}),
    ("a process is left", changed(survivors=["process 5"]), {BEHIND}),
    ("it is not ready", changed(unwell=["503"]), {WELL}),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "checks"), [pytest.param(plant, checks, id=name) for name, plant, checks in PLANTED])
def test_f114_the_account_finds_what_is_wrong_and_nothing_else(plant: Change, checks: set[str]) -> None:
    assert found(plant(GOOD)) == checks


EXTRA_RUN = ran("plain", 102, 2.5, 2.8)
"""Of a task whose worker lived on and did another one."""


@pytest.mark.parametrize(
    ("queue_type", "kind", "began", "why"),
    [
        ("classic", Kind.BROKER_KILLED, 2.1, Why.FORGOTTEN),
        ("quorum", Kind.BROKER_KILLED, 2.1, None),  # a quorum queue forgets no acknowledgement
        ("classic", Kind.BROKER_KILLED, 0.1, None),  # killed before there was one
        ("classic", Kind.BROKER, 2.1, None),  # stopped in order
        ("quorum", Kind.CLUSTER, 1.5, Why.CLUSTER),
        ("quorum", Kind.CLUSTER, 2.1, None),  # the task was done before
        ("quorum", Kind.NETWORK, 1.5, None),  # its worker's connection was not lost: it went on
        ("quorum", Kind.SUPERVISOR, 1.5, None),  # not its own
    ],
)
def test_f114_what_a_broker_does_by_itself_is_counted_apart_and_excuses_nothing_else(
    queue_type: str, kind: Kind, began: float, why: Why | None
) -> None:
    faults = (*GOOD.faults, fault("the one", kind, began, began + 0.2))
    account = judge(replace(with_runs(EXTRA_RUN)(GOOD), queue_type=queue_type, faults=faults))
    assert bool(account.checks[EXTRA]) is (why is None)
    assert why is None or account.extra[why] == 1


def test_f114_a_node_lost_long_ago_explains_nothing() -> None:
    faults = (*GOOD.faults, fault("a node killed", Kind.CLUSTER, -AFTERMATH - 2, -AFTERMATH - 1))
    assert found(replace(with_runs(EXTRA_RUN)(GOOD), faults=faults)) == {EXTRA}


def test_f114_a_second_dead_letter_is_excused_by_what_no_supervisor_can_know_and_counted() -> None:
    twice = replace(GOOD, letters=(*GOOD.letters, Letter("bad", "exception")))
    forgot = replace(twice, queue_type="classic", faults=(fault("broker killed", Kind.BROKER_KILLED, 14, 15),))
    assert judge(forgot).twice_dead == 1
    assert TWICE not in found(forgot)
    assert TWICE in found(replace(forgot, queue_type="quorum"))
    assert TWICE not in found(task("bad", publishes=2)(twice))


LOST_CONFIRM = ran("bad", 108, 12.5, 12.9, "raised ValueError", attempt=2)
"""Its worker's connection ends before the confirm; the message comes back, and is parked by worker 102."""
UNSETTLED = line(12.9, "task.unsettled", pid=108, message_id="bad", attempt=2)
CONNECTION = died(12.95, 108, "broker")


@pytest.mark.parametrize(
    ("lines", "how", "dropped", "letters", "is_excused"),
    [
        ((UNSETTLED, CONNECTION), "raised ValueError", 0.0, 1, True),
        ((UNSETTLED, CONNECTION), "raised ValueError", 0.0, 2, False),  # one confirm was lost, and no second one
        ((UNSETTLED, CONNECTION), "returned", 0.0, 1, False),  # nothing was to be parked
        ((CONNECTION,), "raised ValueError", 0.0, 1, False),
        ((CONNECTION,), "raised ValueError", 1.0, 1, True),  # the line may be among those dropped
        ((CONNECTION,), "returned", 1.0, 1, False),
    ],
)
def test_a_second_dead_letter_is_excused_by_a_confirm_that_was_lost(
    lines: tuple[Line, ...], how: str, dropped: float, letters: int, is_excused: bool
) -> None:
    changed = with_runs(replace(LOST_CONFIRM, how=how))(with_steady(dropped=dropped)(with_log(*lines)(GOOD)))
    again = tuple(Letter("bad", "exception") for _ in range(letters))
    assert (TWICE not in found(replace(changed, letters=(*GOOD.letters, *again)))) is is_excused


def test_f114_two_copies_of_a_later_try_are_counted_as_doubled() -> None:
    """Published once; the retry was confirmed and its acknowledgement lost, so it was run and published again."""
    doubled = with_runs(
        ran("twin", 103, 5, 6, "raised ValueError"),
        ran("twin", 104, 7, 8, "raised ValueError"),
        ran("twin", 104, 9, 9.5, attempt=2),
        ran("twin", 102, 9, 9.5, attempt=2),
    )
    account = judge(doubled(task("twin", kind="fails_once")(GOOD)))
    assert account.doubled == 1
    assert judge(GOOD).doubled == 0


def test_f114_lines_that_were_dropped_excuse_as_many_and_no_more() -> None:
    untold = lambda good: without_log("task.succeeded", message_id="plain")(without_log("worker.exited", pid=101)(good))  # noqa: E731
    assert found(untold(GOOD)) == {EXTRA, METRICS}
    assert found(with_steady(dropped=2.0)(untold(GOOD))) == set()
    assert judge(with_steady(dropped=2.0)(untold(GOOD))).extra[Why.UNLOGGED] == 1


def test_f114_one_that_killed_a_worker_and_has_come_back_often_is_rightly_dead() -> None:
    letter = Letter("killed", "crash", "returned 10 times")
    assert REASON not in found(replace(GOOD, letters=(*GOOD.letters, letter)))


def test_f114_deaths_that_a_killed_supervisor_could_not_tell_any_more_count_where_a_letter_needs_them() -> None:
    unheard = with_runs(*(ran("bomb", 300 + n, 11.0 + n, supervisor=DOOMED) for n in range(3)))
    silent = without_log("worker.exited", message_id="bomb")
    assert REASON in found(silent(GOOD))
    assert REASON not in found(unheard(silent(GOOD)))


def test_f114_runs_of_one_pid_in_two_lives_are_not_mixed_up() -> None:
    """The first life ends by SIGKILL and takes its task with it; the second, of the same pid, is as planned."""
    again = replace(ran("plain", 101, 40, 41), task="later", boot="another")
    evidence = with_log(succeeded(41, 101, "later"))(with_runs(again)(task("later")(counted("succeeded", 8.0)(GOOD))))
    assert found(evidence) == set()
