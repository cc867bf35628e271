"""Every verb of `workq` acts on the queue and the broker that its settings name, wherever they stand, and what destroys
says which and asks."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner

from supervisor.commands import main
from supervisor.settings import sources
from tests import amqp, workq
from tests.supervision import eventually, supervised
from tests.terminal import terminal

pytestmark = pytest.mark.any_broker


@pytest.fixture
def files(tmp_path: Path, broker_url: str, queue: str) -> dict[str, str]:
    """A TOML file that names the queue, one that names it beside the URL, and a file with the URL."""
    named = {"config": f"queue = '{queue}'\n", "all": f"queue = '{queue}'\nurl = '{broker_url}'\n", "url": broker_url}
    for name, text in named.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "amqp-url").write_text(broker_url)
    return {name: str(tmp_path / name) for name in named} | {"credentials": str(tmp_path)}


@pytest.fixture
def unit(broker_url: str, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a unit whose files are where this process looks for them, which is not this machine's /etc."""
    name = f"test-{uuid4().hex[:8]}"
    (tmp_path / f"{name}.toml").write_text(f"queue = '{queue}'\n")
    (tmp_path / f"{name}.amqp-url").write_text(broker_url)
    monkeypatch.setattr(sources, "UNITS", tmp_path)
    return name


def _sources(files: dict[str, str], broker_url: str, queue: str) -> list[tuple[list[str], dict[str, str]]]:
    """Ways to name the same queue and broker: options, variables."""
    return [
        (["--url", broker_url, "--queue", queue], {}),
        (["--config", files["all"]], {}),
        ([], {"WORKQ_CONFIG": files["all"]}),
        (["--url-file", files["url"]], {"WORKQ_CONFIG": files["config"]}),
        ([], {"WORKQ_URL_FILE": files["url"], "WORKQ_QUEUE": queue}),
        (["--config", files["config"]], {"CREDENTIALS_DIRECTORY": files["credentials"]}),
    ]


def test_f90_publish_and_dead_find_queue_and_broker_wherever_the_supervisor_would(
    files: dict[str, str], broker_url: str, queue: str
) -> None:
    for number, (arguments, env) in enumerate(_sources(files, broker_url, queue), 1):
        out, _ = workq.run("publish", *arguments, "body", env=env)
        assert f"confirmed 1, to {queue} on" in out
        assert amqp.depth(broker_url, queue) == number
        amqp.publish(broker_url, f"{queue}.dead", ["0"], ids=["m"])
        assert '"m"' in workq.run("dead", "list", "--json", *arguments, env=env)[0]
        workq.run("dead", "drop", "--all", "--yes", *arguments, env=env)
        assert amqp.depth(broker_url, f"{queue}.dead") == 0


def test_f90_a_unit_is_named_and_the_callers_own_variables_do_not_count(unit: str, broker_url: str, queue: str) -> None:
    misleading = {"WORKQ_URL": "amqp://127.0.0.1:1/", "WORKQ_QUEUE": "another", "WORKQ_CONFIG": "/nonexistent"}

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, [*arguments, "--unit", unit], env=misleading)
        assert done.exit_code == code, done.output
        return done.output

    assert f"confirmed 1, to {queue} on" in run("publish", "body")
    amqp.publish(broker_url, f"{queue}.dead", ["0"], ids=["m"])
    assert f"from {queue}.dead on" in run("dead", "drop", "--all", "--yes")
    assert f"{queue} on" in run("check", "--management", "off")
    misleading["WORKQ_HEALTH"] = "127.0.0.1:1"
    assert f"/run/workq/{unit}/workq.sock" in run("status", code=69)


def test_f90_a_unit_may_be_named_as_systemctl_names_it() -> None:
    _, err = workq.run("dead", "drop", "--all", "--yes", "--unit", "workq-supervise@no-such-unit.service", code=2)
    assert "/etc/workq/no-such-unit.toml" in err


@pytest.mark.parametrize(
    "name", ["no-such-unit", "workq-supervise@no-such-unit", "workq-supervise@no-such-unit.service"]
)
def test_the_check_refuses_a_unit_that_does_not_exist(name: str) -> None:
    out, err = workq.run("check", "--unit", name, code=2)
    assert f"no unit {name}" in err and "/etc/workq/no-such-unit.toml" in err
    assert not out, "it says nothing of a broker that it has other settings for"


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (["--unit", "no-such-unit-of-ours"], {}, 2, "/etc/workq/no-such-unit-of-ours.toml"),
        (["--unit", "../../tmp/x"], {}, 2, "expected the NAME"),
        (["--unit", "a", "--config", "b"], {}, 2, "give only one"),
        (["--config", "/nonexistent.toml"], {}, 2, "cannot read '/nonexistent.toml'"),
        ([], {"WORKQ_CONFIG": "/nonexistent.toml"}, 78, "cannot read '/nonexistent.toml'"),
        ([], {"WORKQ_URL_FILE": "/nonexistent"}, 78, "cannot read '/nonexistent'"),
        ([], {"WORKQ_QUEU": "x"}, 78, "did you mean WORKQ_QUEUE?"),
        (["--queue", "q" * 251], {}, 2, "1 to 250 bytes"),
        (["--queue", "amq.x"], {}, 2, "amq."),
        (["--queue", os.fsdecode(b"\xff")], {}, 2, "UTF-8"),
    ],
)
def test_f90_settings_that_cannot_be_used_are_named_and_nothing_is_done(
    arguments: list[str], env: dict[str, str], code: int, words: str
) -> None:
    for verb in (["publish", "body"], ["dead", "drop", "--all", "--yes"]):
        out, err = workq.run(*verb, *arguments, env=env, code=code)
        assert words in err and "Traceback" not in err
        assert not out


