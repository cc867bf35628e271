"""Whole lines on a descriptor that many processes write to."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import weakref
from collections.abc import Callable
from typing import Final

from supervisor import originals
from supervisor.clock import now
from supervisor.vocabulary import LOG_SPACE

MAX_LINE: Final = 32 * 1024
"""Bytes of one line, its newline included. journald splits at 48 KiB (`LineMax=`, journald.conf(5))."""
ATOMIC: Final = 4096
"""PIPE_BUF on Linux: a write of so many bytes to a pipe is never mixed with another, nor cut (pipe(7))."""
SHORT_PATIENCE: Final = 0.2
"""Seconds that a short line waits for a reader."""
LONG_PATIENCE: Final = 1.0
"""Seconds that a long line waits for the reader, and a short line for a long one to be finished."""
_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL

# In the lock's file, behind the byte that is locked.
_OWED: Final = struct.Struct("<IQ")  # bytes of the rest of a line that is begun; where the log, if it is a file, ended
_OWED_AT: Final = 64
_REST_AT: Final = _OWED_AT + _OWED.size
_NOTHING: Final = (b"", bytes(4))
_ENDED: Final = (b"", b"\n")
assert _REST_AT + MAX_LINE <= LOG_SPACE

SINKS: Final[weakref.WeakSet[Sink]] = weakref.WeakSet()


def open_lock() -> int:
    """A file for `Sink`'s record lock: anonymous, not inherited across exec unless asked for. Raises OSError."""
    return os.memfd_create("workq-log-lock", os.MFD_CLOEXEC)


