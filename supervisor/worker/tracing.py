"""A span for each task, by OpenTelemetry: the extra `otel`.

The only file that imports OpenTelemetry, itself imported only when `trace.is_wanted`. Exporting is configured by
OpenTelemetry's own variables: docs/decisions/0018-logs-and-traces.md has the supported ones, and the spans' content.

Set up in each worker, after the fork, which an exporter's thread does not survive. The import takes about a second, so
the nursery does it once for all workers (`prepare`).
"""

from __future__ import annotations

import atexit
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from supervisor.policy.settle import Deferred, Outcome, Raised, Rejected, RetryAsked
from supervisor.version import __version__

if TYPE_CHECKING:
    from supervisor.endpoint import Endpoint
    from supervisor.worker.delivery import Delivery

FLUSH_TIMEOUT: Final = 2.0
"""Seconds that a worker waits at exit for the collector to take its last spans; OpenTelemetry's default is 30."""

SCHEMA: Final = "https://opentelemetry.io/schemas/1.30.0"
"""The version of the semantic conventions of the attributes below."""

_EXPORTERS: Final = "opentelemetry_traces_exporter"
"""The entry point group of exporters."""
_PROTOCOLS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class CannotExport(Exception):
    """No spans can be sent. Its text has the reason and the remedy."""


def prepare() -> None:
    """Import, before the fork, what workers will need. Raises CannotExport."""
    for exporter in _wanted(os.environ):
        _load(exporter)
    try:
        # The OTLP/HTTP exporter imports this only in its constructor: 0.3 s in each worker.
        importlib.import_module("requests")
    except ImportError:
        pass  # another exporter, which does not need it


class Tracing:
    """Call `begin` before the handler, `end` after it. Neither raises."""

    def __init__(self, queue: str, client: str, broker: Endpoint) -> None:
        """`client` is the connection's name. Raises CannotExport."""
        _open_provider()
        self._tracer = trace.get_tracer("workq-supervise", __version__, schema_url=SCHEMA)
        self._queue = queue
        self._name = f"process {queue}"
        self._attributes: dict[str, str | int] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.client.id": client,
            "server.address": broker.host,
            "server.port": broker.port,
        }
        self._span: trace.Span | None = None
        self._token: Any = None

    def begin(self, delivery: Delivery, attempt: int) -> None:
        """Start the task's span, a child of the sender's if it named one, and make it the current one: spans that the
        handler starts become its children. Sets the delivery's trace id."""
        try:
            parent = propagate.extract(_carrier(delivery.properties.headers))
            sender = trace.get_current_span(parent).get_span_context()
            span = self._tracer.start_span(
                self._name,
                parent,
                SpanKind.CONSUMER,
                self._attributes | self._about(delivery, attempt),
                # The conventions want the link in any case; the parent is what makes it one trace.
                [Link(sender)] if sender.is_valid else None,
            )
            self._token = context.attach(trace.set_span_in_context(span, parent))
            self._span = span
            mine = span.get_span_context()
            if mine.is_valid:
                delivery.trace_id = trace.format_trace_id(mine.trace_id)
        except Exception:  # noqa: BLE001 - a sampler's or a processor's fault is no reason to fail a task
            pass

    def end(self, outcome: Outcome) -> None:
        """The handler has finished."""
        span, self._span = self._span, None
        token, self._token = self._token, None
        try:
            if token is not None:
                context.detach(token)
            if span is not None:
                _conclude(span, outcome)
                span.end()
        except Exception:  # noqa: BLE001 - as above
            pass

    def _about(self, delivery: Delivery, attempt: int) -> dict[str, str | int]:
        properties = delivery.properties
        attributes: dict[str, str | int] = {
            "messaging.destination.name": _destination(delivery.exchange, delivery.routing_key, self._queue),
            "messaging.rabbitmq.message.delivery_tag": delivery.tag,
            "workq.attempt": attempt,
        }
        if delivery.is_named:
            attributes["messaging.message.id"] = delivery.name
        if delivery.routing_key:
            attributes["messaging.rabbitmq.destination.routing_key"] = delivery.routing_key
        if isinstance(properties.correlation_id, str):
            attributes["messaging.message.conversation_id"] = properties.correlation_id
        return attributes


def _destination(exchange: str, routing_key: str, queue: str) -> str:
    """`exchange:routing key:queue`, without what is empty, and the queue only once
    (https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/)."""
    return ":".join(dict.fromkeys(part for part in (exchange, routing_key, queue) if part))


def _carrier(headers: Mapping[Any, Any] | None) -> dict[str, str]:
    """The headers that the propagators (OTEL_PROPAGATORS) read, as text."""
    carrier = {}
    for name in propagate.get_global_textmap().fields if headers else ():
        value = (headers or {}).get(name)
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        if isinstance(value, str):
            carrier[name] = value
    return carrier


def _conclude(span: trace.Span, outcome: Outcome) -> None:
    match outcome:
        case Raised(error, traceback, kind):
            span.add_event(
                "exception",
                {
                    "exception.type": kind,
                    "exception.message": error.partition(": ")[2],
                    "exception.stacktrace": traceback,
                },
            )
            _fail(span, kind, error)
        case Rejected(why):
            _fail(span, "supervisor.Reject", why)
        case RetryAsked(_, why):
            _fail(span, "supervisor.Retry", why)
        case Deferred(_, why):
            _fail(span, "supervisor.Unavailable", why)


def _fail(span: trace.Span, kind: str, why: str) -> None:
    span.set_attribute("error.type", kind or "_OTHER")
    span.set_status(Status(StatusCode.ERROR, why))


def _open_provider() -> None:
    """Set up exporting, unless the handler's module has. Raises CannotExport."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    # Not the provider's own atexit function, which waits half a minute for a dead collector.
    provider = TracerProvider(shutdown_on_exit=False)
    for exporter in _wanted(os.environ):
        kind = _load(exporter)
        try:
            provider.add_span_processor(BatchSpanProcessor(kind()))
        except Exception as error:
            raise CannotExport(f"the exporter {exporter.name!r} cannot be set up: {error}") from error
    trace.set_tracer_provider(provider)
    atexit.register(_flush, provider)


def _flush(provider: TracerProvider) -> None:
    thread = threading.Thread(target=provider.shutdown, name="workq-last-spans", daemon=True)
    thread.start()
    thread.join(FLUSH_TIMEOUT)


def _wanted(environ: Mapping[str, str]) -> Iterator[EntryPoint]:
    """The exporters named by the variables. Raises CannotExport."""
    for wish in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        name = wish.strip()
        if name == "otlp":
            # The specification's default; the Python SDK would use gRPC, with its threads and its 10 MB.
            asked = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            name = _PROTOCOLS.get((asked or "http/protobuf").strip(), "")
            if not name:
                raise CannotExport(f"unknown OTLP protocol {asked!r}: use one of {', '.join(_PROTOCOLS)}")
        found = list(entry_points(group=_EXPORTERS, name=name))
        if not found:
            there = ", ".join(sorted({each.name for each in entry_points(group=_EXPORTERS)})) or "none"
            raise CannotExport(f"the exporter {name!r} is not installed; those that are: {there}")
        yield found[0]


def _load(exporter: EntryPoint) -> Any:
    """The exporter's class. Raises CannotExport."""
    try:
        return exporter.load()
    except Exception as error:
        raise CannotExport(f"the exporter {exporter.name!r} cannot be imported: {error}") from error
