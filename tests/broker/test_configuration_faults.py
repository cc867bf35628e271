"""FAULTS 37 and 40: the queue is not what was asked for, or the broker does not let us in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from supervisor.vocabulary import EXIT_CONFIG
from tests import amqp
from tests.amqp import binary
from tests.node import PrivateNode
from tests.supervision import EXECUTED, Runs, Supervision, eventually, supervised

PASSWORD = "hunter2-@-secret"
QUOTED = "hunter2-%40-secret"


class Account:
    """A user and a virtual host of a test's own."""

    def __init__(self, node: PrivateNode) -> None:
        unique = uuid4().hex[:8]
        self.user, self.vhost = f"carol-{unique}", f"vhost-{unique}"
        self._node = node

    def url(self, password: str = QUOTED) -> str:
        return self._node.url.replace("guest:guest", f"{self.user}:{password}").replace("%2F", self.vhost)

    def add_user(self) -> None:
        self._eval("rabbit_auth_backend_internal:add_user", self.user, PASSWORD, "test")

    def change_password(self, password: str) -> None:
        self._eval("rabbit_auth_backend_internal:change_password", self.user, password, "test")

    def add_vhost(self) -> None:
        self._eval("rabbit_vhost:add", self.vhost, "test")

    def permit(self, configure: str = ".*", write: str = ".*", read: str = ".*", *, user: str = "") -> None:
        words = (user or self.user, self.vhost, configure, write, read, "test")
        self._eval("rabbit_auth_backend_internal:set_permissions", *words)

    def limit(self, connections: int) -> None:
        """-1 is none."""
        words = f'{binary(self.vhost)}, [{{<<"max-connections">>, {connections}}}], <<"test">>'
        self._node.eval(f"rabbit_vhost_limit:set({words}).")

    def connections(self) -> int:
        """As the broker counts them for the limit."""
        return int(
            self._node.eval(f"rabbit_connection_tracking:count_tracked_items_in({{vhost, {binary(self.vhost)}}}).")
        )

    def open(self) -> Account:
        """All of it, and the tests' own user let in as well."""
        self.add_user()
        self.add_vhost()
        self.permit()
        self.permit(user="guest")
        return self

    @property
    def guests_url(self) -> str:
        return self._node.url.replace("%2F", self.vhost)

    def remove(self) -> None:
        vhost, user = binary(self.vhost), binary(self.user)
        self._node.eval(f'catch rabbit_vhost:delete({vhost}, <<"test">>).')
        self._node.eval(f'catch rabbit_auth_backend_internal:delete_user({user}, <<"test">>).')

    def _eval(self, function: str, *words: str) -> None:
        self._node.eval(f"{function}({', '.join(map(binary, words))}).")


@pytest.fixture
def account(node: PrivateNode) -> Iterator[Account]:
    account = Account(node)
    yield account
    account.remove()


def attempts(pool: Supervision) -> int:
    return len(pool.named("worker.started"))


def assert_no_password(pool: Supervision) -> None:
    texts = [json.dumps(pool.events), *(pool.get(path)[1] for path in ("/status", "/metrics", "/readyz"))]
    for pid in (pool.pid, *pool.pids()):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # a worker that is refused does not stay
            texts.append(Path(f"/proc/{pid}/cmdline").read_text())
    assert "workq-supervise" in texts[4]
    for password in (PASSWORD, QUOTED):
        assert not any(password in text for text in texts)


def readyz(pool: Supervision, code: int, *words: str) -> None:
    """Wait until /readyz has this code and all these words in its one line."""

    def is_so() -> bool:
        status, body = pool.get("/readyz")
        return status == code and all(word in body for word in words) and body.count("\n") == 1

    try:
        eventually(is_so)
    except AssertionError:
        raise AssertionError(f"/readyz says {pool.get('/readyz')}; the log:\n{pool.log()}") from None


# ------------------------------------------------------------------------------------------------ 37: the queue


