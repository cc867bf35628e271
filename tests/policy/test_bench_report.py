"""What the benchmark's command line and its document make of figures: nothing is hidden, nothing is made up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from scripts import bench
from scripts.benches import crowd, footprint, guard, plots, pythons, report, soak, trials
from scripts.benches.contenders import BarePika, Celery, Workq, chosen, rounds_of
from scripts.benches.notes import RECORD
from scripts.benches.rates import BARE, INFO, OURS, Rate, Rates
from scripts.benches.row import BenchError, Options, Row

MACHINE = {"cpu": "a processor", "cpus": 2, "memory_bytes": 8 << 30, "kernel": "Linux 6.1"}
VERSIONS = {"Python": "3.11.2", "workq": "workq-supervise 9.9", "Celery": "Celery 5.7"}
THROUGHPUT = {name: {"1": [900.0, 1000.0], "4": [2900.0, 3100.0]} for name in ("workq", "bare pika", "Celery")}
RECOVERIES = {"workq info": [0.012, 0.015, 0.09], "Celery": [0.6, 1.1], "supervisord": [2.0, 3.1]}

MET = Row("memory of a pool", "50 MiB", "60 MiB", "45 MiB", met=True, reached=False, peers={"Celery": "90 MiB"})
REACHED = Row("recovery", "12 ms", "30 ms", "15 ms", peers={"Celery": "1 s"})
MISSED = Row("idle CPU", "0.3 %", "0.2 %", met=False, reached=False, peers={"Celery": "0.1 %"}, better=("Celery",))
INFORMED = Row("tasks a second", "9,000/s", "", peers={"bare pika": "a | b"})


def saved(*rows: Row, error: str = "", **other: Any) -> dict[str, Any]:
    """As it comes out of a file that --json wrote."""
    finding = bench.Finding(list(rows), 3, 1.5, 0.25, error)
    whole = {"began": "2026-01-02T03:04:05+00:00", "quick": False, "machine": MACHINE, "versions": VERSIONS}
    loaded: dict[str, Any] = json.loads(json.dumps({**whole, "benches": {"idle": finding.to_json()}, **other}))
    return loaded


# ------------------------------------------------------------------------------------------------------------- rows


def test_a_row_comes_back_from_json_as_it_was() -> None:
    row = Row("what", "ours", "target", "reach", False, False, {"Celery": "4"}, {"plot": "x"}, ("Celery",), "so")
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_the_verdict_tells_target_and_ambition_apart() -> None:
    assert [row.verdict for row in (MET, REACHED, MISSED, INFORMED)] == ["met", "reached", "MISSED", ""]


# --------------------------------------------------------------------------------------------------------- document


def test_the_document_says_plainly_what_was_missed_and_who_is_better() -> None:
    text = report.document(saved(MET, REACHED, MISSED, INFORMED))
    assert "2 of 3 targets are met" in text
    assert "| idle CPU | 0.3 % | 0.2 % |  | **missed** |" in text
    assert "- Missed: idle CPU is 0.3 %; it should be 0.2 %." in text
    assert "- idle CPU: 0.3 %. Better: Celery (0.1 %)." in text


def test_a_bench_that_failed_is_in_the_document() -> None:
    text = report.document(saved(MET, error="the broker left\nand a log"))
    assert "Not measured, because something went wrong: idle." in text
    assert "- idle could not be measured: the broker left\n" in text


def test_without_losses_no_losses_are_told_of() -> None:
    assert "lose" not in report.document(saved(MET, REACHED))


def test_everybodys_figures_stand_side_by_side_in_a_table_that_holds() -> None:
    text = report.document(saved(MET, INFORMED))
    table = text.partition("## Side by side\n\n")[2].partition("\n\n")[0].splitlines()
    assert table[0] == "| what | workq-supervise | bare pika | Celery |"
    assert table[2:] == ["| memory of a pool | 50 MiB |  | 90 MiB |", "| tasks a second | 9,000/s | a \\| b |  |"]


def test_date_machine_versions_and_rounds_are_in_the_document() -> None:
    text = report.document(saved(MET))
    for words in ("2026-01-02", "a processor, 2 cores", "8 GiB", "Linux 6.1", "3.11.2", "Celery 5.7", "idle 3"):
        assert words in text


def test_the_document_says_where_peers_had_fewer_rounds() -> None:
    few = {"rounds": 100, "peer_rounds": 20, "seconds": 1.0, "load": 0.1, "error": "", "rows": [MET.to_json()]}
    assert "recovery 100 (of peers other than bare pika and the C client 20)" in report.document(
        saved(benches={"recovery": few})
    )
    old = {key: value for key, value in few.items() if key != "peer_rounds"}  # saved before there was such a number
    assert "recovery 100." in report.document(saved(benches={"recovery": old}))


@pytest.mark.parametrize(("rounds", "peers", "celery"), [(3, 1, 1), (3, 0, 3), (2, 5, 2)])
def test_ours_and_bare_pika_have_all_rounds_and_peers_perhaps_fewer(rounds: int, peers: int, celery: int) -> None:
    options = Options("", Path(), rounds, peer_rounds=peers)
    everybody = (Workq("info"), BarePika(), Celery())
    assert [rounds_of(each, options) for each in everybody] == [rounds, rounds, celery]


class Missing(Celery):
    def prepare(self) -> None:
        raise BenchError("no such thing here")


def test_who_cannot_run_here_is_left_out_aloud_unless_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = chosen(Options("", Path(), 1), Workq(), BarePika(), Missing())
    assert [each.name for each in found] == ["workq", "bare pika"]
    assert "without Celery: no such thing here" in capsys.readouterr().err
    with pytest.raises(BenchError, match="no such thing"):
        chosen(Options("", Path(), 1, contenders=("Celery",)), Workq(), Missing())
    assert [each.name for each in chosen(Options("", Path(), 1, contenders=("bare pika",)), Workq(), BarePika())] == [
        "workq",
        "bare pika",
    ]


def test_a_quick_look_is_not_passed_off_as_a_figure_for_the_record() -> None:
    assert "A quick look" in report.document(saved(MET, quick=True))
    assert "A quick look" not in report.document(saved(MET))


def test_the_document_is_written_from_a_file_with_the_pictures_it_shows(tmp_path: Path) -> None:
    rows = [
        Row("curve", "", "", data={"plot": "throughput", "series": THROUGHPUT}),
        Row("one", "", "", data={"plot": "recovery", "series": {"workq info": [0.5]}}),
        Row("four", "", "", data={"plot": "recovery", "series": RECOVERIES}),
    ]
    source = tmp_path / "figures.json"
    source.write_text(json.dumps(saved(*rows)))
    (tmp_path / "docs").mkdir()
    written = report.write(report.joined([source]), tmp_path)
    assert {path.name for path in written} == {"benchmarks.md", "bench-throughput.svg", "bench-recovery.svg"}
    text = (tmp_path / "docs/benchmarks.md").read_text()
    for path in written[1:]:
        assert f"(images/{path.name})" in text
    assert "supervisord" in (tmp_path / "docs/images/bench-recovery.svg").read_text()  # the fuller one


# ------------------------------------------------------------------------------------------------------ saved files


def test_of_a_bench_that_is_in_several_files_the_last_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(json.dumps({**saved(MISSED), "benches": saved(MISSED)["benches"] | {"start": _finding(REACHED)}}))
    second.write_text(json.dumps(saved(MET)))
    rows = report.rows_of(report.joined([first, second]))
    assert {row.what for row in rows} == {MET.what, REACHED.what}


def _finding(row: Row) -> dict[str, Any]:
    return bench.Finding([row], 1, 1.0, 0.0).to_json()


def test_figures_of_two_machines_do_not_become_one_document(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(json.dumps(saved(MET)))
    second.write_text(json.dumps(saved(MET, machine={**MACHINE, "cpus": 64})))
    with pytest.raises(BenchError, match="another machine"):
        report.joined([first, second])


@pytest.mark.parametrize("text", ["", "[]", '{"benches": {}}', "{", json.dumps(saved(MET)).replace('"ours"', '"our"')])
def test_a_file_without_figures_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "nothing.json"
    file.write_text(text)
    with pytest.raises(BenchError, match=r"nothing\.json"):
        report.joined([file])


# ---------------------------------------------------------------------------------------------------------- terminal


def test_the_terminal_shows_figure_target_verdict_and_the_others() -> None:
    text = report.table("idle", [MISSED, REACHED], "it ended early")
    assert "0.3 %   (target 0.2 %: MISSED)" in text
    assert "12 ms   (target 30 ms, ambition 15 ms: reached)" in text
    assert "Celery 0.1 %" in text
    assert "could not be measured: it ended early" in text


# ------------------------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize(("kind", "series"), [("throughput", THROUGHPUT), ("recovery", RECOVERIES)])
def test_a_picture_names_everybody_shows_each_round_and_has_a_dark_side(kind: str, series: Any) -> None:
    svg = plots.KINDS[kind](series)
    root = ElementTree.fromstring(svg)
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(series) <= words
    figures = [
        each for values in series.values() for each in (values.values() if isinstance(values, dict) else [values])
    ]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == sum(map(len, figures))
    assert "prefers-color-scheme: dark" in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")  # nothing is loaded


def test_a_recovery_ten_times_as_long_is_one_decade_to_the_right() -> None:
    svg = ElementTree.fromstring(plots.recovery({"a": [0.01], "b": [0.1], "c": [1.0]}))
    at = [float(circle.attrib["cx"]) for circle in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.2)
    assert at[0] < at[1]


def test_labels_keep_their_distance_and_their_order() -> None:
    places = plots.apart({"a": 100.0, "b": 101.0, "c": 99.0, "d": 300.0}, 17)
    ordered = sorted(places, key=lambda name: places[name])
    assert ordered == ["c", "a", "b", "d"]
    assert all(places[b] - places[a] >= 17 for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize("most", [0.7, 1.0, 9.9, 12.0, 3100.0, 27_345.0])
def test_an_axis_ends_at_a_round_number_above_everything(most: float) -> None:
    ceiling, step = plots.nice(most)
    assert most <= ceiling <= 2 * most
    assert 2 <= round(ceiling / step) <= 8


# ------------------------------------------------------------------------------------------------------------- guard


def rates(bare: float, ours: float, info: float, pace: float, parent: float) -> Rates:
    """One round: CPU seconds a task; pace as a part of bare pika's."""
    tasks = 1000

    def rate(cost: float, share: float = 1.0, parent_cost: float = 0.0) -> Rate:
        return Rate(tasks, 1.0 / share, cost * tasks, parent_cost * tasks, 0.0)

    return Rates([{BARE: rate(bare), OURS: rate(ours, pace, parent), INFO: rate(info)}])


