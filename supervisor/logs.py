"""Logging, set up the same way in every process: one record a line, whole, never blocking, never costing the parent.

Every process writes its own lines to one inherited descriptor, under a record lock that they share (`Sink`). What
user code logs, by structlog or by the standard library, takes the same way (`configure`). The reasons, and what was
tried and left, are in docs/decisions/0005-logs.md.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import select
import stat
import struct
import sys
import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from supervisor import failure, originals
from supervisor.clock import now
from supervisor.light import structlog
from supervisor.redaction import SCHEME, clip_end, redact
from supervisor.vocabulary import LOG_SPACE

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

__all__ = ["MAX_LINE", "Sink", "configure", "get_logger", "open_lock", "redact", "resolve_format"]

MAX_LINE: Final = 32 * 1024
"""Bytes of one line, its newline included. journald splits at 48 KiB (`LineMax=`, journald.conf(5))."""
ATOMIC: Final = 4096
"""PIPE_BUF on Linux: a write of so many bytes to a pipe is never mixed with another, nor cut (pipe(7))."""
MAX_TRACEBACK: Final = 8 * 1024
"""Characters of a rendered exception; its end is kept, where the error is."""
SHORT_PATIENCE: Final = 0.2
"""Seconds that a short line waits for a reader that does not read."""
LONG_PATIENCE: Final = 1.0
"""Seconds that a long line waits for the reader, and that a short line waits for a long one to be finished."""

_MAX_KEY: Final = 256
_MIN_VALUE: Final = 64
_MAX_DEPTH: Final = 20
_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL

# In the lock's file, behind the byte that is locked.
_OWED: Final = struct.Struct("<IQ")  # bytes of the rest of a line that is begun; where the log, if it is a file, ended
_OWED_AT: Final = 64
_REST_AT: Final = _OWED_AT + _OWED.size
_NOTHING: Final = (b"", bytes(4))
_ENDED: Final = (b"", b"\n")
assert _REST_AT + MAX_LINE <= LOG_SPACE


# ------------------------------------------------------------------------------------------------------- writing


def open_lock() -> int:
    """A file for `Sink`'s record lock: anonymous, not inherited across exec unless asked for. Raises OSError."""
    return os.memfd_create("workq-log-lock", os.MFD_CLOEXEC)


