"""Who is measured, side by side: each takes the same tasks (`tasks.work`) from a durable classic queue, one message a
worker at a time, persistent messages, acknowledged after the work.

    BarePika      pika alone, without anything around it: what a worker in Python costs at least; its processes
                  started one by one, or forked from one
    Workq         workq-supervise
    Dramatiq, Celery
    Supervisord   supervisord, which runs the worker of RabbitMQ's tutorial
    CClient       librabbitmq: what this broker can do

The peers are configured as their documentation advises for the same guarantees; see `peers/`. Each runs in processes of
its own, and its messages are in its own format.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pika

import supervisor
from supervisor import Publisher
from supervisor.clock import now
from supervisor.linux.descendants import children
from supervisor.version import __version__

from .queues import connection
from .row import BenchError, Options

HERE: Final = Path(__file__).resolve().parent
SCRIPTS: Final = HERE.parent
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workq-supervise"
PINS: Final = HERE / "requirements.txt"
INSTALL: Final = "apt-get install --no-install-recommends gcc libc6-dev librabbitmq-dev pkgconf"
MARK: Final = "BENCH_POOL"
"""Every process of a pool has this in its environment: so it is found when its parents are gone."""
OTHERS: Final = ("WORKQ_", "BENCH_", "PYTHON")
"""What begins so in our environment is not meant for a pool: PYTHONDONTWRITEBYTECODE would have it compile at each
start what was changed last."""
STOP_SECONDS: Final = 8.0
"""How long a pool may take to leave on SIGTERM before it is killed."""
PATIENCE: Final = 30.0
"""Seconds to wait for what takes milliseconds, or a few seconds with some."""
GENTLY: Final = 0.05
"""Seconds between two looks: meanwhile the processors have something else to do."""


# ---------------------------------------------------------------------------------------------------------- pool


class Pool:
    """A contender that runs: its top process and all below it."""

    def __init__(self, contender: Contender, url: str, name: str, size: int, process: subprocess.Popen[bytes]) -> None:
        self.root = process.pid
        """The pid of the top process."""
        self.size = size
        """How many workers it shall have."""
        self.log: Path
        """What its processes write to standard output and error."""
        self._contender = contender
        self._url = url
        self._name = name
        self._process = process

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def family(self) -> list[int]:
        """The top process and all its descendants that live now."""
        return [self.root, *descendants(self.root)] if self.alive else []

    def workers(self) -> list[int]:
        """The processes that run tasks, now."""
        return self._contender.find_workers(self.root) if self.alive else []

    def parents(self) -> list[int]:
        """Those that do not: the supervisor's side."""
        workers = set(self.workers())
        return [pid for pid in self.family() if pid not in workers]

    def wait(
        self, happens: Callable[[], object], otherwise: str, timeout: float = PATIENCE, every: float = 0.02
    ) -> None:
        """Until this happens; look every so many seconds, or all the time (0). Raises BenchError when it has not
        happened after `timeout` seconds (`otherwise`: what has not), and when the top process has left."""
        deadline = now() + timeout
        while not happens():
            self.demand_alive()
            if now() > deadline:
                raise BenchError(
                    f"{self._contender.name}: {otherwise} after {timeout:g} s; its output ends:\n{self.tail()}"
                )
            if every:
                time.sleep(every)

    def await_ready(self, timeout: float = 60.0) -> None:
        """Until all its workers are there and consume. `timeout` in seconds. Raises BenchError."""
        consumers = self._contender.consumers(self.size)
        with connection(self._url) as link:
            channel = link.channel()

            def is_ready() -> bool:
                nonlocal channel
                try:
                    method: Any = channel.queue_declare(self._name, passive=True).method
                except pika.exceptions.ChannelClosedByBroker:
                    channel = link.channel()  # not declared yet
                    return False
                return int(method.consumer_count) >= consumers and len(self.workers()) >= self.size

            self.wait(is_ready, f"not all of {self.size} workers are ready", timeout)

    def await_consumers(self, link: Any, dead: Collection[int] = (), every: float = GENTLY) -> None:
        """Until the broker, asked on the channel `link`, counts exactly as many consumers as there shall be workers,
        and so many workers are there, none of them `dead`. The queue must exist. Raises BenchError."""

        def consume() -> bool:
            if link.queue_declare(self._name, passive=True).method.consumer_count != self.size:
                return False
            workers = self.workers()
            return len(workers) == self.size and set(workers).isdisjoint(dead)

        self.wait(consume, f"not all of {self.size} workers consume", 60.0, every)

    def demand_alive(self) -> None:
        """Raises BenchError when the top process has left."""
        if not self.alive:
            code = self._process.returncode
            raise BenchError(f"{self._contender.name} has left with {code}; its output ends:\n{self.tail()}")

    def tail(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-3000:]


