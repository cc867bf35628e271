"""A child as its parent sees it: a pidfd, a link, and a pipe with its output."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from supervisor.link import Link
from supervisor.linux import threads
from supervisor.parent.descriptors import close
from supervisor.parent.hearing import Hearing
from supervisor.parent.output import Output
from supervisor.parent.wait import Wait
from supervisor.policy.events import Event


@contextmanager
def channel() -> Iterator[tuple[Link, int, Link, int]]:
    """Our end of a link, the reading end of an output pipe, and the child's ends, which are closed after the block.
    Ours are closed too if it raises. Raises OSError."""
    with ExitStack() as ours, ExitStack() as theirs:
        link, its = Link.pair()
        theirs.callback(its.close)
        ours.callback(link.close)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        theirs.callback(close, writer)
        ours.callback(close, reader)
        yield link, reader, its, writer
        ours.pop_all()


def read_output(output: Output, wait: Wait) -> Iterator[Event]:
    """This turn's share of what a child prints, for `Wait.watch`."""
    if not wait.is_late(output.fd):
        if not output.read():
            wait.forget(output.fd)
        elif output.is_over_budget:
            wait.pause(output.fd)
    return iter(())


@dataclass(slots=True, eq=False)
class Child:
    pid: int
    pidfd: int
    link: Link
    hearing: Hearing
    output: Output

    def watch(self, wait: Wait, hear: Callable[[], Iterator[Event]], exited: Callable[[], Iterator[Event]]) -> None:
        """Raises OSError; then nothing of it is watched."""
        try:
            wait.watch(self.pidfd, exited)
            wait.watch(self.link, hear)
            wait.watch(self.output.fd, partial(read_output, self.output, wait))
        except OSError:
            self.forget(wait)
            raise

    def forget(self, wait: Wait) -> None:
        for fileobj in (self.link, self.output.fd, self.pidfd):
            wait.forget(fileobj)

    def reports(self, wait: Wait) -> Iterator[Any]:
        """Read its link, this turn's share. After the end of the link only the pidfd reports."""
        if wait.is_late(self.link.fileno()):
            return
        yield from self.hearing.read(wait.turn_ends)
        if self.hearing.is_over:
            wait.forget(self.link)
        elif self.hearing.is_over_budget:
            wait.pause(self.link)

    def signal(self, number: int) -> bool:
        """Returns True; raises OSError."""
        if number == signal.SIGABRT:
            # Whichever thread hears it writes the stacks, and the others go on: the main one would finish its task,
            # and begin another one.
            threads.signal_main(self.pid, number)
        else:
            signal.pidfd_send_signal(self.pidfd, number)
        return True

    def close(self, wait: Wait) -> None:
        self.forget(wait)
        self.link.close()
        self.output.close()
        close(self.pidfd)
