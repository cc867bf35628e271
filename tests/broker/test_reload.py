"""HUP: new code and new settings beside the old, then one worker at a time; what is no good changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import PATIENCE, Runs, eventually, supervised

WORKQ = str(Path(sys.executable).with_name("workq"))

CODE = """
from handlers import note, work as slow
def work(task):
    note("{generation}", task.message_id)
    slow(task)
"""


def test_f50_a_reload_under_load_replaces_every_worker_and_interrupts_no_task(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(generation="old"))
    names = [f"t{n}" for n in range(60)]
    amqp.publish(broker_url, queue, ["0.1"] * 60, ids=names)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "3", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        before = set(pool.pids())
        runs.hear("old", 3)
        handler_modules.write(tmp_path, "app", CODE.format(generation="brand_new"))
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        assert not before & set(pool.pids())
        assert pool.status()["generation"] == 2
        pool.hear("task.succeeded", count=60)
        # What was on its way to a worker that cancels goes back untouched, one a worker at most.
        assert pool.status()["totals"]["redelivered"] <= 3
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=7)
        assert pool.stop() == 0
    assert sorted(runs.lines("began")) == sorted(runs.lines("done")) == sorted(names)
    assert runs.lines("old") and runs.lines("brand_new")
    assert len(runs.lines("old")) + len(runs.lines("brand_new")) == 60


def test_f50_broken_code_leaves_the_old_generation_running_and_the_error_is_shown(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(generation="old"))
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        before = pool.pids()
        handler_modules.write(tmp_path, "app", "def work(task:\n    this is no Python, whatever its length may be\n")
        pool.send(signal.SIGHUP)
        failed = pool.hear("reload.failed")
        assert "SyntaxError" in failed["because"] and "generation 1 stays" in failed["because"]
        assert "app.py" in failed["exception"]
        amqp.publish(broker_url, queue, ["0"], ids=["after"])
        pool.hear("task.succeeded", message_id="after")
        assert pool.pids() == before
        assert pool.get("/readyz")[0] == 200
        # A replacement still comes, of the code that works.
        os.kill(before[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        # And mended code is taken.
        handler_modules.write(tmp_path, "app", CODE.format(generation="mended_at_last"))
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=3)
        amqp.publish(broker_url, queue, ["0"], ids=["mended"])
        pool.hear("task.succeeded", message_id="mended")
        assert pool.stop() == 0
    assert runs.lines("mended_at_last") == ["mended"]


def test_a_stop_during_a_reload_leaves_nobody_behind(broker_url: str, queue: str, tmp_path: Path) -> None:
    handler_modules.write(tmp_path, "app", "def work(task):\n    pass\n")
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        handler_modules.write(tmp_path, "app", handler_modules.HANGS)
        pool.send(signal.SIGHUP)
        eventually(lambda: any("importing, for ever" in line["line"] for line in pool.named("worker.output")))
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------------------ no gap


def test_f50_a_reload_under_load_leaves_no_gap(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    """The start of a worker takes half a second, and twelve are replaced while they work. By the log's order, since
    speed would say how busy the machine is: no worker exits before the one that follows the former is ready."""
    handler_modules.write(tmp_path, "app", "import time\ntime.sleep(0.5)\n" + CODE.format(generation="old"))
    amqp.publish(broker_url, queue, ["0.2"] * 2400)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", "--workers", "12", "--no-preload", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        pool.hear("worker.ready", count=24)
        assert amqp.depth(broker_url, queue) > 0, "there was work all the time"
        consuming, least = 0, 12
        for line in list(pool.events):
            consuming += {"worker.ready": 1, "worker.exited": -1}.get(line["event"], 0)
            least = min(least, consuming) if line["event"] == "worker.exited" else least
        assert (consuming, least) == (12, 11)
        exits = [line["timestamp"] for line in pool.named("worker.exited")]
        done = [line["timestamp"] for line in pool.named("task.succeeded")]
        for one, next_one in pairwise(exits):
            assert any(one < at < next_one for at in done), "the others work on while one starts"
        assert pool.status()["totals"]["redelivered"] <= 12
        assert pool.stop() == 0


# --------------------------------------------------------------------------------------------------------- settings


def test_a_reload_takes_the_settings_as_the_file_has_them_now(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    file = tmp_path / "workq.toml"
    file.write_text("workers = 2\nretries = 9\nretry_delay = '1h'\n")
    with supervised("handlers:act", "--config", str(file), url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ['{"raise": "ValueError"}'], ids=["before"])
        pool.hear("task.retried", message_id="before")
        file.write_text("workers = 3\nretries = 0\nlog_level = 'debug'\nhandler = 'handlers:nobody'\n")
        pool.send(signal.SIGHUP)
        changed = pool.hear("reload.settings")["because"]
        assert changed == "changed: workers, retries, retry_delay, log_level", "the command line's handler counts"
        pool.hear("reload.finished", generation=2)
        pool.hear("worker.ready", count=5)
        assert pool.status()["scale"] == {"wanted": 3, "least": 3, "most": 3}
        amqp.publish(broker_url, queue, ['{"raise": "ValueError"}'], ids=["after"])
        pool.hear("task.dead_lettered", message_id="after")
        pool.hear("task.started", message_id="after", level="debug")
        pool.hear("worker.measure", level="debug")
        assert pool.stop() == 0


def test_settings_that_no_reload_can_take_leave_everything_as_it_is(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    file = tmp_path / "workq.toml"
    file.write_text("retries = 1\n")
    options = ("--config", str(file), "--workers", "2")
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as pool:
        before = pool.ready().pids()
        for number, (text, why) in enumerate(
            [
                (
                    "burst = true\nlog_format = 'console'\nretries = 2\n",
                    "burst, log_format cannot be changed by a reload",
                ),
                ("heartbeat = 0\ngrace = 'soon'\n", "workq.toml: heartbeat: got 0, expected a duration"),
                ("prefetch = \n", "workq.toml: not valid TOML at line 1, column 12"),
            ],
            start=1,
        ):
            file.write_text(text)
            pool.send(signal.SIGHUP)
            failed = pool.hear("reload.failed", count=number)
            assert why in failed["because"] and "generation 1 stays" in failed["because"]
            reload = pool.status()["reload"]
            assert (reload["number"], reload["state"], reload["by"]) == (number, "failed", "SIGHUP")
            assert why in reload["error"]
        file.unlink()
        pool.send(signal.SIGHUP)
        assert "cannot read" in pool.hear("reload.failed", count=4)["because"]
        assert pool.pids() == before
        file.write_text("retries = 2\n")
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        assert pool.hear("reload.settings")["because"] == "changed: retries"
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------------- credentials


@pytest.fixture
def user(node: PrivateNode) -> Iterator[str]:
    """A user of the node's, with the password `first`."""
    name = f"user-{uuid4().hex[:8]}"
    binary = amqp.binary(name)
    node.eval(f'rabbit_auth_backend_internal:add_user({binary}, <<"first">>, <<"test">>)')
    node.eval(f'rabbit_auth_backend_internal:set_permissions({binary}, <<"/">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>)')
    yield name
    node.eval(f'rabbit_auth_backend_internal:delete_user({binary}, <<"test">>)')


