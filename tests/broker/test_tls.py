"""FAULTS 46: TLS that verifies, says precisely what is wrong, and never gives way to plain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor.commands.node import Port
from tests import amqp
from tests.certificates import Authority, Identity
from tests.node import PrivateNode
from tests.supervision import EXECUTED, Runs, Supervision, retinue, supervised

LOGIN = "dora:hunter2-and-more"


@dataclass(frozen=True)
class Secured:
    """A node that wants TLS with client certificates, and what it takes to get in."""

    node: PrivateNode
    port: int
    ours: Authority
    strangers: Authority
    client: Identity
    stranger: Identity

    def url(self, host: str = "localhost", **options: Path | str) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"amqps://{LOGIN}@{host}:{self.port}/%2F?{query}"

    @property
    def trusting(self) -> dict[str, Path]:
        return {"cafile": self.ours.certificate}

    @property
    def known(self) -> dict[str, Path]:
        return {"certfile": self.client.certificate, "keyfile": self.client.key}

    def present(self, name: str, *, expired: bool = False, by: Authority | None = None) -> None:
        """Give the node another certificate, as an operator does: new files, and a cache to be emptied."""
        (by or self.ours).sign(name, expired=expired, to=self.ours.directory / "server")
        self.node.eval("ssl:clear_pem_cache()")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    ours, strangers = (Authority(tmp_path_factory.mktemp(name)) for name in ("ours", "strangers"))
    server = ours.sign("localhost", to=ours.directory / "server")
    port = Port()
    node = PrivateNode(
        tmp_path_factory.mktemp("node"),
        conf=f"""
            listeners.ssl.1 = 127.0.0.1:{port.number}
            ssl_options.cacertfile = {ours.certificate}
            ssl_options.certfile = {server.certificate}
            ssl_options.keyfile = {server.key}
            ssl_options.verify = verify_peer
            ssl_options.fail_if_no_peer_cert = true
        """,
    )
    try:
        node.start()
        user, password = (amqp.binary(text) for text in LOGIN.split(":"))
        node.eval(f"rabbit_auth_backend_internal:add_user({user}, {password}, {amqp.binary('test')})")
        anything = amqp.binary(".*")
        node.eval(
            f"rabbit_auth_backend_internal:set_permissions({user}, {amqp.binary('/')}, "
            f"{anything}, {anything}, {anything}, {amqp.binary('test')})"
        )
        yield Secured(node, port.number, ours, strangers, ours.sign("worker"), strangers.sign("worker"))
    finally:
        node.kill()


@pytest.fixture
def broker(secured: Secured) -> Iterator[Secured]:
    """With a certificate that is in order, whatever the test before has presented."""
    yield secured
    secured.present("localhost")


def refused(pool: Supervision, kind: str, says: str) -> None:
    """The reason is in the log, in /readyz and in /status, and nothing of it is a secret."""
    exited = pool.hear("worker.exited", cause="broker")
    assert says in exited["because"]
    said = pool.hear("broker.refused", kind=kind)
    assert says in said["because"]
    code, readiness = pool.get("/readyz")
    assert code == 503
    assert says in readiness
    assert pool.get("/healthz")[0] == 200
    assert says in pool.status()["readiness"]
    keeps_secret(pool)


def keeps_secret(pool: Supervision) -> None:
    everything = json.dumps(pool.events) + "".join(pool.get(path)[1] for path in ("/status", "/readyz", "/metrics"))
    assert "hunter2" not in everything


def test_amqps_with_a_client_certificate_works_for_workers_parking_and_workq_publish(
    broker: Secured, runs: Runs
) -> None:
    url = broker.url(**broker.trusting, **broker.known)
    publish = [str(Path(sys.executable).with_name("workq")), "publish", "--url", url, "--queue", "secured"]
    done = subprocess.run([*publish, "--id", "one", '{"raise": "ValueError"}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    with supervised("handlers:act", "--workers", "1", "--retries", "0", url=url, queue="secured", env=runs.env) as pool:
        # To the dead-letter queue, by a second connection of the worker's.
        pool.hear("task.dead_lettered", message_id="one")
        connections = broker.node.eval(
            "[rabbit_networking:connection_info(C, [ssl, ssl_protocol, peer_cert_subject, user]) || "
            "C <- rabbit_networking:connections()]"
        )
        assert connections.count("{ssl, true}") == 2, connections
        assert connections.count("{ssl, false}") == 0, connections
        assert pool.ready().get("/readyz")[0] == 200
        keeps_secret(pool)
        assert pool.stop() == 0


def test_who_uses_no_tls_has_no_openssl_in_any_process(broker_url: str, queue: str, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def handle(task):\n    assert task.body == b'good'\n")
    amqp.publish(broker_url, queue, ["good", "bad"])
    options = "--app-dir", str(tmp_path), "--workers", "2", "--retries", "0"
    with supervised("plain:handle", *options, url=broker_url, queue=queue, inside=EXECUTED) as pool:
        pool.hear("task.succeeded")
        pool.hear("task.dead_lettered")
        for path in ("/readyz", "/status"):  # not /metrics: prometheus_client imports all that
            pool.get(path)
        everybody = {"supervisor": pool.pid, **retinue(pool), **{f"worker {pid}": pid for pid in pool.pids()}}
        maps = {name: Path(f"/proc/{pid}/maps").read_text() for name, pid in everybody.items()}
        assert not {name for name, text in maps.items() if re.search(r"libcrypto|libssl|_ssl|_hashlib", text)}


def test_server_name_says_what_the_certificate_is_for_when_the_address_does_not(broker: Secured) -> None:
    url = broker.url("127.0.0.1", server_name="localhost", **broker.trusting, **broker.known)
    with supervised("handlers:work", "--workers", "1", url=url, queue="secured") as pool:
        pool.ready()
        assert pool.stop() == 0


@pytest.mark.parametrize("what", ["expired", "wrong_host", "unknown_authority", "system_authorities"])
def test_f46_a_broker_that_cannot_be_trusted_is_told_precisely_and_never_talked_to_in_plain(
    broker: Secured, what: str
) -> None:
    url = broker.url(**broker.trusting, **broker.known)
    if what == "expired":
        broker.present("localhost", expired=True)
        says = "certificate has expired; renew it where the broker runs"
    elif what == "wrong_host":
        broker.present("elsewhere.example")
        says = "Hostname mismatch, certificate is not valid for 'localhost'"
    elif what == "unknown_authority":
        broker.present("localhost", by=broker.strangers)
        says = "unable to get local issuer certificate; name the authority that signed it with ?cafile="
    else:
        url = broker.url(**broker.known)
        says = "self-signed certificate in certificate chain; name the authority that signed it with ?cafile="
    before = -1
    while before != (before := logins(broker)):
        time.sleep(0.5)  # the broker may still have to write of those that came before
    with supervised("handlers:work", "--workers", "1", url=url, queue="secured") as pool:
        refused(pool, "tls", says)
        assert logins(broker) == before  # not even tried, on whatever port
        assert pool.stop() == 0


def test_f46_a_renewed_certificate_is_enough_the_workers_find_it_by_themselves(broker: Secured) -> None:
    broker.present("localhost", expired=True)
    url = broker.url(**broker.trusting, **broker.known)
    with supervised("handlers:work", "--workers", "2", url=url, queue="secured") as pool:
        refused(pool, "tls", "certificate has expired")
        broker.present("localhost")
        pool.ready()
        assert pool.get("/readyz")[0] == 200
        assert pool.stop() == 0


@pytest.mark.parametrize("who", ["nobody", "a stranger"])
def test_f46_a_client_certificate_that_is_missing_or_unknown_is_told_as_that(broker: Secured, who: str) -> None:
    options = broker.trusting
    if who == "a stranger":
        options |= {"certfile": broker.stranger.certificate, "keyfile": broker.stranger.key}
    url = broker.url(**options)
    # With TLS 1.3 the broker looks at it when our side has shaken hands, and has begun to talk: its alert may be lost
    # when it hangs up.
    alert = "refuses our side of TLS: .*; it wants a client certificate of an authority that it knows: .certfile="
    silence = "closed the connection before it said anything; .* or want a client certificate that it knows"
    told = re.compile(f"{alert}|{silence}")
    with supervised("handlers:work", "--workers", "1", url=url, queue="secured") as pool:
        said = pool.hear("broker.refused")
        assert told.search(said["because"])
        assert told.search(pool.get("/readyz")[1])
        assert told.search(pool.hear("worker.exited")["because"])
        keeps_secret(pool)
        assert pool.stop() == 0
    done = subprocess.run(
        [Path(sys.executable).with_name("workq"), "publish", "--url", url, "--queue", "secured", "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75
    assert told.search(" ".join(done.stderr.split()))
    assert "hunter2" not in done.stdout + done.stderr


def test_plain_at_the_tls_port_and_tls_at_the_plain_port_are_told_apart(broker: Secured) -> None:
    plain = f"amqp://{LOGIN}@127.0.0.1:{broker.port}/%2F"
    with supervised("handlers:work", "--workers", "1", url=plain, queue="secured") as pool:
        refused(pool, "protocol", "does it want amqps:// instead?")
        assert pool.stop() == 0
    tls = f"amqps://{LOGIN}@localhost:{broker.node.port}/%2F?cafile={broker.ours.certificate}"
    with supervised("handlers:work", "--workers", "1", url=tls, queue="secured") as pool:
        refused(pool, "tls", "is it the TLS port (5671)")
        assert pool.stop() == 0


@pytest.mark.parametrize("what", ["junk", "keys that differ", "encrypted"])
def test_a_certificate_file_that_cannot_be_used_is_a_configuration_error_that_names_it(
    broker: Secured, tmp_path: Path, what: str
) -> None:
    options = broker.trusting | broker.known
    if what == "junk":
        options["cafile"] = tmp_path / "junk.pem"
        options["cafile"].write_text("junk")
        says = f"certificate file {options['cafile']} cannot be used: "
    elif what == "keys that differ":
        options["keyfile"] = broker.stranger.key
        says = f"{broker.stranger.key} cannot be used: [X509: KEY_VALUES_MISMATCH]"
    else:
        options["keyfile"] = broker.client.encrypt_key("sesame")
        says = "the private key is encrypted"
    with supervised("handlers:work", "--workers", "1", url=broker.url(**options), queue="secured") as pool:
        assert pool.wait() == 78
        assert any(says in str(line.get("because")) for line in pool.events), pool.log()
        assert "hunter2" not in json.dumps(pool.events)


def logins(broker: Secured) -> int:
    """How often anybody has tried to log in since the node started."""
    log = "".join(path.read_text() for path in (broker.node.directory / "log").glob("*.log"))
    return len(re.findall("accepting AMQP connection", log))
