"""A real rsyslogd, set up by config/logging/rsyslog, takes a real pool's log and gives its fields as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import amqp, debian, handler_modules
from tests.node import PrivateNode
from tests.policy.test_events import documented_fields
from tests.supervision import PATIENCE, Runs, eventually, supervised

CONFIG = Path(__file__).parents[2] / "config" / "logging" / "rsyslog"
RULESET, FROM_FILE, FROM_JOURNAL = "30-workq.conf", "31-workq-file.conf", "31-workq-journal.conf"
DEBIANS = Path("/etc/rsyslog.conf")
LOGS = "/var/log/workq/"
TEE = ("bash", "-c", 'exec "$@" 2> >(exec tee -a "$0" >&2)')
"""Before a command: what it writes to stderr goes to a file, too."""

HANDLER = """
import logging, time
from handlers import note

def work(task):
    note("began", task.message_id)
    if task.text == "long":
        task.log.info("shop.long", payload="x" * 30_000, price=12.5, lines=[1, None, {"sku": "\\u00e9\\U0001f600"}])
    elif task.text == "logs":
        logging.getLogger("shop").warning('forged"}\\n{"event": "forged"}')
    elif task.text == "prints":
        print('{"event": "forged", "level": "error"}')
    elif task.text == "waits" and not task.redelivered:
        time.sleep(600)
    elif task.text == "fails":
        raise ValueError("no such customer")