@pytest.mark.parametrize(
    ("ours", "info", "pace", "parent", "broken"),
    [
        (1.5, 2.1, 0.7, 0.04, []),
        (1.7, 2.1, 0.7, 0.04, [0]),
        (1.5, 2.1, 0.5, 0.04, [1]),
        (1.5, 2.3, 0.7, 0.04, [2]),
        (1.5, 2.1, 0.7, 0.06, [3]),
    ],
)
def test_the_guard_holds_each_ratio(ours: float, info: float, pace: float, parent: float, broken: list[int]) -> None:
    rows = guard.rate_rows(rates(100e-6, ours * 100e-6, info * 100e-6, pace, parent * 100e-6))
    assert [number for number, row in enumerate(rows) if not row.met] == broken


def test_a_recovery_is_judged_by_what_a_fork_and_a_connection_take_here() -> None:
    assert guard.recovery_row([0.095] * 5, [0.020] * 5).met
    assert not guard.recovery_row([0.105] * 5, [0.020] * 5).met
    assert guard.recovery_row([0.400] * 5, [0.100] * 5).met  # a slow machine is slow for both


def test_the_guard_notices_a_pool_that_shares_its_pages_no_more() -> None:
    assert guard.memory_row(56e6, 66e6).met
    assert not guard.memory_row(72e6, 66e6).met


