"""The control socket: who may use it, what it changes, and the commands that go by it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.commands import drain
from supervisor.commands.running import Running
from tests import amqp, handler_modules, launching
from tests.supervision import PATIENCE, Runs, Supervision, eventually, gone, supervised

pytestmark = pytest.mark.any_broker

WORKQ = str(Path(sys.executable).with_name("workq"))
NOBODY = 65534
PASSWORD = "Zq7xK"


def workq(*arguments: str, inside: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess[str]:
    done = launching.run([*inside, WORKQ, *arguments], env=_ours() | environ, timeout=PATIENCE)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _begin(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [WORKQ, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_ours(),
        text=True,
    )


def _ours() -> dict[str, str]:
    dropped = ("WORKQ_", "XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


@pytest.fixture
def short_path() -> Iterator[Path]:
    """pytest's own may be too long for a socket's name behind it (unix(7): 108 bytes)."""
    with tempfile.TemporaryDirectory(prefix="workq-") as name:
        yield Path(name)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


# ------------------------------------------------------------------------------------------------------- the socket


def test_the_socket_is_ours_alone_whatever_the_umask_and_is_removed_at_the_end(
    broker_url: str, queue: str, path: str
) -> None:
    loose = ("sh", "-c", 'umask 0; exec "$@"', "sh")
    with supervised(
        "handlers:work", "--control", path, "--workers", "1", url=broker_url, queue=queue, inside=loose
    ) as pool:
        assert pool.hear("control.listening")["path"] == path
        found = os.lstat(path)
        assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
        pool.ready()
        assert pool.stop() == 0
    assert not os.path.lexists(path)


def test_the_socket_is_never_wider_than_0600_not_even_while_it_is_made(path: str) -> None:
    # The umask at the instant of bind(2): chmod(2) afterwards would leave a gap.
    code = (
        "import os, sys\n"
        "os.umask(0)\n"
        "def hook(event, args):\n"
        "    if event == 'socket.bind':\n"
        "        mask = os.umask(0o777); os.umask(mask); print(oct(mask))\n"
        "sys.addaudithook(hook)\n"
        "from supervisor.parent.http import sockets\n"
        "import structlog\n"
        f"listener = sockets.control({path!r}, True, structlog.testing.CapturingLogger())\n"
        "mask = os.umask(0o777); print(oct(mask))\n"
        "listener.remove()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0o177", "0o0"], "and the umask is what it was, afterwards"


def test_f52_a_second_supervisor_with_the_same_socket_refuses_and_the_first_keeps_it(
    broker_url: str, queue: str, path: str
) -> None:
    options = ("--workers", "1", "--control", path)
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as first:
        first.ready()
        with supervised("handlers:work", *options, url=broker_url, queue=queue) as second:
            assert second.wait() == 78
            because = second.hear("supervisor.stopped")["because"]
            assert path in because and f"another supervisor (pid {first.pid}) listens there" in because
            assert "--control" in because
        assert workq("status", "--control", path).returncode == 0
        assert first.stop() == 0


def test_f52_the_socket_of_a_supervisor_that_was_killed_is_taken_over(broker_url: str, queue: str, path: str) -> None:
    options = ("--workers", "1", "--control", path)
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as first:
        pids = first.ready().pids()
        first.process.kill()
        first.process.wait()
        assert all(gone(pid, PATIENCE) for pid in pids)
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    dead = workq("scale", "2", "--control", path)
    assert dead.returncode == 69 and f"nobody listens at {path}: its supervisor was killed" in dead.stderr
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as next_one:
        next_one.ready()
        assert workq("scale", "2", "--control", path).returncode == 0
        assert next_one.stop() == 0


def test_f52_two_supervisors_of_a_queue_share_the_default_place_and_each_has_a_socket(
    broker_url: str, queue: str, short_path: Path
) -> None:
    env = {"XDG_RUNTIME_DIR": str(short_path)}
    path = short_path / f"workq-{queue}.sock"
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=env) as first:
        first.ready()
        with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, env=env) as second:
            second.ready()
            own = second.hear("control.listening")
            assert own["path"] == str(short_path / f"workq-{queue}-{second.pid}.sock")
            assert f"pid {first.pid}" in own["because"] and own["level"] == "warning"
            found = workq("status", "--json", "--queue", queue, **env)
            assert len(json.loads(found.stdout)["workers"]) == 1
            found = workq("status", "--json", "--control", own["path"])
            assert len(json.loads(found.stdout)["workers"]) == 2
            assert second.stop() == 0
        assert not os.path.lexists(own["path"]) and path.is_socket()
        assert first.stop() == 0


def test_a_socket_that_has_become_somebody_else_s_is_not_removed_at_the_end(
    broker_url: str, queue: str, path: str
) -> None:
    with supervised("handlers:work", "--workers", "1", "--control", path, url=broker_url, queue=queue) as pool:
        pool.ready()
        os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(path)
            assert pool.stop() == 0
    assert os.path.lexists(path)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that everybody may look into, unlike pytest's."""
    directory = Path(tempfile.mkdtemp(prefix="workq-control-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_told_that_he_may_not(broker_url: str, queue: str, open_directory: Path) -> None:
    path = str(open_directory / "control.sock")
    # The command itself, as root, with another user's rights when it connects: his own Python may not be able to read
    # the one that runs the tests.
    code = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    stranger = (
        sys.executable,
        "-c",
        f"from supervisor.commands import scale, reload, drain, status, main; {code}; main()",
    )
    with supervised("handlers:work", "--workers", "1", "--control", path, url=broker_url, queue=queue) as pool:
        pool.ready()
        for verb in (["scale", "3"], ["drain"], ["status"]):
            done = subprocess.run(
                [*stranger, *verb, "--control", path], capture_output=True, text=True, timeout=PATIENCE, cwd="/"
            )
            assert done.returncode == 77, done.stderr
            assert f"workq: {path}: Permission denied: only root may use this control socket (mode 0600)" in done.stderr
            assert "Traceback" not in done.stderr
        assert not pool.named("supervisor.resized")
        assert pool.status()["state"] == "running"
        assert pool.stop() == 0


# -------------------------------------------------------------------------------------------------------- the verbs


def test_nothing_can_be_changed_by_the_health_port(broker_url: str, queue: str, path: str) -> None:
    with supervised("handlers:work", "--workers", "1", "--control", path, url=broker_url, queue=queue) as pool:
        pool.ready()
        for verb in ("/scale", "/reload", "/drain", "/status", "/"):
            request = urllib.request.Request(pool.health + verb, data=b'{"workers": 7}', method="POST")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            with refused.value as answer:
                assert answer.code in (403, 405)
        assert pool.status()["state"] == "running" and len(pool.workers()) == 1
        assert not pool.named("reload.started") and not pool.named("supervisor.resized")
        assert pool.stop() == 0


def test_scale_has_as_many_workers_as_it_is_told_within_the_limits(broker_url: str, queue: str, path: str) -> None:
    with supervised("handlers:work", "--workers", "2..4", "--control", path, url=broker_url, queue=queue) as pool:
        pool.ready()
        done = workq("scale", "4", "--control", path)
        assert (done.returncode, done.stdout) == (0, "workq scale: 2 -> 4 workers\n")
        pool.hear("worker.ready", count=4)
        assert pool.status()["scale"] == {"wanted": 4, "least": 2, "most": 4}
        for wrong, limit in (("5", "already at the maximum of 4 workers"), ("1", "below the minimum of 2 workers")):
            done = workq("scale", wrong, "--control", path)
            assert done.returncode == 1 and limit in done.stderr
        assert "already at 4 workers" in workq("scale", "4", "--control", path).stdout
        assert workq("scale", "0", "--control", path).returncode == 2
        assert workq("scale", "2", "--control", path).returncode == 0
        pool.hear("worker.exited", count=2, cause="drained")
        assert len(pool.pids()) == 2
        assert pool.stop() == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"workers": 0}',
        b'{"workers": "3"}',
        b'{"workers": true}',
        b'{"change": 5}',
        b"[]",
        b"[" * 4000,
        b"{",
        b"x" * 5000,
    ],
)
def test_a_body_that_is_no_wish_is_refused_with_what_is_expected(body: bytes, idle: Supervision) -> None:
    status, answer = _post(idle.hear("control.listening")["path"], "/scale", body)
    assert status == 400 and ("expected" in answer["because"] or "Expecting" in answer["because"])
    assert not idle.named("supervisor.resized")


