"""docs/containers.md: its commands, typed in order in one shell, do what it says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from supervisor.commands.node import Port
from tests import amqp
from tests.containers.engine import BUILD, ROOT, Engine
from tests.node import PrivateNode

PAGE = (ROOT / "docs" / "containers.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.S)


@pytest.fixture
def tidy(engine: Engine, node: PrivateNode) -> object:
    yield
    for name in ("resize", "resize-2"):
        engine("rm", "--force", "--ignore", "--time", "0", name, code=None)
    engine("secret", "rm", "resize-amqp", code=None)
    amqp.delete(node, "resize")


def test_from_the_containerfile_to_a_deploy_as_written(
    engine: Engine, node: PrivateNode, tmp_path: Path, tidy: object
) -> None:
    first, second = Port(), Port()
    # The first is what the engine's fixture has run.
    assert BLOCKS[0].split() == ["podman", *BUILD]
    script = "set -euo pipefail\n" + "".join(BLOCKS[1:])
    for written, ours in (
        ("amqp://guest:guest@127.0.0.1:5672/%2F", node.url),
        ("/tmp/resize", str(tmp_path)),
        ("127.0.0.1:9191", f"127.0.0.1:{first.number}"),
        ("127.0.0.1:9192", f"127.0.0.1:{second.number}"),
        ("podman build ", "podman build --layers=false "),
        # A timer of systemd's, which is not here.
        ("podman run ", "podman run --no-healthcheck "),
    ):
        assert written in script
        script = script.replace(written, ours)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=engine.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 of 2 workers consume\n") == 2, done.stdout
    assert "confirmed 2" in done.stdout
    assert re.search(r"resized (cat|dog)\.jpg 7 Bytes", done.stdout + done.stderr)
    assert "--stop-timeout 60" in done.stdout, "the check says what the grace needs"
    assert "loopback" not in done.stdout and "auto" not in done.stdout, "it has the host's network, and two workers"
    logs = engine("logs", "resize-2").stderr
    assert '"event":"supervisor.ready"' in logs
    assert amqp.depth(node.url, "resize") == 0 and amqp.consumers(node.url, "resize") == 2


def test_the_page_has_the_images_variables_and_the_timeouts_that_follow_from_the_grace() -> None:
    containerfile = (ROOT / "config" / "container" / "Containerfile").read_text()
    variables = dict(re.findall(r"^(?:ENV|   ) (\w+)=([^\s\\]+)", containerfile, re.MULTILINE))
    del variables["PATH"]
    assert variables == dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert re.search(r"WORKQ_GRACE=55s", PAGE) and set(re.findall(r"--stop-timeout (\d+)", PAGE)) == {"60"}


def test_every_file_that_the_page_names_exists() -> None:
    for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", PAGE):
        assert (ROOT / "docs" / name).exists(), name
    for name in re.findall(r"-f (config/\S+)", PAGE):
        assert (ROOT / name).exists(), name
    assert os.access(ROOT / "scripts" / "test", os.X_OK)
