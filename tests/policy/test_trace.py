"""Whose trace a message belongs to, by the letter of the W3C; and whether spans are wanted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.trace import is_wanted, trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    "value",
    [
        VALID,
        VALID.encode(),
        f"00-{TRACE}-{PARENT}-00",
        f"00-{TRACE}-{PARENT}-ff",
        f"01-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
        f"fe-{TRACE}-{PARENT}-01-",
    ],
)
def test_a_valid_traceparent_tells_the_trace(value: str | bytes) -> None:
    assert trace_id({"other": 1, "traceparent": value}) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-0",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}-{PARENT}-011",
        f"01-{TRACE}-{PARENT}-01.more",
        f" {VALID}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00_{TRACE}_{PARENT}_01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00-{TRACE[:-1]}\u0664-{PARENT}-01",  # a digit, but not one of these
        f"ff-{TRACE}-{PARENT}-01",
        f"0g-{TRACE}-{PARENT}-01",
        f"{TRACE}-{PARENT}-01",
        VALID.encode() + b"\xff",
        7,
        None,
        [VALID],
        {"traceparent": VALID},
    ],
)
def test_any_other_is_ignored(value: Any) -> None:
    assert trace_id({"traceparent": value}) == ""


@pytest.mark.parametrize("headers", [None, {}, {"Traceparent": VALID}, {b"traceparent": VALID}])
def test_without_one_there_is_no_trace(headers: Any) -> None:
    assert trace_id(headers) == ""


@given(st.text() | st.binary() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True))
def test_whatever_it_is_the_answer_is_a_trace_id_or_nothing(value: str | bytes) -> None:
    found = trace_id({"traceparent": value})
    assert found == "" or (len(bytes.fromhex(found)) == 16 and found.strip("0") and found == found.lower())


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXPORTER = "OTEL_TRACES_EXPORTER"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "shop"}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({ENDPOINT: " "}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"}, False),
        ({EXPORTER: "console"}, True),
        ({EXPORTER: "none"}, False),
        ({EXPORTER: "None ", ENDPOINT: "http://collector:4318"}, False),
        ({EXPORTER: "", ENDPOINT: "http://collector:4318"}, True),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_spans_are_wanted_when_it_is_said_where_they_go(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) is wanted
