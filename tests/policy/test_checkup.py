"""What `workq check` makes of facts."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor import queues
from supervisor.commands.check import machine as host
from supervisor.commands.check import versions
from supervisor.commands.check.broker import examine
from supervisor.commands.check.case import delays_of
from supervisor.commands.check.container import Container, arguments_of
from supervisor.commands.check.facts import Broker, Finding, Level, Managed, Node, Policy, Queue, Rule
from supervisor.commands.check.machine import Health, Host, Imported
from supervisor.commands.check.management import checked, obeyed, usual
from supervisor.endpoint import Endpoint
from supervisor.policy.poison import RETURNS_MAX
from supervisor.queues import LADDER
from supervisor.settings import OPTIONS, Address, Cpus, Settings
from supervisor.vocabulary import Kind

ROOT = Path(__file__).parents[2]
PASSWORD = "Zq7xK"
HERE = Endpoint.parse(f"amqp://app:{PASSWORD}@127.0.0.1/")
FAR = Endpoint.parse(f"amqp://app:{PASSWORD}@rabbit.example.com/shop")


def settings(**given: Any) -> Settings:
    if "workers" in given:
        given["workers"] = OPTIONS["workers"].parse(given["workers"])
    return Settings(**{"handler": "tasks:work", "queue": "jobs", "workers": OPTIONS["workers"].parse("2"), **given})


MAY = {f"{verb} jobs{suffix}": "" for verb in ("configure", "read") for suffix in ("", ".dead", ".delay.1000")}


def broker(version: str = "3.10.8", endpoint: Endpoint = HERE, **facts: Any) -> Broker:
    """All is well."""
    node = Node(endpoint, product="RabbitMQ", version=version, heartbeat=15, channel_max=2047)
    queue = Queue("jobs", True, type="classic", durable=True, auto_delete=False)
    given = {
        "nodes": [node],
        "queue": queue,
        "dead": Queue("jobs.dead", True),
        "refusals": {**MAY, "write": ""},
        "blocked": "",
        "managed": Managed("http://h:15672", Rule(), alarms=()),
    }
    return Broker(**{**given, **facts})


SHORT = Managed("u", Rule(Policy("p", 0, {"consumer-timeout": 60_000})))


def quorum(**arguments: Any) -> Queue:
    return Queue("jobs", True, type="quorum", durable=True, auto_delete=False, arguments=arguments)


def of(findings: list[Finding], subject: str) -> Finding:
    found = [finding for finding in findings if finding.subject == subject]
    assert len(found) == 1, found
    return found[0]


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level in (Level.WARNING, Level.PROBLEM)]


# ------------------------------------------------------------------------------------------------ what a 406 tells


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received the value 'workq-check' of type "
         "'longstr' but current is none", ("x-queue-type", None)),
        ("inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'workq-check' but current is 'quorum'",
         ("x-queue-type", "quorum")),
        ("inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
         ("durable", False)),
        ("inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received none but current is the value '5' of "
         "type 'signedint'", ("x-max-length", 5)),
        ("inequivalent arg 'x-single-active-consumer' for queue 'q' in vhost '/': received none but current is the "
         "value 'true' of type 'bool'", ("x-single-active-consumer", True)),
        ("inequivalent arg 'x-dead-letter-exchange' for queue 'it's' in vhost '/': received none but current is the "
         "value '5' of type 'longstr'", ("x-dead-letter-exchange", "5")),
        ("inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but current is the "
         "value 'a'b\" of type 'x' but' of type 'longstr'", ("x-dead-letter-exchange", "a'b\" of type 'x' but")),
        ("invalid arg 'x-queue-type' for queue 'q' in vhost '/': \"unsupported queue type 'workq-check'\"", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_refusal_tells_one_difference(text: str, told: tuple[str, Any] | None) -> None:
    assert queues.difference("PRECONDITION_FAILED - " + text) == told


# ---------------------------------------------------------------------------------------------------- the broker


@pytest.mark.parametrize("version", ["3.10.8", "3.13.7", "4.0.5", "4.2.1", "4.3.6"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_default_setup_has_no_warnings(version: str, kind: str) -> None:
    findings = examine(broker(version, queue=Queue("jobs", True, type=kind)), settings())
    assert not bad(findings)
    assert len([finding for finding in findings if finding.level is Level.NOTE]) <= 3


@pytest.mark.parametrize(
    ("version", "level", "said"),
    [
        ("3.9.29", Level.WARNING, "older than 3.10"),
        ("3.10.8", Level.NOTE, "ended in 2022-09"),
        ("3.13.7", Level.NOTE, "ended in 2024-09"),
        ("4.2.1", Level.NOTE, "ended with the release of 4.3"),
        ("4.3.6", Level.OK, "RabbitMQ 4.3.6"),
        ("4.4.0", Level.NOTE, "newer than what this version of workq-supervise is tested with (3.10, 4.0 and 4.3)"),
        ("4.10.0", Level.NOTE, "newer than"),
        ("5.0.0-rc.1", Level.NOTE, "newer than"),
    ],
)
def test_a_broker_out_of_support_and_one_newer_than_what_was_tested_are_told(
    version: str, level: Level, said: str
) -> None:
    found = of(examine(broker(version), settings()), "version")
    assert found.level is level and said in found.what
    # Nobody who reads it need guess whose table that is.
    assert ("endoflife.date" in found.what) == ("ended" in found.what)


def test_every_series_up_to_the_newest_tested_one_is_judged_and_what_is_tested_can_be_had() -> None:
    assert list(versions.TESTED) == sorted(versions.TESTED)
    assert {*versions.TESTED, *versions.SUPPORT_ENDED} == {(3, minor) for minor in range(10, 14)} | {
        (4, minor) for minor in range(versions.TESTED[-1][1] + 1)
    }
    usage = (ROOT / "scripts" / "rabbitmq").read_text()
    assert f"scripts/rabbitmq {'|'.join(map(versions.dotted, versions.TESTED))}|newest" in usage
    for each in map(versions.dotted, versions.TESTED):
        assert each in (ROOT / "README.md").read_text()
    assert f"RabbitMQ {versions.tested()}" in (ROOT / "docs" / "testing.md").read_text()


def test_findings_are_lines_without_secrets() -> None:
    closed = replace(broker().nodes[0], endpoint=FAR, kind=Kind.AUTHENTICATION, reason="no")
    everything = broker(
        "4.0.5",
        FAR,
        nodes=[closed, Node(FAR, product="RabbitMQ", version="4.0.5", heartbeat=0, channel_max=1)],
        queue=quorum(**{"x-max-length": 3, "x-expires": 5000, "x-message-ttl": 1, "x-delivery-limit": 2}),
        dead=Queue("jobs.dead", True, ready=5),
        refusals={"write": "ACCESS_REFUSED - no", "read jobs": None},
        blocked="low on memory",
        managed=None,
        unmanaged="it does not answer",
    )
    findings = examine(everything, settings(task_timeout=7200.0, heartbeat=2.0))
    assert len(bad(findings)) >= 8
    for finding in findings:
        assert finding.what and "\n" not in finding.what + finding.fix
        assert PASSWORD not in finding.what + finding.fix
        assert finding.fix or finding.level in (Level.OK, Level.NOTE), finding
        if finding.fix and not finding.fix.startswith("export"):
            shlex.split(finding.fix)


def test_a_plain_connection_to_another_host_is_a_warning() -> None:
    assert of(examine(broker(endpoint=FAR), settings()), "encryption").level is Level.WARNING
    assert (
        "amqps://USER:PASSWORD@rabbit.example.com:5671/shop"
        in of(examine(broker(endpoint=FAR), settings()), "encryption").fix
    )
    for url in (
        "amqps://u:p@rabbit.example.com/",
        "amqp://u:p@localhost/",
        "amqp://u:p@127.0.1.1/",
        "amqp://u:p@[::1]/",
    ):
        assert not bad(examine(broker(endpoint=Endpoint.parse(url)), settings()))


@pytest.mark.parametrize(
    ("version", "queue", "effective", "level"),
    [
        ("3.10.8", quorum(), {}, Level.OK),
        ("4.0.5", quorum(), {}, Level.NOTE),
        ("4.0.5", quorum(**{"x-delivery-limit": RETURNS_MAX}), {}, Level.PROBLEM),
        ("4.0.5", quorum(**{"x-delivery-limit": -1}), {}, Level.OK),
        ("3.10.8", quorum(), {"delivery-limit": RETURNS_MAX}, Level.PROBLEM),
        ("3.10.8", quorum(), {"delivery-limit": 19}, Level.WARNING),
        ("4.0.5", quorum(), {"delivery-limit": 19}, Level.NOTE),
        ("3.10.8", quorum(), {"delivery-limit": 3, "dead-letter-exchange": "dlx"}, Level.OK),
        ("4.0.5", quorum(**{"x-dead-letter-exchange": "dlx"}), {}, Level.OK),
        ("4.0.5", Queue("jobs", True, type="classic"), {}, Level.OK),
    ],
)
def test_a_delivery_limit_without_dead_lettering_loses_messages(
    version: str, queue: Queue, effective: dict[str, Any], level: Level
) -> None:
    managed = Managed("u", Rule(Policy("theirs", 2, effective)), alarms=())
    finding = of(examine(broker(version, queue=queue, managed=managed), settings(task_timeout=60.0)), "delivery limit")
    assert finding.level is level, finding
    if level is Level.PROBLEM:
        *_, pattern, definition = shlex.split(finding.fix)
        assert pattern == "^jobs$"
        assert json.loads(definition) == {
            **effective, "dead-letter-exchange": "", "dead-letter-routing-key": "jobs.dead",
        }  # fmt: skip
        assert "--priority 3 " in finding.fix


@pytest.mark.parametrize(
    ("version", "queue", "effective", "level", "what"),
    [
        ("3.10.8", quorum(), {}, Level.OK, "no delivery limit"),
        ("3.10.8", quorum(), {"delivery-limit": 50}, Level.PROBLEM, "limit of 50"),
        ("3.10.8", quorum(**{"x-dead-letter-exchange": "dlx"}), {"delivery-limit": 20}, Level.PROBLEM, "unrun"),
        ("3.10.8", quorum(), None, Level.NOTE, "policies are not known"),
        ("4.0.5", quorum(), {}, Level.WARNING, "is used as 1"),
        ("4.3.6", quorum(**{"x-delivery-limit": -1}), None, Level.WARNING, "is used as 1"),
    ],
)
def test_f115_what_prefetch_does_on_a_quorum_queue_is_told(
    version: str, queue: Queue, effective: dict[str, Any] | None, level: Level, what: str
) -> None:
    managed = None if effective is None else Managed("u", Rule(Policy("theirs", 2, effective)), alarms=())
    found = of(examine(broker(version, queue=queue, managed=managed), settings(prefetch=50)), "prefetch")
    assert (found.level, what in found.what) == (level, True), found
    assert "--prefetch 50" in found.what or level is Level.OK
    assert (found.fix == "export WORKQ_PREFETCH=1") is (level in (Level.WARNING, Level.PROBLEM))
    quiet = [(queue, settings()), (Queue("jobs", True, type="classic"), settings(prefetch=50))]
    for other, given in quiet:
        findings = examine(broker(version, queue=other, managed=managed), given)
        assert not [finding for finding in findings if finding.subject == "prefetch"]


def test_all_lines_that_set_a_policy_set_the_same_one() -> None:
    queue = quorum(**{"x-max-length": 9})
    findings = examine(broker("4.0.5", queue=queue, managed=None), settings(task_timeout=7200.0))
    lines = {finding.fix for finding in findings if "set_policy" in finding.fix}
    assert len(lines) == 1
    assert json.loads(shlex.split(lines.pop(), comments=True)[-1]) == {
        "dead-letter-exchange": "",
        "dead-letter-routing-key": "jobs.dead",
        "consumer-timeout": 1000 * (7200 + 30 + 3600),
        "overflow": "reject-publish",
    }


@pytest.mark.parametrize(
    ("version", "facts", "given", "level", "fix"),
    [
        ("4.3.0", {}, {"task_timeout": 7200.0}, Level.OK, ""),
        ("3.10.8", {}, {}, Level.NOTE, "set_env(rabbit, consumer_timeout, 2147483647)"),
        ("3.10.8", {}, {"task_timeout": 600.0}, Level.OK, ""),
        ("3.10.8", {}, {"task_timeout": 600.0, "prefetch": 3}, Level.WARNING, "set_env"),
        ("3.10.8", {"consumer_timeout": 1_800_000}, {"task_timeout": 1790.0}, Level.PROBLEM, "set_env"),
        ("3.10.8", {"consumer_timeout": 1_820_000}, {"task_timeout": 1790.0}, Level.OK, ""),
        ("3.10.8", {"consumer_timeout": 0}, {}, Level.OK, ""),
        ("3.10.8", {"consumer_timeout": 5_000}, {}, Level.NOTE, "set_env"),
        ("4.0.5", {}, {"task_timeout": 7200.0}, Level.WARNING, '"consumer-timeout": 10830000'),
        ("4.0.5", {"consumer_timeout": 9_000_000}, {"task_timeout": 7200.0}, Level.OK, ""),
        ("4.0.5", {"managed": SHORT, "consumer_timeout": 9_000_000}, {"task_timeout": 7200.0}, Level.PROBLEM, "set_po"),
        ("4.0.5", {"managed": None, "consumer_timeout": 9_000_000}, {"task_timeout": 7200.0}, Level.WARNING, "set_pol"),
        ("", {}, {"task_timeout": 7200.0}, Level.WARNING, ""),
    ],
)  # fmt: skip
def test_the_acknowledgement_timeout_must_outlast_the_tasks(
    version: str, facts: dict[str, Any], given: dict[str, Any], level: Level, fix: str
) -> None:
    finding = of(examine(broker(version, **facts), settings(**given)), "acknowledgement timeout")
    assert finding.level is level, finding
    assert fix in finding.fix and bool(fix) == bool(finding.fix)


def test_permissions_are_asked_for_what_workers_do() -> None:
    no = "ACCESS_REFUSED - access to queue"
    refused = {**MAY, "write": "", "configure jobs": no}
    assert not bad(examine(broker(refusals=refused), settings()))  # it exists, so nobody declares it
    missing = broker(refusals=refused, queue=Queue("jobs", False))
    line = of(bad(examine(missing, settings())), "permissions")
    assert "may not declare jobs;" in line.what
    assert not bad(examine(broker(refusals=refused), settings(queue_type="default", declare=False)))
    typed = broker(refusals=refused, queue=quorum(**{"x-dead-letter-exchange": "dlx"}))
    assert of(bad(examine(typed, settings(queue_type="quorum"))), "permissions")
    delays = broker(refusals={**MAY, "write": "", "configure jobs.delay.1000": no})
    assert "jobs.delay.1000" in of(bad(examine(delays, settings())), "permissions").what
    assert not bad(examine(delays, settings(retries=0)))
    unknown = of(examine(broker(refusals={**MAY, "write": None}), settings()), "permissions")
    assert (unknown.level, "not known" in unknown.what) == (Level.NOTE, True)


@pytest.mark.parametrize(
    ("blocked", "alarms", "level", "word"),
    [
        ("", (), Level.OK, "none"),
        ("", ("memory on a",), Level.OK, "none"),  # the API's word is older
        (None, (), Level.OK, "none"),
        (None, ("disk on a",), Level.PROBLEM, "disk on a"),
        ("low on memory", (), Level.PROBLEM, "low on memory"),
        ("low on memory", ("memory on b",), Level.PROBLEM, "memory on b"),
        ("something new", None, Level.PROBLEM, "something new"),
    ],
)
def test_an_alarm_is_what_amqp_says_else_what_the_api_says(
    blocked: str | None, alarms: tuple[str, ...] | None, level: Level, word: str
) -> None:
    facts = broker(blocked=blocked, managed=Managed("u", Rule(), alarms=alarms))
    finding = of(examine(facts, settings()), "alarms")
    assert finding.level is level and word in finding.what


def test_where_nobody_tells_of_alarms_nothing_is_said() -> None:
    assert not [each for each in examine(broker(blocked=None, managed=None), settings()) if each.subject == "alarms"]


def test_delays_are_those_that_failed_tasks_take() -> None:
    assert delays_of(settings()) == ["jobs.delay.1000", "jobs.delay.5000", "jobs.delay.20000"]
    assert delays_of(settings(retries=0)) == []


@pytest.mark.parametrize("kind", list(Kind))
def test_every_way_not_to_get_in_is_a_problem_with_a_line(kind: Kind) -> None:
    node = Node(HERE, kind, "it says no")
    finding = of(examine(Broker([node]), settings()), "broker")
    assert finding.level is Level.PROBLEM
    assert bool(finding.fix) == (kind is not Kind.SETTINGS)


# -------------------------------------------------------------------------------------------- the management API


def test_the_policy_of_highest_priority_that_matches_is_obeyed() -> None:
    def policy(name: str, pattern: str, priority: int, apply_to: str = "all") -> dict[str, Any]:
        return {"name": name, "pattern": pattern, "priority": priority, "apply-to": apply_to, "definition": {}}

    policies = [
        policy("low", "jobs", 0), policy("mine", "^jobs$", 5, "queues"), policy("other", "^mails", 9),
        policy("exchanges", "", 9, "exchanges"), policy("quorum", "", 7, "quorum_queues"), policy("broken", "[", 99),
    ]  # fmt: skip
    assert (obeyed(policies, "jobs", "classic") or Policy("", 0, {})).name == "mine"
    assert (obeyed(policies, "jobs", "quorum") or Policy("", 0, {})).name == "quorum"
    assert obeyed(policies, "x", "classic") is None


def test_a_login_that_was_encrypted_is_not_sent_in_the_clear_by_itself() -> None:
    assert usual(Endpoint.parse("amqp://u:p@h/")) == "http://h:15672"
    assert usual(Endpoint.parse("amqps://u:p@h/")) == "https://h:15671"
    assert usual(Endpoint.parse("amqp://u:p@[::1]/")) == "http://[::1]:15672"


@pytest.mark.parametrize(
    "url", ["h:15672", "ftp://h", "http://", f"http://u:{PASSWORD}@h", "http://h:x", "http://h?a=b"]
)
def test_a_management_url_is_checked_and_not_quoted(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        checked(url)
    assert PASSWORD not in str(refused.value)


# --------------------------------------------------------------------------------------------------- the machine

WELL = Host(cpus=Cpus(4, None), memory=8 * 1024**3, memory_by="machine", files=1024)

SHOW = """\
Type=notify
Restart=always
TimeoutStopUSec=1min 30s
WatchdogUSec=30s
RestartPreventExitStatus=78
Id=workq-supervise@jobs.service
LoadState=loaded
ActiveState=active
LimitNOFILESoft=524288
TasksMax=4915
MemoryMax=infinity
OOMPolicy=continue
KillMode=mixed

