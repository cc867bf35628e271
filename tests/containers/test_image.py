"""The image, built and run for real: what its Containerfile says of it, and what an engine does to what runs in it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests import amqp
from tests.containers.conftest import Starts
from tests.containers.engine import BASE, CONTAINERFILE, IMAGE, Contained, Engine
from tests.node import PrivateNode
from tests.supervision import eventually

MOST = 80 * 10**6
"""Bytes above the base."""
ONE = ("--workers", "1")
BARE = ("--read-only", "--user", "1234567:0", "--cap-drop", "all", "--security-opt", "no-new-privileges")
"""As a cluster that is careful runs it: nothing can be written, and nobody knows the user."""
DONE = "worker.output"


def test_the_image_is_small_runs_as_nobody_in_particular_and_no_shell_is_in_between(engine: Engine) -> None:
    image, base = engine.inspect(IMAGE), engine.inspect(BASE)
    assert image["Size"] - base["Size"] < MOST
    config = image["Config"]
    assert re.fullmatch(r"[1-9]\d*", config["User"])  # a number, for runAsNonRoot
    assert config["Entrypoint"][0] == "env" and config["Entrypoint"][-1] == "workq-supervise"
    assert config["StopSignal"] == "SIGTERM" and "Cmd" not in config
    assert image["Healthcheck"]["Test"] == ["CMD", "workq", "status", "--ready"]
    assert list(config["ExposedPorts"]) == ["9191/tcp"]


def test_without_a_handler_it_says_in_a_line_what_is_missing(engine: Engine) -> None:
    done = engine("run", "--rm", "--no-healthcheck", IMAGE, code=2)
    assert "no handler: give MODULE:FUNCTION" in done.stderr


@pytest.mark.parametrize("options", [(), (*BARE, "--unsetenv", "HOME")], ids=["plain", "bare"])
def test_it_works_and_obeys_in_a_container_as_anywhere(
    start: Starts, broker_url: str, queue: str, options: tuple[str, ...]
) -> None:
    pool = start(*ONE, "tasks:resize", options=options).ready()
    amqp.publish(broker_url, queue, ["0"], ids=["a"])
    pool.hear(DONE, line="resized 1 Byte")
    assert pool.hear("control.listening")["path"] == "/tmp/workq.sock"
    assert pool.exec("workq", "status", "--ready").stdout == "1 of 1 workers consume\n"
    pool.exec("workq", "scale", "2")
    pool.ready(workers=2)
    pool.exec("workq", "reload")
    pool.hear("reload.finished")
    assert pool.stop() == 0


def test_without_any_place_to_write_it_runs_and_says_that_it_has_no_control_socket(
    start: Starts, broker_url: str, queue: str
) -> None:
    # As docker has it: podman's --read-only brings tmpfs along.
    pool = start(*ONE, "tasks:resize", options=(*BARE, "--read-only-tmpfs=false")).ready()
    assert "Read-only file system" in pool.hear("control.off")["because"]
    amqp.publish(broker_url, queue, ["0"], ids=["a"])
    pool.hear(DONE, line="resized 1 Byte")
    assert pool.stop() == 0


def test_logs_are_json_on_stderr_and_nothing_is_on_stdout(
    engine: Engine, start: Starts, broker_url: str, queue: str
) -> None:
    pool = start(*ONE, "tasks:resize").ready()
    amqp.publish(broker_url, queue, ["0"], ids=["a"])
    pool.hear(DONE, line="and to stderr")
    assert pool.stop() == 0 and not pool.invalid
    kept = engine("logs", pool.name)
    assert kept.stdout == ""
    assert [json.loads(line)["event"] for line in kept.stderr.splitlines()] == [line["event"] for line in pool.events]


# ---------------------------------------------------------------------------------------------------------- PID 1

STALLED = """
import os
if os.getpid() == 1:
    open("/gate/came", "w").close()
    open("/gate/go").close()  # a FIFO: waits for who opens its other end
