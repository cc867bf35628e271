"""`workq check` against real brokers: what it finds, that its lines mend it, and that it leaves no trace.

Lines are run by a shell as they are printed, with a `rabbitmqctl` on the PATH that reaches the node of these tests.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from click.testing import CliRunner

from supervisor.commands import main
from supervisor.commands.check.surroundings import import_handler
from supervisor.commands.node import NodeError, Port
from supervisor.policy.advice import release_of
from supervisor.settings import Settings
from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import eventually, supervised

PASSWORD = "s3cr3t-Zq7xK"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WORKQ_") and name != "WORKQ_RABBITMQ_HOME"]:
        monkeypatch.delenv(name)


CTL = """\
#!{python} -IS
import json, socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect({socket!r})
talk = client.makefile("rw")
talk.write(json.dumps([sys.argv[1:], sys.stdin.read()]) + "\\n")
talk.flush()
code, output = json.loads(talk.readline())
(sys.stderr if code else sys.stdout).write(output)
sys.exit(code)
"""


class Managed:
    """A node with the management API, and a `rabbitmqctl` for it."""

    def __init__(self, node: PrivateNode, port: int, directory: Path) -> None:
        self.node = node
        self.url = node.url
        self.api = f"http://127.0.0.1:{port}"
        self.bin = directory
        self.ctl = directory / "rabbitmqctl"
        self.ctl.write_text(CTL.format(python=sys.executable, socket=str(directory / "ctl")))
        self.ctl.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "ctl"))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        """Be rabbitmqctl to whoever runs the script."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rw") as talk:
                arguments, typed = json.loads(talk.readline())
                if arguments[0] == "change_password" and len(arguments) == 2:
                    arguments.append(typed.rstrip("\n"))  # PrivateNode.ctl has no standard input
                try:
                    answer = [0, self.node.ctl(*arguments)]
                except NodeError as error:
                    answer = [1, str(error)]
                talk.write(json.dumps(answer) + "\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def shell(self, line: str, typed: str = "") -> str:
        """Run a line as somebody would who has copied it."""
        environ = {**os.environ, "PATH": f"{self.bin}:{BIN}:{os.environ['PATH']}", "WORKQ_URL": self.url}
        done = subprocess.run(
            ["bash", "-c", line], input=typed, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def for_user(self, user: str, vhost: str = "%2F", password: str = PASSWORD) -> str:
        return f"amqp://{user}:{password}@127.0.0.1:{self.node.port}/{vhost}"

    @contextmanager
    def user(self, configure: str = ".*", write: str = ".*", read: str = ".*", tags: str = "") -> Iterator[str]:
        name = f"app-{uuid4().hex[:8]}"
        add = f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{PASSWORD}">>, <<"test">>)'
        granted = ", ".join(amqp.binary(pattern) for pattern in (configure, write, read))
        self.node.eval(
            f'{add}, rabbit_auth_backend_internal:set_tags(<<"{name}">>, [{tags}], <<"test">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"/">>, {granted}, <<"test">>)'
        )
        try:
            yield name
        finally:
            self.node.eval(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>)')

    def counted(self, queue: str) -> int:
        """What `rabbitmqctl list_queues` would say: of a quorum queue, some while ago."""
        name = f'rabbit_misc:r(<<"/">>, queue, {amqp.binary(queue)})'
        said = self.node.eval(f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), rabbit_amqqueue:info(Q, [messages])")
        return int("".join(filter(str.isdigit, said)))

    def connections(self) -> str:
        return self.node.eval("length(rabbit_networking:connections())")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    place = tmp_path_factory.mktemp("managed")
    port = Port()
    conf = f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port.number}"
    node = PrivateNode(place / "node", plugins=("rabbitmq_management",), conf=conf)
    try:
        node.start()
        managed = Managed(node, port.number, place)
        eventually(lambda: answers(port.number))
        node.eval("application:set_env(rabbit, quorum_tick_interval, 200)")
        yield managed
        managed.close()
    finally:
        node.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def queue(broker: Managed) -> Iterator[str]:
    """Of a name that needs quoting in shells, regular expressions and Erlang."""
    name = f"it's q-{uuid4().hex[:8]}.v2"
    yield name
    amqp.delete(broker.node, name)


class Report:
    def __init__(self, code: int, lines: list[dict[str, str]], output: str) -> None:
        self.code = code
        self.lines = lines
        self.output = output

    def of(self, subject: str, level: str | None = None) -> list[dict[str, str]]:
        return [line for line in self.lines if line["subject"] == subject and level in (None, line["level"])]

    def one(self, subject: str, level: str) -> dict[str, str]:
        found = self.of(subject, level)
        assert len(found) == 1, self.output
        return found[0]

    @property
    def bad(self) -> list[dict[str, str]]:
        return [line for line in self.lines if line["level"] in ("problem", "warning")]


def check(broker: Managed, queue: str, *options: str, url: str = "", api: str | None = "off") -> Report:
    """Run it. By AMQP alone unless `api` says otherwise."""
    managed = ["--management", api] if api else []
    arguments = ["check", "--json", "--queue", queue, "--url", url or broker.url, "--health", "off", *managed, *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (0, 1), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert PASSWORD not in done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all("\n" not in line["what"] + line["fix"] for line in lines)
    assert done.exit_code == any(line["level"] == "problem" for line in lines)
    return Report(done.exit_code, lines, done.output)


def until(holds: Callable[[Report], object], broker: Managed, queue: str) -> Report:
    """Check until this holds: a policy reaches the queues a moment after it was set."""

    def asked() -> Report | None:
        report = check(broker, queue, api=broker.api)
        return report if holds(report) else None

    return cast("Report", eventually(asked))


def declare(broker: Managed, queue: str, arguments: dict[str, Any] | None = None, **how: Any) -> None:
    with amqp.connection(broker.url) as link:
        link.channel().queue_declare(queue, arguments=arguments, **{"durable": True, **how})


# ---------------------------------------------------------------------------------------------------- when all is well


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_healthy_setup_has_a_short_report_and_exit_code_0(broker: Managed, queue: str, kind: str) -> None:
    declare(broker, queue, {"x-queue-type": kind})
    options = ["--queue", queue, "--url", broker.url, "--management", broker.api, "--health", "off"]
    done = CliRunner().invoke(main, ["check", *options, "--task-timeout", "5m"])
    assert done.exit_code == 0, done.output
    *said, last = done.output.splitlines()
    assert re.search(r" \d\d ok, \d notes?, 0 warnings, 0 problems \(--verbose", last)
    assert len(said) <= 4 and not [line for line in said if not line.startswith(("note", " "))]
    verbose = CliRunner().invoke(main, ["check", *options, "--verbose"]).output
    shown = {"classic": rf"^note +queue type +{queue} is classic: .* forgets", "quorum": r"^ok +queue type +quorum$"}
    assert re.search(shown[kind], verbose, re.M)
    assert "\x1b" not in verbose


@pytest.mark.parametrize("api", ["off", "on"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_it_leaves_nothing_behind_and_touches_no_message(broker: Managed, queue: str, kind: str, api: str) -> None:
    declare(broker, queue, {"x-queue-type": kind, "x-max-length": 1000, "x-overflow": "reject-publish"})
    amqp.publish(broker.url, queue, [str(number) for number in range(20)])
    broker.node.sync()

    def everything() -> list[str]:
        asked = (
            'lists:sort([amqqueue:get_name(Q) || Q <- rabbit_amqqueue:list(<<"/">>)])',
            'length(rabbit_exchange:list(<<"/">>))',
            'length(rabbit_binding:list(<<"/">>))',
            'length(rabbit_amqqueue:consumers_all(<<"/">>))',
            "rabbit_policy:list()",
            "length(rabbit_auth_backend_internal:list_users())",
        )
        return [broker.node.eval(each) for each in asked]

    eventually(lambda: broker.connections() == "0")
    before = everything()
    with amqp.connection(broker.url) as link:
        channel = link.channel()
        held, _, _ = channel.basic_get(queue)  # somebody has a task in hand
        check(broker, queue, api=broker.api if api == "on" else "off")
        assert (held.delivery_tag, channel.is_open, amqp.depth(broker.url, queue)) == (1, True, 19)
    eventually(lambda: broker.connections() == "0")
    assert everything() == before
    eventually(lambda: amqp.depth(broker.url, queue) == 20)
    taken = amqp.drain(broker.url, queue)
    assert [int(body) for _, _, body in taken] == list(range(20))
    assert [method.redelivered for method, _, _ in taken] == [True] + 19 * [False]


def test_a_queue_that_is_missing_stays_missing(broker: Managed, queue: str) -> None:
    report = check(broker, queue)
    assert "does not exist yet" in report.one("queue", "note")["what"]
    assert report.code == 0
    assert queue not in broker.node.eval('[element(4, amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list(<<"/">>)]')
    forbidden = check(broker, queue, "--no-declare")
    assert "--no-declare" in forbidden.one("queue", "problem")["what"]
    assert "cannot wait" in forbidden.one("retries", "problem")["what"]
    for line in (forbidden.one("queue", "problem"), forbidden.one("dead letters", "problem")):
        broker.shell(line["fix"])
    assert not check(broker, queue, "--no-declare", "--retries", "0").bad


# ---------------------------------------------------------------------------------------------------------- the queue


def test_arguments_are_read_out_of_refusals(broker: Managed, queue: str) -> None:
    odd = {"x-max-length": 7, "x-expires": 600_000, "x-single-active-consumer": True, "x-queue-type": "quorum"}
    declare(broker, queue, odd)
    report = check(broker, queue, "--workers", "3")
    said = " ".join(line["what"] for line in report.of("queue", "warning"))
    assert "(at 7)" in said and "10 min without a consumer" in said and "one of 3 workers" in said
    assert report.one("queue type", "ok")["what"] == "quorum"
    assert report.code == 0
    line = next(line["fix"] for line in report.of("queue", "warning") if "delete_queue" in line["fix"])
    amqp.publish(broker.url, queue, ["x"])
    eventually(lambda: broker.counted(queue) == 1)
    with pytest.raises(AssertionError):
        broker.shell(line)  # not while there is something in it
    with amqp.connection(broker.url) as link:
        link.channel().queue_purge(queue)
    eventually(lambda: broker.counted(queue) == 0)
    broker.shell(line)
    assert not check(broker, queue, "--workers", "3").bad


@pytest.mark.parametrize(("how", "word"), [({"durable": False}, "durable"), ({"auto_delete": True}, "auto-delete")])
def test_a_queue_that_does_not_last_is_a_warning(broker: Managed, queue: str, how: dict[str, bool], word: str) -> None:
    declare(broker, queue, **how)
    line = check(broker, queue).one("queue", "warning")
    assert word in line["what"]
    broker.shell(line["fix"])
    assert not check(broker, queue).bad


def test_a_stream_cannot_be_consumed(broker: Managed, queue: str) -> None:
    declare(broker, queue, {"x-queue-type": "stream"})
    assert "is a stream" in check(broker, queue).one("queue type", "problem")["what"]


def test_an_exclusive_queue_is_somebody_elses(broker: Managed, queue: str) -> None:
    with amqp.connection(broker.url) as link:
        link.channel().queue_declare(queue, exclusive=True)
        line = check(broker, queue).one("queue", "problem")
        assert "another connection" in line["what"]
        assert queue in broker.shell(line["fix"])
    eventually(lambda: not check(broker, queue).bad)


def test_an_explicit_type_that_disagrees_is_a_problem_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    declare(broker, queue, {"x-queue-type": "quorum"})
    line = check(broker, queue, "--queue-type", "classic").one("queue type", "problem")
    command = f"workq check --management off --health off --queue {shlex.quote(queue)}"
    broker.shell(f"export WORKQ_QUEUE_TYPE=classic; {command} >/dev/null; [ $? = 1 ]")
    broker.shell(f"export WORKQ_QUEUE_TYPE=classic; {line['fix']}; {command}")


def test_dead_letters_are_a_warning_until_somebody_has_seen_to_them(broker: Managed, queue: str) -> None:
    declare(broker, queue)
    declare(broker, f"{queue}.dead")
    assert check(broker, queue).one("dead letters", "ok")
    amqp.publish(broker.url, f"{queue}.dead", ["a", "b"], ids=["1", "2"])
    report = check(broker, queue)
    line = report.one("dead letters", "warning")
    assert line["what"].startswith("2 in ")
    assert report.code == 0
    strict = ["check", "--strict", "--queue", queue, "--url", broker.url, "--management", "off", "--health", "off"]
    assert CliRunner().invoke(main, strict).exit_code == 1
    assert "2 dead letters" in broker.shell(line["fix"])
    broker.shell(f"workq dead requeue --all --yes --queue {shlex.quote(queue)}")
    assert not check(broker, queue).bad


# ----------------------------------------------------------------------------------------------------------- the login


def test_a_wrong_password_is_a_problem_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    with broker.user() as user:
        wrong = broker.for_user(user, password="another-" + PASSWORD)
        line = check(broker, queue, url=wrong).one("broker", "problem")
        assert "check user and password" in line["what"]
        broker.shell(line["fix"], typed=f"another-{PASSWORD}\n")
        assert not check(broker, queue, url=wrong).bad


def test_a_missing_virtual_host_is_a_problem_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    vhost = f"shop-{uuid4().hex[:8]}"
    with broker.user() as user:
        url = broker.for_user(user, vhost)
        line = check(broker, queue, url=url).one("broker", "problem")
        assert vhost in line["what"]
        try:
            broker.shell(line["fix"])
            assert not check(broker, queue, url=url).bad
            broker.node.eval(
                f"rabbit_auth_backend_internal:clear_permissions({amqp.binary(user)}, {amqp.binary(vhost)}, <<>>)"
            )
            again = check(broker, queue, url=url).one("broker", "problem")
            assert line["fix"].endswith(" && " + again["fix"])
        finally:
            broker.node.eval(f'rabbit_vhost:delete({amqp.binary(vhost)}, <<"test">>)')


@pytest.mark.parametrize("missing", ["configure", "read", "write"])
def test_a_missing_permission_is_a_problem_and_the_line_mends_it(broker: Managed, queue: str, missing: str) -> None:
    declare(broker, queue)
    with broker.user(**{missing: "^$"}) as user:
        url = broker.for_user(user)
        line = check(broker, queue, url=url).one("permissions", "problem")
        word = {"configure": "declare", "read": "consume", "write": "publish"}[missing]
        assert f"may not {word}" in line["what"]
        broker.shell(line["fix"])
        assert not check(broker, queue, url=url).bad
        if missing != "configure":
            return
        # What the line gives is enough to work with: queue, dead letters and delays, from nothing.
        amqp.delete(broker.node, queue)
        options = ("--workers", "1", "--retries", "1", "--retry-delay", "100ms")
        with supervised("handlers:act", *options, url=url, queue=queue) as pool:
            pool.ready()
            amqp.publish(broker.url, queue, ['{"raise": "ValueError"}'], ids=["x"])
            eventually(lambda: amqp.depth(broker.url, f"{queue}.dead") == 1)
            assert pool.stop() == 0


def test_without_permission_to_declare_the_type_is_unknown_and_said_so(broker: Managed, queue: str) -> None:
    declare(broker, queue, {"x-queue-type": "quorum"})
    with broker.user(configure="^$") as user:
        report = check(broker, queue, "--no-declare", url=broker.for_user(user))
        line = report.one("queue type", "note")
        assert "not known" in line["what"]
        assert re.search(rf"^{re.escape(queue)}\s+quorum$", broker.shell(line["fix"]), re.M)


def test_one_node_of_several_that_is_away_is_a_warning_all_of_them_a_problem(broker: Managed, queue: str) -> None:
    away = f"amqp://guest:{PASSWORD}@127.0.0.1:{Port().number}/"
    both = check(broker, queue, "--url", away)
    assert both.one("broker", "warning")["fix"] == "systemctl start rabbitmq-server"
    assert both.code == 0
    none = check(broker, queue, url=away)
    assert "no broker is running there" in none.one("broker", "problem")["what"]
    assert not none.of("queue")


# -------------------------------------------------------------------------------------------------------------- alarms


@pytest.mark.parametrize(
    ("cause", "end", "word"),
    [
        ("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000})",
         "vm_memory_monitor:set_vm_memory_high_watermark(0.4)", "memory"),
        ("rabbit_disk_monitor:set_disk_free_limit(1 bsl 60)",
         "rabbit_disk_monitor:set_disk_free_limit(50000000)", "disk"),
    ],
)  # fmt: skip
def test_an_alarm_is_a_problem_and_the_line_mends_it(
    broker: Managed, queue: str, cause: str, end: str, word: str
) -> None:
    declare(broker, queue)
    try:
        broker.node.eval(cause)
        eventually(lambda: word in broker.node.eval("rabbit_alarm:get_alarms()"))
        # The API names the alarms, and may still name those of some seconds ago.
        eventually(lambda: word in check(broker, queue, api=broker.api).one("alarms", "problem")["what"])
        line = check(broker, queue, api=broker.api).one("alarms", "problem")
        # The connection that was blocked is gone, and the alarm is not.
        eventually(lambda: broker.connections() == "0")
        assert broker.node.eval("rabbit_alarm:get_alarms()") != "[]"
        broker.shell(line["fix"])
        eventually(lambda: broker.node.eval("rabbit_alarm:get_alarms()") == "[]")
        assert not check(broker, queue, api=broker.api).bad
    finally:
        broker.node.eval(end)
        eventually(lambda: broker.node.eval("rabbit_alarm:get_alarms()") == "[]")  # the node is everybody's


def test_an_alarm_that_somebody_set_by_hand_is_seen(broker: Managed, queue: str) -> None:
    alarm = "{resource_limit, memory, node()}"
    try:
        broker.node.eval(f"rabbit_alarm:set_alarm({{{alarm}, []}})")
        assert "low on memory" in check(broker, queue).one("alarms", "problem")["what"]
    finally:
        broker.node.eval(f"rabbit_alarm:clear_alarm({alarm})")
    assert check(broker, queue).one("alarms", "ok")


# -------------------------------------------------------------------------------------- limits, policies and timeouts


def test_too_few_channels_are_a_problem_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    try:
        broker.node.eval("application:set_env(rabbit, channel_max, 1)")
        line = check(broker, queue).one("channels", "problem")
        broker.shell(line["fix"])
        assert not check(broker, queue).bad
    finally:
        broker.node.eval("application:set_env(rabbit, channel_max, 2047)")


def user_limit(user: str, most: int) -> str:
    limits = f'#{{<<"max-connections">> => {most}}}'
    return f'rabbit_auth_backend_internal:set_user_limits({amqp.binary(user)}, {limits}, <<"test">>)'


def test_connection_limits_are_found_and_the_lines_mend_them(broker: Managed, queue: str) -> None:
    with broker.user(tags="management") as user:
        url = broker.for_user(user)
        limit = 'rabbit_vhost_limit:set(<<"/">>, [{<<"max-connections">>, 5}], <<"test">>)'
        broker.node.eval(f"{limit}, {user_limit(user, 6)}")
        try:
            options = ("--workers", "4")
            lines = check(broker, queue, *options, url=url, api=broker.api).of("limits", "warning")
            assert ["have 6" in lines[0]["what"], "have 5" in lines[1]["what"]] == [True, True]
            for line in lines:
                broker.shell(line["fix"])
            assert not check(broker, queue, *options, url=url, api=broker.api).bad
        finally:
            broker.node.eval('rabbit_vhost_limit:clear(<<"/">>, <<"test">>)')


def test_a_connection_limit_that_is_reached_is_a_problem_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    with broker.user() as user:
        broker.node.eval(user_limit(user, 0))
        line = check(broker, queue, url=broker.for_user(user)).one("broker", "problem")
        assert "limit" in line["what"]
        broker.shell(line["fix"])
        assert not check(broker, queue, url=broker.for_user(user)).bad


def test_a_delivery_limit_that_drops_messages_is_a_problem_and_the_lines_mend_it(broker: Managed, queue: str) -> None:
    declare(broker, queue, {"x-queue-type": "quorum"})
    mine = shlex.quote(json.dumps({"delivery-limit": 5, "max-length": 1000, "overflow": "reject-publish"}))
    name = f"mine-{uuid4().hex[:8]}"
    broker.shell(f"rabbitmqctl set_policy --priority 3 --apply-to queues {name} '^it' {mine}")
    try:
        report = until(lambda report: report.of("delivery limit", "problem"), broker, queue)
        line = report.one("delivery limit", "problem")
        assert "came back 5 times is silently dropped" in line["what"]
        broker.shell(line["fix"])
        report = until(lambda report: report.of("delivery limit", "ok"), broker, queue)
        assert report.one("delivery limit", "ok")["what"].startswith("5;")
        policies = {
            each["name"]: each for each in json.loads(broker.shell("rabbitmqctl -s list_policies --formatter json"))
        }
        ours = policies[f"workq-{queue}"]
        kept = {"delivery-limit": 5, "max-length": 1000, "overflow": "reject-publish"}
        assert kept.items() <= json.loads(ours["definition"]).items()
        assert ours["priority"] == 4
        # The broker now dead-letters into a queue that is not there yet.
        line = report.one("dead letters", "warning")
        broker.shell(line["fix"])
        until(lambda report: not report.bad, broker, queue)
        # And it does what it is for.
        amqp.publish(broker.url, queue, ["returned"], ids=["x"])
        with amqp.connection(broker.url) as link:
            channel = link.channel()
            for _ in range(6):
                method = eventually(lambda: channel.basic_get(queue)[0])
                channel.basic_reject(method.delivery_tag, requeue=True)
        eventually(lambda: amqp.depth(broker.url, f"{queue}.dead") == 1)
    finally:
        for each in (name, f"workq-{queue}"):
            broker.node.eval(f'rabbit_policy:delete(<<"/">>, {amqp.binary(each)}, <<"test">>)')


def test_a_policy_that_drops_the_oldest_is_a_warning_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    declare(broker, queue)
    name = f"workq-{queue}"
    broker.shell(f"""rabbitmqctl set_policy --apply-to queues {shlex.quote(name)} '^it' '{{"max-length": 9}}'""")
    try:
        report = until(lambda report: report.of("queue", "warning"), broker, queue)
        assert "(at 9)" in report.one("queue", "warning")["what"]
        assert "(at 9)" in report.one("dead letters", "problem")["what"]
        for line in report.bad:
            broker.shell(line["fix"])
        until(lambda report: not report.bad, broker, queue)
    finally:
        for each in (name, f"{name}-kept"):
            broker.node.eval(f'rabbit_policy:delete(<<"/">>, {amqp.binary(each)}, <<"test">>)')


def test_f123_a_policy_for_all_queues_that_dead_letters_vanish_by_is_a_problem_and_the_line_mends_it(
    broker: Managed, queue: str
) -> None:
    declare(broker, queue)
    dead, delay, other = f"{queue}.dead", f"{queue}.delay.1000", f"{queue}.other"
    for name in (dead, other):
        declare(broker, name)
    blanket = shlex.quote(json.dumps({"message-ttl": 500, "max-length": 1000}))
    name = f"all-{uuid4().hex[:8]}"
    broker.shell(f"rabbitmqctl set_policy --priority 7 --apply-to all {name} '^it.s q-' {blanket}")
    try:
        amqp.publish(broker.url, dead, ["a"], ids=["1"])
        eventually(lambda: amqp.depth(broker.url, dead) == 0)
        report = check(broker, queue, api=broker.api)
        said = " ".join(line["what"] for line in report.of("dead letters", "problem"))
        assert f"{dead}: dead letters that have lain there for 0.5 s are dropped" in said
        assert f"the policy {name} says so" in said
        assert any(delay in line["what"] for line in report.of("retries", "warning"))
        broker.shell(report.of("dead letters", "problem")[0]["fix"])
        until(
            lambda after: not after.of("dead letters", "problem") and not after.of("retries", "warning"), broker, queue
        )
        amqp.publish(broker.url, dead, ["a"], ids=["1"])
        amqp.publish(broker.url, other, ["a"], ids=["1"])
        eventually(lambda: amqp.depth(broker.url, other) == 0)
        assert amqp.depth(broker.url, dead) == 1
    finally:
        for each in (name, f"workq-{queue}-kept"):
            broker.node.eval(f'rabbit_policy:delete(<<"/">>, {amqp.binary(each)}, <<"test">>)')
        amqp.delete(broker.node, other)


def test_f123_a_user_that_may_not_see_policies_is_told_by_the_queues_that_are_there(
    broker: Managed, queue: str
) -> None:
    declare(broker, queue)
    declare(broker, f"{queue}.dead")
    name = f"all-{uuid4().hex[:8]}"
    broker.shell(f"""rabbitmqctl set_policy --apply-to all {name} '^it.s q-' '{{"message-ttl": 4000}}'""")
    try:
        with broker.user(tags="management") as user:
            url = broker.for_user(user)
            eventually(lambda: check(broker, queue, url=url, api=broker.api).of("dead letters", "problem"))
    finally:
        broker.node.eval(f'rabbit_policy:delete(<<"/">>, {amqp.binary(name)}, <<"test">>)')


def test_an_acknowledgement_timeout_too_short_for_the_tasks_is_a_problem_and_the_line_mends_it(
    broker: Managed, queue: str
) -> None:
    if (release_of(broker.node.version) or (0, 0)) >= (4, 3):
        pytest.skip("workers of 4.3 and later ask for their own")
    declare(broker, queue)
    short = check(broker, queue, "--task-timeout", "20m")
    assert "unless it was lowered, is enough" in short.one("acknowledgement timeout", "ok")["what"]
    unknown = check(broker, queue, "--task-timeout", "2h")
    assert "not known" in unknown.one("acknowledgement timeout", "warning")["what"]
    before = broker.node.eval("application:get_env(rabbit, consumer_timeout)")
    options = ("--task-timeout", "2h", "--rabbitmqctl", str(broker.ctl))
    try:
        line = check(broker, queue, *options, api=broker.api).one("acknowledgement timeout", "problem")
        assert "tasks may take 2.0 h" in line["what"] and line["what"].endswith("after 30 min")
        broker.shell(line["fix"])
        assert not check(broker, queue, *options, api=broker.api).bad
        broker.node.eval("application:set_env(rabbit, consumer_timeout, undefined)")
        assert not check(broker, queue, *options, api=broker.api).bad
    finally:
        broker.node.eval(f"{{ok, _}} = {before}, application:set_env(rabbit, consumer_timeout, element(2, {before}))")
        broker.node.eval(f'rabbit_policy:delete(<<"/">>, {amqp.binary(f"workq-{queue}")}, <<"test">>)')


def test_a_rabbitmqctl_that_fails_is_said(broker: Managed, queue: str) -> None:
    assert "--rabbitmqctl" in check(broker, queue, "--rabbitmqctl", "/bin/false").one("rabbitmqctl", "warning")["what"]


# ------------------------------------------------------------------------------------------------- the management API


def test_a_user_that_the_api_refuses_is_a_note_and_the_line_mends_it(broker: Managed, queue: str) -> None:
    with broker.user() as user:
        url = broker.for_user(user)
        report = check(broker, queue, url=url, api=broker.api)
        line = report.one("management", "note")
        assert f"does not let user {user} in" in line["what"]
        assert report.code == 0
        broker.shell(line["fix"])
        assert check(broker, queue, url=url, api=broker.api).one("management", "ok")


def test_what_is_not_rabbitmq_is_not_told_the_password(broker: Managed, queue: str) -> None:
    heard: list[str] = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(str(self.headers))
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="Intranet"')
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            report = check(broker, queue, api=f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert "not RabbitMQ's management API" in report.one("management", "note")["what"]
    assert heard and not [headers for headers in heard if "authorization" in headers.lower()]


# --------------------------------------------------------------------------------------------------------- the machine


def test_a_handler_is_imported_as_workers_would(broker: Managed, queue: str, tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("import sys\nprint('noise' * 100_000)\ndef work(task): ...\n")
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "threads.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef work(task): ...\n"
    )
    (tmp_path / "deadly.py").write_text("import os\nos.abort()\n")
    handler_modules.write(tmp_path, "handlers", "def work(task): ...\ndef note(*_): ...\n")
    handler_modules.write(tmp_path, "aware", handler_modules.FORK_AWARE)

    def handler(name: str, level: str) -> str:
        return check(broker, queue, "--app-dir", str(tmp_path), f"{name}:work").one("handler", level)["what"]

    assert "is imported in" in handler("fine", "ok")
    assert "is imported in" in handler("aware", "ok"), "its thread ends before a fork, as OpenBLAS's do"
    assert "nothing_of_the_kind" in handler("broken", "problem")
    assert "1 threads behind" in handler("threads", "note")
    assert "SIGABRT" in handler("deadly", "problem")

    def report(name: str, level: str) -> str:
        return check(broker, queue, "--app-dir", str(tmp_path), "--report", name).one("report", level)["what"]

    assert "can be imported" in report("fine:work", "ok")
    assert "nothing_of_the_kind" in report("broken:work", "problem")
    assert "has no attribute 'play'" in report("fine:play", "problem")


def test_an_import_that_hangs_is_given_up_and_ended(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, subprocess, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(subprocess.Popen(['sleep', '600']).pid))\n"
        "time.sleep(600)\n"
    )
    settings = Settings(handler="slow:work", app_dir=str(tmp_path), boot_timeout=6.0)
    assert "--boot-timeout 6s" in import_handler(settings).error
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not Path(f"/proc/{pid}/cwd").exists() or state(pid) in "ZX")


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_a_health_port_that_is_taken_is_a_problem_unless_a_supervisor_answers(broker: Managed, queue: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert address in check(broker, queue, "--health", address).one("health port", "problem")["what"]
    with supervised("handlers:work", "--workers", "1", url=broker.url, queue=queue) as pool:
        pool.ready()
        address = pool.health.removeprefix("http://")
        report = check(broker, queue, "--health", address)
        assert report.one("health port", "ok")["what"].endswith(": running")
        assert "1 consumers" in report.of("queue", "ok")[0]["what"]
        assert pool.stop() == 0


def test_a_directory_that_others_may_write_to_is_a_warning_and_the_line_mends_it(
    broker: Managed, queue: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    line = check(broker, queue, "--app-dir", str(tmp_path)).one("app dir", "warning")
    broker.shell(line["fix"])
    assert not check(broker, queue, "--app-dir", str(tmp_path)).bad


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd is at work here")
def test_without_systemd_nothing_is_said_of_units(broker: Managed, queue: str) -> None:
    assert check(broker, queue).one("systemd", "ok")["what"] == "not running here"


# ---------------------------------------------------------------------------------------------------- the command line


def test_settings_come_from_file_and_environment_and_bad_ones_are_exit_78(broker: Managed, tmp_path: Path) -> None:
    (tmp_path / "workq.toml").write_text(f'queue = "from-file"\nurl = "{broker.url}"\nhealth = "off"\n')
    options = ["check", "--config", str(tmp_path / "workq.toml"), "--management", "off"]
    assert CliRunner().invoke(main, options).output.splitlines()[-1].startswith("from-file on amqp://guest:***@")
    done = CliRunner().invoke(main, options, env={"WORKQ_QUEUE": "from-env"})
    assert done.output.splitlines()[-1].startswith("from-env on ")
    done = CliRunner().invoke(main, [*options, "--workers", "many"], env={"WORKQ_GRACE": "soon"})
    assert (done.exit_code, done.stdout) == (78, "")
    assert "--workers" in done.stderr and "WORKQ_GRACE" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["a:b", f"amqp://u:{PASSWORD}@h/"],
        ["--management", f"http://u:{PASSWORD}@127.0.0.1:15672"],
        ["--management", f"amqp://{PASSWORD}"],
        ["--url", f"amqp://u:{PASSWORD}@h:port/"],
    ],
)
def test_no_refusal_quotes_a_secret(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["check", *arguments])
    assert done.exit_code in (2, 78)
    assert PASSWORD not in done.output


def test_on_a_terminal_it_is_coloured_and_elsewhere_not(broker: Managed, queue: str) -> None:
    words = ["workq", "check", "--management", "off", "--queue", queue]
    assert "\x1b" not in broker.shell(shlex.join(words))
    assert "\x1b[36m" in broker.shell(f"script -qec {shlex.quote(shlex.join(words))} /dev/null")
