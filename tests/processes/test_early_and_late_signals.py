"""Signals before the loop runs are obeyed when it does; signals after it has ended change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOWHERE = "amqp://guest:guest@127.0.0.1:9/%2F"
HERE = str(Path(__file__).parents[1])

WHILE_IT_IMPORTS = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            sys.meta_path.remove(self)
            for number in {numbers}:
                os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
"""
AFTER_ITS_END = """
import os, sys

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), getpid=os.getpid):
        if getpid() == pid:
            for number in {numbers}:
                kill(pid, number)

if "--burst" in sys.orig_argv or "-m" in sys.orig_argv:
    sys.modules["last_of_all"] = Last()
"""


def supervise(directory: Path, hook: str, numbers: list[int], *inside: str) -> tuple[int, list[dict[str, Any]]]:
    """Run one that stops when it gets SIGTERM from the hook; its exit code and its log."""
    (directory / "sitecustomize.py").write_text(hook.format(numbers=[int(number) for number in numbers]))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    program = ("-m", "supervisor", "--workers", "1", "--health", "off", "--app-dir", HERE, "handlers:work")
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *inside, sys.executable, *program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environ | {"WORKQ_URL": NOWHERE, "PYTHONPATH": str(directory)},
        start_new_session=True,
    )
    try:
        if signal.SIGTERM not in numbers or hook is AFTER_ITS_END:
            assert process.stderr is not None
            first = process.stderr.readline()
            process.send_signal(signal.SIGTERM)
        else:
            first = b""
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, [json.loads(line) for line in (first + rest).splitlines()]


def test_f79_signals_that_come_while_it_imports_are_obeyed_when_the_loop_runs(tmp_path: Path) -> None:
    numbers = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTERM]
    code, log = supervise(tmp_path, WHILE_IT_IMPORTS, numbers)
    assert code == 0
    told = {line["event"]: line for line in log}
    assert told["supervisor.resized"]["because"] == "SIGTTIN: 1 -> 2 workers"
    assert "SIGHUP" in told["reload.failed"]["because"]  # nothing has been loaded yet
    assert told.keys() >= {"worker.stacks", "supervisor.status"}
    assert told["supervisor.stopping"]["because"] == "SIGTERM"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace")
def test_f79_as_pid_1_a_sigterm_that_comes_while_it_imports_is_obeyed(tmp_path: Path) -> None:
    inside = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    code, log = supervise(tmp_path, WHILE_IT_IMPORTS, [signal.SIGTERM], *inside)
    assert code == 0
    assert [line["because"] for line in log if line["event"] == "supervisor.stopping"] == ["SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN])
def test_f80_a_signal_after_the_end_of_the_loop_does_not_change_the_exit_code(
    tmp_path: Path, number: signal.Signals
) -> None:
    code, log = supervise(tmp_path, AFTER_ITS_END, [number])
    assert (log[-1]["event"], log[-1]["code"]) == ("supervisor.stopped", 0)
    assert code == 0
