"""Metrics, rules and dashboard, against a real Prometheus and a real Alertmanager."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from supervisor.commands import main as workq
from supervisor.vocabulary import OUTCOMES
from tests import amqp
from tests.stack import prometheus
from tests.stack.prometheus import Server, check
from tests.stack.promql import refers
from tests.supervision import Supervision, eventually, supervised

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "prometheus"
RULES = CONFIG / "workq.rules.yml"
RULES_TEST = CONFIG / "workq.rules.test.yml"
DAY_TEST = CONFIG / "workq.rules.day.test.yml"
DASHBOARD = ROOT / "config" / "grafana" / "workq-supervise.json"
MANUAL = ROOT / "docs" / "operations.md"

ALERTS = {
    "WorkqDown", "WorkqNotConsuming", "WorkqCrashLoop", "WorkqQuarantineGrowing", "WorkqTasksFailing",
    "WorkqDeadLettersWaiting", "WorkqBacklogGrowing", "WorkqNoProgress", "WorkqMemoryRecycling",
    "WorkqMemoryOverLimit", "WorkqOutOfMemory", "WorkqParkingBlocked", "WorkqPaused",
    "WorkqBreakerOpen",
}  # fmt: skip
STABLE = {
    "workq_tasks_total", "workq_task_seconds", "workq_workers", "workq_worker_exits_total",
    "workq_worker_restart_seconds", "workq_worker_memory_bytes", "workq_queue_messages_ready", "workq_broker_up",
    "workq_busy_seconds_total", "workq_log_lines_dropped_total", "workq_info", "workq_paused", "workq_breaker_state",
}  # fmt: skip
"""Names that users' own rules and dashboards rely on."""


@pytest.fixture(scope="session")
def installed() -> None:
    prometheus.install()


# ------------------------------------------------------------------------------------------------------- as files


@pytest.mark.usefixtures("installed")
def test_the_rules_do_what_they_say() -> None:
    check("promtool", "check", "rules", "--lint-fatal", RULES)
    check("promtool", "test", "rules", RULES_TEST, DAY_TEST)


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    wanted = re.findall(r"- alert: (\w+)\n.*?severity: (\w+)\n", RULES.read_text(), re.S)
    assert {name for name, _ in wanted} == ALERTS
    text = RULES_TEST.read_text() + DAY_TEST.read_text()
    fires = re.findall(r'alertname="(\w+)", alertstate="firing", severity="(\w+)"', text)
    assert set(wanted) == set(fires)
    silent = re.findall(r"expr: '[^']*ALERTS\{([^}]*)\}[^']*', eval_time: \w+, exp_samples: \[\]", text)
    assert 'alertstate="firing"' in silent[0]  # whatever its name, in the test of a quiet day
    tested = {name for matchers in silent for name in re.findall(r'alertname="(\w+)"', matchers)}
    assert tested | {"WorkqDown"} == ALERTS  # of that one the test looks at all that fires


@pytest.mark.usefixtures("installed")
def test_the_configurations_are_valid() -> None:
    check("promtool", "check", "config", CONFIG / "prometheus.yml")
    check("amtool", "check-config", CONFIG / "alertmanager.yml")
    for severity, receiver in ("critical", "pager"), ("warning", "ticket"):
        route = "config", "routes", "test", f"--config.file={CONFIG / 'alertmanager.yml'}"
        check("amtool", *route, f"--verify.receivers={receiver}", f"severity={severity}", "alertname=Any")


