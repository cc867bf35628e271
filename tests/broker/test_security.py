"""Whoever should not know a secret does not find it, who holds on to the doors is not in the way, and the pool needs
neither root, nor a disk, nor all of its CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psutil
import pytest

from supervisor.settings import OPTIONS
from tests import amqp
from tests.node import PrivateNode
from tests.supervision import EXECUTED, Runs, Supervision, eventually, supervised

ROOT = Path(__file__).parents[2]
NOBODY = 65534


# --------------------------------------------------------------------------------------------------------- secrets

SECRET = "hunter2-@-secret"
HUNTED = "hunter2"
"""What has to be found nowhere, encoded or not."""
DECOY = "decoy-4711"
"""What has to be found, so that it is known that one looks where things are found."""

TELLTALE = """
import ctypes, os, sys

def environments():
    for pid in ("self", os.getppid()):
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}") as file:
                yield file.read()

def tell(task):
    secrets = [*environments(), repr(dict(os.environ)), repr(sys.argv), repr(task), repr(vars(sys.modules["__main__"]))]
    print(*secrets)
    task.log.info("tell", secrets=secrets)
    if task.text == "raise":
        raise ValueError(*secrets)
    if task.text == "crash":
        ctypes.string_at(0)
"""


@pytest.fixture
def secret_url(node: PrivateNode) -> Iterator[str]:
    """The shared node, with a user that has a password worth hiding."""
    user = f"carol-{uuid4().hex[:8]}"
    node.ctl("add_user", user, SECRET)
    try:
        node.ctl("set_permissions", "-p", "/", user, ".*", ".*", ".*")
        yield re.sub("//[^@]*@", f"//{user}:{SECRET.replace('@', '%40')}@", node.url)
    finally:
        node.ctl("delete_user", user)


def family(pid: int) -> list[psutil.Process]:
    """The supervisor and all below it."""
    supervisor = psutil.Process(pid)
    return [supervisor, *supervisor.children(recursive=True)]


def readable(relatives: list[psutil.Process]) -> tuple[list[psutil.Process], dict[str, str]] | None:
    """They, and what anybody of our user can read of them; None when one of them is no more: a worker's birth has a
    process between that lives for a millisecond."""
    found = {}
    for process in relatives:
        for name in ("cmdline", "environ"):
            try:
                found[f"{name} of {process.pid}"] = Path(f"/proc/{process.pid}/{name}").read_text()
            except (ProcessLookupError, FileNotFoundError):
                return None
    return relatives, found


def test_f55_a_secret_that_came_by_argv_and_environment_is_found_nowhere(
    secret_url: str, broker_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "telltale.py").write_text(TELLTALE)
    control = tmp_path / "control.sock"
    options = ("--workers", "2", "--log-level", "debug", "--retries", "0", "--max-crashes", "1", "--url", secret_url)
    env = {"PYTHONPATH": str(tmp_path), "TEST_DECOY": DECOY}
    found: dict[str, str] = {}
    options += ("--control", str(control))
    with supervised("telltale:tell", *options, url=secret_url, queue=queue, env=env, inside=EXECUTED) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["print", "raise", "crash"], ids=["print", "raise", "crash"])
        pool.hear("task.succeeded", message_id="print")
        pool.hear("task.dead_lettered", message_id="raise")
        pool.hear("task.quarantined", message_id="crash")
        pool.send(signal.SIGUSR1)
        pool.send(signal.SIGUSR2)
        pool.hear("supervisor.status")
        relatives, shown = eventually(lambda: len(them := family(pool.pid)) == 6 and readable(them))  # one was replaced
        found |= shown
        assert secret_url.partition("@")[2] in found[f"cmdline of {pool.pid}"]  # the rest of the URL is as it was
        for path in ("/", "/healthz", "/readyz", "/metrics", "/status"):
            found[path] = pool.get(path)[1]
            found[f"{path} by the control socket"] = ask(lambda: dial(str(control)), path)
        for command in ("check", "status"):
            found[f"workq {command}"] = workq(command, secret_url, queue, control)
        assert pool.stop() == 0
        found["log"] = json.dumps(pool.events)
    letters = [(properties, body) for _, properties, body in amqp.drain(broker_url, f"{queue}.dead")]
    found["dead letters"] = str(letters)
    for where in (f"environ of {relatives[1].pid}", "log", "dead letters", "workq status"):
        assert (DECOY if where != "workq status" else queue) in found[where], where
    assert "x-workq-evidence" in found["dead letters"] and "x-workq-traceback" in found["dead letters"]
    assert [where for where, text in found.items() if HUNTED in text] == []


def workq(command: str, url: str, queue: str, control: Path) -> str:
    """What this command says, whatever it thinks of it."""
    program = str(Path(sys.executable).with_name("workq"))
    words = ["--url", url, "--queue", queue] if command == "check" else ["--control", str(control), "--json"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    done = subprocess.run(
        [program, command, *words], env={**environ, "WORKQ_URL": url}, capture_output=True, timeout=60
    )
    assert b"Usage" not in done.stderr, done.stderr
    return (done.stdout + done.stderr).decode()


@pytest.fixture
def refusal(broker_url: str, queue: str, tmp_path: Path) -> tuple[str, str]:
    """The log, and the headers of the dead letter, of a handler that prints and raises a URL of its own."""
    line = f"amqp://carol:{SECRET}@elsewhere/%2F refused"
    (tmp_path / "raises.py").write_text(f"def work(task):\n    print({line!r})\n    raise ConnectionError({line!r})\n")
    env = {"PYTHONPATH": str(tmp_path)}
    amqp.publish(broker_url, queue, ["x"], ids=["one"])
    with supervised("raises:work", "--workers", "1", "--retries", "0", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("task.dead_lettered", message_id="one")
        pool.hear("worker.output")
        assert pool.stop() == 0
        log = json.dumps(pool.events)
    [(_, properties, _)] = amqp.drain(broker_url, f"{queue}.dead")
    return log, str(properties)


def test_f55_a_url_that_a_handler_prints_or_raises_loses_its_password_on_its_way_to_the_log(
    refusal: tuple[str, str],
) -> None:
    assert "@elsewhere" in refusal[0] and HUNTED not in refusal[0]


def test_f55_a_url_that_a_handler_raises_loses_its_password_on_its_way_to_the_dead_letter(
    refusal: tuple[str, str],
) -> None:
    assert "@elsewhere" in refusal[1] and HUNTED not in refusal[1]


SEVERED = """
import ctypes, sys

