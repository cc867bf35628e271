"""The benchmark's command line: it measures, says so, saves it, and leaves nothing behind, also when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benches.row import Row
from tests.broker.test_demo import belonging, left
from tests.supervision import eventually

pytestmark = pytest.mark.any_broker

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"
PATIENCE = 100.0


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    """Everything that it starts has `place` in its environment, and is known by that."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(place)},
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "bench-of-this-test"
    directory.mkdir()
    return directory


def test_a_bench_measures_a_start_and_saves_what_it_saw(place: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    bench = start(place, "start", "--rounds", "2", "--contender", "workq", "--json", str(figures))
    try:
        output, _ = bench.communicate(timeout=PATIENCE)
        assert bench.returncode == 0, output
        assert left(place) == []
    finally:
        end(bench, place)
    saved = json.loads(figures.read_text())
    (row,) = [Row.from_json(each) for each in saved["benches"]["start"]["rows"]]
    took = row.data["seconds"]["workq"]
    assert len(took) == 2
    assert all(0.05 < seconds < PATIENCE for seconds in took)
    assert row.ours in " ".join(output.split())
    assert saved["versions"]["RabbitMQ"]
    assert not list(place.iterdir())


def test_a_bench_that_is_stopped_ends_all_it_has_started(place: Path) -> None:
    bench = start(place, "idle", "--contender", "workq")
    try:
        eventually(lambda: any("workq-worker" in comm(pid) for pid in belonging(place)), PATIENCE)
        bench.send_signal(signal.SIGINT)
        output, _ = bench.communicate(timeout=PATIENCE)
        assert bench.returncode == 130, output
        assert "interrupted" in output
        assert "Traceback" not in output
        assert left(place) == []
        assert not list(place.iterdir())
    finally:
        end(bench, place)


INTERRUPTED = """
import pika.connection, signal, sys
from scripts.benches.queues import connection

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
with connection(sys.argv[1]) as link:
    channel = link.channel()
    arrives = pika.connection.Connection._on_data_available

    def interrupted(self, data):
        pika.connection.Connection._on_data_available = arrives
        signal.raise_signal(signal.SIGINT)  # what was read of the answer is lost
        arrives(self, data)

    pika.connection.Connection._on_data_available = interrupted
    channel.queue_declare("", exclusive=True)
"""


def test_f127_ctrl_c_in_the_middle_of_an_answer_ends_the_program_that_asked(broker_url: str) -> None:
    asking = subprocess.Popen([sys.executable, "-c", INTERRUPTED, broker_url], stderr=subprocess.PIPE, text=True)
    try:
        _, errors = asking.communicate(timeout=PATIENCE)
        assert asking.returncode == -signal.SIGINT
        assert "KeyboardInterrupt" in errors
    finally:
        asking.kill()
        asking.wait()


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def end(bench: subprocess.Popen[str], place: Path) -> None:
    """Whatever happened: nothing of it is left."""
    bench.kill()
    bench.wait()
    for pid in belonging(place):
        os.kill(pid, signal.SIGKILL)
