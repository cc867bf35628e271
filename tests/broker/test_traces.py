"""Traces: the sender's trace id in every event of its task, and the extra `otel`'s span for each task, as a real
collector would get them."""

from __future__ import annotations

import gzip
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pika
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tests import amqp, handler_modules, wire
from tests.supervision import Runs, Supervision, supervised

pytestmark = pytest.mark.any_broker

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
    spans = collector.named(f"process {queue}")
    assert len(spans) == 4
    assert {span.kind for span in spans} == {Span.SPAN_KIND_CONSUMER}
    by_id = {attributes(span).get("messaging.message.id"): span for span in spans}
    died = pool.named("worker.exited")[0]
    always = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.client.id": f"workq-{os.uname().nodename}-{died['pid']}-0",
        "server.address": "127.0.0.1",
        "server.port": pika.URLParameters(broker_url).port,
        "workq.attempt": 1,
    }
    topical, failed = by_id["topical"], by_id["fails"]
    assert attributes(topical) == always | {
        "messaging.destination.name": f"amq.topic:{queue}.new:{queue}",
        "messaging.rabbitmq.destination.routing_key": f"{queue}.new",
        "messaging.rabbitmq.message.delivery_tag": 1,
        "messaging.message.id": "topical",
        "messaging.message.conversation_id": "order-7",
    }
    assert attributes(failed) == always | {
        "messaging.destination.name": queue,
        "messaging.rabbitmq.destination.routing_key": queue,
        "messaging.rabbitmq.message.delivery_tag": 2,
        "messaging.message.id": "fails",
        "error.type": "spans.NoCustomer",
    }
    for span in (topical, failed):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, PARENT)
        assert span.trace_state == "congo=t61rcWkgMzE"
        assert [(link.trace_id.hex(), link.span_id.hex()) for link in span.links] == [(trace, PARENT)]
    assert topical.status.code == Status.STATUS_CODE_UNSET
    assert (failed.status.code, failed.status.message) == (Status.STATUS_CODE_ERROR, "NoCustomer: number 7")
    [event] = failed.events
    said = {each.key: each.value.string_value for each in event.attributes}
    assert (event.name, said["exception.type"], said["exception.message"]) == (
        "exception",
        "spans.NoCustomer",
        "number 7",
    )
    assert 'raise NoCustomer("number 7")' in said["exception.stacktrace"]

    inner = collector.named("inner")  # sent once each, though a handler has forked
    assert sorted(span.parent_span_id for span in inner) == sorted(span.span_id for span in spans)
    assert topical.start_time_unix_nano < topical.end_time_unix_nano

    # Who came without a trace has one now, and the log tells which.
    roots = {span.trace_id.hex() for span in spans if not span.parent_span_id}
    told = {line["trace_id"] for line in pool.named("task.succeeded") if line["message_id"] != "topical"}
    assert roots == told
    assert len(roots) == 2
    [resource] = collector.resources
    assert ("service.name", "shop") in [(each.key, each.value.string_value) for each in resource.resource.attributes]


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_every_worker_sends_its_spans_and_a_killed_ones_successor_too(
    broker_url: str, queue: str, collector: Collector, tmp_path: Path, preload: str
) -> None:
    trace, header = traceparent(1)
    env = exporting(tmp_path, collector)
    with supervised("spans:work", preload, "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["dies"], ids=["killer"], headers={"traceparent": header})
        pool.hear("task.quarantined")
        pool.hear("worker.ready", count=5)
        amqp.publish(broker_url, queue, [""] * 40)
        pool.hear("task.succeeded", count=40)
        assert pool.stop() == 0
    assert not [span for span in collector.spans if span.trace_id.hex() == trace]  # who is killed sends nothing
    assert {line["trace_id"] for line in pool.named("worker.exited", message_id="killer")} == {trace}
    spans = collector.named(f"process {queue}")
    assert len(spans) == 40
    done = {(line["pid"], line["slot"]) for line in pool.named("task.succeeded")}
    assert len(done) == 2
    clients = {f"workq-{os.uname().nodename}-{pid}-{slot}" for pid, slot in done}
    assert {attributes(span)["messaging.client.id"] for span in spans} == clients


def test_what_async_handlers_start_are_children_of_their_own_task(
    broker_url: str, queue: str, collector: Collector, tmp_path: Path
) -> None:
    traces = {}
    for number in range(1, 4):
        trace, header = traceparent(number)
        traces[trace] = number
        amqp.publish(broker_url, queue, [""], headers={"traceparent": header})
    env = exporting(tmp_path, collector)
    with supervised("spans:work_async", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    assert {span.trace_id.hex() for span in collector.named("inner")} == set(traces)
    outer = {span.span_id for span in collector.named(f"process {queue}")}
    assert {span.parent_span_id for span in collector.named("inner")} == outer


@contextmanager
def dead_collector(kind: str) -> Iterator[str]:
    """Where nobody listens, or somebody who accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if kind == "refuses":
            listener.close()
        yield url


@pytest.mark.parametrize("kind", ["refuses", "never answers"])
def test_a_dead_collector_delays_no_task_and_no_stop(
    broker_url: str, queue: str, collector: Collector, tmp_path: Path, kind: str
) -> None:
    amqp.publish(broker_url, queue, [""] * 300)
    with dead_collector(kind) as url:
        # A queue of 20 spans, sent by tens: much less than there are.
        env = exporting(tmp_path, collector, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="50") | {
            "OTEL_BSP_MAX_QUEUE_SIZE": "20",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
        }
        with supervised("spans:work", "--workers", "1", "--grace", "8s", url=broker_url, queue=queue, env=env) as pool:
            pool.hear("task.succeeded", count=300)
            # The exporter's own patience is 10 s a batch, and at the end half a minute.
            assert max(line["seconds"] for line in pool.named("task.succeeded")) < 5
            assert pool.stop() == 0
            assert [line["cause"] for line in pool.named("worker.exited")] == ["drained"]


# ---------------------------------------------------------------------------------------------------- not as spans


def test_unless_they_are_asked_for_nothing_of_opentelemetry_is_imported(
    broker_url: str, queue: str, runs: Runs, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "modules", MODULES)
    amqp.publish(broker_url, queue, [""])
    env = {"PYTHONPATH": str(tmp_path), "OTEL_SERVICE_NAME": "shop", "OTEL_TRACES_EXPORTER": "none", **runs.env}
    with supervised("modules:work", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    assert runs.lines("modules") == ["none"]
    assert not pool.named("tracing.off")


def test_asked_for_without_the_extra_the_work_is_done_and_it_is_said_once_how_to_have_them(
    broker_url: str, queue: str, collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text(MISSING)
    amqp.publish(broker_url, queue, ["0"], ids=["done"], headers={"traceparent": traceparent(1)[1]})
    env = exporting(tmp_path, collector)
    with supervised("handlers:work", "--workers", "2", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    [off] = pool.named("tracing.off")
    assert off["role"] == "nursery"
    assert f"{sys.executable} -m pip install 'opentelemetry-" in off["because"]
    assert pool.named("task.succeeded", message_id="done", trace_id=traceparent(1)[0])
    assert not collector.resources


@pytest.mark.parametrize(
    ("variable", "value", "because"),
    [
        ("OTEL_TRACES_EXPORTER", "pigeon", "the exporter 'pigeon' is not installed; those that are: "),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "unknown OTLP protocol 'smoke': use one of http/protobuf"),
    ],
)
def test_an_exporter_that_cannot_be_had_is_named_and_the_work_is_done(
    broker_url: str, queue: str, collector: Collector, tmp_path: Path, variable: str, value: str, because: str
) -> None:
    amqp.publish(broker_url, queue, ["0"])
    env = exporting(tmp_path, collector) | {variable: value}
    with supervised("handlers:work", "--workers", "1", "--burst", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 0
    assert because in pool.hear("tracing.off", role="worker")["because"]
    assert len(pool.named("task.succeeded")) == 1
