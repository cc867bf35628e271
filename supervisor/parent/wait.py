"""The one place that waits. However many children flood us, a turn of the loop takes no longer than `TURN`; what the
kernel refuses to read is skipped for a second, or the loop would do nothing else."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from supervisor.clock import now
from supervisor.policy.events import Event

TURN: Final = 0.05
"""Seconds after which a turn reads from no further child; the others come first in the next."""

Callback = Callable[[], Iterator[Event]]


class Wait:
    """`refused` is called for each refusal of the kernel."""

    def __init__(self, refused: Callable[[str, OSError], None]) -> None:
        self._refused = refused
        self._selector = selectors.EpollSelector()
        self._paused: list[selectors.SelectorKey] = []
        """Not watched until the next sample: it has written too much, or the kernel refuses to read it."""
        self._late: set[int] = set()
        """Descriptors for which the last turn had no time."""
        self.turn_ends = 0.0
        """Monotonic seconds."""

    def watch(self, fileobj: Any, callback: Callback) -> None:
        """Have `events` call this when `fileobj` is readable. Raises OSError."""
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def forget(self, fileobj: Any) -> None:
        try:
            self._selector.unregister(fileobj)
        except (KeyError, ValueError):
            self._paused = [key for key in self._paused if key.fileobj != fileobj]

    def events(self, until: float, first: Collection[int]) -> Iterator[Event]:
        """The events so far, or none at `until` (monotonic seconds); descriptors in `first` come first."""
        try:
            ready = self._selector.select(max(0.0, until - now()))
        except OSError as error:
            self._refused("waiting for the workers", error)
            time.sleep(0.02)  # it may keep refusing: do not spin
            ready = []
        self.turn_ends = now() + TURN
        late, self._late = self._late, set()
        for key, _ in sorted(ready, key=lambda found: (found[0].fd not in first, found[0].fd not in late)):
            # An earlier callback may have closed this descriptor, and its number may be in use again.
            if self._selector.get_map().get(key.fd) is key:
                yield from self._call(key)

    def _call(self, key: selectors.SelectorKey) -> Iterator[Event]:
        try:
            yield from key.data()
        except OSError as error:
            self._refused(f"reading descriptor {key.fd}", error)
            self.pause(key.fileobj)

    def is_late(self, fd: int) -> bool:
        """Whether this one must wait for the next turn."""
        if now() < self.turn_ends:
            return False
        self._late.add(fd)
        return True

    def pause(self, fileobj: Any) -> None:
        """Do not watch this until `resume`."""
        key = self._selector.get_key(fileobj)
        self.forget(fileobj)
        self._paused.append(key)

    def resume(self) -> None:
        paused, self._paused = self._paused, []
        for key in paused:
            try:
                self.watch(key.fileobj, key.data)
            except OSError as error:
                self._refused("watching a descriptor", error)
                self._paused.append(key)
