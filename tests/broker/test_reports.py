"""--report: a process of its own is called with what happens, and is in nobody's way, whatever it does."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import descendants
from tests import amqp
from tests.supervision import Supervision, eventually, gone, supervised

pytestmark = pytest.mark.any_broker

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
KEEP = """
import atexit, json, os
atexit.register(lambda: keep({"event": "ended"}))
def keep(event):
    fd = os.open(os.environ["TEST_REPORTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (json.dumps(event | {"by": VERSION}) + "\\n").encode())
    os.close(fd)
"""
KILL = '{"kill": "SIGKILL"}'


class Kept:
    """The module that reports, and what it has written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "reports.jsonl"

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.directory), "TEST_REPORTS": str(self._path), "PYTHONDONTWRITEBYTECODE": "1"}

    def write(self, code: str) -> None:
        (self.directory / "told.py").write_text(code)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [each for each in self.lines() if each["event"] == event and fields.items() <= each.items()]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    found = Kept(tmp_path)
    found.write(f"VERSION = 1{KEEP}")
    return found


def reporter_of(pool: Supervision) -> int:
    def find() -> int | None:
        for pid in descendants.children(pool.pid):
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "workq-report":
                    return pid
            except (FileNotFoundError, ProcessLookupError):
                pass
        return None

    return int(eventually(find))


def test_it_is_told_what_the_log_says_and_the_last_events_before_the_supervisor_ends(
    broker_url: str, queue: str, kept: Kept
) -> None:
    amqp.publish(broker_url, queue, [KILL, '{"reject": "no such customer"}'], ["bomb", "nobody"])
    options = ("--workers", "2", "--log-level", "error", "--report", "told:keep")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=kept.env) as pool:
        eventually(lambda: kept.named("task.quarantined") and kept.named("task.dead_lettered"))
        environ = Path(f"/proc/{reporter_of(pool)}/environ").read_text()
        assert "TEST_REPORTS" in environ and "WORKQ_URL" not in environ
        pool.send(signal.SIGHUP)
        eventually(lambda: kept.named("reload.finished"))
        assert pool.stop() == 0
    deaths = kept.named("worker.exited", cause="SIGKILL")
    assert [death["message_id"] for death in deaths] == ["bomb"] * 3
    assert {death["level"] for death in deaths} == {"warning"}
    assert {(each["role"], each["queue"]) for each in deaths} == {("supervisor", queue)}
    assert "quarantined" in deaths[-1]["because"] + deaths[-1]["next"]
    [parked] = kept.named("task.quarantined")
    assert (parked["message_id"], parked["reason"], parked["cause"], parked["crashes"]) == (
        "bomb",
        "crash",
        "SIGKILL",
        3,
    )
    [rejected] = kept.named("task.dead_lettered")
    assert (rejected["message_id"], rejected["role"]) == ("nobody", "worker")
    assert "no such customer" in rejected["because"]
    assert kept.named("broker.connected") and kept.named("reload.started")
    # Two by the reload, two by the stop.
    assert len(kept.named("worker.exited", cause="drained")) == 4
    areas = {each["event"].partition(".")[0] for each in kept.lines()}
    assert areas == {"worker", "task", "broker", "reload", "ended"}


def test_a_function_that_hangs_costs_events_and_nothing_else(broker_url: str, queue: str, kept: Kept) -> None:
    kept.write("import time\ndef keep(event):\n    time.sleep(3600)")
    amqp.publish(broker_url, queue, [json.dumps({"reject": "x" * 4000})] * 400)
    options = ("--workers", "2", "--report", "told:keep")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=kept.env) as pool:
        pool.hear("task.dead_lettered", count=400)
        eventually(lambda: pool.metric("workq_reports_dropped_total") > 0)
        assert "full" in pool.hear("report.dropped")["because"]
        assert len(pool.named("report.dropped")) == 1
        assert pool.metric("workq_report_restarts_total") == 0
        amqp.publish(broker_url, queue, ["{}"], ["after"])
        pool.hear("task.succeeded", message_id="after")
        hanging = reporter_of(pool)
        assert pool.stop() == 0
        assert gone(hanging, 0)