@pytest.mark.parametrize(("is_there", "asked"), [("classic", "quorum"), ("quorum", "classic")])
def test_f37_an_explicit_type_that_disagrees_is_an_error_of_configuration_that_names_both(
    broker_url: str, queue: str, is_there: str, asked: str
) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": is_there})
    with supervised("handlers:work", "--queue-type", asked, url=broker_url, queue=queue) as pool:
        assert pool.wait() == EXIT_CONFIG
        [stopped] = pool.named("supervisor.stopped")
        assert f"received '{asked}' but current is '{is_there}'" in stopped["because"]
        assert "leave out the queue type to use the queue as it is" in stopped["because"]
        assert queue in stopped["because"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-queue-type": "quorum", "x-delivery-limit": 7},
        {"x-queue-type": "classic", "x-max-priority": 5, "x-message-ttl": 3_600_000},
        {"x-single-active-consumer": True},
    ],
    ids=["quorum", "priorities", "single active consumer"],
)
def test_f37_a_queue_with_other_arguments_is_used_as_it_is_and_that_is_said_once(
    broker_url: str, queue: str, runs: Runs, arguments: dict[str, object]
) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments=arguments)
    amqp.publish(broker_url, queue, ["0"] * 3, ids="abc")
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=3)
        for pid in pool.pids():
            os.kill(pid, signal.SIGKILL)
        pool.hear("worker.ready", count=4)
        [said] = pool.named("queue.taken")
        assert said["level"] == "info"
        assert f"{queue} exists and is used as it is" in said["because"] and "workq check" in said["because"]
        assert not pool.named("queue.declared")
        assert pool.stop() == 0


def test_f37_a_queue_that_is_declared_is_said_to_be(broker_url: str, queue: str) -> None:
    # Of two workers that come together the other may be heard first, which has found it there.
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.ready()
        [said] = pool.named("queue.declared")
        assert said["level"] == "info" and f"{queue} is declared: durable" in said["because"]
        assert not pool.named("queue.taken")
        assert pool.stop() == 0


@pytest.mark.parametrize("option", [(), ("--no-declare",)], ids=["declare", "no-declare"])
def test_f37_a_stream_is_refused_with_exit_78_and_the_reason(
    broker_url: str, queue: str, runs: Runs, option: tuple[str, ...]
) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "stream"})
    amqp.publish(broker_url, queue, ["0"])
    with supervised("handlers:work", *option, url=broker_url, queue=queue, env=runs.env) as pool:
        assert pool.wait() == EXIT_CONFIG
        [stopped] = pool.named("supervisor.stopped")
        assert "the queue is a stream" in stopped["because"] and queue in stopped["because"]
        assert "name another queue" in stopped["because"]
    assert not runs.lines("began")


def test_f37_a_queue_that_becomes_a_stream_while_the_pool_works_is_said_and_retried_slowly(
    broker_url: str, queue: str, node: PrivateNode
) -> None:
    amqp.publish(broker_url, queue, [])
    with supervised("handlers:work", "--workers", "2", "--no-declare", url=broker_url, queue=queue) as pool:
        pool.ready()
        amqp.delete(node, queue)
        with amqp.connection(broker_url) as link:
            link.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "stream"})
        refused = pool.hear("broker.refused", kind="stream")
        assert "the queue is a stream" in refused["because"]
        readyz(pool, 503, "no worker consumes: the queue is a stream")
        amqp.delete(node, queue)
        amqp.publish(broker_url, queue, [])
        pool.hear("worker.ready", count=4)
        assert pool.stop() == 0


def test_f37_an_exclusive_queue_of_another_connection_is_said_to_be_locked_and_waited_for(
    broker_url: str, queue: str
) -> None:
    with amqp.connection(broker_url) as owner:
        owner.channel().queue_declare(queue, exclusive=True)
        with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
            refused = pool.hear("broker.refused", kind="locked")
            assert "is exclusive to another connection" in refused["because"] and queue in refused["because"]
            readyz(pool, 503, "no worker consumes: the queue is exclusive to another connection")
            owner.close()
            pool.ready()
            readyz(pool, 200, "2 of 2 workers consume\n")
            assert pool.stop() == 0


def test_f37_an_exclusive_consumer_of_another_is_said_and_waited_for(broker_url: str, queue: str) -> None:
    amqp.publish(broker_url, queue, [])
    with amqp.connection(broker_url) as owner:
        owner.channel().basic_consume(queue, lambda *_: None, exclusive=True)
        with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
            refused = pool.hear("broker.refused", kind="locked")
            assert "the queue has an exclusive consumer" in refused["because"]
            owner.close()
            pool.ready()
            assert pool.stop() == 0


