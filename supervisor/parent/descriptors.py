"""The supervisor's own descriptors: room for as many as its workers need, and how one is closed."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

PER_WORKER: Final = 3
"""Its link, its pidfd, the reading end of its output."""
BESIDE: Final = 256
"""For everything else: two sockets' clients (`http.server.MOST`), nurseries, births under way, the loop's own."""
_KEPT: Final = 16
_OF_A_BIRTH: Final = 4
"""Both ends of a link and of a pipe, until the nursery has them."""


class Descriptors:
    """The soft limit, which is raised as workers are added and the hard limit allows. Raises OSError without /proc."""

    def __init__(self) -> None:
        inherited = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number
        self._beside = inherited + BESIDE
        self.needed = self._beside
        """The limit with which as many workers as were asked for would all have theirs."""

    def make_room(self, workers: int) -> None:
        """Raise the limit for so many workers as far as possible; too low a limit fails a start (`refusals`)."""
        self.needed = max(self.needed, self._beside + workers * PER_WORKER)
        try:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            wanted = self.needed if hard == resource.RLIM_INFINITY else min(hard, self.needed)
            if soft != resource.RLIM_INFINITY and soft < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # a sandbox: what there is has to do

    def claim(self, births: int) -> None:
        """Raises OSError when another birth would take what is kept: to scale down, or to replace a nursery."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= self.needed:
            return
        free = soft - len(os.listdir("/proc/self/fd")) + 1  # noqa: PTH208 - the listing has one of its own
        if free < min(_KEPT, soft // 8) + _OF_A_BIRTH + births:  # each of them will have its pidfd
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def close(fd: int) -> None:
    """Linux lets go of a descriptor whatever close(2) returns; trying again could close another's."""
    try:
        os.close(fd)
    except OSError:
        pass