@pytest.mark.parametrize(
    ("findings", "code"),
    [([[MET]], 0), ([[MISSED], [MET]], 0), ([[MISSED], [MET, MISSED]], 1), ([[], [MISSED]], 1)],
)
def test_the_guard_fails_when_it_is_broken_twice(findings: list[list[Row]], code: int) -> None:
    given: Sequence[bench.Finding] = [
        bench.Finding(rows, 1, 1.0, 0.0, "" if rows else "no broker") for rows in findings
    ]
    turns = iter(given)
    assert bench.guard(lambda: next(turns)) == code
    assert next(turns, None) is None


@pytest.mark.parametrize(("c", "verdict"), [(0.94, "reached"), (0.95, "met"), (0.96, "MISSED"), (None, "MISSED")])
def test_short_tasks_are_compared_with_the_c_client_where_there_is_one(c: float | None, verdict: str) -> None:
    shares = {"workq": 0.93, **({"C client": c} if c else {})}
    row = trials.share_row("10 ms", "workq", shares, {}, data={}, behind=("C client", 0.025, 0.015))
    assert row.verdict == verdict
    assert row.target == ("2.5 points behind the C client" if c else "95 %")


# --------------------------------------------------------------------------------------------------------- footprint


@pytest.mark.parametrize(
    ("ours", "verdict", "better"), [(48, "reached", ()), (54, "met", ()), (60, "MISSED", ("Dramatiq",))]
)
def test_memory_is_judged_by_its_median_and_who_needs_less_is_named(
    ours: int, verdict: str, better: tuple[str, ...]
) -> None:
    row = footprint.whole_row({"workq": [x * footprint.MIB for x in (40, ours, 90)], "Dramatiq": [58 * footprint.MIB]})
    assert (row.verdict, row.better) == (verdict, better)