# ------------------------------------------------------------------------------------------- 40: not let in


def _wrong_password(account: Account) -> None:
    account.open().change_password("another")


def _mend_password(account: Account) -> None:
    account.change_password(PASSWORD)


def _no_vhost(account: Account) -> None:
    account.add_user()


def _mend_vhost(account: Account) -> None:
    account.add_vhost()
    account.permit()


def _no_permission(account: Account) -> None:
    account.add_user()
    account.add_vhost()


def _mend_permission(account: Account) -> None:
    account.permit()


@pytest.mark.parametrize(
    ("break_", "mend", "kind", "reason"),
    [
        (
            _wrong_password,
            _mend_password,
            "authentication",
            "refuses the login of user {user}: check user and password",
        ),
        (_no_vhost, _mend_vhost, "vhost", "user {user} cannot use virtual host {vhost}: check its name"),
        (_no_permission, _mend_permission, "vhost", "user {user} cannot use virtual host {vhost}"),
    ],
    ids=["password", "vhost", "no permission in it"],
)
def test_f40_a_login_that_is_refused_is_said_retried_slowly_and_works_once_it_is_mended(
    account: Account, queue: str, break_: object, mend: object, kind: str, reason: str
) -> None:
    assert callable(break_) and callable(mend)
    break_(account)
    reason = reason.format(user=account.user, vhost=account.vhost)
    options = ("--workers", "3", "--log-level", "debug")
    with supervised("handlers:work", *options, url=account.url(), queue=queue, inside=EXECUTED) as pool:
        refused = pool.hear("broker.refused", kind=kind)
        assert reason in refused["because"] and "\n" not in refused["because"]
        pool.hear("worker.exited", count=3)
        readyz(pool, 503, f"no worker consumes: amqp://{account.user}:***@" if kind == "authentication" else reason)
        assert pool.get("/healthz")[0] == 200
        assert "indefinitely" in refused["next"]
        waits = [float(re.search(r"restart in ([\d.]+) s", line["next"])[1]) for line in pool.named("worker.exited")]  # type: ignore[index]
        assert all(wait > 1.5 for wait in waits[1:])
        assert_no_password(pool)
        mend(account)
        pool.ready()
        # Each try is a line in the broker's log, and an alarm for who watches it: few of them.
        tries = sum(line["cause"] == "broker" for line in pool.named("worker.exited"))
        assert tries <= 3 + 2
        assert len(pool.named("broker.refused")) == 1
        readyz(pool, 200, "3 of 3 workers consume\n")
        assert_no_password(pool)
        assert pool.stop() == 0


@pytest.mark.parametrize("option", [(), ("--no-declare",)], ids=["declare", "no-declare"])
def test_f40_without_leave_to_configure_a_queue_that_exists_is_consumed(
    account: Account, queue: str, runs: Runs, option: tuple[str, ...]
) -> None:
    account.open().permit(configure="^$")
    amqp.publish(account.guests_url, queue, ["0"] * 3, ids="abc")
    options = ("--workers", "2", *option)
    with supervised("handlers:work", *options, url=account.url(), queue=queue, env=runs.env) as pool:
        pool.ready()
        pool.hear("task.succeeded", count=3)
        assert pool.stop() == 0


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"configure": "^$"}, "may not do this; see rabbitmqctl set_permissions"),
        ({"read": "^$"}, "may not do this; see rabbitmqctl set_permissions"),
    ],
    ids=["configure", "read"],
)
def test_f40_a_permission_that_is_missing_is_named_and_the_pool_works_once_it_is_given(
    account: Account, queue: str, missing: dict[str, str], reason: str
) -> None:
    account.open().permit(**missing)
    if "read" in missing:
        amqp.publish(account.guests_url, queue, [])
    with supervised("handlers:work", "--workers", "2", url=account.url(), queue=queue, inside=EXECUTED) as pool:
        refused = pool.hear("broker.refused", kind="permission")
        assert reason in refused["because"] and queue in refused["because"]
        assert f"user {account.user}" in refused["because"], "who may not, so that it can be given"
        assert re.search(r"ACCESS_REFUSED", refused["because"])
        readyz(pool, 503, "no worker consumes: ", reason)
        account.permit()
        pool.ready()
        readyz(pool, 200, "2 of 2 workers consume\n")
        assert_no_password(pool)
        assert pool.stop() == 0