def descendants(pid: int) -> list[int]:
    """All processes below this one that live now, the nearest first (/proc/PID/task/TID/children, proc(5))."""
    below = children(pid)
    return below + [further for child in below for further in descendants(child)]


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Leave nothing of a pool: ask the top process, then kill whatever has the mark, and see all of it dead."""
    with ExitStack() as stack:
        held = hold(mark, stack)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()
        while left := hold(mark, stack):
            held += left
            for pidfd in left:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            time.sleep(0.01)
        for pidfd in held:
            # Between its memory and its pid a dying process has no environment to be known by, and is still there.
            if not select.select([pidfd], [], [], PATIENCE)[0]:
                raise BenchError(f"a process of the pool does not die within {PATIENCE:g} s of SIGKILL")


def hold(mark: str, stack: ExitStack) -> list[int]:
    """A pidfd of each process that has inherited this mark, wherever its parents are; closed by the stack."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError), ExitStack() as attempt:
                pidfd = os.pidfd_open(int(entry.name))
                attempt.callback(os.close, pidfd)
                # Read after the pidfd was opened: nobody else can have come by the pid since.
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    stack.push(attempt.pop_all())
                    found.append(pidfd)
    return found


# ---------------------------------------------------------------------------------------------------- contenders


class Contender(ABC):
    """Somebody who can run the tasks."""

    name: str
    reach: str | None = None
    """The URL by which its workers reach the broker, where that is another way than ours."""

    @property
    def slug(self) -> str:
        """Its name where there may be no blank."""
        return re.sub(r"\W+", "-", self.name.lower())

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Make ready what it needs on this machine; nothing to do the second time. Raises BenchError."""

    @abstractmethod
    def version(self) -> str:
        """Of what is measured, in words: `Celery 5.7.0`."""

    def consumers(self, workers: int) -> int:
        """How many consumers the broker counts on the queue when all workers are there."""
        return workers

    def publish(self, url: str, name: str, bodies: Sequence[bytes]) -> None:
        """Put messages in its queue, in its own format, persistent; return when the broker has confirmed all. Declares
        the queue as it would itself."""
        with Publisher(url, name) as publisher:
            publisher.publish_many(bodies)

    @contextmanager
    def running(self, url: str, name: str, workers: int, place: Path, env: Mapping[str, str] = {}) -> Iterator[Pool]:
        """So many workers on the queue, for the length of a block; afterwards nothing of them is left.

        `place` is a directory for its files, `env` is what tasks.py reads. Returns at once: see `Pool.await_ready`.
        """
        self.prepare()
        place.mkdir(parents=True, exist_ok=True)
        mark = uuid4().hex
        way = self.reach or url
        log = place / f"{self.slug}-{mark[:6]}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(OTHERS)}
        mine = {"BENCH_URL": way, "BENCH_QUEUE": name, MARK: mark, "PYTHONPATH": str(SCRIPTS)}
        with log.open("wb") as written:
            process = subprocess.Popen(
                # Should this process be killed, the pool follows (PR_SET_PDEATHSIG, prctl(2)). A session of its own:
                # Ctrl-C is for this process, which then ends everything in order.
                ["setpriv", "--pdeathsig", "TERM", *self.command(way, name, workers, place)],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                env={**inherited, **mine, **self.environment(way), **env},
                cwd=place,
                start_new_session=True,
            )
        try:
            pool = Pool(self, url, name, workers, process)
            pool.log = log
            yield pool
        finally:
            end(process, mark)

    @abstractmethod
    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        """What to execute."""

    def environment(self, url: str) -> dict[str, str]:
        """What it reads beside what everybody is given."""
        return {}

    def find_workers(self, root: int) -> list[int]:
        """The processes below `root` that run tasks, now."""
        return children(root)


class BarePika(Contender):
    """pika alone: one process a worker, started by a parent that does nothing else.

    `forked`: the parent has imported the program, and the workers are forks of it, as ours are: they share the pages of
    its memory, and so the processor's caches. Nobody's workers come about like that by themselves, so it is no measure
    of ours; it tells which part of a difference is due to that.
    """

    def __init__(self, forked: bool = False, reach: str | None = None) -> None:
        self._forked = forked
        self.reach = reach
        self.name = "bare pika, forked" if forked else "bare pika"

    def version(self) -> str:
        return f"pika {pika.__version__}, Python {sys.version.split()[0]}"

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        if self._forked:
            return [sys.executable, "-m", "benches.peers.forked", str(workers)]
        worker = [sys.executable, "-m", "benches.peers.bare_pika"]
        return [sys.executable, "-m", "benches.peers.pool", str(workers), *worker]


class Workq(Contender):
    """workq-supervise as it is installed here; its health listens on a port of its own choice."""

    def __init__(self, level: str = "warning", reach: str | None = None) -> None:
        self._level = level
        self.reach = reach
        self.name = "workq" if level == "warning" else f"workq {level}"

    def prepare(self) -> None:
        # pip does so with what it installs, but for `--editable`.
        compileall.compile_dir(Path(supervisor.__file__).parent, quiet=1)

    def version(self) -> str:
        return f"workq-supervise {__version__}"

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        program = str(Path(sys.executable).with_name("workq-supervise"))
        given = ["--queue", name, "--workers", str(workers), "--log-level", self._level, "--log-format", "json"]
        fixed = ["--health", "127.0.0.1:0", "--control", "off", "--app-dir", str(SCRIPTS)]
        return [program, *given, *fixed, "benches.tasks:handle"]

    def environment(self, url: str) -> dict[str, str]:
        return {"WORKQ_URL": url, "PYTHONPATH": ""}  # --app-dir is how its users have it find their modules

    def find_workers(self, root: int) -> list[int]:
        return [pid for pid in descendants(root) if comm(pid).startswith("workq-worker-")]


class Peer(Contender):
    """One that lives in an environment with its own dependencies; `app` makes messages of its own kind."""

    app: str
    distribution: str

    def prepare(self) -> None:
        peers_venv()

    def version(self) -> str:
        return f"{self.name} {pin(self.distribution)}"

    def publish(self, url: str, name: str, bodies: Sequence[bytes]) -> None:
        made = output(
            str(peers_venv() / "bin/python"), "-m", self.app, "encode",
            input="\n".join(json.dumps(body.decode("latin-1")) for body in bodies),
            env={**os.environ, "BENCH_URL": url, "BENCH_QUEUE": name, "PYTHONPATH": str(SCRIPTS)},
        )  # fmt: skip
        messages = map(json.loads, made.splitlines())
        with Publisher(url, name, declare=False) as publisher:
            publisher.publish_many((body, {"properties": pika.BasicProperties(**given)}) for body, given in messages)

    def environment(self, url: str) -> dict[str, str]:
        return {"PATH": f"{peers_venv() / 'bin'}:{os.environ.get('PATH', '')}"}


class Dramatiq(Peer):
    """One thread a process, one message a process (`dramatiq_queue_prefetch`, https://dramatiq.io/advanced.html)."""

    name = "Dramatiq"
    app = "benches.peers.dramatiq_app"
    distribution = "dramatiq"

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        # --skip-logging: warnings only.
        size = ["--processes", str(workers), "--threads", "1", "--skip-logging"]
        return [str(peers_venv() / "bin/dramatiq"), self.app, *size]

    def environment(self, url: str) -> dict[str, str]:
        return {**super().environment(url), "dramatiq_queue_prefetch": "1"}


class Celery(Peer):
    """Prefork; see `peers/celery_app.py` for its settings."""

    name = "Celery"
    app = "benches.peers.celery_app"
    distribution = "celery"

    def consumers(self, workers: int) -> int:
        return 1  # its main process consumes for all

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        quiet = ["--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        size = ["--pool", "prefork", "--concurrency", str(workers), "-O", "fair", "--prefetch-multiplier", "1"]
        node = ["--hostname", f"{name}@localhost"]
        return [str(peers_venv() / "bin/celery"), "-A", self.app, "worker", *size, *quiet, *node]

    def environment(self, url: str) -> dict[str, str]:
        # Celery warns when it runs as root, unless it is told that this is meant.
        return {**super().environment(url), "C_FORCE_ROOT": "1"}


class RetryingCelery(Celery):
    """Celery with `task_retry_on_worker_lost` in the place of `task_reject_on_worker_lost`."""

    name = "Celery, retrying"

    def environment(self, url: str) -> dict[str, str]:
        return {**super().environment(url), "BENCH_CELERY_LOST": "retry"}


class Supervisord(Peer):
    """supervisord with N processes of the tutorial's worker, restarted whenever they leave."""

    name = "supervisord"
    distribution = "supervisor"
    publish = Contender.publish  # the tutorial's worker takes any message

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        config = place / f"supervisord-{uuid4().hex[:6]}.conf"
        config.write_text(
            f"""[supervisord]
nodaemon = true
user = root
loglevel = warn
logfile = {place}/supervisord.log
pidfile = {place}/supervisord.pid
childlogdir = {place}

[program:worker]
command = {peers_venv()}/bin/python -m benches.peers.tutorial
process_name = %(program_name)s_%(process_num)d
numprocs = {workers}
autorestart = true
"""
        )
        return [str(peers_venv() / "bin/supervisord"), "-c", str(config)]


class CClient(Contender):
    """librabbitmq, N processes of `c/worker.c`: as little as a consumer can cost."""

    name = "C client"

    def prepare(self) -> None:
        self._program()

    def version(self) -> str:
        done = subprocess.run(["pkg-config", "--modversion", "librabbitmq"], capture_output=True, text=True)
        return f"librabbitmq {done.stdout.strip()}".strip()

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        return [sys.executable, "-m", "benches.peers.pool", str(workers), str(self._program())]

    def _program(self) -> Path:
        source = HERE / "c/worker.c"
        program = CACHE / f"bench-c-{digest(source)}"
        if not program.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None or not Path("/usr/include/amqp.h").exists():
                raise BenchError(f"the C client needs: {INSTALL}")
            CACHE.mkdir(parents=True, exist_ok=True)
            made = program.with_suffix(f".{os.getpid()}")
            output(compiler, "-O2", "-o", str(made), str(source), "-lrabbitmq")
            made.rename(program)
        return program


# ------------------------------------------------------------------------------------------ what the peers live in


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def pin(distribution: str) -> str:
    """The version of one of the peers' packages."""
    found = re.search(rf"^{distribution}(?:\[.*\])?==(.+)$", PINS.read_text(), re.M)
    return found[1] if found else "?"


def peers_venv() -> Path:
    """The peers' environment; made when it is not there, which takes half a minute. Raises BenchError."""
    place = CACHE / f"bench-venv-{digest(PINS)}"
    stamp = place / "complete"
    if stamp.exists():
        return place
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "bench-venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            print(f"bench: installing the peers in {place}", file=sys.stderr)
            output(sys.executable, "-m", "venv", "--clear", str(place))
            output(f"{place}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(PINS))
            stamp.touch()
    return place


def output(*command: str, **how: Any) -> str:
    """What a program says. Raises BenchError when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **how)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-3000:]}")
    return done.stdout


def contenders() -> list[Contender]:
    """All of them, in the order of the table."""
    return [BarePika(), BarePika(forked=True), Workq(), Workq("info"), Dramatiq(), Celery(), Supervisord(), CClient()]


def chosen(options: Options, *contenders: Contender) -> list[Contender]:
    """Those of them that are wanted and that this machine can run; of the others it is said why not. Ours always: a row
    is about us."""
    found = []
    for each in contenders:
        if not isinstance(each, Workq) and options.contenders and each.name not in options.contenders:
            continue
        try:
            each.prepare()
        except BenchError as error:
            if each.name in options.contenders:
                raise
            print(f"bench: without {each.name}: {error}", file=sys.stderr)
            continue
        found.append(each)
    return found


def rounds_of(contender: Contender, options: Options) -> int:
    """In how many rounds it takes part, or how often it is killed: ours, and those to which ours is compared, as often
    as `options.rounds`; the others, whose figures are there to be seen beside it, `options.peer_rounds`."""
    if isinstance(contender, Workq | BarePika | CClient):
        return options.rounds
    return min(options.rounds, options.peer_rounds or options.rounds)
