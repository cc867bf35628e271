"""`workq chaos` against a real pool."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from supervisor.commands import main
from tests import amqp, handler_modules, workq
from tests.supervision import PATIENCE, supervised
from tests.terminal import terminal

PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"


def test_every_marked_task_is_accounted_for_while_workers_are_killed(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    """By a handler that notes them as docs/chaos.md has it."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    handler_modules.write(tmp_path, "noting", f"import time\n\n{snippet}")
    path, env = str(tmp_path / "control.sock"), {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "3", "--control", path, "--max-crashes", "1")
    with supervised("noting:resize", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        arguments = ("--for", "1.5s", "--kill-every", "50ms", "--publish", "60", "--yes", "--json")
        out, _ = workq.run("chaos", "--control", path, *arguments, url=broker_url)
        found = json.loads(out)
        assert found["ok"] and found["not_recovered"] == 0 and found["queue"] == queue
        published = found["published"]
        assert published["is_exact"] and (published["confirmed"], published["done"]) == (60, 60)
        assert (published["lost"], published["unfinished"], published["dead_lettered"]) == (0, 0, 0)
        exits = pool.named("worker.exited", cause="operator")
        assert found["killed"] == len(exits) > 0 and found["other_exits"] == 0
        assert all(line["by"].startswith("workq chaos by ") and line["status"] == "SIGKILL" for line in exits)
        assert 0 < found["recovery_seconds"]["count"] <= found["killed"]
        assert found["killed_with_task"] <= found["killed"]
        assert published["extra_runs"] <= found["killed"]
        assert not list(tmp_path.glob("chaos-*"))
        assert pool.stop() == 0
    assert amqp.depth(broker_url, f"{queue}.dead") == 0


def test_it_asks_first_and_ctrl_c_ends_the_killing_and_the_account_follows(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "control.sock")
    command = ["chaos", "--control", path]
    with supervised("handlers:work", "--workers", "2", "--control", path, url=broker_url, queue=queue) as pool:
        pool.ready()
        for option in ((), ("--yes", "--for", "0"), ("--yes", "--kill-every", "1ms"), ("--yes", "--for", "soon")):
            done = CliRunner().invoke(main, [*command, *option], env={"WORKQ_CONFIG": None})
            assert done.exit_code == 2, done.output
        with terminal(*command, "--for", "1h") as shown:
            shown.see(r"One of the 2 workers on .* is killed every 0.2 s for 3600 s\.")
            shown.see(r"Begin\? \[y/N\]")
            assert not pool.named("worker.exited")
            shown.press("y\n")
            pool.hear("worker.exited", cause="operator")
            shown.press("\x03")
            said = shown.see("lost +not counted: that takes tasks that can be told from others")
            assert "no more kills" in said and "workers, 0 of them with a task in flight" in said
            assert shown.process.wait(PATIENCE) == 0
        assert pool.stop() == 0