def test_one_that_cannot_be_imported_or_dies_is_restarted_and_the_events_wait(
    broker_url: str, queue: str, kept: Kept
) -> None:
    kept.write("print('loading')\nimport nowhere_to_be_found")
    options = ("--workers", "1", "--report", "told:keep")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=kept.env) as pool:
        refused = pool.hear("report.exited")
        assert "exit 78" in refused["because"] and "nowhere_to_be_found" in refused["output"]
        pool.hear("worker.output", line="loading", source="report")
        assert pool.metric("workq_report_restarts_total") >= 1
        amqp.publish(broker_url, queue, [KILL], ["bomb"])
        pool.hear("task.quarantined", message_id="bomb")
        kept.write(f"VERSION = 1{KEEP}")
        eventually(lambda: kept.named("task.quarantined"))
        assert len(kept.named("worker.exited", cause="SIGKILL", by=1)) == 3 and kept.named("broker.connected")

        # A reload brings new code; a function that raises is called again.
        kept.write(f"VERSION = 2{KEEP}    if event['event'] == 'task.dead_lettered': raise ValueError('as told')")
        former = reporter_of(pool)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished")
        assert gone(former, 30)
        assert kept.named("ended", by=1), "it has exited by itself"
        current = eventually(
            lambda: found if (found := reporter_of(pool)) != former else None
        )  # that one may be unreaped
        amqp.publish(broker_url, queue, ['{"reject": "x"}'] * 2, ["one", "two"])
        eventually(lambda: len(kept.named("task.dead_lettered", by=2)) == 2)
        pool.hear("worker.output", count=2, line="ValueError: as told", source="report")
        assert reporter_of(pool) == current

        os.kill(current, signal.SIGKILL)
        pool.hear("report.exited", because="the process of --report has exited: SIGKILL")
        amqp.publish(broker_url, queue, ['{"reject": "x"}'], ["three"])
        eventually(lambda: kept.named("task.dead_lettered", message_id="three"))

        last = reporter_of(pool)
        pool.send(signal.SIGKILL)
        assert gone(last, 30)


def test_the_recipe_sends_to_sentry(broker_url: str, queue: str, kept: Kept) -> None:
    [recipe] = re.findall(r"```python\n# alerts\.py\n(.*?)```", OPERATIONS.read_text(), re.S)
    recorder = f"""
from sentry_sdk.transport import Transport
class Recorder(Transport):
    def capture_envelope(self, envelope):
        keep(envelope.get_event())
VERSION = "sentry"{KEEP}
"""
    assert recipe.count("dsn=dsn()") == 1
    recipe = recorder + recipe.replace("dsn=dsn()", 'dsn="http://key@127.0.0.1:9/1", transport=Recorder')
    (kept.directory / "alerts.py").write_text(recipe)
    amqp.publish(broker_url, queue, [KILL], ["bomb"])
    options = ("--workers", "1", "--report", "alerts:send")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=kept.env) as pool:
        pool.hear("task.quarantined", message_id="bomb")
        # The last of them: on a busy machine the import of sentry_sdk alone may take longer than a stop waits.
        eventually(lambda: len(kept.lines()) == 4)
        assert pool.stop() == 0
    sent = [each for each in kept.lines() if each.get("event") != "ended"]
    assert [each["level"] for each in sent] == ["warning"] * 4
    assert [each["message"].partition(":")[0] for each in sent] == ["worker.exited"] * 3 + ["task.quarantined"]
    assert {each["tags"]["queue"] for each in sent} == {queue}
    assert sent[-1]["contexts"]["workq"]["message_id"] == "bomb"
    assert len({tuple(each["fingerprint"]) for each in sent}) == 2