@pytest.mark.usefixtures("installed")
def test_every_alert_says_what_to_do(tmp_path: Path) -> None:
    """Each is made to fire, so that Prometheus writes what people read."""
    config = stack(tmp_path)
    with prometheus.prometheus(config) as server:
        rules = [rule for group in server.get("rules", type="alert")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules} == ALERTS
        always = [
            {
                "alert": rule["name"],
                "expr": forced("instance", "host:9191") if rule["name"] == "WorkqDown" else forced("queue", "resize"),
                "labels": rule["labels"],
                "annotations": rule["annotations"],
            }
            for rule in rules
        ]
        # JSON is YAML. The rules themselves have nothing to look at.
        config.with_name(RULES.name).write_text(json.dumps({"groups": [{"name": "forced", "rules": always}]}))
        server.process.send_signal(signal.SIGHUP)
        alerts = eventually(lambda: (found := server.get("alerts")["alerts"]) and len(found) == len(rules) and found)
    headings = {line.strip("# \n").lower() for line in MANUAL.read_text().splitlines() if line.startswith("### ")}
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning")
        said = alert["annotations"]
        assert not re.search(r"<no value>|error|%!|\{\{|  ", " ".join(said.values())), said
        where = "host:9191" if alert["labels"]["alertname"] == "WorkqDown" else "resize"
        assert where in said["summary"]
        assert re.search("workq |curl |systemctl |journalctl ", said["description"])
        assert said["runbook"] == f"docs/operations.md#{alert['labels']['alertname'].lower()}"
        assert alert["labels"]["alertname"].lower() in headings
        check_commands(said["description"])


def forced(label: str, value: str) -> str:
    """What is always so, with the labels that such an alert has and no other."""
    return f'label_replace(label_replace(vector(0.75), "{label}", "{value}", "", ""), "job", "workq", "", "")'


def check_commands(text: str) -> None:
    """Those of ours that are told must be there, with their options."""
    for words, options in re.findall(r"workq ((?:dead )?[a-z]+)((?: --?[\w-]+| '[^']*'| ID| N)*)", text):
        command = [*words.split(), *options.replace("'", "").split(), "--help"]
        done = CliRunner().invoke(workq, command)
        assert done.exit_code == 0, f"workq {' '.join(command)}: {done.output}"


# --------------------------------------------------------------------------------------------- as a running stack