def _change_password(node: PrivateNode, user: str, password: str) -> None:
    change = "rabbit_auth_backend_internal:change_password"
    node.eval(f'{change}({amqp.binary(user)}, {amqp.binary(password)}, <<"test">>)')


def test_a_new_password_is_tried_by_one_worker_and_taken_by_all_only_if_it_is_right(
    node: PrivateNode, queue: str, user: str, tmp_path: Path, runs: Runs
) -> None:
    file, control = tmp_path / "amqp-url", str(tmp_path / "control.sock")

    def write(password: str) -> None:
        file.write_text(f"amqp://{user}:{password}@127.0.0.1:{node.port}/%2F\n")

    write("first")
    options = ("--url-file", str(file), "--workers", "3", "--control", control)
    env = runs.env | {"WORKQ_URL": ""}
    with supervised("handlers:work", *options, url=node.url, queue=queue, env=env) as pool:
        before = pool.ready().pids()
        write("wrong-Zq7xK")
        done = subprocess.run([WORKQ, "reload", "--control", control], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1
        assert "its first worker does not consume" in done.stderr and "generation 1 stays" in done.stderr
        assert "password" in done.stderr or "ACCESS_REFUSED" in done.stderr
        pool.hear("worker.ready", count=4)
        assert len(set(before) & set(pool.pids())) == 2, "one was replaced, in vain; the others were not touched"
        assert pool.status()["generation"] == 1
        amqp.publish(node.url, queue, ["0"], ids=["still-served"])
        runs.hear("done", 1)
        # As one rotates it: the broker's first. Connections that there are stay.
        _change_password(node, user, "second")
        write("second")
        done = subprocess.run([WORKQ, "reload", "--control", control], capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
        assert not set(before) & set(pool.pids())
        shown = subprocess.run([WORKQ, "status", "--control", control, "--json"], capture_output=True, text=True)
        for text in (shown.stdout, pool.log(1000), pool.get("/status")[1], pool.get("/metrics")[1]):
            assert "Zq7xK" not in text and ":second@" not in text and ":first@" not in text
        assert pool.stop() == 0


def test_when_nobody_can_log_in_any_more_a_reload_with_the_right_password_mends_it(
    node: PrivateNode, queue: str, user: str, tmp_path: Path
) -> None:
    file = tmp_path / "amqp-url"
    file.write_text(f"amqp://{user}:wrong@127.0.0.1:{node.port}/%2F\n")
    options = ("--url-file", str(file), "--workers", "2")
    with supervised("handlers:work", *options, url=node.url, queue=queue, env={"WORKQ_URL": ""}) as pool:
        pool.hear("broker.refused")
        file.write_text(f"amqp://{user}:first@127.0.0.1:{node.port}/%2F\n")
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        pool.ready()
        assert pool.stop() == 0


# ---------------------------------------------------------------------------------------------------------- --reload


def test_with_reload_a_change_of_a_file_is_a_reload(broker_url: str, queue: str, tmp_path: Path, runs: Runs) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(generation="old"))
    env = runs.env | {"PYTHONPATH": str(Path(handler_modules.__file__).parent)}
    options = ("--reload", "--workers", "2", "--app-dir", str(tmp_path))
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.ready()

        def edit(text: str, event: str) -> None:
            # Again and again, of another length each time: nothing says when the watch has begun.
            heard = len(pool.named(event))
            growing = iter(range(1, 10_000))

            def written() -> bool:
                handler_modules.write(tmp_path, "app", text + "#" * next(growing))
                try:
                    return bool(pool.hear(event, count=heard + 1, timeout=2))
                except AssertionError:
                    return False

            eventually(written)

        (tmp_path / "notes.txt").write_text("no Python file")
        edit(CODE.format(generation="brand_new"), "reload.finished")
        assert pool.hear("reload.started")["because"] == "--reload: app.py changed"
        amqp.publish(broker_url, queue, ["0"], ids=["one"])
        runs.hear("brand_new")
        edit("def work(task:\n", "reload.failed")
        amqp.publish(broker_url, queue, ["0"], ids=["two"])
        runs.hear("brand_new", 2)
        edit(CODE.format(generation="mended"), "reload.finished")
        amqp.publish(broker_url, queue, ["0"], ids=["three"])
        runs.hear("mended")
        for pid in pool.pids():
            assert "watchfiles" not in Path(f"/proc/{pid}/maps").read_text(), "a worker has it in memory"
        assert "watchfiles" in Path(f"/proc/{pool.pid}/maps").read_text()
        assert pool.stop() == 0


# ----------------------------------------------------------------------------- 84: releases, and a link to the current

RELEASE = """
from pathlib import Path
from handlers import note
note("imported", "{name} " + Path("data").read_text())
def work(task):
    note("{name}", task.message_id)
"""


class Deployment:
    """Directories of releases, and a link to the one that is current, as Capistrano and its like keep them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.link = directory / "current"

    def release(self, name: str, max_tasks: int) -> Path:
        release = self.directory / "releases" / name
        release.mkdir(parents=True)
        handler_modules.write(release, "app", RELEASE.format(name=name))
        (release / "data").write_text(f"with the data of {name}")
        (release / "workq.toml").write_text(f"max_tasks = {max_tasks}\n")
        return release

    def make_current(self, release: Path) -> None:
        fresh = self.directory / "fresh"
        fresh.symlink_to(release)
        fresh.rename(self.link)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


IN_IT = ("sh", "-c", 'cd "$0" && export PWD && exec "$@"')
"""As a shell does it: the working directory is the release, and $PWD is the link."""


@pytest.mark.parametrize("is_removed", [False, True], ids=["the old release is kept", "the old release is removed"])
def test_f84_a_reload_goes_by_the_link_that_the_supervisor_was_started_in(
    broker_url: str, queue: str, deployment: Deployment, runs: Runs, is_removed: bool
) -> None:
    old, new = deployment.release("old", 1000), deployment.release("new", 2000)
    deployment.make_current(old)
    env = runs.env | {"PYTHONPATH": str(Path(__file__).parents[1])}
    options = ("--workers", "1", "--app-dir", ".", "--config", "workq.toml")
    inside = (*IN_IT, str(deployment.link))
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env, inside=inside) as pool:
        amqp.publish(broker_url, queue, ["x"], ids=["first"])
        pool.ready()
        runs.hear("old")
        deployment.make_current(new)
        if is_removed:
            shutil.rmtree(old)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        # Two ways to become a nursery: the first was forked, the next is executed.
        assert runs.lines("imported") == ["old with the data of old", "new with the data of new"]
        assert "max_tasks" in pool.hear("reload.settings")["because"], "the file beside it is read anew as well"
        amqp.publish(broker_url, queue, ["x"], ids=["second"])
        assert runs.hear("new") == ["second"]
        assert pool.stop() == 0


@pytest.mark.parametrize("pwd", ["another", "none"])
def test_f84_where_pwd_names_another_directory_or_none_a_reload_stays_where_it_is(
    broker_url: str, queue: str, deployment: Deployment, runs: Runs, pwd: str
) -> None:
    here, elsewhere = deployment.release("here", 1000), deployment.release("elsewhere", 2000)
    env = runs.env | {"PYTHONPATH": str(Path(__file__).parents[1])}
    options = ("--workers", "1", "--app-dir", ".", "--config", "workq.toml")
    variable = (f"PWD={elsewhere}",) if pwd == "another" else ("--unset=PWD",)
    inside = ("env", f"--chdir={here}", *variable)
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env, inside=inside) as pool:
        pool.ready()
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        assert runs.lines("imported") == ["here with the data of here"] * 2
        assert pool.stop() == 0


def test_f84_a_reload_while_there_is_no_such_link_fails_and_says_so_and_a_later_one_succeeds(
    broker_url: str, queue: str, deployment: Deployment, runs: Runs
) -> None:
    old, new = deployment.release("old", 1000), deployment.release("new", 2000)
    deployment.make_current(old)
    env = runs.env | {"PYTHONPATH": str(Path(__file__).parents[1])}
    options = ("--workers", "1", "--app-dir", ".")
    inside = (*IN_IT, str(deployment.link))
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env, inside=inside) as pool:
        pool.ready()
        deployment.link.unlink()
        pool.send(signal.SIGHUP)
        because = pool.hear("reload.failed")["because"]
        assert f"cannot enter the working directory {deployment.link}: No such file or directory" in because
        deployment.make_current(new)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        assert runs.lines("imported")[-1] == "new with the data of new"
        assert pool.stop() == 0


# ----------------------------------------------------------------------------------- 113: while the broker is away


def test_f113_a_reload_while_the_broker_is_away_waits_for_it_and_is_carried_out_and_a_later_one_replaces_it(
    tmp_path: Path, runs: Runs
) -> None:
    handler_modules.write(tmp_path, "app", CODE.format(generation="first"))
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with PrivateNode(tmp_path / "node") as node:
        options = ("--workers", "2")
        with supervised("app:work", *options, url=node.url, queue="reloaded", env=env) as pool:
            pool.ready()
            node.kill()
            pool.hear("broker.refused")
            for number, name in ((2, "second"), (3, "third_and_last")):
                handler_modules.write(tmp_path, "app", CODE.format(generation=name))
                pool.send(signal.SIGHUP)
                waits = pool.hear("reload.waiting", generation=number)
                assert "the reload continues once it is back, unless another replaces it" in waits["because"]
                assert pool.status()["reload"]["state"] == "waiting"
            assert not pool.named("reload.failed")
            node.start()
            pool.hear("reload.finished", generation=3)
            amqp.publish(node.url, "reloaded", ["0"], ids=["after"])
            assert runs.hear("third_and_last") == ["after"]
            assert not pool.named("reload.failed")
            assert pool.stop() == 0
