"""`workq-supervise`, and `python -m supervisor`: block signals until the loop can handle them, and fork the zygote.

Imports take most of the first 0.15 s, in which a SIGHUP would kill the process, and the kernel would drop a SIGTERM to
PID 1 of a container. So signals are blocked before anything is imported; `Wakeups` unblocks them. And so the zygote is
forked at once: the supervisor's half and the workers' half are imported at the same time.
"""

from __future__ import annotations

import signal
import sys

from supervisor.linux import lacking

if said := lacking("workq-supervise"):
    # Before the signals, which Windows does not have.
    sys.stderr.write(f"{said}\n")
    sys.exit(78)  # EXIT_CONFIG: restarting does not help

HELD = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_SAYS_ONLY = frozenset({"-h", "--help", "--version"})
"""Options with which nothing is supervised."""


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    zygote = None
    if _SAYS_ONLY.isdisjoint(sys.argv):
        from supervisor.parent.zygote import Zygote

        zygote = Zygote.fork(HELD)  # it dies with this process, whatever ends that
    from supervisor.cli import NAME
    from supervisor.cli import main as supervise

    supervise(prog_name=NAME, obj=zygote)


if __name__ == "__main__":
    main()