@pytest.mark.usefixtures("installed")
def test_a_crash_loop_is_scraped_and_calls_somebody_and_every_query_finds_what_it_asks_for(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    amqp.publish(broker_url, queue, ['{"sleep": 0.01}'] * 20 + ['{"raise": "ValueError"}'])
    options = (
        "--workers",
        "3",
        "--retries",
        "0",
        "--max-memory",
        "1G",
        "--rate",
        "9999/s",
        "--report",
        "handlers:reported",
    )
    with (
        hooked() as hook,
        supervised("handlers:act", *options, url=broker_url, queue=queue) as pool,
        prometheus.alertmanager(alertmanager_config(tmp_path, hook.address)) as manager,
        prometheus.prometheus(stack(tmp_path, pool.ready(), manager)) as server,
    ):
        pool.hear("task.dead_lettered")
        eventually(lambda: values(server, "queue:workq_crash_looping:ratio") == [0])
        assert server.get("targets")["activeTargets"][0]["health"] == "up"
        # There is a dead letter, and this stack waits for a second instead of a day.
        assert {alert["labels"]["alertname"] for alert in server.get("alerts")["alerts"]} <= {"WorkqDeadLettersWaiting"}

        amqp.publish(broker_url, queue, ['{"kill": "SIGKILL"}'] * 12, [f"bomb-{number}" for number in range(12)])
        pool.hear("task.quarantined", count=12)
        alert = eventually(lambda: firing(server, "WorkqCrashLoop", "critical"))
        assert alert["labels"] == {
            "alertname": "WorkqCrashLoop",
            "severity": "critical",
            "job": "workq",
            "queue": queue,
        }
        assert "100%" in alert["annotations"]["summary"] and queue in alert["annotations"]["summary"]
        eventually(lambda: firing(server, "WorkqQuarantineGrowing", "warning"))
        assert eventually(lambda: hook.told("pager", "WorkqCrashLoop"))["labels"]["queue"] == queue
        eventually(lambda: hook.told("ticket", "WorkqQuarantineGrowing"))
        # While all three wait to be started again nobody consumes, and this stack is patient for a second.
        eventually(lambda: pool.metric("workq_workers", state="idle") == 3)
        eventually(lambda: not firing(server, "WorkqNotConsuming", "critical"))

        # Fewer workers, then others: what the former have counted stays counted.
        pool.send(signal.SIGTTOU)
        pool.hear("worker.exited", cause="drained")
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        text = pool.get("/metrics")[1]
        check_text(text)
        eventually(lambda: values(server, "workq_generation") == [2])
        assert values(server, 'workq_tasks_total{outcome="succeeded"}') == [20]
        assert values(server, "workq_worker_crashes_total") == [36]
        counters = '{__name__=~".+_(total|count|sum|bucket)", job="workq"}'
        histories = server.get("query", query=f"{counters}[10m]")["result"]
        assert len(histories) > 60
        for history in histories:
            numbers = [float(value) for _, value in history["values"]]
            assert numbers == sorted(numbers), f"{history['metric']} went backwards: {numbers}"

        eventually(lambda: values(server, "workq_dead_letters_ready") == [13])
        check_rules(server)
        check_dashboard(server)


def test_what_a_query_refers_to_is_found() -> None:
    rate = 'rate(a_bucket{x=~"1|2", y!="\'}"}[$i])'
    expr = f"sum by (le, kween) ({rate} * on (job) group_left () b) > topk(3, c:d offset 5m) or inf"
    found = refers(expr)
    assert found.selectors == [("a_bucket", [("x", "=~", "1|2"), ("y", "!=", "'}")]), ("b", []), ("c:d", [])]
    assert found.labels == {"le", "kween", "job"}


def check_text(text: str) -> None:
    """What one scrape says."""
    assert not check("promtool", "check", "metrics", stdin=text)
    families = set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    assert families >= STABLE
    assert "process_start_time_seconds" in families
    bounds = [float(bound) for bound in re.findall(r'^workq_task_seconds_bucket\{le="([^"]*)"\}', text, re.M)]
    assert bounds == sorted(bounds) and bounds[0] == 0.001 and bounds[-2] == 3600
    manual = MANUAL.read_text()
    ours = {name for name in families if name.startswith("workq_")}
    assert not {name for name in ours if f"`{name}" not in manual}
    assert set(re.findall(r"\| `(workq_\w+)", manual)) == ours
    assert set(re.findall(r'^workq_tasks_total\{outcome="(\w+)"\}', text, re.M)) == set(OUTCOMES)


def check_rules(server: Server) -> None:
    for group in server.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            check_names(server, rule["query"])
            if rule["type"] == "recording":
                assert values(server, rule["name"]), f"{rule['name']} records nothing"


def check_dashboard(server: Server) -> None:
    """Every query has an answer, with the labels that its legend shows."""
    for title, expr, legend in queries(json.loads(DASHBOARD.read_text())):
        expr = re.sub(r"\$(job|queue)\b", ".*", expr.replace("$__rate_interval", "1m"))
        assert "$" not in expr, f"{title}: {expr}"
        check_names(server, expr)
        found = server.get("query", query=expr)["result"]
        may_be_empty = re.search(r" (==|>) 0$", expr)
        assert found or may_be_empty, f"{title}: nothing answers {expr}"
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(label in series["metric"] for series in found), f"{title}: no {label} in {expr}"


def check_names(server: Server, expr: str) -> None:
    """Each metric is there, with each value that is asked for; and each label is one of some metric's."""
    server.get("format_query", query=expr)
    found = refers(expr)
    assert found.selectors, expr
    known: set[str] = set()
    for metric, matchers in found.selectors:
        series = server.get("series", match__=metric)
        assert series, f"there is no {metric}: {expr}"
        known |= {label for labels in series for label in labels}
        for label, operator, value in matchers:
            present = {labels.get(label) for labels in series}
            asked_for = value.split("|") if operator in ("=~", "!~") else [value]
            literal = {word for word in asked_for if re.fullmatch(r"[\w ]+", word)}
            assert label in known and literal <= present, f"there is no {metric}{{{label}={literal - present}}}: {expr}"
    # `severity` and the like would be known here, too, had they been asked for: a rule's result is a metric, as well.
    assert found.labels <= known, f"nothing has the labels {found.labels - known}: {expr}"


# ------------------------------------------------------------------------------------------------- the dashboard


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids)) and len(ids) > 20
    titles = [panel["title"] for panel in panels if panel["type"] != "row"]
    assert len(titles) == len(set(titles))
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        taken = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, f"{panel['title']} overlaps"
        assert all(0 <= x < 24 for x, _ in taken), f"{panel['title']} is wider than the page"
        cells |= taken
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert set(variables) == {"datasource", "job", "queue"}
    text = json.dumps(dashboard)
    sources = re.findall(r'"datasource": \{"type": "prometheus", "uid": "([^"]*)"\}', text)
    assert len(sources) == text.count('"datasource": ') > len(titles)
    assert set(sources) == {"${datasource}"}
    for title, expr, _ in queries(dashboard):
        assert set(re.findall(r"\$(\w+)", expr)) <= set(variables) | {"__rate_interval"}, title
        assert title in ("Alerts", "Job") or 'queue=~"$queue"' in expr or title in ("Queue",), (
            f"{title} shows all queues"
        )


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of each query: of panels, annotations and variables."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target["legendFormat"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], annotation["titleFormat"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked, variable["query"]
            yield variable["label"], asked[1], f"{{{{{asked[2]}}}}}"


