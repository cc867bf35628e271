"""What the benchmark concludes from the notes of its tasks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from scripts.benches import fair, kills, notes, recovery, short, trials
from scripts.benches.notes import Note, Run

OURS = "workq"


def test_nothing_is_torn_or_lost_when_many_processes_note_at_once_and_are_killed(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    reader = notes.Notes(file)
    writers = [fork_writer(file) for _ in range(4)]
    seen: list[Note] = []
    try:
        while len(seen) < 20_000:
            seen += reader.read()
    finally:
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    seen += reader.read()
    reader.close()
    assert len(seen) * notes.RECORD.size == file.stat().st_size
    for pid in writers:
        words = [(note.number, note.has_ended) for note in seen if note.pid == pid]
        assert words == [(index // 2, bool(index % 2)) for index in range(len(words))]


def fork_writer(file: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        pen = notes.Pen(str(file))
        for number in range(10_000_000):
            pen.begin(number, time.monotonic())
            pen.end(number)
    finally:
        os._exit(1)


def test_half_a_record_is_read_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    reader = notes.Notes(file)
    record = notes.RECORD.pack(7, 1, 3, 2.5)
    with file.open("ab", buffering=0) as written:
        written.write(record + record[:10])
        assert reader.read() == [Note(7, True, 3, 2.5)]
        assert reader.read() == []
        written.write(record[10:])
        assert reader.read() == [Note(7, True, 3, 2.5)]
    reader.close()


def test_a_run_that_was_cut_short_is_none_and_the_next_one_of_the_same_task_counts() -> None:
    told = [Note(1, False, 5, 1.0), Note(2, False, 5, 2.0), Note(2, True, 5, 2.5)]
    assert notes.runs(told) == [Run(2, 5, 2.0, 2.5)]


def deaths(*seconds: float, stalls: int = 0) -> recovery.Series:
    told = [recovery.Recovery(1, 2, 0.0, True, {recovery.FINISHED: each}) for each in seconds]
    return recovery.Series(told, stalls)


@pytest.mark.parametrize(
    ("seconds", "met", "reached"),
    [
        ([0.014, 0.015, 0.149], True, True),
        ([0.014, 0.016, 0.030], True, False),
        ([0.014, 0.031, 0.032], False, False),
        ([0.014, 0.015, 0.150], False, False),
    ],
)
def test_the_median_and_the_worst_recovery_decide(seconds: list[float], met: bool, reached: bool) -> None:
    row = recovery.recovery_row(4, OURS, {OURS: deaths(*seconds), "Celery": deaths(0.001, 0.002, 9.0)})
    assert (row.met, row.reached and row.met) == (met, reached)
    assert row.better == ("Celery",)
    assert row.peers == {"Celery": "2.0 ms, worst of 3: 9.00 s"}


def test_a_kill_that_a_peer_has_not_made_good_is_told() -> None:
    found = {OURS: deaths(0.02), "Celery": deaths(0.04, 0.05, 0.06, stalls=1), "supervisord": deaths(stalls=3)}
    row = recovery.recovery_row(4, OURS, found)
    assert row.peers["Celery"] == "50.0 ms, worst of 4: 1 of them not made good within 30 s"
    assert row.peers["supervisord"] == "3 kills not made good within 30 s"
    assert row.better == ()
    assert list(row.data["series"]) == [OURS, "Celery"]


def test_a_peer_that_was_killed_less_often_is_said_so() -> None:
    few = recovery.recovery_row(4, OURS, {OURS: deaths(0.02, 0.02, 0.02), "Celery": deaths(2.0, stalls=1)})
    assert few.note.endswith("; kills: ours 3, Celery 2, for a peer needs seconds for each")
    assert "kills: ours" not in recovery.recovery_row(4, OURS, {OURS: deaths(0.02), "Celery": deaths(2.0)}).note


def trial(*told: Note, undone: int = 0, kills: int = 0, left: bool = False) -> trials.Trial:
    return trials.Trial(
        notes.runs(told), [note for note in told if not note.has_ended], undone, kills, left, waited=3.0
    )


def task(pid: int, number: int, began: float, ended: float) -> tuple[Note, Note]:
    return Note(pid, False, number, began), Note(pid, True, number, ended)


def test_who_has_left_tasks_undone_gets_no_figure_but_the_reason() -> None:
    done = trial(*task(1, 1, 0.0, 4.0))
    gone = trial(*task(1, 1, 0.0, 1.0), undone=799, kills=3, left=True)
    row = kills.kills_row(OURS, {OURS: [done, gone], "Dramatiq": [gone], "Celery": [done]}, 800)
    assert not row.met
    assert row.ours == "it left after 3 s and 3 kills, 799 tasks undone"
    assert row.peers["Dramatiq"] == row.ours
    assert row.peers["Celery"] == "0.40x ideal (4.0 s, 0 kills)"


def test_the_less_busy_worker_is_what_counts_until_the_last_task_begins() -> None:
    told = sorted(
        [
            *task(1, 1, 0.0, 10.0),  # always at work
            *task(2, 2, 0.0, 2.0),
            *task(2, 3, 4.0, 6.0),
            *task(2, 4, 10.0, 30.0),  # what it does after the last begin is nothing that was shared out
        ],
        key=lambda note: note.at,
    )
    assert fair.least_busy(trial(*told), 2) == pytest.approx(0.4)
    assert fair.least_busy(trial(*task(1, 1, 0.0, 1.0), *task(1, 2, 1.0, 2.0)), 2) == 0.0


def test_the_time_between_two_tasks_is_each_workers_own() -> None:
    told = sorted([*task(1, 1, 0.0, 1.0), *task(2, 2, 0.5, 1.5), *task(1, 3, 1.2, 2.0)], key=lambda note: note.at)
    assert short.between(trial(*told)) == pytest.approx(0.2)


def test_time_passes_while_a_sleep_is_measured() -> None:
    began = time.monotonic()
    assert 0.001 <= short.sleeps(0.001) <= time.monotonic() - began
