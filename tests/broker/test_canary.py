"""`workq reload --canary`: real workers of two generations on one queue; the better code stays."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from supervisor.commands import running
from supervisor.commands.reload import reload
from tests import amqp, handler_modules, workq
from tests.supervision import PATIENCE, Runs, Supervision, eventually, supervised

CODE = """
import os, signal, time
from handlers import note
note("imported", "{name}")
def work(task):
    note("{name}", task.message_id)
    time.sleep(0.02)
    {does}
"""
HOUR = "1h"


class Deployment:
    """A module that is replaced, a pool that runs it, and tasks for as long as they are wanted."""

    def __init__(self, pool: Supervision, broker_url: str, place: Path, control: str) -> None:
        self.pool, self.broker_url, self.place, self.control = pool, broker_url, place, control

    def put(self, name: str, does: str = "pass") -> None:
        handler_modules.write(self.place, "app", CODE.format(name=name, does=does))

    def publish(self, count: int) -> None:
        amqp.publish(self.broker_url, self.pool.queue, ["x"] * count)

    def reload(self, *options: str, code: int = 0) -> tuple[str, str]:
        return workq.run("reload", "--control", self.control, *options, code=code)

    def begin(self, *options: str) -> subprocess.Popen[str]:
        """The same, which has not ended: a canary runs."""
        command = [workq.PROGRAM, "reload", "--control", self.control, *options]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.pool.hear("reload.canary")
        return waiting

    def generations(self) -> list[int]:
        return sorted(worker["generation"] for worker in self.pool.workers() if worker["pid"])


@contextmanager
def deployed(
    broker_url: str, queue: str, place: Path, runs: Runs, *options: str, workers: int = 4, old: str = "pass"
) -> Iterator[Deployment]:
    control = str(place / "control.sock")
    handler_modules.write(place, "app", CODE.format(name="old", does=old))
    env = runs.env | {"PYTHONPATH": str(place)}
    options = ("--workers", str(workers), "--control", control, *options)
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        yield Deployment(pool, broker_url, place, control)


def test_a_canary_of_good_code_takes_over(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    with deployed(broker_url, queue, tmp_path, runs) as deployment:
        pool = deployment.pool
        deployment.put("brand_new")
        waiting = deployment.begin("--canary", "50%", "--for", "4s")
        deployment.publish(600)
        assert "generation 2 runs in 2 of 4 workers for 4 s" in pool.hear("reload.canary", generation=2)["because"]
        because = pool.hear("reload.passed")["because"]
        assert "the new code is no worse: new code: " in because and "0 failed" in because
        pool.hear("reload.finished", generation=2)
        out, err = waiting.communicate(timeout=PATIENCE)
        assert (waiting.returncode, err) == (0, "")
        assert "canary: generation 2 runs in 50% of 4 workers for 4.0s" in out
        assert out.endswith("finished: every worker runs generation 2\n")
        assert deployment.generations() == [2] * 4
        pool.hear("task.succeeded", count=600)
        tasks = pool.status()["reload"]["canary"]["tasks"]
        assert tasks["canary"]["succeeded"] > 0 < tasks["stable"]["succeeded"]
        for role in ("canary", "stable"):
            assert pool.metric("workq_canary_tasks_total", role=role, outcome="succeeded") == tasks[role]["succeeded"]
        assert pool.metric("workq_canary_workers") == 0
        assert pool.stop() == 0
    assert set(runs.lines("brand_new")) and set(runs.lines("old"))


def test_a_canary_whose_tasks_fail_is_rolled_back_at_once_and_nothing_is_imported_again(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with deployed(broker_url, queue, tmp_path, runs, "--retries", "9", "--retry-delay", "100ms") as deployment:
        pool = deployment.pool
        before = set(pool.pids())
        deployment.put("brand_new", "raise ValueError('as told')")
        waiting = deployment.begin("--canary", "50%", "--for", HOUR)
        deployment.publish(200)
        _, err = waiting.communicate(timeout=PATIENCE)
        assert waiting.returncode == 1
        assert "the canary is rolled back: its tasks fail more often: " in err and "(100.0%)" in err
        assert "generation 1 stays" in err
        eventually(lambda: deployment.generations() == [1] * 4)
        assert len(before & set(pool.pids())) == 2, "the others were not touched"
        pool.hear("task.succeeded", count=200)
        assert pool.stop() == 0
    assert runs.lines("imported") == ["old", "brand_new"], "the old code was kept warm"


def test_a_canary_whose_workers_crash_is_rolled_back(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    # Had the old worker done many tasks by then, two crashes would be enough for a comparison.
    with deployed(
        broker_url, queue, tmp_path, runs, "--max-crashes", "9", workers=2, old="time.sleep(0.2)"
    ) as deployment:
        pool = deployment.pool
        deployment.put("brand_new", "os.kill(os.getpid(), signal.SIGSEGV)")
        waiting = deployment.begin("--canary", "50%", "--for", HOUR)
        deployment.publish(30)
        _, err = waiting.communicate(timeout=PATIENCE)
        assert waiting.returncode == 1
        assert "the canary is rolled back: its workers crash: 3 in a row" in err
        pool.hear("task.succeeded", count=30)
        eventually(lambda: deployment.generations() == [1] * 2)
        assert pool.hear("worker.exited", 3, cause="SIGSEGV")["next"].startswith("the canary is rolled back")
        assert pool.stop() == 0


def test_a_canary_that_had_too_little_to_do_is_rolled_back_and_one_worker_is_too_few(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with deployed(broker_url, queue, tmp_path, runs, workers=2) as deployment:
        pool = deployment.pool
        deployment.publish(3)
        _, err = deployment.reload("--canary", "1%", "--for", "1s", code=1)
        assert "too few tasks to tell: each side needs 20 tries" in err and "reload without --canary" in err
        eventually(lambda: deployment.generations() == [1] * 2)
        workq.run("scale", "--control", deployment.control, "1")
        pool.hear("worker.exited", cause="drained")
        _, err = deployment.reload("--canary", "50%", code=1)
        assert "this pool has only one" in err and "workq scale 2" in err
        assert pool.stop() == 0


def test_a_slow_canary_is_rolled_back_at_the_end(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    with deployed(broker_url, queue, tmp_path, runs, workers=2) as deployment:
        pool = deployment.pool
        deployment.put("brand_new", "time.sleep(0.08)")
        waiting = deployment.begin("--canary", "50%", "--for", "4s")
        deployment.publish(400)
        _, err = waiting.communicate(timeout=PATIENCE)
        assert waiting.returncode == 1
        assert "its tasks take longer: " in err and "with the old code" in err
        assert not pool.named("reload.passed")
        assert pool.stop() == 0


def test_a_class_that_cannot_be_set_up_any_more_ends_its_canary(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    text = """
from pathlib import Path
class Work:
    def __enter__(self):
        assert {condition}, "not set up"
        return self
    def __exit__(self, *_):
        pass
    def __call__(self, task):
        pass