# ------------------------------------------------------------------------------------------------------ the stack


def stack(place: Path, pool: Supervision | None = None, manager: Server | None = None) -> Path:
    """A copy of what operators copy, in a hurry: a second for each 15, and no patience before an alert. The path of
    prometheus.yml."""
    copy = place / "prometheus"
    shutil.copytree(CONFIG, copy)
    edit(copy / "prometheus.yml", r"_interval: 15s", "_interval: 1s", 2)
    edit(copy / RULES.name, r"for: \S+", "for: 1s", len(ALERTS))
    edit(copy / "prometheus.yml", r"127\.0\.0\.1:9093", manager.address if manager else "127.0.0.1:1", 1)
    target = pool.health.removeprefix("http://") if pool else "127.0.0.1:1"
    edit(copy / "targets" / "workq.yml", r"- 127\.0\.0\.1:9191", f"- {target}", 1)
    return copy / "prometheus.yml"


def alertmanager_config(place: Path, hook: str) -> Path:
    copy = place / "alertmanager.yml"
    shutil.copy(CONFIG / "alertmanager.yml", copy)
    edit(copy, r"group_wait: 30s", "group_wait: 100ms", 1)
    edit(copy, r"group_interval: 5m", "group_interval: 1s", 1)
    edit(copy, r"http://127\.0\.0\.1:9095", hook, 2)
    return copy


def edit(path: Path, pattern: str, to: str, least: int) -> None:
    text, count = re.subn(pattern, to, path.read_text())
    assert count >= least, f"{path} has {count} {pattern}"
    path.write_text(text)


def values(server: Server, query: str) -> list[float]:
    return [float(series["value"][1]) for series in server.get("query", query=query)["result"]]


def firing(server: Server, name: str, severity: str) -> dict[str, Any] | None:
    wanted = {"alertname": name, "severity": severity}
    for alert in server.get("alerts")["alerts"]:
        if alert["state"] == "firing" and wanted.items() <= alert["labels"].items():
            return dict(alert)
    return None


class Hook(ThreadingHTTPServer):
    """Where Alertmanager calls: what it said, by the receiver."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.said: list[tuple[str, dict[str, Any]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def told(self, receiver: str, name: str) -> dict[str, Any] | None:
        for path, alert in list(self.said):
            if path == f"/{receiver}" and alert["labels"]["alertname"] == name:
                return alert
        return None


class Answer(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.said += [(self.path, alert) for alert in body["alerts"]]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hooked() -> Iterator[Hook]:
    with Hook() as hook:
        thread = threading.Thread(target=hook.serve_forever, daemon=True)
        thread.start()
        try:
            yield hook
        finally:
            hook.shutdown()
            thread.join()
