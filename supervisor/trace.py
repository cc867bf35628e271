"""Whose trace a message belongs to, by the W3C's header `traceparent`; and whether spans are wanted.

    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
                 version, trace id, id of the sender's span, flags

Pure, and imports nothing heavy: every worker has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)


def trace_id(headers: Mapping[Any, Any] | None) -> str:
    """The id of the trace that a message with these headers belongs to: 32 hexadecimal digits, lowercase. Empty without
    a `traceparent`, or where no reader may use it: of another form, of version `ff`, with an id of zeros, or of version
    `00` with more behind it (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    value = headers.get("traceparent") if headers else None
    if value is None:
        return ""
    if isinstance(value, bytes):  # as pika gives a value of AMQP's type `x`
        value = value.decode("latin-1")
    found = _PARENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return ""
    version, trace, parent, more = found.groups()
    if version == "ff" or (version == "00" and more is not None) or not trace.strip("0") or not parent.strip("0"):
        return ""
    return str(trace)


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables ask for spans: `OTEL_TRACES_EXPORTER` names an exporter, or an OTLP
    endpoint is set and that variable does not say `none`. Unlike there, no exporter is the default
    (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/)."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporters:
        return exporters != "none"
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environ.get(name, "").strip() for name in endpoints)
