"""Whose a process is, however it has gone away; and that a whole tree is killed at once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from supervisor.linux import descendants

HERE = Path(__file__).resolve().parent


def as_supervisor(program: str) -> list[str]:
    """Run this as a child subreaper with two marked workers, `a` and `b`, that start what they are told to and then are
    quiet. Everything that it leaves is killed in the end. Returns the words that it printed."""
    prelude = """
        import ctypes, os, resource, select, signal, subprocess, sys, time
        from supervisor.linux import descendants

        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER

        def worker(script):
            "A process that is marked before it runs the script, a shell's, and waits at its end."
            reader, writer = os.pipe()
            told, tells = os.pipe()
            os.set_inheritable(tells, True)
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.read(reader, 1)
                os.dup2(tells, 3)
                os.execvp("sh", ["sh", "-c", script + "\\necho >&3; exec 3>&-; exec sleep 600"])
            descendants.mark(pid)
            os.write(writer, b".")
            assert os.read(told, 1) == b"\\n"
            return pid

        def end(pid):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        def strays():
            return set(descendants.children(os.getpid())) - {a, b}

        def ends(pids):
            return all(select.select([os.pidfd_open(pid)], [], [], 30)[0] for pid in pids)

        a = b = 0
        try:
    """
    end = """
        finally:
            while descendants.kill_all(()):
                os.wait()
    """
    text = textwrap.dedent(prelude) + textwrap.indent(textwrap.dedent(program), "    ") + textwrap.dedent(end)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_daemon_is_known_as_its_workers_without_session_parent_environment_or_descriptors() -> None:
    daemon = "setsid -f env -i sh -c 'exec 3>&- 0<&- 1<&- 2<&-; exec sleep 600'"
    words = as_supervisor(f"""
        a, b = worker("{daemon}"), worker("true")
        while not [daemon for daemon in strays() if os.getsid(daemon) == daemon]:
            time.sleep(0.01)
        [daemon] = strays()
        print(descendants.owner(daemon) == a, descendants.owner(a) == a, descendants.owner(b) == b)
        stranger = subprocess.Popen(["sleep", "600"])
        print(descendants.owner(stranger.pid), descendants.owner(os.getpid()))
    """)
    assert words == ["True", "True", "True", "None", "None"]


def test_the_living_ones_daemons_are_spared_and_the_dead_ones_killed() -> None:
    daemon = "setsid -f sleep 600 3>&-"
    words = as_supervisor(f"""
        a, b = worker("{daemon}"), worker("{daemon}")
        stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
        while len(found := strays()) < 3:
            time.sleep(0.01)
        of_a = {{pid for pid in found if descendants.owner(pid) == a}}
        end(a)
        descendants.kill({{b}})
        print(len(of_a), ends(of_a), stranger.poll())
        [of_b] = found - of_a - {{stranger.pid}}
        print(select.select([os.pidfd_open(of_b)], [], [], 0.2)[0])
    """)
    assert words == ["1", "True", "None", "[]"]


def test_one_call_kills_every_generation_of_what_was_left(tmp_path: Path) -> None:
    nest = tmp_path / "nest"  # a session in a session in a session, each with somebody who waits
    nest.write_text('[ $1 = 0 ] && exec sleep 600\nsetsid sh "$0" $(($1 - 1)) &\nwait\n')
    words = as_supervisor(f"""
        a = worker("sh {nest} 3 3>&- &")
        def below():
            pids = [a]
            for pid in pids:
                pids += descendants.children(pid)
            return pids[1:]
        while len({{os.getsid(pid) for pid in below()}}) < 4:
            time.sleep(0.01)
        left = below()
        end(a)
        descendants.kill(())
        # Nobody is looked for again: whoever was not found in that one call lives on.
        print(ends(left))
    """)
    assert words == ["True"]


def test_a_supervisor_under_a_supervisor_does_not_take_itself_for_a_leftover() -> None:
    words = as_supervisor(f"""
        descendants.mark(os.getpid())
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.path[:0] = [{str(HERE.parents[1])!r}];"
            "from supervisor.linux import descendants; import os; print(descendants.owner(os.getpid()))"])
        child.wait()
        print(descendants.owner(os.getpid()) == os.getpid())
    """)
    assert words == ["None", "True"]


def test_children_are_found_also_where_the_kernel_does_not_list_them(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        listed = set(descendants.children(os.getpid()))
        monkeypatch.setattr(descendants, "_CHILDREN_ARE_LISTED", False)
        assert child.pid in listed and set(descendants.children(os.getpid())) == listed
        assert descendants.children(child.pid) == []
    finally:
        child.kill()
        child.wait()