"""


@pytest.mark.parametrize("shielded", [True, False], ids=["as shipped", "without env"])
def test_a_signal_that_comes_before_python_has_begun_is_obeyed(
    start: Starts, app: str, tmp_path: Path, shielded: bool
) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    gate.chmod(0o777)
    os.mkfifo(gate / "go")
    (gate / "go").chmod(0o666)
    (tmp_path / "sitecustomize.py").write_text(STALLED)
    mounts = ("-v", f"{gate}:/gate", "-v", f"{tmp_path}/sitecustomize.py:/early/sitecustomize.py:ro")
    options = (*mounts, "-e", "PYTHONPATH=/early")
    if not shielded:
        options += ("--entrypoint", "workq-supervise")
    pool = start(*ONE, "tasks:resize", options=options)
    eventually((gate / "came").exists)
    pool.send(signal.SIGTERM)
    (gate / "go").write_text("")
    if shielded:
        pool.hear("supervisor.stopping")
        assert pool.wait() == 0
    else:
        # What `env` is there for: the kernel has dropped it.
        pool.ready()
        assert not pool.named("supervisor.stopping")


def test_what_a_handler_leaves_behind_is_reaped(engine: Engine, start: Starts, broker_url: str, queue: str) -> None:
    pool = start(*ONE, "tasks:orphan").ready()
    amqp.publish(broker_url, queue, [""] * 5)
    pool.hear(DONE, count=5)
    # And what a command in there leaves: its parent ends first.
    pool.exec("sh", "-c", "sleep 0.2 & exit 0")
    eventually(lambda: zombies(engine, pool) == [])
    pids = [line["line"].split()[1] for line in pool.named(DONE)]
    assert [pid for pid in pids if pool.exec("test", "-e", f"/proc/{pid}", code=None).returncode == 0] == []
    assert pool.stop() == 0


def zombies(engine: Engine, pool: Contained) -> list[str]:
    """Processes of the container that have ended and wait to be reaped; none before `sleep` is done."""
    shown = engine("top", pool.name, "state", "comm").stdout.splitlines()[1:]
    return [line for line in shown if line.startswith("Z") or "sleep" in line]


# ---------------------------------------------------------------------------------------------------- stop and kill


def test_stop_waits_for_the_task_in_flight(engine: Engine, start: Starts, node: PrivateNode, queue: str) -> None:
    pool = start(*ONE, "tasks:resize", "--log-level", "debug").ready()
    amqp.publish(node.url, queue, ["1"], ids=["short"])
    pool.hear("task.started")
    engine("stop", pool.name)
    assert pool.wait() == 0
    assert pool.named("task.succeeded", message_id="short")
    assert amqp.depth(node.url, queue) == 0


def test_a_task_that_takes_too_long_is_ended_by_the_supervisor_before_the_engine_kills_both(
    engine: Engine, start: Starts, node: PrivateNode, queue: str
) -> None:
    pool = start(*ONE, "tasks:resize", "--log-level", "debug").ready()
    amqp.publish(node.url, queue, ["600"], ids=["long"])
    pool.hear("task.started")
    engine("stop", pool.name)  # 10 s, the default of every engine; the image's grace is less
    assert pool.wait() == 1  # 137: killed by the engine
    assert pool.hear("worker.exited", message_id="long")["cause"] == "grace"
    eventually(lambda: amqp.depth(node.url, queue) == 1)


def test_what_a_killed_container_had_in_flight_another_one_runs(
    engine: Engine, start: Starts, node: PrivateNode, queue: str
) -> None:
    pool = start(*ONE, "tasks:resize", "--log-level", "debug").ready()
    amqp.publish(node.url, queue, ["600"], ids=["long"])
    pool.hear("task.started")
    engine("kill", pool.name)
    assert pool.wait() == 137
    other = start(*ONE, "tasks:resize", "--log-level", "debug").ready()
    assert other.hear("task.started")["message_id"] == "long"


def test_a_container_that_was_killed_starts_again_with_its_socket(
    engine: Engine, start: Starts, broker_url: str, queue: str
) -> None:
    pool = start(*ONE, "tasks:resize").ready()
    engine("kill", pool.name)
    assert pool.wait() == 137
    engine("start", pool.name)
    eventually(lambda: pool.exec("workq", "status", "--ready", code=None).returncode == 0)
    assert "workq.sock" in pool.exec("ls", "/tmp").stdout


# ------------------------------------------------------------------------------------------------ limits and health


def test_a_worker_that_takes_all_the_memory_is_named_and_replaced(start: Starts, broker_url: str, queue: str) -> None:
    limit = ("--memory", "200m", "--memory-swap", "200m")
    pool = start("--workers", "2", "--max-crashes", "1", "tasks:eat", options=limit).ready()
    amqp.publish(broker_url, queue, ["1024"], ids=["hog"])
    died = pool.hear("worker.exited")
    assert (died["cause"], died["message_id"]) == ("OOM", "hog")
    pool.hear("task.quarantined", message_id="hog")
    pool.ready(workers=3)
    amqp.publish(broker_url, queue, ["1"], ids=["small"])
    pool.hear(DONE, line="1")
    assert pool.stop() == 0


@pytest.mark.parametrize(("cpus", "workers"), [("0.5", 1), (str(os.cpu_count() or 1), os.cpu_count() or 1)])
def test_auto_follows_the_cpu_quota(start: Starts, cpus: str, workers: int) -> None:
    started = start("tasks:resize", options=("--cpus", cpus)).hear("supervisor.started")
    assert started["workers"] == workers
    if workers < (os.cpu_count() or 1):
        assert started["workers_by"] == f"auto: the cgroup's CPU quota of {cpus}"


def test_the_health_check_says_whether_it_consumes(
    engine: Engine, app: str, own_node: PrivateNode, queue: str, name: str
) -> None:
    options = ("-e", f"WORKQ_URL={own_node.url}", "-e", f"WORKQ_QUEUE={queue}", "-e", "WORKQ_HEALTH=127.0.0.1:0")
    engine("run", "-d", "--name", name, *options, app, *ONE, "tasks:resize")
    try:
        eventually(lambda: engine("healthcheck", "run", name, code=None).returncode == 0)
        own_node.stop()
        eventually(lambda: engine("healthcheck", "run", name, code=None).returncode != 0)
        assert "no worker consumes" in engine("exec", name, "workq", "status", "--ready", code=1).stdout
    finally:
        engine("rm", "--force", "--time", "0", name)


def test_the_check_inside_has_the_options_of_the_supervisor_in_whose_container_it_is(start: Starts, queue: str) -> None:
    pool = start(
        "--queue", f"{queue}.own", "--workers", "2", "--grace", "7s", "tasks:resize", options=("--network=none",)
    )
    pool.hear("control.listening")
    said = pool.exec("workq", "check", "--verbose", code=1).stdout
    assert f"{queue}.own on" in said and "for 2 workers" in said and "--grace 7s needs 12 s" in said
    assert "is on the container's own loopback" in said
    # What is given to it counts more.
    said = pool.exec("workq", "check", "--verbose", "--workers", "3", "--queue", "mine", code=1).stdout
    assert "mine on" in said and "for 3 workers" in said and "--grace 7s needs 12 s" in said


def test_who_reads_the_containerfile_is_told_the_command_that_builds_it() -> None:
    text = CONTAINERFILE.read_text()
    assert f"podman build --format docker -t {IMAGE} -f config/container/Containerfile ." in text
    assert subprocess.run(["env", "--block-signal=TERM,INT,HUP,TTIN,TTOU,USR1,USR2", "true"]).returncode == 0