class Sink:
    """Whole lines on a descriptor that many processes write to. Never raises, never waits for long: drops, and counts.

    `fd` is where lines go; `lock_fd` is a file opened for reading and writing that all the processes have inherited
    (`open_lock`). Its first byte is the lock: shared for a short line, which is one atomic write by itself, exclusive
    for a longer one, which is several. Thus short lines never wait for one another, and a worker that is stopped, or
    not scheduled, between lock and unlock holds up no other worker. The kernel unlocks when a holder dies (fcntl(2)).

    A line that cannot be finished, because the reader stalls or the disk is full, is left in that file, too: the next
    process that writes puts the rest of it before its own line. Where the writer died, in the middle
    of a write to a file, nobody has the rest: there a newline comes first.

    `on_long`, when given, takes every line longer than `ATOMIC` bytes instead: only the parent, which nobody kills
    in mid-line, writes in pieces. It is called without any lock held; what it raises counts as a dropped line.

    `dropped` is the number of lines lost so far in this process. The constructor raises OSError when `lock_fd` cannot
    be locked, for instance because it was not passed on across exec; what is wrong with `fd` only costs lines.
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
        _SINKS.add(self)

    def write(self, line: bytes) -> bool:
        """Write one line, its newline included. False when it is lost; one that is only begun will be finished."""
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
                # A signal handler, or a destructor, that logs while this thread writes. Waiting would be for ever.
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
        """Give back what this object opened itself; `fd` and `lock_fd` are the caller's."""
        if self._back >= 0:
            os.close(self._back)
            self._back = -1
        if self._out != self.fd:
            os.close(self._out)
            self._out = self.fd
            self.renew()

    def hand_over(self, on_long: Callable[[bytes], object]) -> None:
        """Be another process's, which has lost no line yet."""
        self.dropped = 0
        self._on_long = on_long

    def renew(self) -> None:
        """Begin with nothing under way: at first, and in a forked child, whose parent's other threads are not there."""
        # POSIX record locks belong to a process, so its threads need a lock of their own. Re-entrant: see `write`.
        self._mine = originals.RLock()
        self._shut: set[int] = set()
        # A poll object that a thread of the parent was using refuses to be used by the child, for ever.
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
                        # The shared lock first: two processes that keep it would wait for each other.
                        self._unlock()
                        self._lock(fcntl.LOCK_EX)
                    owed = self._owed()
                self._put(owed, line, LONG_PATIENCE if long else SHORT_PATIENCE)
            finally:
                self._unlock()
        except OSError as error:
            # Timed out, EPIPE, ENOSPC, EIO, EBADF: the same to a line that nobody can have.
            self._stalled = isinstance(error, TimeoutError)
            self.dropped += 1
            return False
        return True

    def _lock(self, kind: int) -> None:
        # Not F_SETLKW: it waits for ever for a holder that was stopped by SIGSTOP or the freezer.
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
        """Whether the log ends with the end of a line, as far as can be seen under a shared lock: one who is writing to
        a file may have come half the way."""
        return os.pread(self._lock_fd, 4, _OWED_AT) in _NOTHING and (self._back < 0 or self._last() in _ENDED)

    def _owed(self) -> bytes:
        """What comes before the next line. Under the exclusive lock."""
        length, end = _OWED.unpack(os.pread(self._lock_fd, _OWED.size, _OWED_AT).ljust(_OWED.size, b"\0"))
        if length:
            if length <= MAX_LINE and end == self._end():
                return os.pread(self._lock_fd, length, _REST_AT)
            # Its beginning is gone, with what somebody has removed to make room; or somebody else has written since.
            self._owe(b"")
            self.dropped += 1
        return b"" if self._last() in _ENDED else b"\n"

    def _owe(self, rest: bytes) -> None:
        rest = rest[-MAX_LINE:]
        os.pwrite(self._lock_fd, rest, _REST_AT)
        os.pwrite(self._lock_fd, _OWED.pack(len(rest), self._end() if rest else 0), _OWED_AT)

    def _last(self) -> bytes:
        """The last byte of a file; nothing of an empty one, or of what is no file, or may not be read."""
        try:
            return os.pread(self._back, 1, max(0, os.lseek(self._back, 0, os.SEEK_END) - 1))
        except OSError:
            return b""

    def _end(self) -> int:
        found = os.fstat(self._out)
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def _put(self, owed: bytes, line: bytes, limit: float) -> None:
        """Write both; what is left of the one that is begun is owed then. Raises OSError when the line is lost."""
        data = owed + line
        done = 0
        deadline = now() + limit
        # Where something is owed, another process has waited already.
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
                # Of a fifo another reader may come. It gets what is in there still, and that is not all.
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
        """Poll before each piece, so that neither a full pipe blocks nor a closed one sends SIGPIPE."""
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
            return 0  # somebody else filled it since the poll


