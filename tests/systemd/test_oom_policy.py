"""FAULTS 5 where systemd sees what the OOM killer does: on cgroup v2, which takes a virtual machine where the memory
controller is on v1. Some 40 s: scripts/test vm."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import amqp
from tests.node import PrivateNode
from tests.systemd.box import Box
from tests.systemd.conftest import ROOT, of_the_session
from tests.systemd.vm import PATIENCE, VM

TEMPLATE = "workq-supervise@.service"
EATS = """
def eat(task):
    eaten = [b"x" * (1 << 20) for _ in range(int(task.text))]
"""
SEEN = "A process of this unit has been killed by the OOM killer."
STATE = ("ActiveState", "SubState", "MainPID", "NRestarts")


def unit(name: str) -> str:
    return TEMPLATE.replace("@", f"@{name}")


def files(name: str, url: str, queue: str, *drop_in: str) -> dict[str, str]:
    """Of a service as an operator sets it up: the unit as it is shipped, with this in a drop-in."""
    settings = {"handler": "app:eat", "queue": queue, "workers": 2, "max_crashes": 1, "app_dir": f"/srv/{name}"}
    settings |= {"health": "127.0.0.1:0", "heartbeat": "60s", "boot_timeout": "5m"}
    # Times are not what is tried: on a busy machine all is as slow in there as on a broken one.
    times = ["TimeoutStartSec=5min", "WatchdogSec=5min"]
    ours = ["[Service]", "MemoryMax=256M", "MemorySwapMax=0", "Restart=no", *times, *drop_in]
    return {
        f"/etc/systemd/system/{TEMPLATE}": (ROOT / "config" / "systemd" / TEMPLATE).read_text(),
        f"/etc/systemd/system/{unit(name)}.d/test.conf": "\n".join(ours) + "\n",
        f"/etc/workq/{name}.toml": "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()),
        f"/etc/workq/{name}.amqp-url": f"{url}\n",
        f"/srv/{name}/app.py": EATS,
    }


@pytest.fixture
def vm(
    box: Box, node: PrivateNode, queue: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VM]:
    """With what was installed for the box, and two services that differ in one word."""
    url = node.url.replace("127.0.0.1", "10.0.2.2")
    shipped = files("shipped", url, f"{queue}.shipped")
    control = files("control", url, f"{queue}.control", "OOMPolicy=stop")
    with VM(tmp_path, of_the_session(tmp_path_factory) / "prefix", shipped | control) as machine:
        yield machine


def hear(vm: VM, text: str, *matches: str, count: int = 1) -> str:
    """Wait until this is in so many lines of the journal's; the last of them."""
    # Waits inside: each look at the journal from outside would be a process more on a slow machine.
    follow = f"timeout {PATIENCE:.0f} journalctl --follow --lines=all --output=cat {' '.join(matches)}"
    found = vm.run(f"grep --max-count={count} --fixed-strings {shlex.quote(text)} < <({follow})").splitlines()
    assert len(found) == count, f"{len(found)} x {text}, not {count}:\n{journal(vm)}"
    return found[-1]


def journal(vm: VM) -> str:
    return vm.run("journalctl --lines=100 --no-hostname")


@pytest.mark.vm
@pytest.mark.timeout(600)
def test_f05_one_worker_taken_by_the_oom_killer_leaves_the_unit_up_where_systemd_would_stop_it(
    vm: VM, broker_url: str, queue: str
) -> None:
    shipped, control = unit("shipped"), unit("control")
    vm.run(f"systemctl start {shipped} {control}")
    before = vm.show(shipped, *STATE)
    assert before["ActiveState"] == "active", journal(vm)
    assert vm.show(control, "ActiveState") == {"ActiveState": "active"}, journal(vm)

    for name in ("control", "shipped"):
        amqp.publish(broker_url, f"{queue}.{name}", ["1024"], ids=["hog"])
    # By systemd's own default the unit ends: it does see what the OOM killer does here.
    hear(vm, "Failed with result 'oom-kill'", f"UNIT={control}")
    assert vm.show(control, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "oom-kill"}

    hear(vm, SEEN, f"UNIT={shipped}")
    died = json.loads(hear(vm, '"event":"worker.exited"', f"_SYSTEMD_UNIT={shipped}"))
    assert (died["cause"], died["message_id"]) == ("OOM", "hog")
    replaced = json.loads(hear(vm, '"event":"worker.ready"', f"_SYSTEMD_UNIT={shipped}", count=3))
    assert replaced["slot"] == died["slot"]
    amqp.publish(broker_url, f"{queue}.shipped", ["1"], ids=["modest"])
    hear(vm, '"event":"task.succeeded"', f"_SYSTEMD_UNIT={shipped}")
    assert vm.show(shipped, *STATE) == before
