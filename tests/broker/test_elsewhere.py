"""FAULTS 87: macOS can publish, see to dead letters and test handlers; the rest, and Windows, needs Linux and says so.

There is none of either here: `tests/elsewhere.py` takes away what only Linux has.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import amqp
from tests.supervision import HERE

pytestmark = pytest.mark.any_broker

ROOT = HERE.parent
SUPERVISE = "from supervisor.__main__ import main; main()"
WORKQ = "from supervisor.commands import main; main(prog_name='workq')"
SAID = {
    "darwin": "needs Linux, and this is macOS: run it in a container, see docs/containers.md\n",
    "win32": "needs Linux, and this is Windows: run it in WSL 2 or a container, see docs/containers.md\n",
}


def elsewhere(system: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.elsewhere", system, program, *arguments]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize("system", SAID)
def test_f87_the_supervisor_says_in_a_line_what_it_needs_and_where_to_run_it(system: str) -> None:
    done = elsewhere(system, SUPERVISE, "tasks:resize")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == f"workq-supervise {SAID[system]}"
    assert (ROOT / "docs" / "containers.md").exists()


@pytest.mark.parametrize(("system", "name"), [("darwin", "try"), ("win32", "publish"), ("win32", "try")])
def test_f87_so_does_a_command_that_needs_it(system: str, name: str) -> None:
    done = elsewhere(system, WORKQ, name, "--whatever", "x")
    assert (done.returncode, done.stderr) == (1, f"Error: workq {name} {SAID[system]}")
    assert elsewhere(system, WORKQ, "--help").returncode == 0


def test_f87_so_does_the_library_on_windows() -> None:
    done = elsewhere("win32", "from supervisor import Publisher")
    assert done.stderr.endswith(f"ImportError: supervisor.Publisher {SAID['win32']}")


def test_f87_what_talks_to_the_broker_only_works_on_macos(broker_url: str, queue: str) -> None:
    done = elsewhere("darwin", WORKQ, "publish", "--url", broker_url, "--queue", queue, "a", "b")
    assert done.returncode == 0 and "confirmed 2" in done.stdout + done.stderr, done.stderr
    # A name is looked up by a thread, which wakes the loop.
    url = broker_url.replace("127.0.0.1", "localhost")
    done = elsewhere("darwin", f"from workq import Publisher; Publisher({url!r}, {queue!r}).publish('c')")
    assert done.returncode == 0, done.stderr
    assert amqp.depth(broker_url, queue) == 3
    done = elsewhere("darwin", WORKQ, "dead", "list", "--url", broker_url, "--queue", queue)
    assert done.returncode == 0, done.stderr


def test_f87_handlers_are_tested_on_macos(tmp_path: Path) -> None:
    program = "from supervisor import testing\nprint(testing.run(lambda task: None, 'cat.jpg'))"
    assert elsewhere("darwin", program).stdout == "Done()\n"
