"""Traces: the sender's trace id in every event of its task, and the extra `otel`'s span for each task, as a real
collector would get them."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pika
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tests import amqp, handler_modules, wire
from tests.supervision import PATIENCE, Runs, Supervision, eventually, supervised

PARENT = "00f067aa0ba902b7"

NOTES = """
from handlers import act as _act

def act(task):
    task.log.info("shop.noted")
    _act(task)
"""

SPANS = """
import asyncio
import os
import signal

from opentelemetry import trace

tracer = trace.get_tracer("shop")  # in the nursery, where nothing exports


class NoCustomer(Exception):
    pass


def work(task):
    with tracer.start_as_current_span("inner"):
        if task.text == "fails":
            raise NoCustomer("number 7")
        if task.text == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if task.text == "forks":
            os.waitpid(os.fork() or os._exit(0), 0)


async def work_async(task):
    with tracer.start_as_current_span("inner"):
        await asyncio.sleep(0)
"""

MODULES = """
import sys
from handlers import note

def work(task):
    note("modules", ",".join(name for name in sys.modules if name.startswith("opentelemetry")) or "none")
"""

MISSING = "raise ModuleNotFoundError(\"No module named 'opentelemetry'\", name='opentelemetry')\n"


def traceparent(number: int) -> tuple[str, str]:
    """A trace id of its own, and the header that names it."""
    trace = f"{number:032x}"
    return trace, f"00-{trace}-{PARENT}-01"


def events_about(pool: Supervision, message_id: str) -> list[dict[str, Any]]:
    return [line for line in pool.events if line.get("message_id") == message_id and line["event"] != "task.verdict"]


# ----------------------------------------------------------------------------------------------------- in the log


def test_the_senders_trace_id_is_in_every_event_of_its_task_and_its_header_on_what_is_parked(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "notes", NOTES)
    tried = {"task.started", "shop.noted"}
    stories: dict[str, tuple[dict[str, Any], set[str]]] = {
        "done": ({}, {*tried, "task.succeeded"}),
        "fails": ({"raise": "ValueError"}, {*tried, "task.failed", "task.retried", "task.dead_lettered"}),
        "rejected": ({"reject": "no"}, {*tried, "task.failed", "task.dead_lettered"}),
        "kills": ({"kill": "SIGSEGV"}, {*tried, "worker.exited", "task.quarantined"}),
        "hangs": ({"sleep": 3600}, {*tried, "worker.hung", "worker.exited", "task.quarantined"}),
        "large": ({"more": "x" * 4096}, {"task.dead_lettered"}),
    }
    traces = {}
    for number, (name, (order, _)) in enumerate(stories.items(), 1):
        traces[name], header = traceparent(number)
        # As pika encodes them: a str as AMQP's long string, bytes as a byte array.
        value: Any = header.encode() if number % 2 else header
        amqp.publish(broker_url, queue, [json.dumps(order)], ids=[name], headers={"traceparent": value})
    amqp.publish(broker_url, queue, ["{}"], ids=["untraced"])
    amqp.publish(broker_url, queue, ["{}"], ids=["malformed"], headers={"traceparent": traceparent(99)[1] + "-more"})
    traces["undecodable"], header = traceparent(100)
    table = wire.table({b"bad": (b"T", b"\x40" + bytes(7)), b"traceparent": (b"S", wire.long(header.encode()))})
    wire.publish(broker_url, queue, wire.properties(headers=table, message_id=wire.short(b"undecodable")), b"{}")
    options = ("--log-level", "debug", "--retries", "1", "--retry-delay", "100ms", "--max-crashes", "2")
    limits = ("--task-timeout", "1s", "--max-body", "4000")
    env = {"PYTHONPATH": str(tmp_path), **runs.env}
    with supervised(
        "notes:act", "--workers", "2", "--burst", *options, *limits, url=broker_url, queue=queue, env=env
    ) as pool:
        assert pool.wait() == 0
    for name, (_, expected) in stories.items():
        events = events_about(pool, name)
        assert {event["event"] for event in events} == expected
        assert {event.get("trace_id") for event in events} == {traces[name]}
    assert len(pool.named("worker.exited", trace_id=traces["kills"])) == 2
    assert [event["trace_id"] for event in events_about(pool, "undecodable")] == [traces["undecodable"]]
    untraced = [*events_about(pool, "untraced"), *events_about(pool, "malformed")]
    assert len(untraced) == 2 * len(tried | {"task.succeeded"})
    assert not [event for event in untraced if "trace_id" in event]
    parked = {taken[1].message_id: taken[1].headers or {} for taken in amqp.drain(broker_url, f"{queue}.dead")}
    assert set(parked) == {"fails", "rejected", "kills", "hangs", "large", "undecodable"}
    for name, headers in parked.items():
        value = headers["traceparent"]
        assert (value.decode() if isinstance(value, bytes) else value).split("-")[1] == traces[name]


# ------------------------------------------------------------------------------------------------------- as spans


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, as an OpenTelemetry collector does."""

    daemon_threads = True

    def __init__(self) -> None:
        self.resources: list[ResourceSpans] = []
        super().__init__(("127.0.0.1", 0), Post)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        return [span for each in self.resources for scope in each.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


class Post(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        assert self.headers["Content-Type"] == "application/x-protobuf"
        self.server.resources += ExportTraceServiceRequest.FromString(body).resource_spans
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def exporting(tmp_path: Path, collector: Collector, **more: str) -> dict[str, str]:
    """An environment in which spans are sent to it, and only when a worker leaves, unless said otherwise."""
    handler_modules.write(tmp_path, "spans", SPANS)
    return {
        "PYTHONPATH": str(tmp_path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    } | more


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_each_task_is_a_consumer_span_in_its_senders_trace_and_the_handlers_spans_are_its_children(
    broker_url: str, queue: str, collector: Collector, tmp_path: Path
) -> None:
    trace, header = traceparent(1)
    headers = {"traceparent": header, "tracestate": b"congo=t61rcWkgMzE"}
    with amqp.connection(broker_url) as link:
        channel = link.channel()
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "amq.topic", f"{queue}.new")
        properties = pika.BasicProperties(message_id="topical", correlation_id="order-7", headers=headers)
        channel.basic_publish("amq.topic", f"{queue}.new", b"", properties)
    amqp.publish(broker_url, queue, ["fails"], ids=["fails"], headers=headers)
    amqp.publish(broker_url, queue, ["", "forks"])
    env = exporting(tmp_path, collector)
    with supervised(
        "spans:work", "--workers", "1", "--burst", "--retries", "0", url=broker_url, queue=queue, env=env
    ) as pool:
        assert pool.wait() == 0
    assert len(collector.named("inner")) == 4  # sent once each, though a handler has forked
    spans = collector.named(f"process {queue}")
    assert {span.kind for span in spans} == {Span.SPAN_KIND_CONSUMER}
    topical, failed, *others = sorted(spans, key=lambda span: attributes(span).get("messaging.message.id", "~"), reverse=1 == 0)
