"""The README's commands, as a newcomer would type them, in order, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.commands.node import Port
from tests import amqp

pytestmark = pytest.mark.any_broker

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ELSEWHERE = {
    ".venv/bin/workq broker run": "tests/broker/test_private_node.py",
    "scripts/demo": "tests/broker/test_demo.py",
    "pip install .": "tests/processes/test_packaging.py",
}
"""Commands that other tests run."""
URL = "amqp://guest:guest@127.0.0.1:5673/%2F"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def adapted(text: str, url: str, directory: Path, port: int) -> str:
    """The same commands, beside another copy of this test: another broker, another directory, another port."""
    return text.replace(URL, url).replace("/tmp/tour", str(directory)).replace("127.0.0.1:9191", f"127.0.0.1:{port}")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A newcomer's environment: nothing of ours but the path."""
    curl = tmp_path / "bin" / "curl"
    curl.parent.mkdir()
    # A fresh Debian has no curl; this one knows as much of it as the README uses.
    curl.write_text(
        f"#!{sys.executable}\nimport sys, urllib.request\n"
        "try: print(urllib.request.urlopen(sys.argv[2]).read().decode())\nexcept OSError: sys.exit(22)\n"
    )
    curl.chmod(0o755)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{curl.parent}"
    return {"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8"}


def test_the_five_minutes_work_as_written(
    broker_url: str, tmp_path: Path, environ: dict[str, str], request: pytest.FixtureRequest
) -> None:
    tour = tmp_path / "tour"
    port = Port()  # nobody else's while it is held
    commands = [block for block in blocks("sh") if not block.startswith(tuple(ELSEWHERE))]
    assert len(commands) == 8
    script = "set -eu\n" + adapted("\n".join(commands), broker_url, tour, port.number)
    environ["WORKQ_HEALTH"] = f"127.0.0.1:{port.number}"
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^resized cat.jpg\nsucceeded: it would be acknowledged \(", done.stdout)
        assert "published 4, confirmed 4" in done.stdout
        for name in ("cat", "dog", "fish", "bird"):
            assert f"resized {name}.jpg" in done.stderr
        assert done.stderr.count('"cause":"SIGSEGV"') == 3
        assert '"event":"task.quarantined"' in done.stderr
        assert "2 of 2 workers consume" in done.stdout or "1 of 2 workers consume" in done.stdout
        assert '"event":"supervisor.resized"' in done.stderr
        assert '"event":"reload.finished"' in done.stderr
        assert '"event":"supervisor.stopped"' in done.stderr
        assert "Traceback" not in done.stdout.partition("dead letter bomb")[0] and "Usage:" not in done.stderr
        assert re.search(r"^(ok|note|warning|problem|unknown)\b", done.stdout, re.M), "the doctor has said something"
        assert "workq_tasks_total" in done.stdout
        assert "dead letter bomb" in done.stdout
        assert re.search(r"cause +SIGSEGV", done.stdout)
        assert "deadly.py" in done.stdout
        assert "requeued 1" in done.stdout
        assert "resized bomb.jpg" in done.stderr
        assert amqp.depth(broker_url, "task_queue.dead") == 0
    finally:
        amqp.delete(request.getfixturevalue("node"), "task_queue")


def test_the_publisher_in_the_readme_publishes(
    broker_url: str, tmp_path: Path, environ: dict[str, str], request: pytest.FixtureRequest
) -> None:
    [snippet] = [block for block in blocks("python") if "Publisher" in block]
    try:
        subprocess.run(
            [sys.executable, "-c", adapted(snippet, broker_url, tmp_path, 0)], env=environ, timeout=60, check=True
        )
        assert [body for _, _, body in amqp.drain(broker_url, "task_queue")] == [b"cat.jpg"]
    finally:
        amqp.delete(request.getfixturevalue("node"), "task_queue")


def test_every_command_that_another_test_runs_is_run_by_a_test_that_exists() -> None:
    for command, test in ELSEWHERE.items():
        assert command in README
        assert (ROOT / test).exists()


def test_every_script_that_the_readme_names_exists_and_can_be_run() -> None:
    for name in set(re.findall(r"scripts/(\w+)", README)):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name
