"""FAULT 86: supervisord in the same environment, before, after, and no more: in one line, with the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEIRS = ("supervisord.py", "supervisorctl.py", "options.py", "web.py", "process.py")


class Site:
    """A directory of installed packages, with ours in it. What pip does with a wheel is to unpack it, and with what is
    uninstalled to remove each file that its RECORD names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.package = directory / "supervisor"
        shutil.copytree(ROOT / "supervisor", self.package, ignore=shutil.ignore_patterns("__pycache__", "alias"))
        shutil.copy(ROOT / "supervisor/alias/workq.py", directory)

    def install_supervisord(self) -> None:
        for name in THEIRS:
            (self.package / name).write_text("")
        (self.package / "__init__.py").write_text("#\n")
        (self.directory / "supervisor-4.2.5.dist-info").mkdir()

    def uninstall_supervisord(self) -> None:
        for name in (*THEIRS, "__init__.py"):
            (self.package / name).unlink()
        (self.directory / "supervisor-4.2.5.dist-info").rmdir()

    def install_ours_again(self) -> None:
        shutil.copy(ROOT / "supervisor" / "__init__.py", self.package)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
        # -S: without the files that point to this tree, where it is installed to be edited.
        environ["PYTHONPATH"] = os.pathsep.join([str(self.directory), sysconfig.get_path("purelib")])
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-S", *arguments]
        return subprocess.run(
            command,
            cwd=self.directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def said_at_start(self) -> list[str]:
        done = self.run("-m", "supervisor", "--health", "off", "--control", "off", "no.such.module:work")
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert done.returncode == 78 and any(line["event"] == "handler.import_failed" for line in lines)
        return [line["because"] for line in lines if line["event"] == "supervisor.namesake"]

    def found(self) -> list[tuple[str, str]]:
        """By `workq check`."""
        done = self.run("-c", "import sys; from supervisor.commands import main; main()", "check", "--json")
        findings = map(json.loads, done.stdout.splitlines())
        return [(each["level"], each["fix"]) for each in findings if each["subject"] == "installation"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_f86_alone_in_its_environment_nothing_is_said(site: Site) -> None:
    # Names that are like theirs, and are not.
    for name in ("supervisor_checks-0.8.1.dist-info", "workq_supervise-1.0.dist-info", "supervisor-wildcards.egg-info"):
        (site.directory / name).mkdir()
    assert site.said_at_start() == []


def test_f86_supervisord_that_was_there_before_is_named_with_the_way_out(site: Site) -> None:
    site.install_supervisord()
    site.install_ours_again()
    [said] = site.said_at_start()
    assert "supervisord (supervisor 4.2.5) is installed in the same environment" in said
    assert "to upgrade or uninstall either breaks the other" in said
    assert said.endswith(": python3 -m venv .venv && .venv/bin/pip install .  # in a clone")


def test_f86_supervisord_that_came_later_and_then_went_is_named_and_what_is_broken_with_it(site: Site) -> None:
    site.install_supervisord()
    [said] = site.said_at_start()
    assert "has overwritten supervisor/__init__.py: `from supervisor import Retry` fails in a handler" in said
    assert "`from workq import Retry` works" in said
    site.uninstall_supervisord()
    [said] = site.said_at_start()
    assert "is missing or not ours, as after supervisord was uninstalled from here" in said
    assert said.endswith(": pip install --force-reinstall --no-deps .  # in a clone")
    assert site.found() == [("warning", "pip install --force-reinstall --no-deps .  # in a clone")]
    site.install_ours_again()
    assert site.said_at_start() == []


def test_f86_from_workq_import_works_alone_beside_supervisord_and_after_it(site: Site) -> None:
    names = "Publisher, Reject, Retry, Task, __version__"
    same = "import supervisor; assert supervisor.Retry is Retry and supervisor.__version__ == __version__"
    for state in ("alone", "beside", "after"):
        if state == "beside":
            site.install_supervisord()
        if state == "after":
            site.uninstall_supervisord()
        done = site.run("-c", f"from workq import {names}; {same if state == 'alone' else ''}")
        assert (done.returncode, done.stderr) == (0, ""), state
    assert "module 'workq' has no attribute 'Nonsense'" in site.run("-c", "import workq; workq.Nonsense").stderr
