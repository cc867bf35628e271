"""The program, started from a process that has imported it: ready after 0.09 s instead of 0.24.

Most tests start a supervisor or a verb, a thousand times, and ask what it does once it runs. A server per process of
the tests imports what a supervisor has imported when it is ready, then forks for each start; the fork runs what the
installed script runs. Executed is what would not be the same after a fork: a command that goes through another program,
or one with other variables that Python or the C library reads when it starts. With WORKQ_TESTS_EXECUTE=1 everything is.

As a program, the server: it reads requests from the socket that is its standard input, and ends, with all that it has
forked, at the end of that.
"""

from __future__ import annotations

import array
import gc
import io
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final

BIN: Final = Path(sys.executable).parent
SUPERVISE: Final = str(BIN / "workq-supervise")
WORKQ: Final = str(BIN / "workq")
PROGRAMS: Final = {"workq-supervise": "supervisor.__main__", "workq": "supervisor.commands"}
"""The installed scripts, and the module whose `main` each of them calls."""
PRELOADED: Final = {
    "workq-supervise": (
        "supervisor.cli", "supervisor.parent.http.app", "supervisor.parent.http.server", "supervisor.parent.main",
        "supervisor.trace", "supervisor.worker.nursery",
    ),
    "workq": (
        "supervisor.commands", "supervisor.commands.check.cli", "supervisor.commands.codes",
        "supervisor.commands.dead.cli", "supervisor.commands.message", "supervisor.commands.running",
        "supervisor.commands.sources", "supervisor.publisher",
    ),
}  # fmt: skip
"""What a supervisor has imported when it is ready, and its nursery; what most verbs import."""
READ_AT_START: Final = ("LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON", "SSL_", "TZ")
"""Beginnings of the variables that a process reads before its `main`. Not PYTHONPATH, which is made up for."""
_ENVIRON: Final = dict(os.environ)
"""Whatever a test changes."""
_REQUEST_MOST: Final = 2**20