@pytest.fixture(scope="module")
def idle(node: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervision]:
    """A supervisor for tests that change nothing."""
    name = f"queue-idle-{os.getpid()}"
    path = str(tmp_path_factory.mktemp("idle") / "control.sock")
    with supervised("handlers:work", "--workers", "1", "--control", path, url=node.url, queue=name) as pool:
        yield pool.ready()
        assert pool.stop() == 0
    amqp.delete(node, name)


def _post(path: str, verb: str, body: bytes) -> tuple[int, dict[str, Any]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        head = f"POST {verb} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        answer = b""
        while data := client.recv(65536):
            answer += data
    head_of, _, document = answer.partition(b"\r\n\r\n")
    return int(head_of.split()[1]), json.loads(document)


HELD = """
import os, time
from handlers import note
def work(task):
    note("began", task.message_id)
    while not os.path.exists(os.environ["TEST_RUNS"] + ".go"):
        time.sleep(0.02)
    note("done", task.message_id)
"""


def test_drain_says_what_is_in_hand_and_waits_until_the_supervisor_is_gone(
    broker_url: str, queue: str, runs: Runs, path: str, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "held", HELD)
    amqp.publish(broker_url, queue, ["", ""], ids=["in-hand", "untouched"])
    options = ("--workers", "1", "--control", path)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("held:work", *options, url=broker_url, queue=queue, env=env) as pool, ExitStack() as started:
        runs.hear("began")
        said, both = [], []
        for _ in range(2):
            # Asked again, in the middle of it: nobody is killed, and both wait.
            process = _begin("drain", "--control", path)
            started.callback(process.kill)
            assert process.stdout is not None
            both.append(process)
            said.append(process.stdout.readline() + process.stdout.readline())
        pool.hear("supervisor.stopping")
        Path(f"{runs.path}.go").touch()
        for number, process in enumerate(both):
            assert process.stdout is not None and process.stderr is not None
            said[number] += process.stdout.read()
            # The supervisor's process is gone, not only its socket.
            assert gone(pool.pid, 0)
            assert (process.wait(PATIENCE), process.stderr.read()) == (0, "")
            assert "worker 0 (pid " in said[number] and "has been running in-hand for " in said[number]
            assert said[number].endswith("\ngone\n")
        assert pool.wait() == 0
    assert runs.lines("done") == ["in-hand"]
    assert amqp.depth(broker_url, queue) == 1


def test_drain_fails_and_names_the_task_when_the_grace_has_killed_one(
    broker_url: str, queue: str, runs: Runs, path: str
) -> None:
    amqp.publish(broker_url, queue, ["60"], ids=["endless"])
    options = ("--workers", "1", "--control", path, "--grace", "500ms")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        done = workq("drain", "--control", path)
        assert (done.returncode, pool.wait()) == (1, 1)
    assert "gone" not in done.stdout.splitlines()
    killed, end = done.stderr.splitlines()
    assert "ended by grace while it ran endless, which is redelivered" in killed
    assert end == "workq: gone with exit code 1: not everything was finished"


def test_drain_does_not_call_an_end_that_it_has_not_seen_a_success(
    broker_url: str, queue: str, runs: Runs, path: str
) -> None:
    amqp.publish(broker_url, queue, ["60"], ids=["endless"])
    options = ("--workers", "1", "--control", path)
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        process = _begin("drain", "--control", path)
        assert process.stdout is not None
        process.stdout.readline()
        pool.send(signal.SIGKILL)
        said, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "\ngone\n" not in said
    assert "gone, but not seen how" in complaint


def test_a_drain_of_longer_than_one_question_for_its_end_still_hears_it(
    broker_url: str, queue: str, runs: Runs, path: str, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "held", HELD)
    amqp.publish(broker_url, queue, [""], ids=["in-hand"])
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "1", "--control", path)
    with supervised("held:work", *options, url=broker_url, queue=queue, env=env) as pool:
        runs.hear("began")
        running = Running(path)
        first = running.end()
        assert running.wish("/drain")["ok"]
        assert select.select([first.sock], [], [], PATIENCE)[0], "answered although the supervisor has not stopped"
        assert running.answer(first, PATIENCE)[1]["state"] == "draining"
        ending = drain.Ending(running)
        ending.ask()
        Path(f"{runs.path}.go").touch()
        assert pool.wait() == 0
        last = ending.last()
        assert last is not None and last["recent"][-1]["event"] == "supervisor.stopped"