@pytest.mark.parametrize(("more", "verdict"), [(-0.5, "reached"), (0.8, "met"), (1.2, "MISSED")])
def test_what_a_reload_adds_is_judged(more: float, verdict: str) -> None:
    found = [footprint.Reloaded(4.2 * footprint.MIB, 0, round(each * footprint.MIB)) for each in (-9, more, 9)]
    assert (footprint.reload_row(found).verdict, footprint.own_row(found).verdict) == (verdict, "met")


@pytest.mark.parametrize(("celery", "verdict"), [(20, "met"), (9, "MISSED")])
def test_a_further_worker_is_compared_with_the_better_of_both(celery: int, verdict: str) -> None:
    found = {"workq": [5e6], "Dramatiq": [12e6], "Celery": [celery * 1e6], "bare pika": [1e6]}
    assert footprint.further_row(found).verdict == verdict


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([(0.0004, 1.5), (0.0005, 1.5)], "reached"),
        ([(0.0004, 1.5), (0.0009, 3.0)], "met"),
        ([(0.0004, 1.5), (0.0011, 1.5)], "MISSED"),
        ([(0.0004, 3.5), (0.0004, 1.5)], "MISSED"),
    ],
)
def test_a_pool_must_idle_in_every_round(rounds: list[tuple[float, float]], verdict: str) -> None:
    found = {"workq": [footprint.Idling(cpu, {"parent 1": 0.5, "worker 2": busiest}) for cpu, busiest in rounds]}
    assert footprint.idle_row(found, 60.0).verdict == verdict


@pytest.mark.parametrize(("seconds", "verdict"), [(0.13, "reached"), (0.17, "met"), (0.19, "MISSED")])
def test_a_start_is_judged_by_its_median(seconds: float, verdict: str) -> None:
    row = footprint.start_row({"workq": [0.1, seconds, 2.0], "Dramatiq": [0.12]})
    assert row.verdict == verdict
    assert "worst of 3: 2.00 s" in row.ours
    assert row.better == ("Dramatiq",)


# -------------------------------------------------------------------------------------------------------------- soak