def work(task):
    url, cut = {url!r}, int(task.text)
    print("." * (8192 - cut) + url, flush=True)
    task.log.info("told", said="x" * (32700 - cut) + url)
    sys.stderr.write(url + "." * (16384 - len(url) + cut - 1) + "\\n")
    sys.stderr.flush()
    if cut % 2:
        ctypes.string_at(0)
    try:
        raise KeyError("x" * (8192 - cut) + url)
    except KeyError:
        raise ConnectionError("x" * (1024 - cut) + url + "." * (7900 - 1024 + 2 * cut))
"""


def test_f98_a_password_that_a_cut_severs_is_in_no_log_and_no_dead_letter(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "severed.py").write_text(SEVERED.format(url=f"amqp://carol:{SECRET}@elsewhere"))
    options = ("--workers", "1", "--retries", "0", "--max-crashes", "1", "--prefetch", "1")
    cuts = [16, 22, 27, 17, 23]
    amqp.publish(broker_url, queue, [str(cut) for cut in cuts], ids=[str(cut) for cut in cuts])
    with supervised("severed:work", *options, url=broker_url, queue=queue, env={"PYTHONPATH": str(tmp_path)}) as pool:
        pool.hear("task.dead_lettered", count=2)
        pool.hear("task.quarantined", count=3)
        status = pool.get("/status")[1]
        assert pool.stop() == 0
        log = json.dumps(pool.events)
    letters = str([properties for _, properties, _ in amqp.drain(broker_url, f"{queue}.dead")])
    assert "x-workq-evidence" in letters and "x-workq-traceback" in letters and "....." in log and "xxxxx" in log
    pieces = {SECRET[at : at + 4] for at in range(len(SECRET) - 3)}
    for where in (log, letters, status):
        assert [piece for piece in sorted(pieces) if piece in where] == []


def test_f102_a_url_file_that_everybody_can_read_is_warned_of_at_the_start_and_by_check(
    broker_url: str, queue: str
) -> None:
    with TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        file = Path(directory) / "url"
        file.write_text(broker_url + "\n")
        for mode in (0o644, 0o600):
            file.chmod(mode)
            options = ("--workers", "1", "--url-file", str(file))
            with supervised("handlers:work", *options, url="", queue=queue) as pool:
                pool.ready()
                assert pool.stop() == 0
                said = [f"{line['level']} {line['because']}" for line in pool.named("supervisor.url_file_open")]
            words = ["check", "--json", "--queue", queue, "--management", "off", "--url-file", str(file)]
            program = Path(sys.executable).with_name("workq")
            environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
            done = subprocess.run([program, *words], env=environ, capture_output=True, text=True, timeout=60)
            found = [line for line in map(json.loads, done.stdout.splitlines()) if line["subject"] == "url file"]
            if mode == 0o644:
                assert len(said) == 1 and said[0].startswith("warning ") and "mode 0644" in said[0]
                assert [(line["level"], line["fix"]) for line in found] == [("warning", f"chmod 600 {file}")]
                assert "mode 0644" in found[0]["what"]
            else:
                assert said == found == []


def test_f54_every_option_wrong_at_once_is_one_report_without_traceback_or_secret(tmp_path: Path) -> None:
    wrong = {
        "queue": "amq.ours",
        "control": "/nonexistent/workq.sock",
        "url": f"amqp://carol:{SECRET}@127.0.0.1:99999",
        "health": f"amqp://carol:{SECRET}@127.0.0.1",
    }
    options = [option for option in OPTIONS.values() if option.name not in ("config", "url_file", "handler")]
    words, environ = [], {}
    for option in options:
        if option.metavar:
            words += [option.flag, wrong.get(option.name, "?!")]
        else:
            environ[option.variable] = "?!"
    (tmp_path / "workq.toml").write_text(f'wrokers = 3\npassword = "{SECRET}"\nconfig = "x"\n')
    done = subprocess.run(
        [Path(sys.executable).with_name("workq-supervise"), "--config", tmp_path / "workq.toml", *words, "?!"],
        env={**{name: os.environ[name] for name in ("PATH",)}, **environ, "WORKQ_MAX_TASK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    head, *problems = done.stderr.splitlines()
    assert done.returncode == 78, done.stderr
    assert head.startswith("workq-supervise: ") and done.stdout == ""
    sources = [option.flag if option.metavar else option.variable for option in options]
    sources += [
        "MODULE:FUNCTION",
        "WORKQ_MAX_TASK",
        *(f"workq.toml: {key}" for key in ("wrokers", "password", "config")),
    ]
    for source in sources:
        assert len([problem for problem in problems if problem.startswith(f"  {source}: ")]) == 1, source
    assert len(problems) == len(sources)
    assert "Traceback" not in done.stderr and HUNTED not in done.stderr


# --------------------------------------------------------------------------------------------------- bad clients

CLIENTS = 500
DESCRIPTORS = 256
"""What the supervisor may have, far less than there are clients."""

Dial = Callable[[], socket.socket]


def dial(address: str) -> socket.socket:
    """Connect to `http://host:port`, or to a path."""
    if address.startswith("http://"):
        host, _, port = address.removeprefix("http://").rpartition(":")
        return socket.create_connection((host, int(port)), timeout=10)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(address)
    return sock


def ask(dial: Dial, path: str = "/healthz") -> str:
    """What a well-behaved client gets, head and body. Raises TimeoutError after ten seconds of silence."""
    with dial() as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def send(sock: socket.socket, data: bytes) -> None:
    """As much as is taken: sooner or later the other side has had enough."""
    try:
        sock.sendall(data)
    except OSError:
        pass


def half_requests(dial: Dial, held: ExitStack) -> None:
    for _ in range(CLIENTS):
        send(held.enter_context(dial()), b"GET /healthz HTTP/1.1\r\nHost: h")


def silence(dial: Dial, held: ExitStack) -> None:
    for _ in range(CLIENTS):
        held.enter_context(dial())


def garbage(dial: Dial, held: ExitStack) -> None:
    noise = bytes(range(256)) * 8
    for begin in range(CLIENTS):
        send(held.enter_context(dial()), b"\x16\x03\x01" + noise[begin % 256 :])


def never_reads(dial: Dial, held: ExitStack) -> None:
    for _ in range(CLIENTS // 5):
        sock = held.enter_context(dial())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.02)
        send(sock, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)


def ten_megabytes(dial: Dial, held: ExitStack) -> None:
    size = 10 * 1024 * 1024
    head = b"POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
    for begin in (head, b"GET /" + b"x" * size, b"GET / HTTP/1.1\r\nHost: " + b"h" * size):
        send(held.enter_context(dial()), begin.ljust(size, b"."))


@contextmanager
def tight(broker_url: str, queue: str, runs: Runs, control: Path) -> Iterator[Supervision]:
    """A pool of two that has no descriptor to spare."""
    options = ("--workers", "2", "--control", str(control))
    limit = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env, inside=limit) as pool:
        yield pool.ready()


@pytest.mark.parametrize("door", ["health", "control"])
def test_f56_500_bad_clients_of_every_kind_cost_neither_an_answer_nor_a_turn_of_the_loop_nor_a_worker(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path, door: str
) -> None:
    with tight(broker_url, queue, runs, tmp_path / "s") as pool, ExitStack() as held:
        address = pool.health if door == "health" else str(tmp_path / "s")
        supervisor = psutil.Process(pool.pid)
        ask(lambda: dial(address))
        fds, rss = supervisor.num_fds(), supervisor.memory_info().rss
        for number, crowd in enumerate((half_requests, silence, garbage, never_reads, ten_megabytes), start=1):
            crowd(lambda: dial(address), held)
            assert ask(lambda: dial(address)).startswith("HTTP/1.1 200 "), crowd.__name__
            status = json.loads(ask(lambda: dial(address), "/status").partition("\r\n\r\n")[2])
            assert status["loop_seconds"] < 4, crowd.__name__
            amqp.publish(broker_url, queue, ["0"] * 20)
            pool.hear("task.succeeded", count=number * 20)
            os.kill(next(worker["pid"] for worker in status["workers"] if worker["pid"]), signal.SIGKILL)
            pool.hear("worker.ready", count=2 + number)
            assert supervisor.num_fds() < DESCRIPTORS - 40, crowd.__name__
        assert supervisor.memory_info().rss - rss < 64 * 1024 * 1024
        # Nobody who holds on is held for ever.
        eventually(lambda: supervisor.num_fds() <= fds + 4)
        # Nor may they write our log for us.
        assert len([line for line in pool.events if "HTTP" in line["event"] or "accept" in line["event"]]) == 0
        assert pool.stop() == 0


# ------------------------------------------------------------------------------------------------- bad requests


def exchange(dial: Dial, *pieces: bytes) -> bytes:
    """All that comes back until the other side closes. Raises TimeoutError after ten seconds of silence."""
    with dial() as sock:
        for piece in pieces:
            send(sock, piece)
        parts = []
        with suppress(ConnectionResetError):
            while part := sock.recv(65536):
                parts.append(part)
    return b"".join(parts)


def get(dial: Dial, host: str, path: str = "/status") -> int:
    """The status, asked by this name."""
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    return int(exchange(dial, head.encode()).split()[1])


def test_f101_the_health_port_answers_to_the_names_that_are_its_own_and_the_control_socket_to_any(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    control, own = str(tmp_path / "s"), socket.gethostname()
    names = ("--health-host", "workers.example.org,other", "--health-host", "Third.")
    options = ("--workers", "1", "--control", control, *names)
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as pool:
        health = pool.ready().health
        port = health.rpartition(":")[2]
        ours = (
            "127.0.0.1",
            "[::1]",
            "10.1.2.3",
            "localhost",
            "LOCALHOST.",
            own,
            "workers.example.org",
            "other",
            "third",
        )
        foreign = (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            f"{own}.evil.example",
            "example.org",
        )
        for host in ours:
            assert {get(lambda: dial(health), name) for name in (host, f"{host}:{port}", f"{host}:1")} == {200}, host
        for host in foreign:
            for path in ("/", "/status", "/metrics", "/healthz", "/readyz", "/none"):
                assert get(lambda: dial(health), f"{host}:{port}", path) == 421, host
            assert get(lambda: dial(control), host) == 200, host
        assert exchange(lambda: dial(health), b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        told = exchange(lambda: dial(health), b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert b"--health-host" in told and queue.encode() not in told
        assert pool.stop() == 0


MALFORMED = [
    b"zz\r\n", b"-1\r\nx", b"5\r\nhello", b"5\r\nhello!!\r\n0\r\n\r\n", b"f" * 30 + b"\r\nx", b"\r\n\r\n\r\n",
    b"0\r\nno header\r\n\r\n", b"1;" + b"x" * 40_000, b"\0\xff\r\n", b"0\r\n\rGET",
]  # fmt: skip
"""Bodies that are not chunked as they claim to be."""


@pytest.mark.parametrize("door", ["health", "control"])
def test_f100_a_request_that_is_no_http_costs_its_sender_the_connection_and_us_no_line(
    broker_url: str, queue: str, tmp_path: Path, door: str
) -> None:
    control = str(tmp_path / "s")
    with supervised("handlers:work", "--workers", "1", "--control", control, url=broker_url, queue=queue) as pool:
        address = control if door == "control" else pool.ready().health
        pool.ready()
        for verb in (b"GET /status", b"POST /status", b"POST /drain", b"HEAD /", b"GET /none"):
            head = verb + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            for body in MALFORMED:
                for pieces in ((head + body,), (head, body), (b"GET / HTTP/1.1\r\nHost: x.y\r\n\r\n" + head + body,)):
                    with dial(address) as sock:
                        for piece in pieces:
                            send(sock, piece)
                        with suppress(OSError):
                            sock.shutdown(socket.SHUT_WR)
                            while sock.recv(65536):
                                pass
        for line in (b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"):
            exchange(lambda: dial(address), line)
        assert json.loads(ask(lambda: dial(address), "/status").partition("\r\n\r\n")[2])["state"] == "running"
        assert pool.stop() == 0
        ordinary = {"worker", "supervisor", "health", "control", "broker", "handler", "queue"}
        assert [line for line in pool.events if line["event"].partition(".")[0] not in ordinary] == []


@pytest.mark.parametrize("door", ["health", "control"])
def test_f104_two_lengths_in_one_request_are_refused_and_the_connection_is_closed(
    broker_url: str, queue: str, tmp_path: Path, door: str
) -> None:
    control = str(tmp_path / "s")
    with supervised("handlers:work", "--workers", "1", "--control", control, url=broker_url, queue=queue) as pool:
        address = control if door == "control" else pool.ready().health
        pool.ready()
        lengths = [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
        smuggled = b"0\r\n\r\nGET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for verb in (b"GET /healthz", b"POST /drain"):
            for pair in (lengths, lengths[::-1]):
                head = verb + b" HTTP/1.1\r\nHost: localhost\r\n" + b"".join(pair) + b"\r\n"
                told = exchange(lambda: dial(address), head + smuggled)
                assert told.startswith(b"HTTP/1.1 400 ") and told.count(b"HTTP/1.1 ") == 1
                assert b"connection: close" in told.lower()
        assert json.loads(ask(lambda: dial(address), "/status").partition("\r\n\r\n")[2])["state"] == "running"
        assert pool.stop() == 0


# ----------------------------------------------------------------------------------------------------- hard times


@pytest.fixture
def read_only_for_nobody() -> tuple[str, ...]:
    """What makes a command run as nobody, without a home, in a file system that nothing can be written to."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("takes root, with CAP_SYS_ADMIN")
    # Python and this tree may lie below a home that is closed to others: it is replaced by one with nothing else in it.
    closed = {path: top for path in (Path(sys.base_prefix).resolve(), ROOT) if (top := closed_above(path))}
    script = ["set -e", "mount -t tmpfs hold /mnt", "umask 022"]
    for number, path in enumerate(closed):
        script += [f"mkdir /mnt/{number}", f"mount --bind '{path}' /mnt/{number}"]
    script += [f"mount -t tmpfs -o mode=755 home '{top}'" for top in set(closed.values())]
    for number, path in enumerate(closed):
        script += [f"mkdir -p '{path}'", f"mount --bind /mnt/{number} '{path}'"]
    for mount in ("/", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm"):
        script += [f"mount --bind {mount} {mount}", f"mount -o remount,bind,ro {mount}"]
    script += [
        "umask 000",
        f"cd / && exec setpriv --pdeathsig KILL --reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs "
        "env -u TMPDIR -u XDG_RUNTIME_DIR -u RUNTIME_DIRECTORY HOME=/nonexistent "
        'sh -c \'for d in / /tmp /var/tmp /dev/shm; do touch $d/x 2>&- && exit 98; done; exec "$@"\' - "$@"',
    ]
    return ("unshare", "-m", "sh", "-c", "\n".join(script), "-")


def closed_above(path: Path) -> Path | None:
    """The first directory on the way there that others may not go through."""
    return next((above for above in reversed(path.parents) if not above.stat().st_mode & 0o001), None)


def test_any_user_will_do_without_a_home_or_a_place_to_write(
    broker_url: str, queue: str, read_only_for_nobody: tuple[str, ...]
) -> None:
    with supervised(
        "handlers:work", "--workers", "2", url=broker_url, queue=queue, inside=read_only_for_nobody
    ) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["0"] * 10 + ["nonsense"])
        pool.hear("task.succeeded", count=10)
        relatives = eventually(lambda: found if len(found := family(pool.pid)) == 6 else None)  # the spare comes last
        assert {uid for process in relatives for uid in process.uids()} == {NOBODY}
        assert Path(f"/proc/{pool.pid}/cwd").readlink() == Path("/")
        os.kill(pool.pids()[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        assert pool.get("/readyz")[0] == 200
        assert pool.stop() == 0
        assert [line for line in pool.events if re.search("[Pp]ermission denied|Read-only", json.dumps(line))] == []


@contextmanager
def an_eighth_of_a_cpu() -> Iterator[Callable[[int], None]]:
    """Puts processes where they have that much together. Then asserts that they would have liked more."""
    root, name = Path("/sys/fs/cgroup"), f"workq-test-{uuid4().hex[:12]}"
    is_v1 = (root / "cpu/cpu.cfs_quota_us").exists() or (root / "cpu/cgroup.procs").exists()
    directory = (root / "cpu" if is_v1 else root) / name
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no CPU cgroup can be made: {error}")
    try:
        try:
            quota = {"cpu.cfs_quota_us": "12500"} if is_v1 else {"cpu.max": "12500 100000"}
            for file, text in quota.items():
                (directory / file).write_text(text)
        except OSError as error:
            pytest.skip(f"{directory} has no CPU quota: {error}")
        yield lambda pid: (directory / "cgroup.procs").write_text(str(pid)) and None
        throttled = re.search(r"^nr_throttled (\d+)$", (directory / "cpu.stat").read_text(), re.M)
        assert throttled and int(throttled[1]) > 20
    finally:
        eventually(lambda: removed(directory))


def removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:  # EBUSY as long as somebody in it is not reaped
        return False
    return True


def test_f53_with_an_eighth_of_a_cpu_everything_is_slow_and_nobody_is_killed(
    broker_url: str, queue: str, runs: Runs
) -> None:
    options = ("--workers", "3", "--heartbeat", "2s", "--max-tasks", "4", "--grace", "60s")
    with an_eighth_of_a_cpu() as take, ExitStack() as stack:
        pool = stack.enter_context(
            supervised("handlers:spin", *options, url=broker_url, queue=queue, env=runs.env)
        ).ready()
        for process in family(pool.pid):
            with suppress(ProcessLookupError):  # one in the middle of a fork lives for milliseconds
                take(process.pid)
        until = time.monotonic() + 10
        published = 0
        while time.monotonic() < until:
            # Each waits for the last ones: there is always something to do, and idle workers beside the busy ones.
            amqp.publish(broker_url, queue, ["0.4"] * 4)
            published += 4
            pool.hear("task.succeeded", count=published, timeout=60)
        assert pool.stop(timeout=60) == 0
        assert pool.named("worker.hung") == []
        # The stop may meet a worker that is being born: it has nothing in hand, hears nothing yet, and is killed.
        consumed = {line["pid"] for line in pool.named("worker.ready")}
        assert consumed.isdisjoint(line["pid"] for line in pool.named("worker.exited") if line["status"] != "exit 0")
        assert {line["because"] for line in pool.named("worker.signalled")} <= {"SIGTERM"}
        causes = [line["cause"] for line in pool.named("worker.exited")]
        assert set(causes) <= {"max_tasks", "drained"} and "max_tasks" in causes
        assert len(runs.lines("began")) == len(runs.lines("done")) == published
