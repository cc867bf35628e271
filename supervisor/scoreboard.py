"""The scoreboard: shared memory in which each worker writes what it does, before it does it. (Apache httpd's term.)

Each slot has two pages of 4 KiB, a worker one of them (see `vocabulary.SLOTS`). A worker's *pen* writes with plain
stores, about a microsecond a task. No lock: each page has one writer, which writes the phase last. The memory outlives
its writer.

A worker maps only its own page, but a handler can write anywhere through the descriptor, which is kept for the lock
below. So the file's size is sealed, and values are checked when read: times lie within this supervisor's life, totals
never go backwards.

The beginning of the file belongs to the log: its lock, and the rest of an unfinished line (`logs.Sink`); the end to
`--rate` (`bucket`).
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
import struct
import termios
import threading
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from supervisor import bucket, queues
from supervisor.clock import now
from supervisor.tally import Tally
from supervisor.vocabulary import (
    BOUNDS,
    LOG_SPACE,
    OUTCOMES,
    SLOTS,
    Away,
    Counts,
    InHand,
    Moved,
    Phase,
    Reading,
    Trouble,
    other_page,
)

PAGES: Final = 2 * SLOTS
"""The file is sparse: an unused page costs nothing."""

_PAGE: Final = 4096
_HEADER: Final = LOG_SPACE
_BUCKET_AT: Final = _HEADER + PAGES * _PAGE
_SIZE: Final = _BUCKET_AT + bucket.SIZE

# The message in flight. The phase is written last.
_PHASE: Final = struct.Struct("<B")
_PHASE_AT: Final = 0
_CALL_AT: Final = 1
_PID: Final = struct.Struct("<I")
_PID_AT: Final = 4
_BEAT: Final = struct.Struct("=d")
_BEAT_AT: Final = 8
_HAND: Final = struct.Struct(
    "<dQIIIBBH"
)  # since, delivery tag, attempt, step, checksum of the body, redelivered, what is known (two bits), length of name
_IS_ID: Final = 1
_IS_TRACED: Final = 2
_HAND_AT: Final = 16
_NAME_AT: Final = _HAND_AT + _HAND.size
_NAME_MAX: Final = 255  # AMQP 0-9-1: a message-id is a short string, 255 octets at most
_TRACE_AT: Final = 304
_TRACE_SIZE: Final = 16

# Where in the worker's output its task begins: the supervisor notes how much it has read, the worker adds what is not.
_READ_AT: Final = 320
"""Bytes read of the output pipe, times two; odd while the supervisor is reading, and the number about to change."""
_MARK_AT: Final = 328
"""Bytes of output before the task, and one; 0: not known."""
_UNREAD: Final = struct.Struct("i")
_LOOKS: Final = 1_000
"""At most this often the worker looks again while the supervisor is reading."""

_DUE_MOST: Final = 366 * 86400.0
"""Seconds: later than any retry is due."""

_NAMES: Final = (*OUTCOMES, "log_lines_dropped", "delayed", "returned")
_COUNTERS: Final = struct.Struct(f"={len(_NAMES)}Qdd")
_COUNTERS_AT: Final = 512
_BUCKETS_AT: Final = 1024
_BUCKETS: Final = struct.Struct(f"={len(BOUNDS) + 1}Q")

# The latest messages that were parked, confirmed, and perhaps acknowledged.
_MOVED: Final = struct.Struct("<QIIH")  # delivery tag, step, checksum of the body, length of name (written last)
_MOVED_AT: Final = 1536
_MOVED_SIZE: Final = 280
_MOVED_ROOM: Final = 8

# The latest task that failed, for the breaker: when, seconds after which to try again (negative: not known), length of
# what it failed by (written last).
_TROUBLE: Final = struct.Struct("<ddH")
_TROUBLE_AT: Final = _MOVED_AT + _MOVED_ROOM * _MOVED_SIZE
_TROUBLE_MOST: Final = 200


class Scoreboard:
    """The whole file. Created by the parent, inherited as a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._made = now()
        self._tallies: defaultdict[int, Tally] = defaultdict(Tally)
        self._looking = threading.Lock()
        """Held from reading a page to adding it up: concurrent readers would add in another order."""

    @cached_property
    def _map(self) -> mmap.mmap:
        return mmap.mmap(self.fd, _SIZE)

    @cached_property
    def _words(self) -> memoryview:
        return memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Scoreboard:
        """A new one, zeroed, in anonymous memory (memfd_create(2))."""
        fd = os.memfd_create("workq-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _SIZE)
            # Access to a mapped page beyond the end of the file is a SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            board = cls(fd)
            board._map  # noqa: B018 - now, while a refusal of it is an error at the start
            return board
        except OSError:
            os.close(fd)
            raise

    def pen(self, page: int) -> Pen:
        """The writing end of one page."""
        start = _start(page)
        before = start % mmap.ALLOCATIONGRANULARITY  # not 0 where the kernel's pages are larger than ours
        own = mmap.mmap(self.fd, before + _PAGE, offset=start - before)
        return Pen(memoryview(own)[before:])

    def bucket(self, page: int) -> bucket.Bucket:
        """The token bucket of `--rate`, for the worker of this page."""
        return bucket.Bucket(self.fd, _BUCKET_AT, page)

    def written(self, number: int) -> bytes:
        """One page as it is, to be compared with what it was."""
        return self._map[_start(number) : _start(number) + _PAGE]

    def read(self, number: int) -> Reading:
        """One page now. Of a live worker the fields may be a microsecond apart; of a dead one they are final."""
        with self._looking:
            page = self.written(number)
            counts = self._counts(number, page)
        phase = Phase(page[_PHASE_AT]) if page[_PHASE_AT] <= _LAST_PHASE else Phase.VACANT
        held = self._hand(page, phase) if phase in _HOLDING else None
        return Reading(
            page=number,
            pid=_PID.unpack_from(page, _PID_AT)[0],
            phase=phase,
            hand=held if phase in _BEGUN else None,
            held=held,
            beat=self._instant(_BEAT.unpack_from(page, _BEAT_AT)[0]),
            counts=counts,
            trouble=self._trouble(page),
        )

    def _counts(self, number: int, page: bytes) -> Counts:
        *numbers, seconds, due = _COUNTERS.unpack_from(page, _COUNTERS_AT)
        numbers += _BUCKETS.unpack_from(page, _BUCKETS_AT)
        # Tasks delayed by a worker on the slot's other page count too.
        others = _BEAT.unpack_from(self._map, _start(other_page(number)) + _DUE_AT)[0]
        latest = now() + _DUE_MOST
        due = max(due if 0 <= due <= latest else 0.0, others if 0 <= others <= latest else 0.0)
        return self._tallies[number].look(_NAMES, tuple(numbers), seconds, due)

    def away(self, pages: Iterable[int]) -> Away:
        """What all workers of these pages have put into delay queues, and settled since."""
        with self._looking:
            counts = [self._counts(each, self.written(each)) for each in pages]
        out = sum(each.delayed for each in counts) - sum(each.returned for each in counts)
        return Away(max(0, out), max((each.due for each in counts), default=0.0))

    def _instant(self, noted: float) -> float:
        """A time, monotonic seconds; now, if it is impossible."""
        present = now()
        return noted if self._made <= noted <= present else present

    def _hand(self, page: bytes, phase: Phase) -> InHand:
        since, tag, attempt, step, checksum, redelivered, known, length = _HAND.unpack_from(page, _HAND_AT)
        name = page[_NAME_AT : _NAME_AT + min(length, _NAME_MAX)].decode("utf-8", "replace")
        return InHand(
            key=queues.key(name, checksum),
            message_id=name if known & _IS_ID else None,
            delivery_tag=tag,
            attempt=attempt,
            redelivered=bool(redelivered),
            since=self._instant(since),
            settling=phase is Phase.SETTLING,
            trace_id=page[_TRACE_AT : _TRACE_AT + _TRACE_SIZE].hex() if known & _IS_TRACED else "",
            step=step,
        )

    def _trouble(self, page: bytes) -> Trouble | None:
        at, retry_after, length = _TROUBLE.unpack_from(page, _TROUBLE_AT)
        if not length:
            return None
        start = _TROUBLE_AT + _TROUBLE.size
        what = page[start : start + min(length, _TROUBLE_MOST)].decode("utf-8", "replace")
        return Trouble(self._instant(at), what, retry_after if 0 <= retry_after <= _DUE_MOST else None)

    def last(self, number: int) -> InHand | None:
        """The last message of this page's worker, settled or not."""
        hand = self._hand(self.written(number), Phase.VACANT)
        return hand if hand.delivery_tag else None

    def moved(self, number: int) -> tuple[Moved, ...]:
        """The messages that this page's worker parked recently."""
        page = self.written(number)
        last = self._hand(page, Phase.VACANT).delivery_tag
        found = []
        for at in range(_MOVED_AT, _MOVED_AT + _MOVED_ROOM * _MOVED_SIZE, _MOVED_SIZE):
            tag, step, checksum, length = _MOVED.unpack_from(page, at)
            if length:
                name = page[at + _MOVED.size : at + _MOVED.size + min(length, _NAME_MAX)].decode("utf-8", "replace")
                found.append(Moved(queues.key(name, checksum), step, max(0, last - tag)))
        return tuple(found)

    def is_idle(self, page: int) -> bool:
        return self._map[_start(page) + _PHASE_AT] == Phase.IDLE

    def call(self, page: int) -> None:
        """Flag that an order waits on the worker's link; the flag costs nothing to check."""
        self._map[_start(page) + _CALL_AT] = 1

    def note_read(self, page: int, count: int, *, is_reading: bool = False) -> None:
        """Note, around every read, how many bytes of the worker's output are read so far."""
        self._words[(_start(page) + _READ_AT) // 8] = count << 1 | is_reading

    def mark(self, page: int) -> int | None:
        """How much output there was before the worker's task; None: not known."""
        mark = self._words[(_start(page) + _MARK_AT) // 8]
        return mark - 1 if mark else None

    def vacate(self, page: int) -> None:
        """The worker of this page is gone: nothing is in flight. The totals stay."""
        start = _start(page)
        _PHASE.pack_into(self._map, start + _PHASE_AT, Phase.VACANT)
        _PID.pack_into(self._map, start + _PID_AT, 0)
        self._map[start + _CALL_AT] = 0
        self._map[bucket.ticket(_BUCKET_AT, page)] = bytes(8)
        self._map[start + _HAND_AT : start + _HAND_AT + _HAND.size] = bytes(_HAND.size)
        self._map[start + _MOVED_AT : start + _MOVED_AT + _MOVED_ROOM * _MOVED_SIZE] = bytes(_MOVED_ROOM * _MOVED_SIZE)


class Pen:
    """Writes one page. Every method is a few plain stores; none can fail."""

    # Numbers are stored through these casts, each by one aligned move. struct.pack_into() zeroes its target first and
    # then fills it byte by byte: a SIGKILL, or a reader, in between finds a total of nought.
    __slots__ = ("_floats", "_integers", "_moved", "_page")

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._integers = page.cast("Q")
        self._floats = page.cast("d")
        self._moved = 0

    def open(self, pid: int) -> None:
        _PID.pack_into(self._page, _PID_AT, pid)
        self.beat()
        self.phase(Phase.BOOTING)

    def is_called(self) -> bool:
        """Whether the parent has sent an order that counts before the next acknowledgement."""
        return self._page[_CALL_AT] != 0

    def heed(self) -> None:
        """Clear that; then read the orders. In the other order one might be missed."""
        self._page[_CALL_AT] = 0

    def phase(self, phase: Phase) -> None:
        self._page[_PHASE_AT] = phase

    def beat(self) -> None:
        """Note that the loop turns, at least every few seconds while idle."""
        self._floats[_BEAT_AT // 8] = now()

    def take(
        self,
        name: bytes,
        is_id: bool,
        tag: int,
        attempt: int,
        redelivered: bool,
        trace_id: str = "",
        checksum: int = 0,
        phase: Phase = Phase.BUSY,
        step: int = 1,
    ) -> float:
        """Note the delivery before its handler, or the question about it, begins. Returns the instant noted."""
        since = now()
        name = name[:_NAME_MAX]
        page = self._page
        known = _IS_ID if is_id else 0
        if trace_id:
            known |= _IS_TRACED
            page[_TRACE_AT : _TRACE_AT + _TRACE_SIZE] = bytes.fromhex(trace_id)
        _HAND.pack_into(page, _HAND_AT, since, tag, attempt, step, checksum, redelivered, known, len(name))
        page[_NAME_AT : _NAME_AT + len(name)] = name
        page[_PHASE_AT] = phase
        return since

    def move(self, name: bytes, tag: int, step: int, checksum: int) -> None:
        """Note that the message is parked, before it is acknowledged."""
        at = _MOVED_AT + self._moved % _MOVED_ROOM * _MOVED_SIZE
        self._moved += 1
        name = name[:_NAME_MAX]
        page = self._page
        _MOVED.pack_into(page, at, 0, 0, 0, 0)
        page[at + _MOVED.size : at + _MOVED.size + len(name)] = name
        _MOVED.pack_into(page, at, tag, step, checksum, len(name))

    def forget(self) -> None:
        """Every acknowledgement has arrived."""
        for at in range(_MOVED_AT, _MOVED_AT + _MOVED_ROOM * _MOVED_SIZE, _MOVED_SIZE):
            _MOVED.pack_into(self._page, at, 0, 0, 0, 0)

    def stumble(self, what: str, retry_after: float | None) -> None:
        """Note by what the task failed; arguments as in `Trouble`."""
        name = what.encode("utf-8", "replace")[:_TROUBLE_MOST]
        page, start = self._page, _TROUBLE_AT + _TROUBLE.size
        _TROUBLE.pack_into(page, _TROUBLE_AT, 0.0, 0.0, 0)
        page[start : start + len(name)] = name
        _TROUBLE.pack_into(page, _TROUBLE_AT, now(), -1.0 if retry_after is None else retry_after, len(name))

    def mark(self, output_fd: int) -> None:
        """Note where in the worker's output its next task begins. `output_fd`: the writing end."""
        words = self._integers
        for _ in range(_LOOKS):
            read = words[_READ_AT // 8]
            if not read & 1:
                try:
                    (unread,) = _UNREAD.unpack(fcntl.ioctl(output_fd, termios.FIONREAD, bytes(_UNREAD.size)))
                except OSError:
                    break  # a handler has closed it
                if words[_READ_AT // 8] == read:
                    words[_MARK_AT // 8] = (read >> 1) + unread + 1
                    return
            os.sched_yield()
        words[_MARK_AT // 8] = 0

    def returned(self) -> None:
        """The handler has finished; the outcome is not settled yet."""
        self._page[_PHASE_AT] = Phase.SETTLING

    def settled(self, counter: str, seconds: float) -> None:
        """Count the outcome, then clear the message: a worker killed in between is seen settling."""
        page = self._page
        self._add(_INDEX[counter], 1)
        self._add(_BUCKETS_AT // 8 + bisect.bisect_left(BOUNDS, seconds), 1)
        self._floats[_BUSY_AT // 8] += seconds
        page[_PHASE_AT] = Phase.IDLE

    def owe(self, due: float) -> None:
        """A task of ours is in a delay queue until then, monotonic seconds."""
        self.count("delayed")
        self._floats[_DUE_AT // 8] = max(due, self._floats[_DUE_AT // 8])

    def count(self, counter: str, by: int = 1) -> None:
        self._add(_INDEX[counter], by)

    def _add(self, index: int, by: int) -> None:
        try:
            self._integers[index] += by
        except ValueError:
            self._integers[index] = by  # somebody has written over it, and there is no greater number


_BUSY_AT: Final = _COUNTERS_AT + 8 * len(_NAMES)
_DUE_AT: Final = _BUSY_AT + 8
_INDEX: Final = {name: _COUNTERS_AT // 8 + i for i, name in enumerate(_NAMES)}


_BEGUN: Final = frozenset({Phase.BUSY, Phase.SETTLING})
_LAST_PHASE: Final = max(Phase)
_HOLDING: Final = _BEGUN | {Phase.ASKING, Phase.PARKING}


def _start(page: int) -> int:
    return _HEADER + page * _PAGE
