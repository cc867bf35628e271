"""docs/operations.md's ten minutes, as written: from nothing to a hardened unit with alerts."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from supervisor.commands.node import Port
from tests import amqp
from tests.stack import prometheus
from tests.supervision import eventually
from tests.systemd.box import Box
from tests.systemd.conftest import CHECKOUT, ROOT, check_that_it_boots_here, of_the_session, snapshot

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
HANDLER = "import time\n\n\ndef send(task):\n    time.sleep(float(task.text))\n"


def commands() -> list[str]:
    """The first section's lines, without their comments."""
    section = re.search(r"^## Ten minutes.*?(?=^## )", OPERATIONS, re.S | re.M)
    assert section is not None
    return [re.sub(r"\s+#.*", "", line[4:]) for line in section[0].splitlines() if line.startswith("    ")]


def ask(port: int, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


@pytest.mark.timeout(300)
def test_ten_minutes_lead_to_a_hardened_unit_with_alerts(
    broker_url: str, queue: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_that_it_boots_here()
    prometheus.install()
    health, server, manager = Port(), Port(), Port()
    written = {
        "/etc/workq/mail.toml": f'handler = "mail_tasks:send"\nqueue = "{queue}"\nworkers = 2\n'
        f'app_dir = "/srv/mail"\nhealth = "127.0.0.1:{health.number}"\n',
        "/etc/workq/mail.amqp-url": f"{broker_url}\n",
        "/etc/prometheus/targets/workq.yml": f"- targets: ['127.0.0.1:{health.number}']\n",
        "/etc/prometheus/alertmanager.yml": "route:\n  receiver: nobody\nreceivers:\n  - name: nobody\n",
    }
    with Box(tmp_path / "box", [(snapshot(of_the_session(tmp_path_factory)), CHECKOUT, "ro")]) as box:
        # What apt-get install has done on the operator's machine; beside another copy of this test, on other ports.
        box.write("/etc/default/prometheus", f'ARGS="--web.listen-address=127.0.0.1:{server.number}"\n')
        alone = f"--web.listen-address=127.0.0.1:{manager.number} --cluster.listen-address="
        box.write("/etc/default/prometheus-alertmanager", f'ARGS="{alone}"\n')
        box.run("systemctl", "start", "prometheus", "prometheus-alertmanager")
        box.write("/srv/mail/mail_tasks.py", HANDLER)
        amqp.publish(broker_url, queue, ["0.1", *["600"] * 4], ids=["quick", *["slow"] * 4])
        for command in commands():
            if command.startswith("$EDITOR "):
                file = command.split()[1]
                assert box.path(file).exists(), f"{file} is not there to be edited"
                box.write(file, written.pop(file), 0o600 if file.endswith("-url") else 0o644)
                if file.startswith("/etc/prometheus"):
                    box.run("chown", "prometheus", file)
            elif not command.startswith("apt-get "):
                box.run("bash", "-ec", f"cd {CHECKOUT}; {command}", timeout=300)
        assert not written

        assert "broker ok" in box.run("systemctl", "status", "workq-supervise@mail").stdout
        query = "query?query=workq_ready%7Bjob%3D%22workq%22%7D"
        eventually(
            lambda: [each["value"][1] for each in (ask(server.number, query) or {"result": []})["result"]] == ["1"]
        )
        names = [rule["name"] for group in ask(server.number, "rules")["groups"] for rule in group["rules"]]
        assert "WorkqNotConsuming" in names

        typed = re.findall(r"^    (workq .*--unit mail.*)$", OPERATIONS, re.M)
        assert len(typed) >= 3
        done = [box.run("bash", "-ec", line) for line in typed]
        said = "".join(each.stdout + each.stderr for each in done)
        assert f"no dead letters in {queue}.dead" in said and f"{queue}  running for" in said

        [kill] = re.findall(r"`(pkill .*?)`", OPERATIONS)
        [look] = re.findall(r"`(journalctl -u workq-supervise@mail -o cat -n 5)`", OPERATIONS)
        eventually(lambda: status(health.number)["totals"]["succeeded"] == 1)
        eventually(lambda: [each["message_id"] for each in status(health.number)["workers"]] == ["slow", "slow"])
        box.run("bash", "-ec", kill)
        eventually(
            lambda: re.search('"event":"worker.exited".*"message_id":"slow"', box.run("bash", "-ec", look).stdout)
        )


def status(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
        return json.load(answer)
