"""A host that lacks what a supervisor needs: one line says so, and it ends. One that lacks only comforts will do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SUPERVISE = str(Path(sys.executable).with_name("workq-supervise"))
NOWHERE = "amqp://guest:guest@127.0.0.1:9/%2F"
HERE = str(Path(__file__).parents[1])

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace")


def start(prelude: str, *options: str, inside: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A supervisor, begun by a shell that has done this before."""
    command = [*inside, "bash", "-c", f'{prelude}\nexec "$@"', "bash", SUPERVISE, "--workers", "1"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command, "--health", "127.0.0.1:0", *options, "handlers:work"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environ | {"WORKQ_URL": NOWHERE},
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.parametrize("limit", [7, 9, 11, 14, 16])
def test_f81_too_few_descriptors_end_a_start_in_one_line(limit: int) -> None:
    """Whatever it is that the last of them was needed for."""
    code, said = ended(start(f"ulimit -n {limit}", "--app-dir", HERE))
    assert "Traceback" not in said and "Exception ignored" not in said
    assert code == 1
    assert "Too many open files" in said.splitlines()[-1]
    assert limit < 8 or "LimitNOFILE" in said.splitlines()[-1]
    assert "mount /proc" not in said


@needs_root
@pytest.mark.parametrize(
    ("prelude", "word"),
    [("mount -t tmpfs none /proc", "/proc"), ("mount -t tmpfs none /dev", "/dev/null")],
)
def test_f81_without_proc_or_dev_a_start_ends_in_one_line(prelude: str, word: str) -> None:
    code, said = ended(start(prelude, "--app-dir", HERE, inside=("unshare", "-m")))
    assert "Traceback" not in said
    assert code == 78
    assert word in said.splitlines()[-1]
    assert ("mount /proc" in said) == (word == "/proc")


def test_f81_a_working_directory_that_is_deleted_ends_a_start_in_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    code, said = ended(start(f"mkdir {gone} && cd {gone} && rmdir {gone}"))
    assert "Traceback" not in said
    assert code == 78
    assert "the working directory has been deleted" in said.splitlines()[-1]


@needs_root
@pytest.mark.parametrize(
    ("prelude", "options"),
    [
        ("gone=$(mktemp -d) && cd $gone && rmdir $gone", ()),
        ("mount -t tmpfs -o ro none /tmp", ()),
        ("mount -t tmpfs -o ro none /dev/shm", ()),
        ("umount -l /dev/shm; mount -t tmpfs none /dev/shm && chmod 0 /dev/shm", ()),
        ("unset HOME", ()),
        ("HOME=/nonexistent", ()),
        ("exec 0<&-", ()),
        ("exec 0<&- 1>&-", ()),
        ("mount -t tmpfs none /sys", ()),
        ("mount --bind /proc /proc && mount -o remount,bind,ro /proc", ()),  # not the whole machine's
        ("unset PATH LANG; export LC_ALL=C", ()),
        ("umask 777", ()),
        ("trap '' CHLD", ()),
        ("trap '' PIPE HUP", ()),
    ],
)
def test_f81_what_a_supervisor_can_do_without_does_not_keep_it_from_working(
    prelude: str, options: tuple[str, ...]
) -> None:
    """Its worker gets as far as to find no broker."""
    process = start(prelude, "--app-dir", HERE, *options, inside=("unshare", "-m"))
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if '"event":"worker.exited"' in line:
                break
        else:
            raise AssertionError("".join(said))
        assert '"cause":"broker"' in said[-1], said
        process.send_signal(signal.SIGTERM)
        code, rest = ended(process)
        assert code == 0, rest
        assert "Traceback" not in "".join(said) + rest
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("where", ["/nonexistent/control.sock", "/proc/control.sock"])
def test_f81_a_control_socket_that_cannot_be_made_ends_a_start_in_one_line(where: str) -> None:
    code, said = ended(start("true", "--app-dir", HERE, "--control", where))
    assert "Traceback" not in said
    assert code == 78
    assert where in said.splitlines()[-1]
