"""FAULTS 58 and those beside it under a booted systemd: each sentence of the unit, tried."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable

import pytest

from supervisor import logs
from tests import amqp
from tests.node import PrivateNode
from tests.proxy import Proxy
from tests.supervision import eventually
from tests.systemd.box import Box
from tests.systemd.service import Service

pytestmark = pytest.mark.timeout(300)  # the first one waits for what is installed for all

WAITS = """
import os, time
os.environ["TEST_RUNS"] and open(os.environ["TEST_RUNS"], "a").write("importing now\\n")
while not os.path.exists({go!r}):
    time.sleep(0.02)
from handlers import work
"""
FINE = "2 workers, 0 busy, 0 restarting, broker ok"


# --------------------------------------------------------------------------------------------------------- to start


def test_f58_a_start_returns_when_a_worker_consumes_and_not_before(service: Service) -> None:
    service.code("app.py", WAITS.format(go=f"{service.app}/go"))
    service.settings("app:work")
    with service.begin("start") as starting:
        service.runs.hear("importing")
        service.becomes(ActiveState="activating", StatusText="2 workers, 0 busy, 2 restarting, broker not reached yet")
        assert starting.poll() is None
        service.code("go", "")
        assert starting.wait(30) == 0
        returned = logs.utc()
        assert service.hear("worker.ready")["timestamp"] <= returned
    service.becomes(ActiveState="active", StatusText=FINE)
    assert f'Status: "{FINE}"' in service.box.run("systemctl", "status", service.unit).stdout


@pytest.mark.parametrize("preload", [True, False])
def test_f24_a_handler_that_cannot_be_loaded_fails_the_start_and_is_not_started_again(
    service: Service, preload: bool
) -> None:
    service.code("app.py", "def work(task:\n")
    service.settings("app:work", preload=preload)
    assert service.call("start", check=False) != 0
    service.becomes(ActiveState="failed", ExecMainStatus=78, Result="exit-code", NRestarts=0)
    assert "SyntaxError" in service.hear("handler.import_failed")["exception"]


def test_f73_a_start_waits_for_a_database_that_refuses_the_import_longer_than_systemd_would(service: Service) -> None:
    with socket.socket() as database:
        database.bind(("127.0.0.1", 0))
        address = database.getsockname()
        service.code(
            "app.py", f"import socket\nfrom handlers import work\nsocket.create_connection({address!r}).close()\n"
        )
        service.settings("app:work").drop_in("TimeoutStartSec=2s")
        with service.begin("start") as starting:
            service.hear("handler.import_failed", count=4)  # after 3 s at the earliest
            service.becomes(ActiveState="activating", NRestarts=0)
            reason = "the handler cannot be imported yet: importing app raised ConnectionRefusedError"
            eventually(lambda: service.show("StatusText").startswith(reason))
            assert starting.poll() is None
            database.listen()
            assert starting.wait(30) == 0
    service.becomes(ActiveState="active", NRestarts=0, StatusText=FINE)


def test_f54_settings_without_a_handler_are_not_started_again(service: Service) -> None:
    service.settings("")
    assert service.call("start", check=False) != 0
    service.becomes(ActiveState="failed", ExecMainStatus=78, NRestarts=0)
    service.box.write(f"/etc/workq/{service.name}.toml", "workers = 2\n")
    assert service.call("start", check=False) != 0
    service.becomes(ActiveState="failed", ExecMainStatus=2, NRestarts=0)


def test_f32_a_broker_that_is_away_does_not_fail_the_start_and_is_told_by_the_status(
    node: PrivateNode, service_at: Callable[[str], Service]
) -> None:
    with Proxy(node.port) as proxy:
        proxy.refuse()
        service = service_at(proxy.url).settings("handlers:work").start()
        trouble = eventually(lambda: "broker: " in (line := service.show("StatusText")) and line)
        assert trouble.startswith("2 workers, 0 busy, 2 restarting, broker: ")
        assert str(proxy.port) in trouble and "\n" not in trouble
        assert service.get("/healthz")[0] == 200
        proxy.heal()
        service.becomes(StatusText=FINE, ActiveState="active", NRestarts=0)


def test_the_status_counts_who_is_busy(service: Service, broker_url: str) -> None:
    amqp.publish(broker_url, service.queue, ["600", "600"], ids=["a", "b"])
    service.settings("handlers:work", workers=3, grace="0s").start()
    service.becomes(StatusText="3 workers, 2 busy, 0 restarting, broker ok")


# ----------------------------------------------------------------------------------------------------- to be restarted


def test_f58_a_frozen_supervisor_is_killed_by_the_watchdog_and_its_task_runs_again(
    service: Service, broker_url: str
) -> None:
    service.settings("handlers:work").drop_in("WatchdogSec=2s").start()
    amqp.publish(broker_url, service.queue, ["600"], ids=["long"])
    service.runs.hear("began")
    before = service.pids()
    service.kill(signal.SIGSTOP)
    service.becomes(NRestarts=1, ActiveState="active")
    assert any("Watchdog timeout" in line for line in service.manager())
    service.runs.hear("began", 2)
    assert not set(before) & set(service.pids())


def test_f58_a_supervisor_whose_loop_turns_outlives_many_watchdog_times(service: Service, broker_url: str) -> None:
    service.settings("handlers:work").drop_in("WatchdogSec=500ms").start()
    amqp.publish(broker_url, service.queue, ["3"], ids=["long"])
    service.hear("task.succeeded", message_id="long")
    assert (service.show("NRestarts"), service.show("ActiveState")) == ("0", "active")


def test_f47_what_handlers_have_started_ends_with_a_supervisor_that_is_killed(
    service: Service, broker_url: str
) -> None:
    service.settings("offspring:leave").start()
    order = json.dumps({"start": ["own session", "daemon", "nested", "forked"], "sleep": 600})
    amqp.publish(broker_url, service.queue, [order], ids=["parent"])
    service.runs.hear("started")
    before = service.pids()
    assert len(before) >= 4 + 2 + 4  # supervisor, nursery and workers, and what was started
    service.kill(signal.SIGKILL)
    service.becomes(NRestarts=1, ActiveState="active")
    service.runs.hear("done")
    assert not service.runs.lines("survivor")
    assert not set(before) & set(service.pids())


def test_f58_a_supervisor_that_somebody_stops_by_hand_is_there_again(service: Service) -> None:
    service.settings("handlers:work").start()
    service.kill(signal.SIGTERM)
    service.becomes(NRestarts=1, ActiveState="active", StatusText=FINE)
    assert service.hear("supervisor.stopped")["code"] == 0


def test_f05_one_worker_taken_by_the_oom_killer_leaves_the_unit_up(service: Service, broker_url: str) -> None:
    """Where the memory controller is on cgroup v1, systemd does not see the kill, and OOMPolicy= is not tried by this:
    see docs/decisions/0015."""
    service.settings("offspring:eat", max_crashes=1)
    service.drop_in("MemoryMax=256M", "MemorySwapMax=0").start()
    supervisor = service.show("MainPID")
    amqp.publish(broker_url, service.queue, ["1024", "1"], ids=["hog", "modest"])
    died = service.hear("worker.exited")
    assert (died["cause"], died["message_id"]) == ("OOM", "hog")
    service.hear("task.quarantined", message_id="hog")
    service.hear("task.succeeded", message_id="modest")
    service.becomes(StatusText=FINE, ActiveState="active", NRestarts=0, MainPID=supervisor, OOMPolicy="continue")
    assert service.call("stop") == 0
    assert service.show("Result") == "success"


# ----------------------------------------------------------------------------------------------------------- to stop


def test_f48_a_stop_lets_the_tasks_in_hand_finish_and_leaves_the_others(
    service: Service, node: PrivateNode, broker_url: str
) -> None:
    names = [f"t{number}" for number in range(10)]
    amqp.publish(broker_url, service.queue, ["1"] * 10, ids=names)
    service.settings("handlers:work").start()
    service.runs.hear("began", 2)
    service.call("stop")
    assert service.show("Result") == "success" and service.show("ActiveState") == "inactive"
    done = service.runs.lines("done")
    assert done and sorted(done) == sorted(service.runs.lines("began"))
    assert service.hear("supervisor.stopped")["code"] == 0
    assert amqp.unacked(node, service.queue) == 0
    taken = amqp.drain(broker_url, service.queue)
    assert len(taken) == 10 - len(done) and not any(method.redelivered for method, _, _ in taken)


def test_f48_a_stop_may_take_longer_than_the_unit_says_when_the_settings_allow_it(
    service: Service, broker_url: str
) -> None:
    service.settings("handlers:work", grace="1m").drop_in("TimeoutStopSec=1s").start()
    amqp.publish(broker_url, service.queue, ["4"], ids=["long"])
    service.runs.hear("began")
    with service.begin("stop") as stopping:
        service.becomes(ActiveState="deactivating", StatusText="draining, 1 worker left, 1 busy: SIGTERM")
        assert stopping.wait(30) == 0
    assert service.runs.lines("done") == ["long"]
    assert service.show("Result") == "success"


def test_f48_a_task_without_an_end_is_killed_after_the_grace_and_the_exit_says_so(
    service: Service, broker_url: str
) -> None:
    service.settings("handlers:stubborn", grace="500ms").start()
    amqp.publish(broker_url, service.queue, ["0"], ids=["endless"])
    service.runs.hear("began")
    service.call("stop")
    service.becomes(ActiveState="failed", ExecMainStatus=1, Result="exit-code")
    assert service.hear("worker.exited", message_id="endless")["cause"] == "grace"
    assert [method.redelivered for method, _, _ in amqp.drain(broker_url, service.queue)] == [True]


def test_f58_a_supervisor_that_freezes_while_it_drains_does_not_hold_up_the_stop(
    service: Service, broker_url: str
) -> None:
    service.settings("handlers:stubborn", grace="1h").drop_in("TimeoutStopSec=1s").start()
    amqp.publish(broker_url, service.queue, ["0"], ids=["endless"])
    service.runs.hear("began")
    with service.begin("stop") as stopping:
        service.hear("supervisor.stopping")
        service.kill(signal.SIGSTOP)
        assert stopping.wait(60) == 0
    service.becomes(ActiveState="failed", Result="timeout")
    assert service.pids() == []


# --------------------------------------------------------------------------------------------------------- to reload


def test_f50_a_reload_is_told_while_it_lasts(service: Service, broker_url: str) -> None:
    service.code("app.py", "from handlers import work\n")
    # Not the unit's own, which waits: this one says nothing of how long it takes.
    service.settings("app:work").drop_in("ExecReload=", "ExecReload=/bin/kill -HUP $MAINPID").start()
    service.code("app.py", WAITS.format(go=f"{service.app}/go") + "# of another length than the old one\n")
    with service.begin("reload") as reloading:
        service.runs.hear("importing")
        service.becomes(ActiveState="reloading", StatusText=f"reloading; {FINE}")
        service.code("go", "")
        assert reloading.wait(30) == 0
    service.becomes(ActiveState="active", StatusText=FINE)
    assert service.hear("reload.finished")["generation"] == 2


def test_f50_a_reload_returns_when_every_worker_is_replaced_however_long_their_tasks_take(
    service: Service, broker_url: str
) -> None:
    service.code("app.py", "from handlers import work\n")
    service.settings("app:work").start().drop_in("TimeoutStartSec=4s")
    before = json.loads(service.get("/status")[1])["workers"]
    amqp.publish(broker_url, service.queue, ["7"], ids=["long"])
    service.runs.hear("began")
    service.call("reload")
    assert service.runs.lines("done") == ["long"]
    status = json.loads(service.get("/status")[1])
    assert status["generation"] == 2
    assert not {worker["pid"] for worker in before} & {worker["pid"] for worker in status["workers"]}
    service.becomes(ActiveState="active", NRestarts=0, StatusText=FINE)


def test_f50_a_reload_to_broken_code_fails_and_the_old_goes_on(service: Service, broker_url: str) -> None:
    service.code("app.py", "from handlers import work\n")
    service.settings("app:work").start().becomes(StatusText=FINE)
    before = service.pids()
    service.code("app.py", "this is no Python, whatever its length may be\n")
    done = service.box.run("systemctl", "reload", service.unit, check=False)
    assert done.returncode != 0
    assert "SyntaxError" in service.hear("reload.failed")["because"]
    service.becomes(ActiveState="active", NRestarts=0, StatusText=FINE)
    assert not set(before) - set(service.pids())
    amqp.publish(broker_url, service.queue, ["0"], ids=["after"])
    service.hear("task.succeeded", message_id="after")


# ------------------------------------------------------------------------------------------------ secrets, and the log


def test_f55_no_secret_is_in_the_unit_the_journal_or_anybodys_environment(
    service_at: Callable[[str], Service], node: PrivateNode
) -> None:
    user, secret = node.eval("ok") and "keeper", "s3cr3t-of-the-unit"
    node.eval(f'rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"{secret}">>, <<"test">>)')
    node.eval(
        f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"/">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>)'
    )
    try:
        url = node.url.replace("guest:guest", f"{user}:{secret}")
        service = service_at(url).settings("handlers:act", log_level="debug").start()
        amqp.publish(node.url, service.queue, ['{"raise": "ValueError"}', "{}"], ids=["bad", "good"])
        service.hear("task.succeeded", message_id="good")
        service.hear("task.retried", message_id="bad")
        found = [service.box.run("systemctl", "show", service.unit).stdout]
        found.append(service.box.run("systemctl", "status", "--lines=1000", service.unit).stdout)
        found.append(json.dumps(service.box.journal("--unit", service.unit)))
        pids = eventually(lambda: pids if len(pids := service.pids()) == 6 else None)  # the spare comes last
        for pid in pids:
            found += [service.box.run("cat", f"/proc/{pid}/{name}").stdout for name in ("environ", "cmdline")]
        found += [service.get(path)[1] for path in ("/status", "/metrics", "/")]
        assert not [text for text in found if secret in text]
    finally:
        node.eval(f'rabbit_auth_backend_internal:delete_user(<<"{user}">>, <<"test">>)')


def test_the_url_is_read_from_a_credential_that_only_the_service_sees(service: Service) -> None:
    service.settings("handlers:work").start()
    box = service.box
    path = f"/run/credentials/{service.unit}/amqp-url"
    assert box.run("cat", path).stdout == box.run("cat", f"/etc/workq/{service.name}.amqp-url").stdout
    for file in (path, f"/etc/workq/{service.name}.amqp-url"):
        assert box.run("setpriv", "--reuid=65534", "--clear-groups", "cat", file, check=False).returncode != 0


TELLS = """
import os, socket
from handlers import note

