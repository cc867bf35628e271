"""The process behind --report: calls one function of the user's with each event that the supervisor sends.

    python -P -m supervisor.reporter SOCKET SUPERVISOR MODULE:FUNCTION APP_DIR

`SOCKET` is an inherited descriptor. One packet is one event, a JSON object. The supervisor keeps the socket when this
process dies, so a successor continues with the next event.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from supervisor import streams
from supervisor.linux import prctl, proctitle
from supervisor.vocabulary import EXIT_CONFIG, EXIT_DONE

PACKET_MOST: Final = 64 * 1024
"""Bytes; a log line has at most 32 KiB."""
_END: Final = b"end "


def end_of(pid: int) -> bytes:
    """The packet that tells the process with this pid, and no other, to exit."""
    return _END + str(pid).encode()


def find(target: str, app_dir: str) -> Callable[[dict[str, Any]], object]:
    """Import `module:function`, `app_dir` last in sys.path as for a handler. Raises what the import raises, and
    TypeError for what cannot be called with one event."""
    if app_dir not in sys.path:
        sys.path.append(app_dir)
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{target} is not callable")
    if inspect.iscoroutinefunction(found):
        raise TypeError(f"{target} is async: a plain function is expected")
    return found  # type: ignore[no-any-return]


def main(fd: int, supervisor: int, target: str, app_dir: str) -> int:
    """Report until the supervisor closes its end. Returns the exit code."""
    prctl.follow(supervisor)
    proctitle.name("workq-report")
    # A stop may signal every process; the last events are still to come. Not SIG_IGN, which children inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    os.set_inheritable(fd, False)
    try:
        report = find(target, app_dir)
    except BaseException as error:  # noqa: BLE001 - an import may raise anything
        streams.complain_of(error)
        return EXIT_CONFIG
    with socket.socket(fileno=fd) as events:
        while (packet := events.recv(PACKET_MOST)) not in (b"", end_of(os.getpid())):
            if packet.startswith(_END):
                continue  # a predecessor's
            try:
                report(json.loads(packet))
            except Exception as error:  # noqa: BLE001 - the next event may go well
                streams.complain_of(error)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
