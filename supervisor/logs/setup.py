"""`configure`, once in each process: from then on all that it logs, by structlog or by `logging`, goes through
`Sink`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from supervisor.light import structlog
from supervisor.logs.record import as_json, as_text, for_console, render_exception
from supervisor.logs.sink import MAX_LINE, SINKS, Sink

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_ALIASES: Final = {"warn": "warning", "exception": "error", "fatal": "critical", "msg": "info"}


class _Pipeline:
    """The last structlog processor: renders and writes the line, and raises DropEvent, as structlog's LogCapture does.
    Loggers keep the processors that they were created with, so there is one object for good: a worker's `configure`
    reaches the loggers that the nursery's import created."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.floor = 0
        self.render: Callable[[dict[str, Any]], str] = as_json
        self.identity: dict[str, Any] = {}
        self.reserved: frozenset[str] = frozenset()
        self.wrapper: Any = structlog.make_filtering_bound_logger(logging.NOTSET)

    def __call__(self, logger: Any, method: str, fields: EventDict) -> EventDict:
        level = _ALIASES.get(method, method)
        if _LEVELS.get(level, logging.CRITICAL) >= self.floor:
            if "exc_info" in fields or "stack_info" in fields:
                render_exception(logger, method, fields)
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
            "event": event if type(event) is str else as_text(event),
            **self.identity,
            **fields,
        }
        self.sink.write(self.render(record).encode()[: MAX_LINE - 1] + b"\n")  # only console lines can be longer


class _Name:
    """Wrapped by our bound loggers; has the name given to structlog.get_logger, if any."""

    def __init__(self, *args: object) -> None:
        self.name = str(args[0]) if args else ""

    def _print(self, message: str) -> None:
        # A user's structlog.configure(processors=...) keeps our factory; what its renderer returns comes back as
        # worker.output.
        print(message)  # noqa: T201

    msg = debug = info = warning = warn = error = err = exception = failure = critical = fatal = log = _print


class _Bridge(logging.Handler):
    """Sends the standard library's records the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit the format; say what there is
            event = f"{as_text(record.msg)} % {as_text(record.args)}"
        fields: EventDict = {"event": event, "logger": record.name}
        for key, value in record.__dict__.items():
            if key not in _RECORD:
                fields.setdefault(key, value)
        structlog.contextvars.merge_contextvars(None, "", fields)
        if record.exc_info:
            fields["exc_info"] = record.exc_info
            render_exception(None, "error", fields)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = record.stack_info
        _PIPELINE.emit(str(record.levelname).lower(), fields)


_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_PIPELINE: Final = _Pipeline()
_BRIDGE: Final = _Bridge()
_CHAIN: Final[list[Any]] = [structlog.contextvars.merge_contextvars, _PIPELINE]


def _after_fork() -> None:
    # Another thread of the parent may have held these; and a handler's child is not its worker.
    for sink in list(SINKS):
        sink.renew()
    if _PIPELINE.identity:
        _PIPELINE.identity["pid"] = os.getpid()


os.register_at_fork(after_in_child=_after_fork)


def is_line(text: str) -> bool:
    """Whether another process's line can be written like our own: if JSON, one whole object of strict JSON."""
    if len(text) > MAX_LINE or not text.endswith("\n"):
        return False
    if _PIPELINE.render is not as_json:
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


def resolve_format(choice: str, fd: int) -> str:
    """`auto` -> `console` when `fd` is a terminal, else `json`; `json` and `console` stay. Raises ValueError."""
    if choice == "auto":
        return "console" if os.isatty(fd) else "json"
    if choice not in ("json", "console"):
        raise ValueError(f"log format {choice!r}: use auto, json or console")
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
    """Send all that this process logs, by structlog or by logging, to `fd`; return the sink, for its `dropped`.

    `role` is supervisor, nursery or worker; `fd`, `lock_fd` and `on_long` are `Sink`'s; `format` is json or console;
    `level` is the lowest to be written. Call it again after a fork, or after an import that may have called
    structlog.configure. A process's own fields win: an event's `pid` is written as `pid_`, but in the supervisor.
    Raises ValueError for an unknown format or level.
    """
    resolve_format(format, fd)
    floor = _LEVELS.get(level.lower())
    if floor is None:
        raise ValueError(f"log level {level!r}: use one of {', '.join(_LEVELS)}")
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
        # No user code logs there, and in an event about a worker `slot` and `pid` are that worker's.
        _PIPELINE.reserved -= {"pid"}
    _PIPELINE.render = as_json if format == "json" else for_console(os.isatty(fd) and not os.environ.get("NO_COLOR"))
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
    """`configure` again in a fork, with another role and another way for long lines."""
    sink = _PIPELINE.sink
    assert sink is not None
    sink.hand_over(on_long)
    _PIPELINE.identity |= {"role": role}
    return sink


def close() -> None:
    """Close what `configure` opened, before it is called again, or before all descriptors are closed."""
    former, _PIPELINE.sink = _PIPELINE.sink, None
    if former is not None:
        former.close()


def sit(slot: int) -> None:
    """Add this worker's slot, unknown at `configure`, to every line from now on."""
    queue = _PIPELINE.identity.pop("queue")
    _PIPELINE.identity |= {"slot": slot, "queue": queue}
    _PIPELINE.reserved |= {"slot"}


def set_level(level: str) -> None:
    """Change the lowest level that is written. Get new loggers afterwards: old ones keep the old level."""
    _PIPELINE.floor = _LEVELS[level.lower()]
    _PIPELINE.wrapper = structlog.make_filtering_bound_logger(_PIPELINE.floor)
    _configure_logging(_PIPELINE.floor)


def _configure_logging(floor: int) -> None:
    root = logging.getLogger()
    _BRIDGE.setLevel(floor)
    if _BRIDGE not in root.handlers:
        root.addHandler(_BRIDGE)  # beside the user's own, which stay
    root.setLevel(floor)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs each failed attempt several times; we report causes
    logging.captureWarnings(True)


def tells(level: str) -> bool:
    """Whether events of this level are written."""
    return _LEVELS[level] >= _PIPELINE.floor


def tell(level: str, event: str, fields: EventDict) -> None:
    """Like a logger of `get_logger`, but faster, for per-task events. The caller has checked `tells`."""
    structlog.contextvars.merge_contextvars(None, "", fields)
    fields["event"] = event
    _PIPELINE.emit(level, fields)


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """A logger bound to these fields, unaffected by a user's structlog.configure: for our own events."""
    return cast("FilteringBoundLogger", _PIPELINE.wrapper(_Name(), _CHAIN, fields))