class Sink:
    """Never raises, never blocks for long: drops lines, and counts them in `dropped`.

    `fd` is where lines go; `lock_fd` is a file that all the processes have inherited (`open_lock`). Its first byte is
    the lock: shared for a short line, which is one atomic write, exclusive for a longer one. Thus a worker that is
    stopped between lock and unlock holds up no other's short lines. The kernel unlocks when a holder dies (fcntl(2)).

    The rest of an unfinished line is left in that file: the next writer puts it before its own line. If the writer died
    during a write to a file, the rest is lost, and a newline comes first.

    `on_long`, when given, takes lines longer than `ATOMIC` bytes, with no lock held: only the parent, which is not
    killed mid-line, writes in pieces. The constructor raises OSError when `lock_fd` cannot be locked.
    """

    _writing: bool
    _stalled: bool

    def __init__(self, fd: int, lock_fd: int, on_long: Callable[[bytes], object] | None = None) -> None:
        self.fd = fd
        self.dropped = 0
        fcntl.lockf(lock_fd, fcntl.LOCK_UN, 1)
        self._lock_fd = lock_fd
        self._on_long = on_long
        self._out = _reopened(fd)
        self._back = _readable(fd)
        self.renew()
        SINKS.add(self)

    def write(self, line: bytes) -> bool:
        """Write one line, its newline included. False when it is lost; an unfinished one will be finished later."""
        if len(line) > ATOMIC and self._on_long is not None:
            try:
                self._on_long(line)
            except Exception:  # noqa: BLE001 - whatever is wrong with the link, a log line is no reason to fail a task
                self.dropped += 1
                return False
            return True
        if not self._mine.acquire(timeout=0.0 if self._stalled else LONG_PATIENCE):
            self.dropped += 1
            return False
        try:
            if self._writing:
                # A signal handler, or a destructor, logs while this thread writes: waiting would deadlock.
                self._later.append(line)
                return True
            self._writing = True
            try:
                written = self._attempt(line)
                while self._later:
                    self._attempt(self._later.pop(0))
            finally:
                self._writing = False
            return written
        finally:
            self._mine.release()

    def close(self) -> None:
        """Close what this object opened itself; `fd` and `lock_fd` are the caller's."""
        if self._back >= 0:
            os.close(self._back)
            self._back = -1
        if self._out != self.fd:
            os.close(self._out)
            self._out = self.fd
            self.renew()

    def hand_over(self, on_long: Callable[[bytes], object]) -> None:
        """Reset the state after a fork."""
        self.dropped = 0
        self._on_long = on_long

    def renew(self) -> None:
        """New locks: at first, and in a forked child, which does not have the parent's other threads."""
        # POSIX record locks belong to a process, so its threads need another lock. Re-entrant: see `write`.
        self._mine = originals.RLock()
        self._shut: set[int] = set()
        # A poll object in use by a thread of the parent at the fork is unusable in the child.
        self._poll = originals.poll()
        self._poll.register(self._out, select.POLLOUT)
        self._writing = False
        self._later: list[bytes] = []
        self._stalled = False

    def _attempt(self, line: bytes) -> bool:
        long = len(line) > ATOMIC
        try:
            self._lock(fcntl.LOCK_EX if long else fcntl.LOCK_SH)
            try:
                owed = b""
                if not self._is_whole():
                    if not long:
                        # Release the shared lock first: two processes that keep it would wait for each other.
                        self._unlock()
                        self._lock(fcntl.LOCK_EX)
                    owed = self._owed()
                self._put(owed, line, LONG_PATIENCE if long else SHORT_PATIENCE)
            finally:
                self._unlock()
        except OSError as error:
            # Timed out, EPIPE, ENOSPC, EIO, EBADF: the line is lost.
            self._stalled = isinstance(error, TimeoutError)
            self.dropped += 1
            return False
        return True

    def _lock(self, kind: int) -> None:
        # Not F_SETLKW, which waits without limit for a holder stopped by SIGSTOP or the freezer.
        try:
            fcntl.lockf(self._lock_fd, kind | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):
            self._await_lock(kind)
        self._shut.discard(kind)

    def _await_lock(self, kind: int) -> None:
        deadline = now() + (0.0 if kind in self._shut else LONG_PATIENCE)
        pause = 0.000_05
        while now() < deadline:
            originals.sleep(pause)
            pause = min(pause * 2, 0.002)
            try:
                fcntl.lockf(self._lock_fd, kind | fcntl.LOCK_NB, 1)
                return
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES (fcntl(2))
                continue
        self._shut.add(kind)
        raise BlockingIOError

    def _unlock(self) -> None:
        fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1)

    def _is_whole(self) -> bool:
        """Whether the log ends with a whole line, as far as a shared lock shows: others may be writing to a file."""
        return os.pread(self._lock_fd, 4, _OWED_AT) in _NOTHING and (self._back < 0 or self._last() in _ENDED)

    def _owed(self) -> bytes:
        """What must come before the next line. Call under the exclusive lock."""
        length, end = _OWED.unpack(os.pread(self._lock_fd, _OWED.size, _OWED_AT).ljust(_OWED.size, b"\0"))
        if length:
            if length <= MAX_LINE and end == self._end():
                return os.pread(self._lock_fd, length, _REST_AT)
            # The file was truncated with its beginning, or something else has written since.
            self._owe(b"")
            self.dropped += 1
        return b"" if self._last() in _ENDED else b"\n"

    def _owe(self, rest: bytes) -> None:
        rest = rest[-MAX_LINE:]
        os.pwrite(self._lock_fd, rest, _REST_AT)
        os.pwrite(self._lock_fd, _OWED.pack(len(rest), self._end() if rest else 0), _OWED_AT)

    def _last(self) -> bytes:
        """The last byte of a file; empty for an empty or unreadable file, or anything else."""
        try:
            return os.pread(self._back, 1, max(0, os.lseek(self._back, 0, os.SEEK_END) - 1))
        except OSError:
            return b""

    def _end(self) -> int:
        found = os.fstat(self._out)
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def _put(self, owed: bytes, line: bytes, limit: float) -> None:
        """Write both, and save the rest of an unfinished one. Raises OSError when the line is lost."""
        data = owed + line
        done = 0
        deadline = now() + limit
        # If something is owed, another process has waited already.
        patience = 0.0 if self._stalled or owed else limit
        try:
            while done < len(data):
                done += self._put_next(data[done : done + ATOMIC], patience)
                patience = max(0.0, deadline - now())
        except OSError as error:
            is_gone = isinstance(error, BrokenPipeError)
            is_begun = done > len(owed)
            rest = data[done:] if is_begun else owed[done:]
            if is_gone and len(rest) > 1:
                # A fifo may get another reader, which would get the incomplete rest.
                rest = b"\n"
                self.dropped += not is_begun
            if rest != owed:
                self._owe(rest)
            if is_gone or not is_begun:
                raise
            self._stalled = isinstance(error, TimeoutError)
            return
        if owed:
            self._owe(b"")
        self._stalled = False

    def _put_next(self, piece: bytes, patience: float) -> int:
        """Poll before each piece, so that a full pipe does not block, and a closed one sends no SIGPIPE."""
        ready = self._poll.poll(patience * 1000)
        if not ready:
            raise TimeoutError
        if ready[0][1] & _GONE:
            raise BrokenPipeError
        try:
            return os.write(self._out, piece)
        except BlockingIOError:
            if not patience:
                raise TimeoutError from None
            return 0  # another process filled it after the poll


def _readable(fd: int) -> int:
    """A readable descriptor of a log that is a file, or -1. `fd` may be write-only."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        pass
    return -1


def _reopened(fd: int) -> int:
    """A new open file description of a pipe or terminal, with O_NONBLOCK, as the user's shell shares that of `fd`
    (proc(5), /proc/PID/fd). Else `fd`: a file's offset is shared on purpose, and a socket cannot be reopened
    (ENXIO)."""
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass
    return fd