def work(task):
    note("names", ",".join(sorted(os.environ)))
    note("user", f"{os.getuid()} {os.getcwd()} {os.environ['HOME']}")
    open("written", "w").close()
    for path in ("/etc/written", "/usr/written", "/opt/workq/written"):
        try:
            open(path, "w").close()
            note("wrote", path)
        except OSError:
            pass
"""


def test_f105_no_process_of_the_unit_leaves_a_core_not_even_one_that_is_killed_by_sigsegv(
    service: Service, broker_url: str
) -> None:
    service.settings("handlers:act", max_crashes=1).start()
    assert service.show("LimitCORE") == "0"
    for pid in service.pids():
        limits = service.box.run("cat", f"/proc/{pid}/limits", check=False).stdout
        assert not limits or re.search(r"^Max core file size +0 +0 ", limits, re.M)
    amqp.publish(broker_url, service.queue, [json.dumps({"kill": "SIGSEGV"})], ids=["crash"])
    assert "core dumped" not in service.hear("worker.exited", message_id="crash")["status"]


def test_workers_cannot_speak_in_the_units_name(service: Service, broker_url: str) -> None:
    service.code("app.py", TELLS)
    service.settings("app:work").start()
    amqp.publish(broker_url, service.queue, [""], ids=["one"])
    service.hear("task.succeeded", message_id="one")
    [names] = service.runs.lines("names")
    assert "CREDENTIALS_DIRECTORY" in names.split(",")
    told = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    assert not told & set(names.split(","))
    supervisor = int(service.show("MainPID"))
    others = eventually(lambda: pids if len(pids := set(service.pids()) - {supervisor}) == 5 else None)
    for pid in others:
        environ = service.box.run("cat", f"/proc/{pid}/environ").stdout
        assert not [name for name in told if f"{name}=" in environ]
    [user] = service.runs.lines("user")
    uid, where, home = user.split()
    assert 61184 <= int(uid) <= 65519  # systemd.exec(5), DynamicUser=
    assert where == home == f"/var/lib/private/workq/{service.name}" or where.endswith(service.name)
    assert not service.runs.lines("wrote")


PRINTS = r"""
import sys

