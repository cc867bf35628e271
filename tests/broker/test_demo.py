"""The demo tells the truth, ends by itself, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytestmark = pytest.mark.any_broker

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"
PATIENCE = 100.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """For the demo's temporary files. Its processes are known by this name, and ended here if they are still there."""
    directory = tmp_path / "demo-of-this-test"
    directory.mkdir()
    yield directory
    for pid in belonging(directory):
        os.kill(pid, signal.SIGKILL)


def start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(place)},
    )


def belonging(place: Path) -> list[int]:
    """The processes that have this directory in their environment: the demo, the broker (HOME), the supervisor's."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(place).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            pass  # it ended meanwhile, or is somebody else's
    return found


def left(place: Path) -> list[int]:
    """The processes that do not end within seconds: the broker's own helpers notice its death in their own time."""
    found = []
    for pid in belonging(place):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if not select.select([pidfd], [], [], 10.0)[0]:
            found.append(pid)
        os.close(pidfd)
    return found


@pytest.fixture(scope="module")
def demo() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("workq_demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_it_kills_a_worker_in_mid_task_and_every_task_is_done(place: Path) -> None:
    process = start(place)
    assert process.stdout is not None
    first = process.stdout.readline()  # before that, its new environment may not be in place yet
    assert belonging(place), "its processes cannot be told by their environment"
    output = first + process.communicate(timeout=PATIENCE)[0]

    assert process.returncode == 0, output
    assert output.splitlines()[-1] == "published 60, done 60, lost 0, redelivered 1"
    killed = re.search(r"kill -9 \d+ +worker \d, [\d.]+ s into (task-\d+)", output)
    assert killed, output
    named = re.search(r"worker\.exited +SIGKILL with a message in flight: (task-\d+)", output)
    assert named, output
    assert named[1] == killed[1]
    assert "\x1b" not in output, "escape sequences in a pipe"
    assert left(place) == []
    assert list(place.iterdir()) == []


def test_interrupted_it_leaves_nothing_behind(place: Path) -> None:
    process = start(place)
    assert process.stdout is not None
    for line in process.stdout:
        if "progress" in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert left(place) == []
    assert list(place.iterdir()) == []


def test_on_a_terminal_it_shows_who_works_on_what_and_then_only_the_sum(demo: Any) -> None:
    out = io.StringIO()
    screen = demo.Screen(Console(file=out, force_terminal=True, width=100, height=30, color_system=None))
    busy = {"slot": 0, "pid": 71, "state": "busy", "message_id": "task-03", "busy_seconds": 0.5}
    idle = {"slot": 1, "pid": 72, "state": "idle", "message_id": None, "busy_seconds": None}
    death = demo.Death(0, 70, "task-03", at=0.0, into=0.5)
    screen.show(demo.Progress(demo.now(), 20, [busy, idle], death=death))
    screen.event("1.0 s", "kill -9 70", "worker 0")
    shown = out.getvalue()
    for words in ("pid 71", "task-03", "0.5 of 1.6 s", "once more", "pid 72", "idle", "20 of 60 done", "kill -9 70"):
        assert words in shown
    screen.settle()
    last = out.getvalue().removeprefix(shown)
    assert "20 of 60 done" in last and "pid 71" not in last


def test_the_account_balances_when_every_message_is_done(demo: Any) -> None:
    account = demo.account(["a", "b"], began=["a", "a", "b"], done=["b", "a"], dead=[], queued=[], redelivered=1)
    assert str(account) == "published 2, done 2, lost 0, redelivered 1"
    assert account.problems == ()


@pytest.mark.parametrize(
    ("became", "lost"),
    [
        ({"began": ["a", "b"], "done": ["a"], "dead": [], "queued": [], "redelivered": 0}, ("b",)),
        ({"began": ["a"], "done": ["a"], "dead": ["b"], "queued": [], "redelivered": 0}, ()),
        ({"began": ["a"], "done": ["a"], "dead": [], "queued": ["b"], "redelivered": 0}, ()),
        ({"began": ["a", "b", "b"], "done": ["a", "b"], "dead": [], "queued": [], "redelivered": 0}, ()),
        ({"began": ["a", "b"], "done": ["a", "b"], "dead": [], "queued": [], "redelivered": 1}, ()),
        ({"began": ["a", "b", "b"], "done": ["a", "b", "b"], "dead": [], "queued": [], "redelivered": 1}, ()),
        ({"began": ["a", "b", "c"], "done": ["a", "b", "c"], "dead": [], "queued": [], "redelivered": 0}, ()),
    ],
    ids=[
        "lost",
        "dead-lettered",
        "left in the queue",
        "uncounted rerun",
        "uncalled-for count",
        "done twice",
        "not ours",
    ],
)
def test_the_account_flags_whatever_does_not_balance(demo: Any, became: dict[str, Any], lost: tuple[str, ...]) -> None:
    account = demo.account(["a", "b"], **became)
    assert account.problems
    assert account.lost == lost
    assert f"lost {len(lost)}," in str(account)