def _readable(fd: int) -> int:
    """A descriptor to read what is in a log that is a file, or -1. The one given may be for writing only."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        pass
    return -1


def _reopened(fd: int) -> int:
    """A description of our own for a pipe or a terminal, with O_NONBLOCK, or else `fd`.

    O_NONBLOCK belongs to the open file description, which is shared with the user's shell, so it may not be set on
    `fd` itself. Opening /proc/self/fd/N makes another description of the same pipe or terminal (proc(5)); then not even
    a race for the last free page, or a terminal with room for half a line, can block. Not for files, whose offset is
    shared on purpose, and not possible for sockets (ENXIO): there the poll has to do.
    """
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass
    return fd


# ----------------------------------------------------------------------------------------------- values and texts

_encode: Final = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=lambda v: _text(v)
).encode
"""ASCII, so that U+2028, U+0085 and the C1 controls break neither a line nor a terminal."""


def utc() -> str:
    """This instant for people: `2026-11-23T13:40:51.629Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _text(value: object) -> str:
    """What JSON cannot carry, as a string; never raises."""
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            text = bytes(value).decode("utf-8", "backslashreplace")
        elif isinstance(value, datetime | date | time_of_day):
            text = value.isoformat()
        elif isinstance(value, str | Decimal | UUID | PurePath):
            text = str(value)
        else:
            text = repr(value)
        return str.__str__(text)  # TypeError when a subclass's isoformat made something else
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise anything
        return f"<{type(value).__name__}, and its repr fails>"


def _clean(text: str) -> str:
    """Without lone surrogates, which strict readers of JSON refuse (RFC 8259, section 8.2), and without secrets."""
    return redact(str.encode(text, "utf-8", "backslashreplace").decode())


def _plain(value: object, depth: int = 0) -> Any:
    """The same value out of nothing but what strict JSON can carry; never raises."""
    try:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return _clean(value)
        if isinstance(value, int):
            return int(repr(int(value)))  # ValueError for those too long to be printed (sys.set_int_max_str_digits)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        if depth < _MAX_DEPTH and isinstance(value, dict):
            return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
        if depth < _MAX_DEPTH and isinstance(value, list | tuple):
            return [_plain(item, depth + 1) for item in value]
    except Exception:  # noqa: BLE001 - a subclass of the user's may raise anything
        pass
    return _clean(_text(value))


def _key(key: object) -> str:
    return _clean(_text(key))


def _json(record: dict[str, Any]) -> str:
    """One line of strict JSON without its newline, of at most `MAX_LINE` - 1 characters, all ASCII."""
    try:
        line = _encode(record)
        if len(line) < MAX_LINE and not ("\\ud" in line or ("://" in line and SCHEME.search(line))):
            return line
    except Exception:  # noqa: BLE001 - NaN, a circle, a key that is no string, a mapping that raises
        pass
    record = _plain(record)
    line = _encode(record)
    return line if len(line) < MAX_LINE else _encode(_fitted(record))


def is_line(text: str) -> bool:
    """Whether another process's line can be written as if it were ours: in JSON, one whole object of strict JSON."""
    if len(text) > MAX_LINE or not text.endswith("\n"):
        return False
    if _PIPELINE.render is not _json:
        return True
    try:
        record = json.loads(text, parse_constant=_no_constant)
        if "\\ud" in text:
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and text.isascii() and text.find("\n") == len(text) - 1


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _fitted(record: dict[str, Any]) -> dict[str, Any]:
    """A plain record with its longest values cut, evenly, until it fits; and when there are too many fields, fewer."""
    room = MAX_LINE - _MIN_VALUE
    least = 0
    sizes: dict[str, int] = {}
    values: dict[str, Any] = {}
    for name, value in record.items():
        key, size = _cut(name, _MAX_KEY), len(_encode(value))
        punctuated = len(_encode(key)) + 2
        if least + min(size, _MIN_VALUE) + punctuated > room:
            break
        least += min(size, _MIN_VALUE)
        room -= punctuated
        sizes[key], values[key] = size, value
    lost = len(record) - len(values)
    most = _level(sizes.values(), room)
    for key, size in sizes.items():
        if size > most:
            value = values[key]
            text = value if isinstance(value, str) else _encode(value)
            values[key] = _cut(text, most, end=key in ("exception", "stack"))
    return values | {"fields_dropped": lost} if lost else values


def _level(sizes: Iterable[int], room: int) -> int:
    """The greatest size to which all may be cut so that they fill no more than the room."""
    left = sorted(sizes)
    for index, size in enumerate(left):
        share = room // (len(left) - index)
        if size > share:
            return share
        room -= size
    return MAX_LINE


def _cut(text: str, most: int, *, end: bool = False) -> str:
    """As much of the beginning, or of the end, as takes up `most` characters of JSON together with the mark."""
    if len(text) <= most and len(_encode(text)) <= most:
        return text
    mark = f"…[{len(text)} chars]"
    kept = text[-most:] if end else text[:most]
    while True:
        shown = mark + kept if end else kept + mark
        size = len(_encode(shown))
        if size <= most or not kept:
            return shown
        count = min(len(kept) - 1, len(kept) * most // size)
        kept = kept[len(kept) - count :] if end else kept[:count]


# --------------------------------------------------------------------------------------------------- on a console


def _printable(text: str) -> str:
    """Escape what moves a cursor, hides text or turns its direction: all that str.isprintable denies."""
    return text if text.isprintable() else repr(text)[1:-1]


def _indented(text: str) -> str:
    """A traceback keeps its lines, each indented so that none can pass for a record."""
    return "\n".join("    " + _printable(line) for line in text.split("\n"))


def _console(colors: bool) -> Callable[[dict[str, Any]], str]:
    render = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def line(record: dict[str, Any]) -> str:
        fields = cast("dict[str, Any]", json.loads(_json(record)))
        # Whoever looks at a terminal knows the day and the queue, and tells a worker by its slot.
        fields["timestamp"] = str(fields["timestamp"])[11:23]
        for name in ("queue", "role"):
            fields.pop(name, None)
        shown: dict[str, Any] = {}
        for key, value in fields.items():
            if key in ("exception", "stack"):
                shown[key] = _indented(str(value))
            else:
                shown[_printable(key).replace(" ", "_")] = _printable(value) if isinstance(value, str) else value
        return render(None, str(fields["level"]), shown)

    return line


# ------------------------------------------------------------------------------------------------------ the pipeline

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_ALIASES: Final = {"warn": "warning", "exception": "error", "fatal": "critical", "msg": "info"}


class _Pipeline:
    """The last structlog processor of this process: makes the line and writes it.

    There is one, for good. Loggers keep the list of processors that they were made with, so a later `configure`
    (a worker's, after the fork) changes this object and reaches those that a handler's module made, or bound, when the
    nursery imported it. It writes by itself and raises DropEvent, as structlog's LogCapture does, so that it does not
    matter which logger is wrapped.
    """

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.floor = 0
        self.render: Callable[[dict[str, Any]], str] = _json
        self.identity: dict[str, Any] = {}
        self.reserved: frozenset[str] = frozenset()
        self.wrapper: Any = structlog.make_filtering_bound_logger(logging.NOTSET)

    def __call__(self, logger: Any, method: str, fields: EventDict) -> EventDict:
        level = _ALIASES.get(method, method)
        if _LEVELS.get(level, logging.CRITICAL) >= self.floor:
            if "exc_info" in fields or "stack_info" in fields:
                _render_exception(logger, method, fields)
            name = getattr(logger, "name", "")
            if name:
                fields.setdefault("logger", name)
            self.emit(level, fields)
        raise structlog.DropEvent

    def emit(self, level: str, fields: EventDict) -> None:
        if self.sink is None:
            return
        event = fields.pop("event", "")
        if not self.reserved.isdisjoint(fields):
            fields = {key + "_" if key in self.reserved else key: value for key, value in fields.items()}
        record = {
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": level,
            "event": event if type(event) is str else _text(event),
            **self.identity,
            **fields,
        }
        self.sink.write(self.render(record).encode()[: MAX_LINE - 1] + b"\n")  # only a console's can be longer


class _Name:
    """What our bound loggers wrap: the name given to structlog.get_logger, if any."""

    def __init__(self, *args: object) -> None:
        self.name = str(args[0]) if args else ""

    def _print(self, message: str) -> None:
        # A user's structlog.configure(processors=...) keeps our factory; what its renderer returns is printed then, as
        # by structlog's default, and comes back as worker.output.
        print(message)  # noqa: T201

    msg = debug = info = warning = warn = error = err = exception = failure = critical = fatal = log = _print


def _render_exception(logger: object, method: str, fields: EventDict) -> None:
    exc_info = fields.pop("exc_info", None)
    if exc_info:
        if isinstance(exc_info, BaseException):
            error: BaseException | None = exc_info
        elif isinstance(exc_info, tuple) and len(exc_info) == 3:
            error = exc_info[1]
        else:
            error = sys.exc_info()[1]
        if error is not None:
            fields["exception"] = _traceback(error)
    if "stack_info" in fields:
        structlog.processors.StackInfoRenderer()(logger, method, fields)


def _traceback(error: BaseException) -> str:
    text = failure.rendered(error, error.__traceback__).rstrip("\n")
    return redact(text) if len(text) <= MAX_TRACEBACK else f"…[{len(text)} chars]{clip_end(text, MAX_TRACEBACK)}"


class _Bridge(logging.Handler):
    """The standard library's records, by the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit the format; say what there is
            event = f"{_text(record.msg)} % {_text(record.args)}"
        fields: EventDict = {"event": event, "logger": record.name}
        for key, value in record.__dict__.items():
            if key not in _RECORD:
                fields.setdefault(key, value)
        structlog.contextvars.merge_contextvars(None, "", fields)
        if record.exc_info:
            fields["exc_info"] = record.exc_info
            _render_exception(None, "error", fields)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = record.stack_info
        _PIPELINE.emit(str(record.levelname).lower(), fields)


_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SINKS: Final[weakref.WeakSet[Sink]] = weakref.WeakSet()
_PIPELINE: Final = _Pipeline()
_BRIDGE: Final = _Bridge()
_CHAIN: Final[list[Any]] = [structlog.contextvars.merge_contextvars, _PIPELINE]


def _after_fork() -> None:
    # Another thread may have held these in the parent; and a child of a handler's is not its worker.
    for sink in list(_SINKS):
        sink.renew()
    if _PIPELINE.identity:
        _PIPELINE.identity["pid"] = os.getpid()


os.register_at_fork(after_in_child=_after_fork)


# -------------------------------------------------------------------------------------------------------- setting up


def resolve_format(choice: str, fd: int) -> str:
    """`auto` -> `console` when `fd` is a terminal, else `json`; `json` and `console` stay. Raises ValueError."""
    if choice == "auto":
        return "console" if os.isatty(fd) else "json"
    if choice not in ("json", "console"):
        raise ValueError(f"log format {choice!r}: there are auto, json and console")
    return choice


def configure(
    *,
    role: str,
    queue: str,
    fd: int,
    lock_fd: int,
    format: str,
    level: str,
    slot: int | None = None,
    on_long: Callable[[bytes], object] | None = None,
) -> Sink:
    """Send everything that this process logs, by structlog or by logging, to `fd`; return the sink, for its `dropped`.

    `role` is supervisor, nursery or worker, `slot` a worker's seat; `fd`, `lock_fd` and `on_long` are `Sink`'s;
    `format` is json or console (`resolve_format`); `level` is the lowest to be written: debug, info, warning, error
    or critical.

    Call it again after a fork, or after an import that may have called structlog.configure: the last call counts.
    A process's own fields win: an event's `pid` is written as `pid_`, but in the supervisor, whose events are about
    workers. Raises ValueError for an unknown format or level.
    """
    resolve_format(format, fd)
    floor = _LEVELS.get(level.lower())
    if floor is None:
        raise ValueError(f"log level {level!r}: there are {', '.join(_LEVELS)}")
    identity: dict[str, Any] = {"pid": os.getpid(), "role": role}
    if slot is not None:
        identity["slot"] = slot
    identity["queue"] = queue

    close()
    _PIPELINE.sink = Sink(fd, lock_fd, on_long)
    _PIPELINE.floor = floor
    _PIPELINE.identity = identity
    _PIPELINE.reserved = frozenset(identity) | {"timestamp", "level", "event"}
    if role == "supervisor":
        # No user's code logs there, and in an event about a worker `slot` and `pid` are that worker's.
        _PIPELINE.reserved -= {"pid"}
    _PIPELINE.render = _json if format == "json" else _console(os.isatty(fd) and not os.environ.get("NO_COLOR"))
    _PIPELINE.wrapper = structlog.make_filtering_bound_logger(floor)
    structlog.configure(
        processors=_CHAIN,
        wrapper_class=_PIPELINE.wrapper,
        context_class=dict,
        logger_factory=_Name,
        cache_logger_on_first_use=True,
    )
    _configure_logging(floor)
    return _PIPELINE.sink


def inherit(role: str, on_long: Callable[[bytes], object]) -> Sink:
    """The same as `configure`, in a fork of a process that has called it: another role, and its long lines go another
    way; the rest is as it was there."""
    sink = _PIPELINE.sink
    assert sink is not None
    sink.hand_over(on_long)
    _PIPELINE.identity |= {"role": role}
    return sink


def close() -> None:
    """Give back what `configure` opened: before it is called again, or all descriptors are closed."""
    former, _PIPELINE.sink = _PIPELINE.sink, None
    if former is not None:
        former.close()


def sit(slot: int) -> None:
    """Have every line from now on tell this worker's seat, which it did not know when it called `configure`."""
    queue = _PIPELINE.identity.pop("queue")
    _PIPELINE.identity |= {"slot": slot, "queue": queue}
    _PIPELINE.reserved |= {"slot"}


def set_level(level: str) -> None:
    """Change the lowest level that is written, one that `configure` knows. A logger obtained before goes on to leave
    out what was below the level of then: get another."""
    _PIPELINE.floor = _LEVELS[level.lower()]
    _PIPELINE.wrapper = structlog.make_filtering_bound_logger(_PIPELINE.floor)
    _configure_logging(_PIPELINE.floor)


def _configure_logging(floor: int) -> None:
    root = logging.getLogger()
    _BRIDGE.setLevel(floor)
    if _BRIDGE not in root.handlers:
        root.addHandler(_BRIDGE)  # beside the user's own, if there are any: taking those away is not ours to do
    root.setLevel(floor)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs each failed attempt several times; we report causes
    logging.captureWarnings(True)


def tells(level: str) -> bool:
    """Whether events of this level are written at all."""
    return _LEVELS[level] >= _PIPELINE.floor


def tell(level: str, event: str, fields: EventDict) -> None:
    """Write an event of this project's own that comes with every task: as by a logger of `get_logger`, whose way of
    keeping and merging fields takes longer than to write the line. The caller has asked `tells`."""
    structlog.contextvars.merge_contextvars(None, "", fields)
    fields["event"] = event
    _PIPELINE.emit(level, fields)


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """A logger bound to these fields that a user's structlog.configure cannot divert: for this project's own events."""
    return cast("FilteringBoundLogger", _PIPELINE.wrapper(_Name(), _CHAIN, fields))