Id=workq-supervise.service
LoadState=not-found
ActiveState=inactive
"""


def unit(**changes: str) -> Host:
    (found,) = host.units(SHOW)
    return replace(WELL, units=[{**found, **changes}])


def test_a_machine_that_is_well_set_up_has_no_findings() -> None:
    for each in (WELL, unit(), replace(WELL, units=[])):
        assert not [finding for finding in host.examine(each, settings()) if finding.level is not Level.OK]


def test_a_unit_that_has_never_run_is_not_told_that_it_has_no_watchdog_which_systemd_does_not_know_then() -> None:
    found = host.examine(unit(ActiveState="inactive", WatchdogUSec="infinity"), settings())
    assert not [finding for finding in found if finding.level is not Level.OK]


@pytest.mark.parametrize(
    ("changes", "level", "setting"),
    [
        ({"Restart": "no"}, Level.PROBLEM, "Restart=always"),
        ({"Restart": "on-failure"}, Level.WARNING, "Restart=always"),
        ({"RestartPreventExitStatus": ""}, Level.WARNING, "RestartPreventExitStatus=78"),
        ({"KillMode": "control-group"}, Level.WARNING, "KillMode=mixed"),
        ({"KillMode": "process"}, Level.WARNING, "KillMode=mixed"),
        ({"OOMPolicy": "stop"}, Level.WARNING, "OOMPolicy=continue"),
        ({"TimeoutStopUSec": "30s"}, Level.WARNING, "TimeoutStopSec=35"),
        ({"WatchdogUSec": "0"}, Level.NOTE, "WatchdogSec=30"),
        ({"LimitNOFILESoft": "64"}, Level.WARNING, "LimitNOFILE=160"),
        ({"TasksMax": "20"}, Level.WARNING, "TasksMax=48"),
        ({"MemoryMax": "536870912"}, Level.WARNING, "MemoryMax=2148M"),
    ],
)
def test_a_unit_set_up_badly_is_found_with_the_drop_in_that_mends_it(
    changes: dict[str, str], level: Level, setting: str
) -> None:
    findings = host.examine(unit(**changes), settings(max_memory=1024**3))
    (found,) = [finding for finding in findings if finding.level is not Level.OK]
    assert (found.level, found.subject) == (level, "systemd")
    key = setting.partition("=")[0]
    directory = "/etc/systemd/system/workq-supervise@.service.d"
    written = f"printf '[Service]\\n{setting}\\n' > {directory}/workq-{key}.conf"
    assert found.fix == f"mkdir -p {directory} && {written} && systemctl daemon-reload"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1min 30s", 90.0),
        ("30s", 30.0),
        ("500ms", 0.5),
        ("0", 0.0),
        ("1h 2min", 3720.0),
        ("infinity", None),
        ("", None),
    ],
)
def test_systemds_durations_are_read(text: str, value: float | None) -> None:
    assert host.seconds(text) == value


def test_the_unit_of_a_process_is_read_from_its_cgroup() -> None:
    assert (
        host.unit_of("0::/system.slice/system-workq.slice/workq-supervise@jobs.service\n")
        == "workq-supervise@jobs.service"
    )
    assert host.unit_of("12:pids:/x\n1:name=systemd:/system.slice/jobs.service\n") == "jobs.service"
    assert host.unit_of("0::/user.slice/user-1000.slice/user@1000.service/app.slice/jobs.service\n") is None
    assert host.unit_of("0::/user.slice/session-3.scope\n") is None


@pytest.mark.parametrize(
    ("facts", "given", "subject", "level", "fix"),
    [
        ({"cpus": Cpus(2, 0.5)}, {"workers": "8"}, "CPUs", Level.NOTE, "export WORKQ_WORKERS=1"),
        ({"memory": 500 * 1024**2}, {"workers": "4", "max_memory": 128 * 1024**2}, "memory", Level.WARNING,
         "export WORKQ_MAX_MEMORY=100M"),
        ({"memory": 500 * 1024**2, "memory_by": "cgroup"}, {"workers": "4"}, "memory", Level.NOTE,
         "export WORKQ_MAX_MEMORY=100M"),
        ({"memory": 100 * 1024**2}, {"workers": "4", "max_memory": 64 * 1024**2}, "memory", Level.WARNING,
         "export WORKQ_WORKERS=2"),
        ({"files": 256}, {"workers": "100"}, "open files", Level.WARNING, "ulimit -Sn 864"),
        ({"app_dir_open_to": "everybody"}, {"app_dir": "/srv/my app"}, "app dir", Level.WARNING,
         "chmod go-w '/srv/my app'"),
        ({"health": Health("Address already in use")}, {"health": Address("::1", 80), "health_explicit": True},
         "health port", Level.PROBLEM, "ss -ltnp 'sport = :80'"),
        ({"health": Health("Address already in use")}, {}, "health port", Level.OK, ""),
        ({"health": Health("in use", "running")}, {"health_explicit": True}, "health port", Level.OK, ""),
        ({"health": Health("in use", "running", "idle ones are closed")}, {}, "supervisor", Level.WARNING, ""),
        ({"clash": ("supervisord is there", "python -m venv")}, {}, "installation", Level.WARNING, "python -m venv"),
        ({"imported": Imported(threads=3)}, {"preload": False}, "handler", Level.OK, ""),
        ({"imported": Imported(replaced=["os.fork"])}, {}, "handler", Level.NOTE, "export WORKQ_PRELOAD=false"),
        ({"imported": Imported(shared="it has opened a connection")}, {}, "handler", Level.WARNING,
         "export WORKQ_PRELOAD=false"),
        ({"imported": Imported(shared="it has opened a connection")}, {"preload": False}, "handler", Level.OK, ""),
        ({"imported": Imported("it is a class", raised=False)}, {}, "handler", Level.PROBLEM, ""),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_found(
    facts: dict[str, Any], given: dict[str, Any], subject: str, level: Level, fix: str
) -> None:
    finding = of(host.examine(replace(WELL, **facts), settings(**given)), subject)
    assert (finding.level, finding.fix) == (level, fix)


ROOMY = {"grace": 5.0, "health": Address("0.0.0.0", 9191), "control": "/tmp/workq.sock"}
"""Settings with which a container is well."""


@pytest.mark.parametrize(
    ("container", "given", "level", "words", "fix"),
    [
        (Container("docker"), {}, Level.OK, "docker", ""),
        (Container("docker"), {"grace": 30.0}, Level.NOTE, "docker run --stop-timeout 35", "export WORKQ_GRACE=5s"),
        (Container("podman"), {"grace": 6.0}, Level.NOTE, "podman run --stop-timeout 11", "export WORKQ_GRACE=5s"),
        (Container("Kubernetes"), {"grace": 25.0}, Level.OK, "", ""),
        (Container("Kubernetes"), {"grace": 30.0}, Level.NOTE, "terminationGracePeriodSeconds: 35",
         "export WORKQ_GRACE=25s"),
        (Container("Kubernetes"), {"health": Address("127.0.0.1", 80)}, Level.WARNING, "probes",
         "export WORKQ_HEALTH=0.0.0.0:80"),
        (Container("docker"), {"health": Address("::1", 80)}, Level.WARNING, "published ports",
         "export WORKQ_HEALTH=0.0.0.0:80"),
        (Container("docker"), {"health": Address("localhost", 80)}, Level.WARNING, "published ports",
         "export WORKQ_HEALTH=0.0.0.0:80"),
        (Container("docker"), {"health": None}, Level.NOTE, "no health port", ""),
        (Container("docker"), {"control": None}, Level.NOTE, "no control socket",
         "export WORKQ_CONTROL=/tmp/workq.sock"),
        (Container("docker"), {"workers": "auto"}, Level.NOTE, "each of the machine's 4 CPUs",
         "export WORKQ_WORKERS=4"),
        (Container("Kubernetes", is_killed_whole=True), {}, Level.WARNING, "singleProcessOOMKill", ""),
    ],
)  # fmt: skip
def test_the_traps_of_a_container_are_named(
    container: Container, given: dict[str, Any], level: Level, words: str, fix: str
) -> None:
    found = host.examine(replace(WELL, cpus=Cpus(4, None), container=container), settings(**{**ROOMY, **given}))
    finding = of(found, "container")
    assert (finding.level, finding.fix) == (level, fix) and words in finding.what


def test_loopback_is_no_trap_with_the_hosts_network_except_for_a_kubelet() -> None:
    found = {
        engine: of(
            host.examine(
                replace(WELL, container=Container(engine, has_hosts_network=True)),
                settings(**{**ROOMY, "health": Address("127.0.0.1", 80)}),
            ),
            "container",
        ).level
        for engine in ("docker", "podman", "Kubernetes")
    }
    assert found == {"docker": Level.OK, "podman": Level.OK, "Kubernetes": Level.WARNING}


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("/opt/workq/bin/python /opt/workq/bin/workq-supervise --workers 2 a:b", ["--workers", "2", "a:b"]),
        ("workq-supervise", []),
        ("python -m supervisor --queue x a:b", ["--queue", "x", "a:b"]),
        ("supervisor -m supervisor a:b", ["a:b"]),
        ("/bin/sh -c sleep", []),
        ("/pause", []),
        ("/opt/workq/bin/python /opt/workq/bin/workq check", []),
    ],
)
def test_the_arguments_of_a_supervisor_are_found_in_its_command_line(line: str, arguments: list[str]) -> None:
    assert arguments_of(line.split()) == arguments


def test_a_cpu_limit_is_what_auto_follows_in_a_container() -> None:
    limited = replace(WELL, cpus=Cpus(4, 2.0), container=Container("docker"))
    assert of(host.examine(limited, settings(**ROOMY, workers="auto")), "container").level is Level.OK


def test_f76_a_memory_limit_below_what_the_import_takes_is_told_with_one_that_fits() -> None:
    large = replace(WELL, imported=Imported(resident=150 * 1024**2))
    finding = of(host.examine(large, settings(max_memory=70 * 1024**2)), "memory limit")
    assert (finding.level, finding.fix) == (Level.WARNING, "export WORKQ_MAX_MEMORY=225M")
    for enough in (None, 225 * 1024**2):
        assert not [each for each in host.examine(large, settings(max_memory=enough)) if each.subject == "memory limit"]


def test_f124_a_single_active_consumer_is_told_with_what_standby_hosts_need() -> None:
    queue = quorum(**{"x-single-active-consumer": True})
    found = [each for each in examine(broker(queue=queue), settings(workers="1")) if each.subject == "queue"]
    assert [each.fix for each in found if each.level is Level.NOTE] == ["export WORKQ_READY_WHEN=subscribed"]
    subscribed = examine(broker(queue=queue), settings(workers="1", ready_when="subscribed"))
    assert not [each for each in subscribed if "single active" in each.what]
    several = examine(broker(queue=queue), settings(workers="3"))
    assert [each.fix for each in several if each.level is Level.WARNING] == ["export WORKQ_WORKERS=1"]


def others(dead: Rule | None = None, delay: Rule | None = None) -> Managed:
    rules = {"jobs.dead": dead or Rule(None)} | {queues.delay("jobs", ms): delay or Rule(None) for ms in LADDER}
    return Managed("u", Rule(), alarms=(), others=rules)


BLANKET = Policy("all", 3, {"message-ttl": 4000, "max-length": 9, "ha-mode": "all"})


def test_f123_a_policy_for_all_queues_that_takes_from_ours_is_told_with_one_that_exempts_them() -> None:
    every = examine(broker(managed=others(Rule(BLANKET), Rule(BLANKET))), settings())
    findings = bad(every)
    said = {(each.level, each.subject): each for each in findings}
    assert {each.fix for each in findings} == {findings[0].fix}
    name, pattern, definition = shlex.split(findings[0].fix)[-3:]
    assert "--priority 4 " in findings[0].fix and name == "workq-jobs-kept"
    assert json.loads(definition) == {"ha-mode": "all"}
    assert all(re.search(pattern, queue) for queue in ("jobs.dead", "jobs.delay.100"))
    assert not any(re.search(pattern, queue) for queue in ("jobs", "jobs.dead.x", "xjobs.dead", "jobsxdead"))
    dead = " ".join(each.what for each in findings if each.subject == "dead letters")
    assert "lain there for 4 s are dropped" in dead and "full (at 9), the broker silently drops the oldest" in dead
    assert "the policy all says so" in dead
    retries = [each for each in every if each.subject == "retries"]
    full, sooner = retries
    assert (full.level, sooner.level) == (Level.NOTE, Level.WARNING)
    assert sooner.what.startswith("jobs.delay.5000 and 14 like it: tasks come back after 4 s")
    assert full.what.startswith("jobs.delay.100 and 19 like it: when it is full (at 9)")
    assert (Level.PROBLEM, "dead letters") in said


@pytest.mark.parametrize(
    ("dead", "delay", "level", "what"),
    [
        (Rule(Policy("p", 0, {"expires": 60_000})), None, Level.PROBLEM, "after 1 min without a consumer"),
        (None, Rule(Policy("p", 0, {"expires": 60_000})), Level.PROBLEM, "after 1 min without a consumer"),
        (Rule(Policy("p", 0, {"message-ttl": 9000, "dead-letter-exchange": "x"})), None, Level.PROBLEM, "unseen by"),
        (
            Rule(Policy("p", 0, {"max-length-bytes": 9})),
            None,
            Level.PROBLEM,
            "full (at 9 bytes), the broker silently drops",
        ),
        (Rule(None, {"message-ttl": 1000}), None, Level.PROBLEM, "an operator policy says so"),
    ],
)
def test_f123_whatever_makes_our_other_queues_lose_messages_is_told(
    dead: Rule | None, delay: Rule | None, level: Level, what: str
) -> None:
    [finding] = bad(examine(broker(managed=others(dead, delay)), settings()))
    assert finding.level is level and what in finding.what and finding.fix


@pytest.mark.parametrize(
    ("dead", "delay"),
    [
        (Rule(Policy("p", 0, {"delivery-limit": 5, "dead-letter-exchange": "x"})), None),
        (None, Rule(Policy("p", 0, {"message-ttl": 86_400_000, "overflow": "drop-head"}))),
        (Rule(None), Rule(None)),
    ],
)
def test_f123_a_policy_that_takes_nothing_is_nobodys_business(dead: Rule | None, delay: Rule | None) -> None:
    assert not bad(examine(broker(managed=others(dead, delay)), settings()))


def test_f123_a_limit_that_makes_publishers_wait_is_worth_knowing() -> None:
    rule = Rule(Policy("p", 0, {"max-length-bytes": 9, "overflow": "reject-publish"}))
    findings = examine(broker(managed=others(rule)), settings())
    assert not bad(findings)
    assert [each.level for each in findings if "at 9 bytes" in each.what] == [Level.NOTE]


def test_f123_what_the_dead_letter_queue_was_declared_with_is_told_without_the_management_api() -> None:
    dead = Queue("jobs.dead", True, type="classic", arguments={"x-message-ttl": 4000})
    [finding] = bad(examine(broker(dead=dead, managed=None), settings()))
    assert finding.level is Level.PROBLEM and "it was declared so" in finding.what
