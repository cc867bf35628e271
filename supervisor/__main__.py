"""`workq-supervise`, and `python -m supervisor`: signals wait until there is a loop to obey them.

Imports take most of the first 0.2 s. A SIGHUP in that time would end the process, a SIGUSR2 too, and for PID 1 of a
container the kernel would drop a SIGTERM. So this module imports nothing before it has blocked them; `Wakeups` lets
them through when its handlers stand.
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