"""
    handler_modules.write(tmp_path, "app", text.format(condition="True"))
    control = str(tmp_path / "control.sock")
    (flag := tmp_path / "flag").touch()
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--control", control)
    with supervised("app:Work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        handler_modules.write(tmp_path, "app", text.format(condition=f"Path({str(flag)!r}).exists()"))
        out, _ = workq.run("reload", "--control", control, "--canary", "50%", "--for", HOUR, "--no-wait")
        assert "`workq status` and `workq top` show it" in out and "finished:" not in out
        [canary] = [worker["pid"] for worker in pool.workers() if worker["generation"] == 2]
        flag.unlink()
        os.kill(canary, signal.SIGKILL)
        failed = pool.hear("reload.failed")
        assert "one of its workers cannot be started" in failed["because"] and "not set up" in failed["exception"]
        eventually(lambda: [worker["generation"] for worker in pool.workers() if worker["pid"]] == [1, 1])
        assert pool.stop() == 0


def test_its_settings_are_tried_with_it(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    file = tmp_path / "workq.toml"
    file.write_text("workers = 2\nmax_tasks = 1000\n")
    control = str(tmp_path / "control.sock")
    options = ("--config", str(file), "--control", control, "--no-preload")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        file.write_text("workers = 2\nmax_tasks = 7\n")
        workq.run("reload", "--control", control, "--canary", "50%", "--for", HOUR, "--no-wait")
        [canary] = [worker["slot"] for worker in pool.workers() if worker["generation"] == 2]
        amqp.publish(broker_url, queue, ["0.1"] * 60)  # enough for the second life of the canary, too
        pool.hear("worker.exited", 2, cause="max_tasks")
        assert {line["slot"] for line in pool.named("worker.exited", cause="max_tasks")} == {canary}
        assert not pool.named("reload.settings"), "the supervisor itself has the former ones"
        assert pool.stop() == 0


def test_a_canary_is_shown_while_it_runs_and_a_reload_replaces_it_and_a_drain_ends_it(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with deployed(broker_url, queue, tmp_path, runs) as deployment:
        pool = deployment.pool
        deployment.put("second")
        waiting = deployment.begin("--canary", "50%", "--for", HOUR)
        deployment.publish(100)
        pool.hear("task.succeeded", count=100)
        status = eventually(lambda: (now := pool.status())["reload"]["canary"]["tasks"]["canary"]["tries"] and now)
        assert status["reload"]["state"] == "canary" and status["reload"]["canary"]["percent"] == 50
        assert status["generation"] == 1, "until it has passed"

        def shown() -> str | None:
            lines = workq.run("status", "--control", deployment.control)[0]
            return lines if "2 of 4 workers, " in lines else None  # as of the last look, one a second

        lines = eventually(shown)
        assert "to generation 2 (workq reload --canary 50% --for 3600s) canary" in lines
        assert " tries, 0 failed, 0 crashes, " in lines
        deployment.put("third")
        out, err = deployment.reload()
        assert (err, out.splitlines()[-1]) == ("", "finished: every worker runs generation 3")
        started = pool.hear("reload.started", generation=3)["because"]
        assert started == "workq reload; the canary of generation 2 is rolled back"
        assert "replaced by another reload (workq reload)" in waiting.communicate(timeout=PATIENCE)[1]
        assert waiting.returncode == 1
        assert deployment.generations() == [3] * 4
        deployment.reload("--canary", "25%", "--no-wait")
        workq.run("drain", "--control", deployment.control)
        assert pool.wait() == 0
        assert "the next start loads the code that is there then" in pool.hear("reload.failed")["because"]


def test_what_is_no_canary_is_refused_and_changes_nothing(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    with deployed(broker_url, queue, tmp_path, runs, workers=2) as deployment:
        for body in (
            {"canary": 0, "seconds": 1},
            {"canary": 100, "seconds": 1},
            {"canary": 20},
            {"canary": "20%", "seconds": 1},
            {"canary": True, "seconds": 1},
            {"canary": 20, "seconds": 0},
            {"canary": 20, "seconds": float("nan")},
            {"seconds": 10},
        ):
            answer = running.Running(deployment.control).wish("/reload", body)
            assert not answer["ok"] and "PERCENT from 1 to 99" in answer["because"], body
        assert deployment.pool.status()["reload"] is None


@pytest.mark.parametrize(
    "arguments", ["--canary 0%", "--canary 100%", "--canary 20", "--canary 20% --for 0", "--for 5m"]
)
def test_what_is_no_canary_is_a_usage_error(arguments: str) -> None:
    done = CliRunner().invoke(reload, arguments.split())
    assert done.exit_code == 2 and ("expected" in done.output or "need --canary" in done.output)
