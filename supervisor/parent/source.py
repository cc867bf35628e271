"""Where nurseries come from: forked by the zygote, or executed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from supervisor.linux import cgroup
from supervisor.parent.environment import SECRETS
from supervisor.parent.reaper import Reaper
from supervisor.parent.wait import Wait
from supervisor.parent.zygote import NURSERY, NoZygote, Zygote
from supervisor.policy.events import Event


class Source:
    """Forks by the zygote as long as there is one."""

    def __init__(
        self, zygote: Zygote | None, board_fd: int, log_fd: int, wait: Wait, reaper: Reaper, ours: set[int]
    ) -> None:
        """`ours`: children that the reaper must not take for reparented ones."""
        self._board_fd = board_fd
        self._log_fd = log_fd
        self._wait = wait
        self._reaper = reaper
        self._ours = ours
        self._zygote = zygote
        if zygote is not None:
            ours.add(zygote.pid)
            try:
                cgroup.make_expendable(zygote.pid)
                wait.watch(zygote.pidfd, self._exited)
            except OSError:
                self.close()

    def nursery(self, link_fd: int, output: int) -> int:
        """Start one. Returns its pid; the caller reaps it. Raises OSError, and NoZygote: again, with another link, as a
        nursery that was forked after all would hear this one. The next is executed."""
        fds = (link_fd, self._board_fd, self._log_fd)
        if self._zygote is not None:
            try:
                return self._zygote.nursery(*fds, output)
            except NoZygote:
                self.close()
                raise
        return execute(NURSERY, [*map(str, fds)], fds, output)

    def close(self) -> None:
        """The end of the zygote: nurseries are executed from now on."""
        if (zygote := self._zygote) is not None:
            self._zygote = None
            self._wait.forget(zygote.pidfd)
            self._ours.discard(zygote.pid)
            zygote.kill()
            self._reaper.has_reparented = True

    def _exited(self) -> Iterator[Event]:
        self.close()
        return iter(())


def execute(module: str, arguments: Sequence[str], fds: Sequence[int], output: int) -> int:
    """Run one of our modules in its own session, without secrets. Returns its pid; the caller reaps it. Raises
    OSError."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=fds,
        env={name: value for name, value in os.environ.items() if name not in SECRETS},
        start_new_session=True,
    )
    process.returncode = 0  # the caller reaps it, not Popen
    return process.pid
