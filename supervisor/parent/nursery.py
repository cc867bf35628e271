"""Starts a nursery. The first is forked while this process has one thread, and shares a fifth of a small pool's memory;
later ones are exec'd. It inherits only the descriptors it is given: docs/decisions/0023."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Final, NoReturn

from supervisor import logs, streams
from supervisor.linux import proctitle
from supervisor.vocabulary import EXIT_SOFTWARE

_MODULE: Final = "supervisor.worker.nursery"
"""By name: the parent may not import `supervisor.worker`, and runs nothing of it but `rehearse`."""
_SECRETS: Final = frozenset({"WORKQ_URL"})
"""Variables that no child gets: secrets leak through /proc/PID/environ."""
_NOT_ITS_OWN: Final = ("click", "psutil", "supervisor.cli", "supervisor.linux.orphans", "supervisor.parent")
"""Modules, with their submodules, that a nursery must not inherit: a handler that wants one imports it itself."""


def start(fds: Sequence[int], output: int) -> int:
    """Start one in its own session, with `fds` under the same numbers. Returns its pid; the caller reaps it. Raises
    OSError."""
    is_alone = len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - threads of C libraries count, too
    return _fork(fds, output) if is_alone else _execute(fds, output)


def _execute(fds: Sequence[int], output: int) -> int:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=fds,
        env={name: value for name, value in os.environ.items() if name not in _SECRETS},
        start_new_session=True,
    )
    process.returncode = 0  # the caller reaps it, not Popen
    return process.pid


def _fork(fds: Sequence[int], output: int) -> int:
    nursery = import_module(_MODULE)
    nursery.rehearse()
    below = tuple(f"{name}." for name in _NOT_ITS_OWN)
    ours = [name for name in sys.modules if name in _NOT_ITS_OWN or name.startswith(below)]
    # These objects stay alive: their pages stay shared as long as the collector does not write to them.
    gc.collect()
    gc.freeze()
    # A signal that meets the child with our handlers would be reported to our loop.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(nursery, ours, fds, output, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _become(
    nursery: ModuleType, ours: Sequence[str], fds: Sequence[int], output: int, mask: set[int | signal.Signals]
) -> NoReturn:
    """The child: drop everything of the parent's, and become what `python -P -m` would have started."""
    code = EXIT_SOFTWARE
    try:
        _let_go_of_signals(mask)
        os.setsid()
        _keep_only(fds, output)
        _forget(nursery, ours)
        code = nursery.main(*fds)
        atexit._run_exitfuncs()
        streams.flush()
    except BaseException as error:  # noqa: BLE001 - nothing is swallowed
        streams.complain_of(error)
    finally:
        os._exit(code)


def _let_go_of_signals(mask: set[int | signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _keep_only(fds: Sequence[int], output: int) -> None:
    """Close every other descriptor. Their owners are in frames that never resume, so none is closed twice."""
    logs.close()
    for fd, number in ((os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0), (output, 1), (output, 2)):
        os.dup2(fd, number)
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > 2 and fd not in fds:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own
    # On 0 to 2, whatever is there; if we were started without one (`>&-`), Python has no stream for it.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _forget(nursery: ModuleType, ours: Sequence[str]) -> None:
    """Drop the command line, and what was imported to read it."""
    for name in _SECRETS:
        os.environ.pop(name, None)
    proctitle.hide_removed_variables()
    sys.argv[:] = [str(nursery.__file__)]
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's directory, or the working directory
    sys.modules["__main__"] = nursery
    for name in ours:
        del sys.modules[name]