def test_what_no_process_has_finished_is_lost(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    ends = [(1, 1, 0), (1, 1, 2), (2, 0, 1), (3, 1, 2), (3, 1, 77)]  # pid, has ended, number; 1 was only begun
    notes.write_bytes(b"".join(RECORD.pack(pid, ended, number, 0.0) for pid, ended, number in ends))
    assert list(soak.tally(notes, 4)) == [1, 0, 2, 0]


def soaked(growth: float) -> soak.Soak:
    """Four minutes in which memory grows by so many bytes a second after the first."""
    samples = [{"at": float(at), "rss": {"parent": 40 * soak.MIB + max(0, at - 60) * growth}} for at in range(240)]
    return soak.Soak(samples, kills=240, seconds=240.0)


@pytest.mark.parametrize(("growth", "met"), [(0, True), (2000, True), (10_000, False)])
def test_memory_that_grows_after_the_first_minute_is_not_flat(growth: float, met: bool) -> None:
    assert soak.flat_memory_row(soaked(growth)).met is met


def test_memory_that_grows_at_first_and_then_stays_is_flat() -> None:
    samples = [{"at": float(at), "rss": {"parent": min(at, 40) * soak.MIB}} for at in range(240)]
    found = soak.Soak(samples, seconds=240.0)
    assert found.early_and_late("parent") == (40 * soak.MIB, 40 * soak.MIB)


def test_a_lost_task_is_no_success() -> None:
    found = soaked(0)
    assert soak.nothing_lost_row(found, 1000).met
    found.lost = 1
    assert not soak.nothing_lost_row(found, 1000).met


def a_crowd(workers: int, **other: float) -> crowd.Crowd:
    usual = {"consuming": 3.0, "pss": 8e6, "private": 6e6, "parent_cpu": 0.01, "worker_cpu": 0.0001}
    return crowd.Crowd(workers, **{**usual, "again": 3.0, **other})


@pytest.mark.parametrize(
    ("other", "met"), [({}, True), ({"private": 8e6}, False), ({"worker_cpu": 0.0005}, False), ({"pss": 6e6}, True)]
)
def test_a_worker_of_a_crowd_must_not_cost_more_than_one_of_four(other: dict[str, float], met: bool) -> None:
    assert crowd.flat_row([a_crowd(4)], [a_crowd(256, **other)]).met is met


@pytest.mark.parametrize(
    ("other", "broken"), [({}, []), ({"consuming": 6.1}, [0]), ({"parent_cpu": 0.021}, [1]), ({"again": 8.1}, [2])]
)
def test_a_crowd_is_judged_by_its_worst_round(other: dict[str, float], broken: list[int]) -> None:
    rows = crowd.crowd_rows([a_crowd(256), a_crowd(256, **other)])
    assert [number for number, row in enumerate(rows) if not row.met] == broken


# ------------------------------------------------------------------------------------------------------ command line


def test_only_the_whole_of_it_is_written_down() -> None:
    assert bench.parse([]).write
    for words in (["recovery"], ["--quick"], ["--rounds", "1"], ["--contender", "Celery"]):
        assert not bench.parse(words).write


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "no bench is called nonsense; there are: rates, "),
        (["guard", "idle"], "guard runs alone"),
        (["--rounds", "0"], "--rounds"),
        (["--contender", "Resque"], "Resque"),
    ],
)
def test_what_cannot_be_measured_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench.parse(words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("start", "idle", "met"), [(1.04, 0.5, True), (1.06, 0.5, False), (0.9, 1.1, False)])
def test_another_python_is_judged_by_its_worst_figure_within_the_same_turns(
    start: float, idle: float, met: bool
) -> None:
    mine = {"memory": [50.0, 60.0, 80.0], "start": [0.2, 0.4, 0.5], "idle": [0.1]}
    its = {"memory": [40.0, 48.0, 90.0], "start": [0.2 * start, 0.4 * start, 0.1], "idle": [0.1 * idle]}
    row = pythons.row("Python 3.99.0", {OURS: mine, "Python 3.99.0": its})
    assert row.ours == f"memory 0.80x, start {start:.2f}x, idle {idle:.2f}x"
    assert row.met is met


@pytest.mark.parametrize("name", [*bench.BENCHES, "guard"])
def test_every_bench_of_the_list_is_there(name: str) -> None:
    listed = bench.GUARD if name == "guard" else bench.BENCHES[name]
    assert listed.function().__doc__
