"""The supervisor's own descriptors: enough for its workers, and how to close one."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

PER_WORKER: Final = 3
"""Link, pidfd, reading end of the output pipe."""
BESIDE: Final = 256
"""For everything else: two sockets' clients (`http.server.MOST`), nurseries, forks in progress, the loop's own."""
_KEPT: Final = 16
_OF_A_BIRTH: Final = 4
"""Both ends of a link and of a pipe, until the nursery has them."""


class Descriptors:
    """Raises the soft limit with the number of workers, up to the hard limit. Raises OSError without /proc."""

    def __init__(self) -> None:
        inherited = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number
        self._beside = inherited + BESIDE
        self.needed = self._beside
        """The limit that all workers wanted would need."""

    def make_room(self, workers: int) -> None:
        """Raise the limit as far as possible. If it stays too low, a worker's start fails (see `refusals`)."""
        self.needed = max(self.needed, self._beside + workers * PER_WORKER)
        try:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            wanted = self.needed if hard == resource.RLIM_INFINITY else min(hard, self.needed)
            if soft != resource.RLIM_INFINITY and soft < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # a sandbox: keep the limit

    def claim(self, births: int) -> None:
        """Raises OSError if another worker would take the reserve for scaling down and replacing nurseries."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= self.needed:
            return
        free = soft - len(os.listdir("/proc/self/fd")) + 1  # noqa: PTH208 - the listing has one of its own
        if free < min(_KEPT, soft // 8) + _OF_A_BIRTH + births:  # each of them will have its pidfd
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def close(fd: int) -> None:
    """Linux frees a descriptor whatever close(2) returns; a retry could close another one."""
    try:
        os.close(fd)
    except OSError:
        pass
