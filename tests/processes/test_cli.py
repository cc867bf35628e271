"""The real command, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.settings import OPTIONS
from supervisor.version import __version__
from tests import launching
from tests.supervision import PATIENCE, gone

ROOT = Path(__file__).parents[2]
SECRET = "Zq7xK"


def run(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command with these arguments, none of the caller's WORKQ_ variables, and an end in any case."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("WORKQ_", "CREDENTIALS_"))}
    return launching.run([launching.SUPERVISE, *arguments], cwd=cwd, env=ours | environ)


def test_all_bad_settings_are_named_in_one_report_and_the_exit_is_78(tmp_path: Path) -> None:
    (tmp_path / "workq.toml").write_text("heartbeat = 0\nworkrs = 3\n")
    done = run(
        "--config", "workq.toml", "--workers", "0", "--max-memory", "lots", "--health", "nowhere", "tasks",
        cwd=tmp_path, WORKQ_GRACE="soon", WORKQ_RETRIES="many",
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stdout == ""
    head, *problems = done.stderr.splitlines()
    assert head.startswith("workq-supervise: ")
    named = [problem.strip().partition(": got")[0].partition(": not")[0].partition(": unk")[0] for problem in problems]
    assert sorted(named) == sorted(
        [
            "--workers",
            "--max-memory",
            "--health",
            "MODULE:FUNCTION",
            "WORKQ_GRACE",
            "WORKQ_RETRIES",
            "workq.toml: heartbeat",
            "workq.toml: workrs",
        ]
    )
    assert "Traceback" not in done.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    done = run("--wrokers", "4", "tasks:resize")
    assert done.returncode == 2
    assert "Usage: workq-supervise [OPTIONS] MODULE:FUNCTION" in done.stderr
    assert "--workers" in done.stderr


@pytest.mark.parametrize("environ", [{}, {"WORKQ_HANDLER": ""}])
def test_no_handler_anywhere_is_a_usage_error(environ: dict[str, str]) -> None:
    done = run("--workers", "4", **environ)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "WORKQ_HANDLER" in done.stderr


def test_a_missing_handler_is_reported_beside_what_else_is_wrong() -> None:
    done = run("--workers", "0")
    assert done.returncode == 2
    assert "--workers: got '0'" in done.stderr


def test_a_handler_from_the_environment_or_the_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "workq.toml").write_text("handler = 'tasks'\n")
    done = run("--config", "workq.toml", cwd=tmp_path)
    assert (done.returncode, "workq.toml: handler: got 'tasks'" in done.stderr) == (78, True)
    done = run("--config", "workq.toml", cwd=tmp_path, WORKQ_HANDLER="nonsense")
    assert (done.returncode, "WORKQ_HANDLER: got 'nonsense'" in done.stderr) == (78, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", f"amqp://user:{SECRET}", "a:b"],
        ["--url", f"amqp://user:{SECRET}/x@host", "a:b"],
        ["--url", "amqp://h", "--url", f"amqp://user:{SECRET}@host:port", "a:b"],
        ["--queue", f"amqp://user:{SECRET}@host", "a:b"],
        ["--config", f"amqp://user:{SECRET}@host", "a:b"],
        ["--ulr", f"amqp://user:{SECRET}@host", "a:b"],
        [f"--ulr=amqp://user:{SECRET}@host", "a:b"],
        [f"--burst=amqp://user:{SECRET}@host", "a:b"],
        [f"amqp://user:{SECRET}@host"],
        [f"amqp://user:{SECRET}@host", "a:b"],
        ["a:b", f"amqp://user:{SECRET}@host", f"amqp://user:{SECRET}@host2"],
    ],
)
def test_a_misplaced_or_malformed_url_is_refused_without_its_password(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode in (2, 78)
    assert done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_url_in_the_environment_is_refused_without_its_password() -> None:
    done = run("a:b", WORKQ_URL=f"amqp://user:{SECRET}/x@host", WORKQ_HANDLER=f"amqp://user:{SECRET}@host")
    assert done.returncode == 78
    assert "WORKQ_URL: " in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_help_names_every_option_with_its_default_and_the_signals_and_exit_codes() -> None:
    done = run("--help", COLUMNS="100")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for option in OPTIONS.values():
        assert option.flag in done.stdout, option.name
        if option.default and option.metavar:
            assert f"[default: {option.default}]" in text, option.name
    for word in ("--no-preload", "--no-declare", "--version", "--help", "TERM", "USR2", "78"):
        assert word in done.stdout


def test_version_names_the_command_and_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"workq-supervise, version {__version__}\n")


FORKS_TELL = """
import os
def tell():
    with open(os.environ["FORKED"], "a") as told:
        print(os.getpid(), file=told)
os.register_at_fork(after_in_child=tell)
"""


@pytest.mark.parametrize(
    ("argument", "code", "forks"), [("--help", 0, 0), ("-h", 0, 0), ("--version", 0, 0), ("--no-such-option", 2, 1)]
)
def test_help_forks_nothing_and_a_usage_error_leaves_nothing_behind(
    tmp_path: Path, argument: str, code: int, forks: int
) -> None:
    told = tmp_path / "forked"
    told.touch()
    (tmp_path / "sitecustomize.py").write_text(FORKS_TELL)
    env = dict(os.environ) | {"PYTHONPATH": str(tmp_path), "FORKED": str(told)}
    done = subprocess.run([launching.SUPERVISE, argument], env=env, capture_output=True, timeout=60)
    assert done.returncode == code
    pids = [int(line) for line in told.read_text().split()]
    assert len(pids) == forks
    assert all(gone(pid, PATIENCE) for pid in pids)


def test_help_does_not_import_what_only_a_running_supervisor_needs() -> None:
    code = (
        "import sys\nfrom supervisor.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print('heavy:', *{'pika', 'psutil', 'h11', 'structlog', 'supervisor.parent.main'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