def test_drain_and_reload_stop_waiting_when_told_to(broker_url: str, queue: str, runs: Runs, path: str) -> None:
    amqp.publish(broker_url, queue, ["60"], ids=["in-hand"])
    options = ("--workers", "1", "--control", path)
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        runs.hear("began")
        done = workq("reload", "--control", path, "--timeout", "500ms")
        assert done.returncode == 1 and "not waiting any longer" in done.stderr
        done = workq("drain", "--control", path, "--timeout", "100ms")
        assert done.returncode == 1 and "the drain continues" in done.stderr
        refused = workq("reload", "--control", path)
        assert refused.returncode == 1 and "the supervisor is stopping" in refused.stderr
        refused = workq("scale", "3", "--control", path)
        assert refused.returncode == 1 and "the supervisor is stopping" in refused.stderr
        # A signal is the second request to stop, and means now; a second drain does not.
        assert pool.stop() == 1


def test_reload_waits_for_the_end_of_it_and_says_which(broker_url: str, queue: str, tmp_path: Path, path: str) -> None:
    handler_modules.write(tmp_path, "app", "def work(task):\n    pass\n")
    env = {"PYTHONPATH": str(tmp_path)}
    options = ("--workers", "2", "--control", path)
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        before = pool.ready().pids()
        done = workq("reload", "--control", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("finished: every worker runs generation 2\n")
        assert not set(before) & set(pool.pids())
        pool.hear("worker.ready", count=4)
        before = pool.pids()
        handler_modules.write(tmp_path, "app", "def work(task:\n    # this is no Python at all\n")
        done = workq("reload", "--control", path)
        assert done.returncode == 1
        assert "reload failed: importing app raised SyntaxError" in done.stderr and "generation 2 stays" in done.stderr
        assert pool.pids() == before
        shown = workq("status", "--control", path).stdout
        assert "reload   to generation 3 (workq reload) failed" in shown and "SyntaxError" in shown
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------------ the picture


def test_status_shows_each_worker_what_it_has_in_hand_and_how_the_last_one_ended(
    broker_url: str, queue: str, runs: Runs, path: str
) -> None:
    evil = "a\x1b[2J\r\nb"
    amqp.publish(broker_url, queue, ["60", "60"], ids=[evil, "second"])
    options = ("--workers", "2", "--control", path, "--grace", "0")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        runs.hear("began", 2)
        [victim] = [worker for worker in pool.workers() if worker["message_id"] == "second"]
        os.kill(victim["pid"], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        runs.hear("began", 3)
        shown = workq("status", "--control", path)
        assert (shown.returncode, shown.stderr) == (0, "")
        lines = shown.stdout.splitlines()
        assert lines[0].startswith(f"{queue}  running for ") and "2 workers  generation 1" in lines[0]
        assert any(line.startswith("broker   amqp://guest:***@127.0.0.1") for line in lines)
        assert any(line.startswith("totals   0 succeeded, 0 failed, 1 redelivered, 1 worker exits") for line in lines)
        [row] = [line for line in lines if "busy" in line and "second" in line]
        assert "SIGKILL" in row and row.split()[0] == str(victim["slot"])
        assert "a\\x1b[2J\\r\\nb" in shown.stdout and "\x1b" not in shown.stdout
        assert any("worker.exited slot" in line and "SIGKILL" in line for line in lines)
        by_port = workq("status", "--health", pool.health.removeprefix("http://")).stdout.splitlines()
        assert by_port[0].startswith(f"{queue}  running for ")
        assert pool.stop() == 1


def test_status_is_found_in_the_same_places_as_the_supervisor_puts_it(
    idle: Supervision, tmp_path: Path, queue: str
) -> None:
    path = idle.hear("control.listening")["path"]
    address = idle.health.removeprefix("http://")
    (tmp_path / "workq.toml").write_text(f"control = '{path}'\nhandler = 'x:y'\nurl = 'amqp://u:{PASSWORD}@h'\n")
    for arguments, environ in (
        (("--control", path), {}),
        ((), {"WORKQ_CONTROL": path}),
        (("--config", str(tmp_path / "workq.toml")), {}),
        ((), {"WORKQ_CONFIG": str(tmp_path / "workq.toml")}),
        (("--health", address), {}),
        ((), {"WORKQ_HEALTH": address}),
        (("--control", path, "--queue", idle.queue), {}),
    ):
        done = workq("status", "--json", *arguments, **environ)
        assert done.returncode == 0, (arguments, done.stderr)
        document = json.loads(done.stdout)
        assert document["queue"]["name"] == idle.queue
        assert PASSWORD not in done.stdout
    other = workq("status", "--control", path, "--queue", queue)
    assert other.returncode == 69 and f"consumes {idle.queue}, not {queue}" in other.stderr
    assert workq("status", "--control", path, "--health", address).returncode == 2


def test_nobody_there_is_said_with_where_and_what_to_do(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none.sock")
    done = workq("scale", "3", "--control", nowhere)
    assert done.returncode == 69
    assert done.stderr == f"workq: there is no control socket {nowhere}; use --control PATH\n"
    done = workq("drain")
    assert done.returncode == 69 and "neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = workq("status", "--health", f"127.0.0.1:{port}")
    assert done.returncode == 69 and f"nobody listens at 127.0.0.1:{port}" in done.stderr
    (tmp_path / "workq-other.sock").touch()
    done = workq("reload", "--queue", "mine", XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 69
    assert f"there is no control socket {tmp_path}/workq-mine.sock" in done.stderr
    assert f"sockets found: {tmp_path}/workq-other.sock" in done.stderr
    assert workq("status", "--config", "/nonexistent.toml").returncode == 78


def test_something_else_that_answers_is_not_taken_for_a_supervisor(node: Any) -> None:
    done = workq("status", "--health", f"127.0.0.1:{node.port}")
    assert done.returncode == 69
    assert "hung up" in done.stderr or "not workq-supervise" in done.stderr


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory in which anybody may make files, as /tmp is one."""
    with tempfile.TemporaryDirectory(prefix="workq-test-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


@contextmanager
def stranger(*command: str) -> Iterator[None]:
    """Another user runs this, and goes on to run it."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", *command],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # flock, and what it runs
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("held", ["{directory}", "{path}.lock"])
def test_f103_another_user_s_lock_does_not_keep_a_supervisor_from_its_socket(
    broker_url: str, queue: str, public: Path, held: str
) -> None:
    """A dead socket is there, and must be taken over."""
    path = public / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    what = held.format(directory=public, path=path)
    options = ("--workers", "1", "--control", str(path))
    hold = f"umask 0; [ -e {what} ] || : > {what}; exec flock {what} sh -c 'echo held; exec sleep 600'"
    with stranger(hold), supervised("handlers:work", *options, url=broker_url, queue=queue) as pool:
        pool.hear("control.listening", path=str(path))
        pool.ready()
        assert subprocess.run([WORKQ, "status", "--control", str(path)], capture_output=True).returncode == 0
        assert pool.stop() == 0


def test_f103_supervisors_that_start_together_over_a_dead_socket_leave_it_to_one(
    broker_url: str, queue: str, public: Path
) -> None:
    path = public / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    options = ("--workers", "1", "--control", str(path))
    with ExitStack() as all_of_them:
        pools = [
            all_of_them.enter_context(supervised("handlers:work", *options, url=broker_url, queue=queue))
            for _ in range(4)
        ]
        codes = [pool.wait() for pool in pools if eventually(lambda pool=pool: decided(pool)) != "listens"]
        assert codes == [78, 78, 78]
        [there] = [pool for pool in pools if pool.named("control.listening")]
        assert os.listdir(public) == ["control.sock"]
        assert there.stop() == 0
    assert os.listdir(public) == []


def decided(pool: Supervision) -> str | None:
    return "listens" if pool.named("control.listening") else "not" if pool.named("supervisor.stopped") else None