def test_f40_without_leave_to_write_tasks_run_and_a_failed_one_stays_in_hand_until_it_is_given(
    account: Account, queue: str, runs: Runs
) -> None:
    account.open().permit(write="^$")
    amqp.publish(account.guests_url, queue, [json.dumps({"raise": "ValueError"}), "{}", "{}"], ids=["bad", "a", "b"])
    options = ("--workers", "2", "--retries", "0")
    with supervised("handlers:act", *options, url=account.url(), queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", count=2)
        failed = pool.hear("task.parking_failed", message_id="bad")
        assert "may not do this" in failed["because"] and "access to exchange" in failed["because"]
        account.permit()
        pool.hear("task.dead_lettered", message_id="bad")
        assert pool.stop() == 0
    assert runs.lines("began").count("bad") == 1
    assert amqp.depth(account.guests_url, f"{queue}.dead") == 1


def test_f40_a_password_changed_while_the_pool_runs_disturbs_nobody_who_is_connected_and_is_said_of_the_next(
    account: Account, queue: str, runs: Runs
) -> None:
    account.open()
    with supervised(
        "handlers:work", "--workers", "2", url=account.url(), queue=queue, env=runs.env, inside=EXECUTED
    ) as pool:
        pool.ready()
        account.change_password("another")
        amqp.publish(account.guests_url, queue, ["0"] * 4, ids="abcd")
        pool.hear("task.succeeded", count=4)
        assert not pool.named("worker.exited")
        os.kill(pool.pids()[0], signal.SIGKILL)
        refused = pool.hear("broker.refused", kind="authentication")
        assert f"refuses the login of user {account.user}" in refused["because"]
        assert "meanwhile 1 worker consumes" in refused["next"] and refused["level"] == "warning"
        assert pool.hear("worker.exited", cause="broker")["level"] == "warning"
        readyz(pool, 200, "1 of 2 workers consume; ", "refuses the login")
        amqp.publish(account.guests_url, queue, ["0"], ids="e")
        pool.hear("task.succeeded", count=5)
        assert_no_password(pool)
        account.change_password(PASSWORD)
        pool.hear("worker.ready", count=3)
        readyz(pool, 200, "2 of 2 workers consume\n")
        assert len(pool.named("broker.refused")) == 1
        assert pool.stop() == 0


def test_f40_a_limit_on_connections_keeps_one_worker_out_and_the_others_go_on(
    account: Account, queue: str, runs: Runs
) -> None:
    account.open().limit(2)
    with supervised("handlers:work", "--workers", "2", url=account.url(), queue=queue, env=runs.env) as pool:
        pool.ready(2)
        # Of three that come at once it may let in all: it counts a connection a little after it has opened it.
        eventually(lambda: account.connections() == 2)
        pool.send(signal.SIGTTIN)
        refused = pool.hear("broker.refused", kind="limit")
        assert "accepts no more connections" in refused["because"]
        readyz(pool, 200, "2 of 3 workers consume; ", "accepts no more connections")
        # Whoever comes and goes meanwhile does not make the one that is kept out try more often.
        tried = attempts(pool)
        began = time.monotonic()
        amqp_pids = [worker["pid"] for worker in pool.workers() if worker["state"] == "idle"]
        os.kill(amqp_pids[0], signal.SIGKILL)
        pool.hear("worker.ready", count=3)
        if time.monotonic() - began < 1.5:
            assert attempts(pool) <= tried + 2
        account.limit(-1)
        amqp.publish(account.guests_url, queue, ["0.1"] * 10)
        pool.hear("task.succeeded", count=10)
        pool.hear("worker.ready", count=4)
        readyz(pool, 200, "3 of 3 workers consume\n")
        assert len(pool.named("broker.refused")) == 1
        assert pool.stop() == 0
