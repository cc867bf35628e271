"""`scripts/install-service`, from a machine with nothing of ours to a unit that consumes, and back."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from tests import amqp
from tests.supervision import eventually
from tests.systemd.box import Box
from tests.systemd.conftest import CHECKOUT, PREFIX, check_that_it_boots_here, of_the_session, snapshot

pytestmark = pytest.mark.timeout(300)

INSTALL = f"{CHECKOUT}/scripts/install-service"
TEMPLATE = "/etc/systemd/system/workq-supervise@.service"
HANDLER = "def resize(task):\n    print('resized', task.text)\n"


def test_f91_a_machine_with_nothing_of_ours_consumes_after_the_steps_that_are_told_and_is_left_as_it_was(
    broker_url: str, queue: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_that_it_boots_here()
    checkout = snapshot(of_the_session(tmp_path_factory))
    with Box(tmp_path / "box", [(checkout, CHECKOUT, "ro")]) as box:
        assert not box.path(PREFIX).exists() and not box.path("/etc/workq").exists()
        before = everything(box)
        told = box.run(INSTALL, "mail", timeout=300).stdout
        toml, secret = "/etc/workq/mail.toml", "/etc/workq/mail.amqp-url"
        assert stat.S_IMODE(box.path(secret).stat().st_mode) == 0o600
        # Nothing is started, and the example is no settings of anybody's yet.
        assert "systemctl enable --now workq-supervise@mail" in told
        assert box.show("workq-supervise@mail", "ActiveState")["ActiveState"] == "inactive"

        settings = box.path(toml).read_text()
        assert 'handler = "tasks:resize"' in settings and 'app_dir = "/srv/mail"' in settings
        mine = settings.replace('# queue = "task_queue"', f'queue = "{queue}"').replace(
            '# workers = "auto"', "workers = 2"
        )
        assert mine.count(queue) == 1 and "\nworkers = 2" in mine
        box.write(toml, mine)
        box.write(secret, f"# ours\n{broker_url}\n", 0o600)
        box.write("/srv/mail/tasks.py", HANDLER)
        assert "  workq check --unit mail\n" in told and box.path("/usr/local/bin/workq").is_symlink()
        checked = box.run("workq", "check", "--unit", "mail", "--verbose").stdout
        assert "workq-supervise@mail.service is set up well" in checked, checked
        for wrong in ("mial", "workq-supervise@mial"):  # the template has each instance
            refused = box.run("workq", "check", "--unit", wrong, check=False)
            assert refused.returncode == 2 and f"no unit {wrong}" in refused.stderr
        amqp.publish(broker_url, queue, ["cat.png"], ids=["one"])
        box.run("systemctl", "enable", "--now", "workq-supervise@mail")
        eventually(lambda: "resized cat.png" in journal(box))
        assert "broker ok" in box.run("systemctl", "status", "workq-supervise@mail").stdout

        # Again: nothing of it is done again, and what is the operator's stays.
        again = box.run(INSTALL, "mail", timeout=300).stdout
        assert "writing" not in again and "installing" not in again and "creating" not in again
        assert box.path(toml).read_text() == mine and broker_url in box.path(secret).read_text()
        still = {"ActiveState": "active", "NRestarts": "0"}
        assert box.show("workq-supervise@mail", *still) == still

        # A second service shares program and unit.
        other = box.run(INSTALL, "other", timeout=300).stdout
        assert "other.toml" in other and "installing" not in other
        # Two services on one host do not share a health port: the first has the default.
        named = [
            re.findall(r'^health = "127.0.0.1:(\d+)"$', box.path(f"/etc/workq/{each}.toml").read_text(), re.M)
            for each in ("mail", "other")
        ]
        assert named == [[], ["9192"]]
        one_of_its_own(box, mine, broker_url)

        # f91: the program stays for the second one, which is neither enabled nor running.
        gone = box.run(INSTALL, "mail", "--uninstall").stdout
        assert f"{PREFIX} stays, for other" in gone and "the unit stays, for other" in gone
        assert box.path(f"{PREFIX}/bin/workq-supervise").exists() and box.path(TEMPLATE).exists()
        assert box.show("workq-supervise@mail", "ActiveState")["ActiveState"] == "inactive"
        assert "the unit stays, for mail" in box.run(INSTALL, "other", "--uninstall").stdout
        box.path(toml).unlink()
        box.run(INSTALL, "other", "--uninstall")
        kept = {secret, "/etc/workq/other.toml", "/etc/workq/other.amqp-url", "/srv/mail", "/srv/mail/tasks.py"}
        assert everything(box) - before == kept | {"/etc/workq"}

        # Somebody else's unit, which may be needed.
        box.write(TEMPLATE, "[Service]\nExecStart=/opt/theirs/bin/workq-supervise --config /etc/workq/%i.toml\n")
        refused = box.run(INSTALL, "mail", check=False)
        assert refused.returncode == 1 and "it runs what is in /opt/theirs" in refused.stderr
        assert everything(box) - before == kept | {"/etc/workq", TEMPLATE}


def one_of_its_own(box: Box, settings: str, broker_url: str) -> None:
    """f91: a service with a virtual environment of its own, beside those that share one."""
    own, unit = "/opt/own", "workq-supervise@own"
    # A copy takes a second, and another installation ten.
    box.run("cp", "--archive", PREFIX, own)
    box.run("sed", "-i", f"1s|{PREFIX}|{own}|", f"{own}/bin/workq-supervise", f"{own}/bin/workq")
    box.write("/etc/workq/own.toml", settings)
    box.write("/etc/workq/own.amqp-url", broker_url, 0o600)
    assert f"{unit}.service.d/install-service.conf" in box.run(INSTALL, "own", "--prefix", own).stdout
    assert "writing" not in box.run(INSTALL, "own").stdout
    box.run("systemctl", "start", unit)
    pid = box.show(unit, "MainPID")["MainPID"]
    assert f"{own}/bin/workq-supervise" in box.path(f"/proc/{pid}/cmdline").read_text().split("\0")
    box.run("systemctl", "reload", unit)
    others = box.show("workq-supervise@mail", "ExecStart", "ExecReload")
    assert all(f"path={PREFIX}/bin/" in command for command in others.values())
    assert f"path={own}/bin/workq " in box.show(unit, "ExecReload")["ExecReload"]
    assert f"not in {PREFIX}" in box.run(INSTALL, "own", "--uninstall", "--prefix", PREFIX, check=False).stderr
    told = box.run(INSTALL, "own", "--uninstall").stdout
    assert "the unit stays, for mail, other" in told and "/opt/own stays" not in told
    assert box.path("/usr/local/bin/workq").is_symlink(), "it leads to the shared program, which stays"
    assert not box.path(own).exists() and not box.path(f"/etc/systemd/system/{unit}.service.d").exists()
    for left in ("own.toml", "own.amqp-url"):
        box.path(f"/etc/workq/{left}").unlink()


def everything(box: Box) -> set[str]:
    """What is in the places where it installs."""
    places = ["/etc/workq", "/etc/systemd/system", PREFIX, "/srv", "/usr/local/bin/workq"]
    found = box.run("find", *places, "-not", "-name", "__pycache__", "-not", "-name", "*.pyc", check=False).stdout
    return set(found.splitlines())


def journal(box: Box) -> str:
    return box.run("journalctl", "--output=cat", "--unit=workq-supervise@mail").stdout


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        ((), "NAME"),
        (("../evil",), "letters, digits"),
        (("a b",), "letters, digits"),
        (("one", "two"), "one NAME is expected"),
        (("one", "--prefix", "relative"), "absolute path"),
        (("one", "--prefix", "/opt/../etc"), "absolute path"),
        (("one", "--prefix", "/home/me/workq"), "would not see it"),
        (("one", "--nonsense"), "unknown"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_and_nothing_is_changed(
    box: Box, arguments: tuple[str, ...], because: str
) -> None:
    box.write("/srv/keep/this", "")
    before = box.run("find", "/etc/workq", "/etc/systemd/system", "/opt", "-maxdepth", "2").stdout
    done = box.run(INSTALL, *arguments, check=False)
    assert done.returncode and because in done.stderr + done.stdout
    assert box.run("find", "/etc/workq", "/etc/systemd/system", "/opt", "-maxdepth", "2").stdout == before


def test_it_wants_root(box: Box) -> None:
    done = box.run("setpriv", "--reuid=65534", "--clear-groups", INSTALL, "one", check=False)
    assert done.returncode == 1 and "run it as root" in done.stderr