def work(task):
    sys.stdout.buffer.write(b"before\0after \xff\xfe end\n")
    print('\n{"event": "forged", "level": "info"}\r\x1b[31mred')
    sys.stdout.write("x" * 5_000_000 + "\n")
    task.log.info("long", text="\u00fc" * 100_000)
"""


def test_f22_f30_what_handlers_print_arrives_in_the_journal_as_whole_lines_of_json(
    service: Service, broker_url: str
) -> None:
    service.code("app.py", PRINTS)
    service.settings("app:work").start()
    amqp.publish(broker_url, service.queue, [""], ids=["loud"])
    service.hear("task.succeeded", message_id="loud")
    eventually(lambda: any("suppressed_lines" in line for line in service.named("worker.output")))  # the last
    lines = service.events()  # raises unless each line is one JSON object
    sizes = [len(json.dumps(line)) for line in lines]
    long = next(line for line in lines if line["event"] == "long")
    assert len(long["text"].encode()) > 8_000 and max(sizes) > 20_000
    assert not [line for line in lines if line["event"] == "forged"]
    printed = [line for line in lines if line["event"] == "worker.output" and "line" in line]
    assert any("forged" in line["line"] for line in printed)
    assert any("before" in line["line"] and "after" in line["line"] for line in printed)
    assert service.get("/healthz")[0] == 200


# ---------------------------------------------------------------------------------------------------------- the file


def test_the_unit_exposes_little(box: Box) -> None:
    box.run("systemd-analyze", "security", "--threshold=20", "workq-supervise@first.service")
    path = "/etc/systemd/system/workq-supervise@.service"
    box.run("systemd-analyze", "security", "--offline=true", "--threshold=20", path)


def test_systemd_finds_no_fault_with_the_unit_and_would_with_a_wrong_one(box: Box) -> None:
    path = "/etc/systemd/system/workq-supervise@.service"
    strict = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    for command in (["systemd-analyze", "verify", "--man=no"], strict):
        done = box.run(*command, path)
        assert "workq" not in done.stderr
    wrong = "/run/systemd/system/workq-wrong@.service"
    box.write(wrong, box.path(path).read_text().replace("OOMPolicy=", "OOMPolice="))
    assert "OOMPolice" in box.run(*strict, wrong, check=False).stderr
    box.path(wrong).unlink()