def popen(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes] | Launched:
    """Start a command in a session of its own, with pipes for its output and nothing to read. It dies with the tests,
    which their time limit ends by os._exit."""
    program = Path(command[0])
    if program.parent == BIN and program.name in PROGRAMS and _is_forkable(env):
        return Launched(command, env, cwd)
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises subprocess.TimeoutExpired."""
    with popen(command, env=env, cwd=cwd) as process:
        try:
            out, err = (output.decode() for output in process.communicate(timeout=timeout))
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode or 0, out, err)


def _is_forkable(env: Mapping[str, str]) -> bool:
    def read(of: Mapping[str, str]) -> dict[str, str]:
        return {name: of[name] for name in of if name.startswith(READ_AT_START) and name != "PYTHONPATH"}

    return not os.environ.get("WORKQ_TESTS_EXECUTE") and read(env) == read(_ENVIRON)


class Launched:
    """As much of subprocess.Popen as the tests use."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> None:
        self.args = list(command)
        program = Path(command[0]).name
        self.returncode: int | None = None
        self._pidfd: int | None = None
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, stdout = os.pipe2(os.O_CLOEXEC)
        err, stderr = os.pipe2(os.O_CLOEXEC)
        self.stdout: IO[bytes] | None = open(out, "rb")  # noqa: SIM115
        self.stderr: IO[bytes] | None = open(err, "rb")  # noqa: SIM115
        request = json.dumps({"command": self.args, "env": dict(env), "cwd": str(cwd or Path.cwd())}).encode()
        assert len(request) < _REQUEST_MOST
        try:
            _server(program).request(request, stdout, stderr, theirs.fileno())
        finally:
            theirs.close()
            os.close(stdout)
            os.close(stderr)
        said = self._ours.recv(64)
        if not said:
            raise ChildProcessError("the server of tests/launching.py has ended; its standard error says why")
        self.pid = int(said)
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def poll(self) -> int | None:
        return self._hear(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        code = self._hear(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _hear(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ours], [], [], timeout)[0]:
            said = self._ours.recv(64)
            self.returncode = int(said) if said else -signal.SIGKILL  # the server has ended, and all with it
            self._ours.close()
            if self._pidfd is not None:
                os.close(self._pidfd)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """All of its output. Raises subprocess.TimeoutExpired."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        assert self.stdout is not None and self.stderr is not None
        came: dict[int, bytes] = {self.stdout.fileno(): b"", self.stderr.fileno(): b""}
        left = list(came)
        while left:
            for fd in select.select(left, [], [], _until(until))[0]:
                chunk = os.read(fd, 65536)
                came[fd] += chunk
                if not chunk:
                    left.remove(fd)
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(_until(until))
        out, err = came.values()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _until(instant: float) -> float | None:
    """Seconds until then; None: for ever."""
    return None if instant == math.inf else max(0.0, instant - time.monotonic())


# ------------------------------------------------------------------------------------------------- the server


class _Server:
    def __init__(self, program: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_MOST)
        with theirs:
            self.process = subprocess.Popen(
                # Room for the arguments of others, which a process overwrites with what it is called.
                [sys.executable, __file__, program, " " * 4000],
                env=_ENVIRON,
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def request(self, request: bytes, *fds: int) -> None:
        self._socket.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


_lock = threading.Lock()
_servers: dict[tuple[int, str], _Server] = {}
"""By pid and program: a fork of the tests has no server yet."""


def _server(program: str) -> _Server:
    with _lock:
        key = os.getpid(), program
        if key not in _servers:
            _servers[key] = _Server(program)
        return _servers[key]


def serve() -> str:
    """Fork for each request. Returns in the fork: the module whose `main` it is to run."""
    requests = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    children: dict[int, socket.socket] = {}
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            _reap(children)
        if requests not in ready:
            continue
        request, fds, _, _ = socket.recv_fds(requests, _REQUEST_MOST, 3)
        if not request:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        wanted: dict[str, Any] = json.loads(request)
        stdout, stderr, status = fds
        told = socket.socket(fileno=status)
        pid = os.fork()
        if pid:
            told.send(str(pid).encode())
            children[pid] = told
            os.close(stdout)
            os.close(stderr)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for opened in (requests, told, *children.values()):
            opened.close()
        children.clear()
        os.close(reader)
        os.close(writer)
        return _become(wanted["command"], wanted["env"], wanted["cwd"], stdout, stderr)


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as told:
            try:
                told.send(str(os.waitstatus_to_exitcode(status)).encode())
            except OSError:
                pass  # nobody waits for it


def _become(command: list[str], env: dict[str, str], cwd: str, stdout: int, stderr: int) -> str:
    from supervisor.linux import prctl

    os.setsid()
    prctl.follow(os.getppid())
    program = Path(command[0])
    Path("/proc/self/comm").write_text(program.name[:15])
    for fd, number in ((stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    # They remember whether one can seek in what they were opened on.
    sys.stdout = sys.__stdout__ = _on(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _on(2, sys.stderr)  # type: ignore[misc]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = command
    sys.orig_argv[:] = [sys.executable, *command]
    sys.path[0] = str(program.parent)
    sys.path[1:1] = [path or cwd for path in env.get("PYTHONPATH", "").split(os.pathsep)] if "PYTHONPATH" in env else []
    return PROGRAMS[program.name]


def _on(fd: int, like: Any) -> io.TextIOWrapper:
    raw = open(fd, "wb", 0 if like.write_through else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        raw, like.encoding, like.errors, line_buffering=like.line_buffering, write_through=like.write_through
    )


if __name__ == "__main__":
    for name in PRELOADED[sys.argv[1]]:
        import_module(name)
    if "supervisor.worker.nursery" in sys.modules:
        sys.modules["supervisor.worker.nursery"].rehearse()
    gc.collect()
    gc.freeze()
    sys.exit(import_module(serve()).main())
