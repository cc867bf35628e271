"""`workq-supervise`, and `python -m supervisor`: signals wait until there is a loop to obey them.

Imports take most of the first 0.2 s, in which a SIGHUP would end the process, and for PID 1 of a container the kernel
would drop a SIGTERM. So nothing is imported before they are blocked; `Wakeups` lets them through.
"""

from __future__ import annotations

import signal

HELD = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    from supervisor.cli import NAME
    from supervisor.cli import main as supervise

    supervise(prog_name=NAME)


if __name__ == "__main__":
    main()
