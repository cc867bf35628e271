"""`workq top` on a real terminal (a pty, whose screen pyte keeps), beside a real supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import amqp
from tests.supervision import PATIENCE, Runs, Supervision, eventually, gone, supervised
from tests.terminal import WORKQ, Terminal, terminal

pytestmark = pytest.mark.any_broker

PORT_ONLY = "the health port is read-only"


def leaves_well(shown: Terminal, code: int) -> None:
    """It has ended, with the terminal as it was: settings, the other screen, the cursor."""
    assert shown.process.wait(PATIENCE) == code
    assert shown.is_restored()
    eventually(lambda: shown.raw.rfind(b"\x1b[?1049l") > shown.raw.rfind(b"\x1b[?1049h"))
    eventually(lambda: shown.raw.rfind(b"\x1b[?25h") > shown.raw.rfind(b"\x1b[?25l"))


def _workers(shown: Terminal) -> int:
    return len(shown.rows())


def test_top_shows_each_worker_on_80_by_24_and_keys_steer_the_supervisor(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path
) -> None:
    control = str(tmp_path / "c.sock")
    amqp.publish(broker_url, queue, ["60"], ids=["long-job"])
    options = ("--workers", "4", "--control", control, "--grace", "1s")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began")
        with terminal("top", "--control", control) as shown:
            shown.see(rf"^{queue}  running for .* 4 workers  generation 1")
            shown.see(r"busy +long-job")
            eventually(lambda: _workers(shown) == 4 and "q quit" in shown.lines()[23])
            assert all(len(line) <= 80 for line in shown.lines())

            shown.press("+")
            shown.see(r"supervisor\.resized: workq scale: 4 -> 5 workers")
            eventually(lambda: _workers(shown) == 5 and "5 workers" in shown.lines()[0])
            shown.press("-")
            shown.see(r"^\S+  running .* 4 workers")

            [victim] = [worker["pid"] for worker in pool.workers() if worker["message_id"] == "long-job"]
            os.kill(victim, signal.SIGKILL)
            shown.see(r"worker\.exited slot \d SIGKILL: SIGKILL with a message")
            eventually(lambda: any("SIGKILL" in row for row in shown.rows()))

            shown.press("r")
            shown.see(r"^reload +to generation 2 \(workq reload\) (loading|trying|replacing|finished)")
            shown.press("d")
            shown.see("drain: .* y / n")
            shown.press("n")
            shown.see("not drained")
            assert pool.status()["state"] == "running"
            shown.press("d")
            shown.see("y / n")
            shown.press("y")
            shown.see("gone for")
            shown.press("q")
            leaves_well(shown, 0)
        assert pool.wait() == 1  # --grace cut the long job short


def test_top_scrolls_where_there_are_more_workers_than_lines(broker_url: str, queue: str, tmp_path: Path) -> None:
    control = str(tmp_path / "c.sock")
    with supervised("handlers:work", "--workers", "8", "--control", control, url=broker_url, queue=queue) as pool:
        pool.ready()
        with terminal("top", "--control", control, rows=12) as shown:
            shown.see(r"workers 1-\d of 8")
            page = _workers(shown)
            assert page >= 3
            shown.press("\x1b[B")
            shown.see(rf"workers 2-{page + 1} of 8")
            assert shown.rows()[0][0] == "1"
            shown.press("\x1b[6~\x1b[6~\x1b[6~")
            shown.see(rf"workers {9 - page}-8 of 8")
            assert shown.rows()[-1][0] == "7"
            shown.press("\x1b[5~\x1b[5~\x1b[5~")
            shown.see(rf"workers 1-{page} of 8")
            shown.press("\x03")
            leaves_well(shown, 0)
        for number in (signal.SIGTERM, signal.SIGHUP):
            with terminal("top", "--control", control) as shown:
                shown.see("q quit")
                assert not shown.is_restored()
                shown.process.send_signal(number)
                leaves_well(shown, 128 + number)


def test_top_gives_the_terminal_back_when_it_fails(broker_url: str, queue: str, tmp_path: Path) -> None:
    control = str(tmp_path / "c.sock")
    broken = "from supervisor.commands import main, picture, top; picture.decision = None; main()"
    with supervised("handlers:work", "--workers", "1", "--control", control, url=broker_url, queue=queue) as pool:
        pool.ready()
        with terminal("-c", broken, "top", "--control", control, program=sys.executable) as shown:
            leaves_well(shown, 1)
            shown.see("TypeError: 'NoneType' object is not callable")


def test_top_says_that_the_supervisor_is_gone_and_finds_the_next_one(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    control = str(tmp_path / "c.sock")

    def start() -> Supervision:
        return Supervision("handlers:work", "--workers", "2", "--control", control, url=broker_url, queue=queue)

    pool = start()
    try:
        pool.ready()
        with terminal("top", "--control", control) as shown:
            shown.see("running for")
            pids = pool.pids()
            pool.process.kill()
            shown.see(r"gone for .*nobody listens at")
            assert _workers(shown) == 2, "what was known last is still there"
            assert all(gone(pid, PATIENCE) for pid in pids)
            pool.end()
            pool = start().ready()
            eventually(
                lambda: "gone" not in shown.text() and {str(pid) for pid in pool.pids()} <= {r[1] for r in shown.rows()}
            )
            shown.press("q")
            leaves_well(shown, 0)
        assert pool.stop() == 0
    finally:
        pool.end()


def test_top_by_the_health_port_only_looks(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        pool.ready()
        with terminal("top", "--health", pool.health.removeprefix("http://")) as shown:
            shown.see("running for")
            for key in "+rd":
                shown.press(key)
                shown.see(PORT_ONLY)
            shown.press("q")
            leaves_well(shown, 0)
        assert not pool.named("supervisor.resized") and not pool.named("reload.started")


def test_top_without_a_terminal_is_a_usage_error() -> None:
    done = subprocess.run([WORKQ, "top"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "needs a terminal" in done.stderr