"""

HOSTILE = 'a"}\n{"event":"forged"}\r\x85\u2028\x1b[2J\\u0000 \U0001f600'


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    debian.install("rsyslogd", "rsyslog")


class Rsyslogd:
    """One of this test's own: no pid file, no socket of the system's, all its files in one directory."""

    def __init__(self, directory: Path, *fragments: str) -> None:
        self.directory = directory
        self.logs = directory / "log"
        self.shipped = self.logs / "shipped" / "events.jsonl"
        self.other = self.logs / "shipped" / "other.txt"
        self.process: subprocess.Popen[bytes] | None = None
        (directory / "work").mkdir()
        self.logs.mkdir()
        lines = [f'global(workDirectory="{directory}/work")']
        for fragment in fragments:
            text = (CONFIG / fragment).read_text()
            (directory / fragment).write_text(text.replace(LOGS, f"{self.logs}/"))
            lines.append(f'include(file="{directory / fragment}")')
        self.config = directory / "rsyslog.conf"
        self.config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        with (self.directory / "rsyslogd.log").open("ab") as output:
            command = ["setpriv", "--pdeathsig", "KILL", "rsyslogd", "-n", "-iNONE", "-f", str(self.config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def events(self) -> list[dict[str, Any]]:
        """Those shipped so far; a line that is not whole yet is none."""
        if not self.shipped.exists():
            return []
        return [json.loads(line) for line in self.shipped.read_bytes().split(b"\n")[:-1]]


@pytest.fixture
def rsyslogd(tmp_path: Path) -> Iterator[Rsyslogd]:
    daemon = Rsyslogd(tmp_path, RULESET, FROM_FILE)
    daemon.start()
    yield daemon
    daemon.end()


def validated(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["rsyslogd", "-N1", "-f", str(config)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("source", [FROM_FILE, FROM_JOURNAL])
def test_the_configuration_is_valid_alone_and_in_debians_and_a_mistake_in_it_is_found(
    tmp_path: Path, source: str
) -> None:
    daemon = Rsyslogd(tmp_path, RULESET, source)
    done = validated(daemon.config)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert "warning" not in done.stderr
    if DEBIANS.exists():
        debians = tmp_path / "debian.conf"
        include = "$IncludeConfig /etc/rsyslog.d/*.conf"
        text = DEBIANS.read_text()
        assert include in text
        debians.write_text(text.replace(include, f"$IncludeConfig {tmp_path}/3*.conf"))
        done = validated(debians)
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stderr
    broken = tmp_path / RULESET
    broken.write_text(broken.read_text().replace("cookie=", "coockie="))
    assert validated(daemon.config).returncode != 0


def test_what_it_writes_is_not_what_it_reads() -> None:
    assert f'file="{LOGS}*.log"' in (CONFIG / FROM_FILE).read_text()
    written = [line for line in (CONFIG / RULESET).read_text().splitlines() if 'type="omfile"' in line]
    assert len(written) == 2
    assert not [line for line in written if '.log"' in line]


def test_a_pools_events_are_shipped_with_their_fields_whatever_is_in_them_and_who_dies(
    rsyslogd: Rsyslogd, node: PrivateNode, queue: str, runs: Runs, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "shop", HANDLER)
    log = rsyslogd.logs / "pool.log"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    amqp.publish(node.url, queue, ["", "long", "logs", "prints"], ids=[HOSTILE, "long", "logs", "prints"])
    amqp.publish(node.url, queue, ["fails"], ids=["fails"], headers=headers)
    env = {"PYTHONPATH": str(tmp_path), **runs.env}
    with supervised(
        *("shop:work", "--workers", "2", "--retries", "1", "--retry-delay", "100ms", "--log-level", "debug"),
        url=node.url,
        queue=queue,
        env=env,
        inside=(*TEE, str(log)),
    ) as pool:
        pool.hear("task.dead_lettered", message_id="fails")
        eventually(lambda: [event for event in rsyslogd.events() if event["event"] == "task.dead_lettered"])
        # What is logged while it is away is not lost.
        rsyslogd.stop()
        amqp.publish(node.url, queue, ["waits"], ids=["precious"], headers=headers)
        runs.hear("began", count=7)
        [busy] = eventually(lambda: [worker for worker in pool.workers() if worker["state"] == "busy"])
        os.kill(busy["pid"], signal.SIGKILL)
        pool.hear("task.succeeded", message_id="precious")
        with log.open("a") as shared:
            shared.write("Traceback (most recent call last):\n")
        rsyslogd.start()
        assert pool.stop() == 0
    events = eventually(lambda: len(found := rsyslogd.events()) >= len(pool.events) and found)
    rsyslogd.stop()
    for event in events:
        shipped = event.pop("shipped")
        assert (shipped["host"], shipped["file"]) == (os.uname().nodename, str(log))
        assert shipped["received"].endswith("+00:00")
    assert events == pool.events
    assert rsyslogd.other.read_text().endswith(" Traceback (most recent call last):\n")
    assert rsyslogd.other.read_text().count("\n") == 1

    def named(name: str, **fields: Any) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == name and fields.items() <= event.items()]

    [died] = named("worker.exited", message_id="precious")
    assert (died["role"], died["level"], died["cause"], died["slot"]) == (
        "supervisor",
        "warning",
        "SIGKILL",
        busy["slot"],
    )
    assert (died["pid"], died["attempt"], died["redelivered"], died["trace_id"]) == (busy["pid"], 1, False, trace)
    assert 0 < died["busy_seconds"] < PATIENCE
    [done] = named("task.succeeded", message_id=HOSTILE)
    assert (done["role"], done["queue"], done["attempt"]) == ("worker", queue, 1)
    assert 0 < done["seconds"] < PATIENCE
    assert len(named("task.failed", message_id="fails", trace_id=trace)) == 2
    [long] = named("shop.long", message_id="long")
    assert (len(long["payload"]), long["price"], long["lines"]) == (30_000, 12.5, [1, None, {"sku": "é\U0001f600"}])
    assert named("worker.output", line='{"event": "forged", "level": "error"}')
    assert named('forged"}\n{"event": "forged"}', logger="shop")
    assert not named("forged")

    documented = documented_fields()
    ours = [event for event in events if event["event"] in documented]
    assert len(ours) > 30
    assert not [event for event in ours if not event.keys() <= documented[event["event"]]]
