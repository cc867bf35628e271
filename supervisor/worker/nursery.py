"""The nursery: import the handler, fork workers, nothing else.

A separate, single-threaded process, so that forking is safe and the handler is imported once for all workers. It forks
twice: the intermediate process exits immediately, and its child, the worker, is reparented to the nearest subreaper
(PR_SET_CHILD_SUBREAPER, prctl(2)), which is the supervisor. So workers are the supervisor's own children, and do not
depend on the nursery.

    python -P -m supervisor.worker.nursery LINK SCOREBOARD LOG     three inherited descriptors; the rest comes by the
    link. Or a fork of the zygote (supervisor.parent.zygote), which is a nursery of nurseries: `breed`
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import mmap
import os
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import NoReturn

from supervisor import logs, originals, streams, trace
from supervisor.clock import now
from supervisor.link import Link
from supervisor.linux import prctl, proctitle
from supervisor.messages import Fork, Forked, ForkFailed, Load, Loaded, LoadFailed, Threaded
from supervisor.scoreboard import Scoreboard
from supervisor.settings import Settings
from supervisor.vocabulary import EXIT_CONFIG, EXIT_DONE, EXIT_SOFTWARE
from supervisor.worker import aftermath, rehearsal, shared
from supervisor.worker.handler import CannotLoad, load
from supervisor.worker.main import Birth, configure_logs, live

_PID_BYTES = 8


def main(link_fd: int, board_fd: int, log_fd: int) -> int:
    """Load, then fork on request until the supervisor closes the link. Returns the exit code."""
    try:
        return _nurse(link_fd, board_fd, log_fd)
    except aftermath.DescriptorsClosed as closed:
        streams.complain(f"{closed}\n")
        return EXIT_CONFIG
    except BaseException as error:  # noqa: BLE001 - nothing is swallowed
        streams.complain_of(error)
        return EXIT_SOFTWARE


def breed(link_fd: int) -> int:
    """Fork nurseries on request until the supervisor closes the link. Returns the exit code. With each request come its
    link, the scoreboard, the log, its output pipe and its working directory."""
    link = Link.of(link_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rehearse()
    # These objects stay alive: nurseries share their pages as long as the collector does not write to them.
    gc.collect()
    gc.freeze()

    def become(nursery_fd: int, board_fd: int, log_fd: int, output_fd: int, directory_fd: int) -> NoReturn:
        os.fchdir(directory_fd)
        os.close(directory_fd)
        _stand_alone(link, output_fd)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(nursery_fd, board_fd, log_fd)
        atexit._run_exitfuncs()
        streams.flush()
        os._exit(code)

    _serve(link, become, 5)
    return EXIT_DONE


def _nurse(link_fd: int, board_fd: int, log_fd: int) -> int:
    for fd in (link_fd, board_fd, log_fd):
        os.set_inheritable(fd, False)
    link = Link.of(link_fd)
    received = link.receive()
    if received is None:
        return EXIT_DONE
    order = received[0]
    assert isinstance(order, Load)
    prctl.follow(order.parent)
    proctitle.name("workq-nursery")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    aftermath.arm()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not one that a sitecustomize has installed
            stream.reconfigure(line_buffering=True)
    rehearse()  # before the handler, which may change it
    settings = Settings.from_wire(order.settings)
    configure_logs("nursery", settings, link, board_fd, log_fd)
    if any(each.tls for each in settings.url):
        from supervisor.amqp import tls

        tls.prepare(settings.url)
    if trace.is_wanted(os.environ):
        _prepare_tracing()
    begun = now()
    handler = undone = None
    if order.preload:
        before = shared.opened()
        try:
            handler = load(settings.handler, settings.app_dir)
        except CannotLoad as error:
            link.send(LoadFailed(error.error, error.traceback, error.is_passing))
            return EXIT_CONFIG
        aftermath.demand((link_fd, board_fd, log_fd))
        undone = aftermath.Undone()
        if replaced := originals.replaced():
            link.send(Threaded(aftermath.threads()[1:], replaced))
            return EXIT_DONE
        threads = aftermath.threads_after_a_fork()
        if len(threads) > 1:
            link.send(Threaded(threads[1:]))
            return EXIT_DONE
        # The import may have configured logging itself; workers' lines must stay whole.
        configure_logs("nursery", settings, link, board_fd, log_fd)
        inherited = shared.found(before)
        if said := "; ".join(filter(None, (undone.said, shared.sentence(inherited) if inherited else ""))):
            because = f"the import of {settings.handler} has changed its process: {said}"
            logs.get_logger().warning("handler.side_effects", because=because)
    # These objects stay alive: workers share their pages as long as the collector does not write to them.
    gc.collect()
    gc.freeze()
    link.send(Loaded(now() - begun, order.preload))
    board = Scoreboard(board_fd)

    def become(worker_fd: int, output_fd: int) -> NoReturn:
        _stand_alone(link, output_fd)
        if undone is not None:
            undone.restore()
        aftermath.reseed()
        live(Birth(order.parent, settings, Link.of(worker_fd), board, log_fd, handler, os.dup(2)))

    _serve(link, become, 2)
    return EXIT_DONE


@cache
def rehearse() -> None:
    """Once for all workers, before any fork."""
    try:
        rehearsal.perform()
    except OSError:
        pass  # a sandbox without a loopback: workers take some milliseconds longer


def _prepare_tracing() -> None:
    """Import what spans need, for all workers."""
    try:
        from supervisor.worker import tracing

        tracing.prepare()
    except ImportError as error:
        from supervisor import extras

        because = f"OpenTelemetry's variables ask for spans: {extras.line('otel')} ({error})"
        logs.get_logger().warning("tracing.off", because=because)
    except tracing.CannotExport:
        pass  # each worker logs it


def _serve(link: Link, become: Callable[..., NoReturn], count: int) -> None:
    """Fork a process that calls `become` with the `count` descriptors of each request."""
    note = mmap.mmap(-1, _PID_BYTES)
    while (received := link.receive()) is not None:
        order, fds = received
        assert isinstance(order, Fork)
        if len(fds) != count:
            # The kernel drops descriptors beyond this process's limit (unix(7), MSG_CTRUNC).
            for fd in fds:
                os.close(fd)
            link.send(ForkFailed(order.ticket, "the nursery has no descriptor left for it", errno.EMFILE))
            continue
        try:
            pid = _fork_twice(note, partial(_live, become, fds))
        except OSError as error:
            link.send(ForkFailed(order.ticket, f"no worker can be forked: {error.strerror}", error.errno or 0))
        else:
            link.send(Forked(order.ticket, pid))
        finally:
            for fd in fds:
                os.close(fd)


def _fork_twice(note: mmap.mmap, child: Callable[[], NoReturn]) -> int:
    """Fork a grandchild that runs `child`; it is a child of the subreaper when this returns its pid. Raises OSError."""
    note[:_PID_BYTES] = bytes(_PID_BYTES)
    middle = originals.fork()
    if middle == 0:
        try:
            pid = originals.fork()
        except OSError as error:
            note[:_PID_BYTES] = (-(error.errno or 1)).to_bytes(_PID_BYTES, "little", signed=True)
            os._exit(1)
        if pid == 0:
            child()
        note[:_PID_BYTES] = pid.to_bytes(_PID_BYTES, "little", signed=True)
        os._exit(0)
    aftermath.wait_for(middle)
    pid = int.from_bytes(note[:_PID_BYTES], "little", signed=True)
    if pid <= 0:
        raise OSError(-pid, os.strerror(-pid) if pid else "the intermediate process was killed")
    return pid


def _live(become: Callable[..., NoReturn], fds: list[int]) -> NoReturn:
    """The new process."""
    try:
        become(*fds)
    except BaseException as error:  # noqa: BLE001 - nothing is swallowed
        streams.complain_of(error)
    finally:
        os._exit(EXIT_SOFTWARE)  # `become` does not return


def _stand_alone(link: Link, output_fd: int) -> None:
    """Close the link of whoever has forked this process; a session and an output of its own."""
    link.close()
    os.setsid()
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