def test_f90_a_key_that_nobody_knows_does_not_send_a_verb_to_the_default_queue(tmp_path: Path) -> None:
    file = tmp_path / "misspelt.toml"
    file.write_text("quue = 'precious'\n")
    _, err = workq.run("dead", "drop", "--all", "--yes", env={"WORKQ_CONFIG": str(file)}, code=78)
    assert "did you mean queue?" in err


def test_f90_what_destroys_names_queue_and_broker_and_asks(broker_url: str, queue: str) -> None:
    with amqp.connection(broker_url) as link:
        link.channel().queue_declare(queue, durable=True)
    amqp.publish(broker_url, f"{queue}.dead", ["0", "0"], ids=["a", "b"])
    place = f"2 dead letters in {queue}.dead on amqp://guest:***@"
    for verb in ("drop", "requeue"):
        _, err = workq.run("dead", verb, "--all", url=broker_url, queue=queue, code=2)
        assert place in err and "--yes" in err
    place_options = ("--url", broker_url, "--queue", queue)
    for arguments in (("drop", "--all"), ("requeue", "--all"), ("drop", "a")):
        with terminal("dead", *arguments, *place_options) as shown:
            assert f"{queue}.dead" in shown.see(r"\[y/N\]")
            shown.press("n\n")
            assert shown.process.wait(30) == 1
    assert amqp.depth(broker_url, f"{queue}.dead") == 2
    workq.run("dead", "requeue", "--all", "--yes", url=broker_url, queue=queue)
    assert amqp.depth(broker_url, queue) == 2


def test_f90_status_and_drain_find_a_supervisor_by_its_file(tmp_path: Path, broker_url: str, queue: str) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(f"queue = '{queue}'\ncontrol = '{tmp_path / 'workq.sock'}'\n")
    with supervised("handlers:work", "--config", str(file), "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.ready()
        assert queue in workq.run("status", env={"WORKQ_CONFIG": str(file)})[0]
        workq.run("drain", "--config", str(file))
        assert pool.wait() == 0


def test_status_ready_is_an_exit_code_with_the_reason_by_socket_and_by_port(
    tmp_path: Path, broker_url: str, queue: str
) -> None:
    socket = str(tmp_path / "workq.sock")
    assert "there is no control socket" in workq.run("status", "--ready", "--control", socket, code=69)[1]
    options = ("--control", socket, "--workers", "1", "--grace", "1m")
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as pool:
        pool.ready()
        said = "1 of 1 workers consume\n"
        assert workq.run("status", "--ready", "--control", socket)[0] == said
        assert workq.run("status", "--ready", "--health", pool.health.removeprefix("http://"))[0] == said
        assert "give only one" in workq.run("status", "--ready", "--json", "--control", socket, code=2)[1]
        amqp.publish(broker_url, queue, ["60"], ids=["long"])
        eventually(lambda: pool.workers()[0]["message_id"] == "long")
        pool.send(signal.SIGTERM)
        pool.hear("supervisor.stopping")
        out, _ = workq.run("status", "--ready", "--control", socket, code=1)
        assert out.startswith("draining: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--id", "i" * 256, "x"], "the message id has 256 bytes, AMQP allows 255"),
        (["--id", "\u00fc" * 128, "x"], "256 bytes"),
        (["--id", os.fsdecode(b"\xff"), "x"], "not UTF-8"),
        (["--header", f"{'n' * 256}=v", "x"], "name of a header has 256 bytes"),
        (["--header", os.fsdecode(b"\xff=v"), "x"], "not UTF-8"),
        (["--header", os.fsdecode(b"n=\xff"), "x"], "not UTF-8"),
        (["--header", f"a={'v' * 65_000}", "--header", f"b={'v' * 65_000}", "x"], "more than the 129,024 of a frame"),
    ],
)
def test_f121_what_amqp_has_no_room_for_is_one_line_and_exit_2(
    broker_url: str, queue: str, arguments: list[str], words: str
) -> None:
    _, err = workq.run("publish", *arguments, url=broker_url, queue=queue, code=2)
    assert words in err and "Traceback" not in err
    assert amqp.depth(broker_url, queue) == 0


def test_f121_what_just_fits_is_published(broker_url: str, queue: str) -> None:
    header = f"{'n' * 255}={'v' * 100_000}"
    workq.run("publish", "--id", "i" * 255, "--header", header, os.fsdecode(b"\xff"), url=broker_url, queue=queue)
    [(_, properties, body)] = amqp.drain(broker_url, queue)
    assert (properties.message_id, body) == ("i" * 255, b"\xff")
