"""Nurseries are forked by the zygote, or executed where there is none: what runs in them cannot tell."""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import descendants
from supervisor.worker import rehearsal
from tests import amqp, handler_modules
from tests.supervision import EXECUTED, Supervision, eventually, retinue, supervised

pytestmark = pytest.mark.any_broker

TELLS = """
import atexit, gc, json, os, signal, sys, threading, time

def signals():
    return {str(n): repr(signal.getsignal(n)).split(" at ")[0] for n in range(1, signal.NSIG)}

FLAGS = ("optimize", "isolated", "dev_mode", "utf8_mode", "no_site", "hash_randomization", "dont_write_bytecode")
IMPORTED = set(sys.modules)
AT_IMPORT = signals()

def tell(task):
    with open("/proc/self/status") as status:
        masks = [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt", "Threads"))]
    told = {
        "environment": [dict(os.environ), sorted(filter(None, open("/proc/self/environ").read().split(chr(0))))],
        "arguments": [os.path.basename(word) for word in sys.argv][:1],
        "path": sys.path,
        "main": sys.modules["__main__"].__spec__.name if sys.modules["__main__"].__spec__ else None,
        "streams": [[s.name if isinstance(s.name, int) else s.name.strip("<>"), s.encoding, s.errors, s.line_buffering]
                    for s in (sys.stdin, sys.stdout, sys.stderr)],
        "signals": [AT_IMPORT, signals(), masks],
        "threads": sorted(t.name for t in threading.enumerate()),
        "limits": [os.getpriority(os.PRIO_PROCESS, 0), os.umask(0o22)],
        "collector": [gc.isenabled(), gc.get_threshold()],
        "session": os.getsid(0) == os.getpid(),
        "switch": sys.getswitchinterval(),
        "flags": [(name, getattr(sys.flags, name)) for name in dir(sys.flags) if name in FLAGS],
    }
    foreign = [m for m in IMPORTED if m.split(".")[0] in ("click", "psutil", "h11", "rich", "prometheus_client")]
    foreign += [m for m in IMPORTED if m.startswith(("supervisor.parent", "supervisor.cli", "supervisor.commands"))]
    with open(os.environ["TELL"] + task.message_id, "w") as file:
        json.dump({"told": told, "foreign": foreign}, file)
"""


def told(place: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((place / name).read_text())
    return document


def descriptors(pid: int) -> list[str]:
    """What they lead to, numbers of pipes and sockets left out."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry).partition("[")[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def test_a_handler_finds_in_a_forked_nursery_what_it_finds_in_an_executed_one(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    handler_modules.write(tmp_path, "app", TELLS)
    env = {"PYTHONPATH": str(tmp_path), "TELL": f"{tmp_path}/"}
    control = str(tmp_path / "control.sock")
    options = ("--workers", "1", "--control", control)
    with supervised("app:tell", *options, url=broker_url, queue=queue, env=env, inside=EXECUTED) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, [""], ids=["forked"])
        pool.hear("task.succeeded", message_id="forked")
        first = nursery(pool)
        held = eventually(lambda: at_rest(first)), descriptors(pool.pids()[0])
        end_zygote(pool)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        amqp.publish(broker_url, queue, [""], ids=["executed"])
        pool.hear("task.succeeded", message_id="executed")
        executed = retinue(pool, zygote=False)["workq-nursery"]
        assert b"nursery" in Path(f"/proc/{executed}/cmdline").read_bytes()
        assert (eventually(lambda: at_rest(executed)), descriptors(pool.pids()[0])) == held
        assert pool.stop() == 0
    forked, executed_told = told(tmp_path, "forked"), told(tmp_path, "executed")
    assert forked["told"] == executed_told["told"]
    assert forked["foreign"] == executed_told["foreign"] == []


def at_rest(nursery: int) -> list[str] | None:
    """Its descriptors, when it waits for a request on its only socket: while it forks it holds the child's, too, and
    lets go of them one by one."""
    is_waiting = Path(f"/proc/{nursery}/stat").read_text().rpartition(") ")[2][0] == "S"
    found = descriptors(nursery)
    return found if is_waiting and found.count("socket:") == 1 else None


def nursery(pool: Supervision) -> int:
    return retinue(pool)["workq-nursery"]


def others(pool: Supervision) -> dict[str, int]:
    """The supervisor's children by name, those of a name that is still to be given among them."""
    return {comm(pid): pid for pid in descendants.children(pool.pid)}


def comm(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def end_zygote(pool: Supervision) -> None:
    os.kill(retinue(pool)["workq-zygote"], signal.SIGKILL)
    eventually(lambda: "workq-zygote" not in others(pool))


def test_a_reload_takes_code_directory_and_state_of_its_own_from_the_zygote(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    """Also its own random numbers: a module that draws one at import must not have that of the code before."""
    source = "import os, random\nDRAWN = random.random()\ndef tell(task):\n    print('told', {}, DRAWN, os.getcwd())\n"
    for number in (1, 2):
        (tmp_path / f"release-{number}").mkdir()
        handler_modules.write(tmp_path / f"release-{number}", "app", source.format(number))
    current = tmp_path / "current"
    current.symlink_to("release-1")
    inside = ("sh", "-c", f'cd {current} && exec "$@"', "sh")
    options = ("--workers", "1", "--app-dir", ".")
    with supervised("app:tell", *options, url=broker_url, queue=queue, inside=inside) as pool:
        pool.ready()
        zygote, first = retinue(pool)["workq-zygote"], nursery(pool)
        amqp.publish(broker_url, queue, [""])
        _, number, drawn, where = pool.hear("worker.output")["line"].split()
        assert (number, where) == ("1", str(tmp_path / "release-1"))
        current.unlink()
        current.symlink_to("release-2")
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        eventually(lambda: nursery(pool) != first)
        amqp.publish(broker_url, queue, [""])
        _, number, again, where = pool.hear("worker.output", count=2)["line"].split()
        assert (number, where) == ("2", str(tmp_path / "release-2"))
        assert again != drawn
        assert retinue(pool)["workq-zygote"] == zygote
        assert Path(f"/proc/{nursery(pool)}/cmdline").read_bytes().startswith(b"workq-nursery")
        assert pool.stop() == 0


def test_a_zygote_that_is_stopped_is_done_without(broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.ready()
        os.kill(retinue(pool)["workq-zygote"], signal.SIGSTOP)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=2)
        eventually(lambda: "workq-zygote" not in others(pool))
        amqp.publish(broker_url, queue, ["0"], ids=["one"])
        pool.hear("task.succeeded", message_id="one")
        assert pool.stop() == 0


ANSWER_LOST = """
import supervisor.parent.zygote as zygote
heard = zygote.Zygote._answer
zygote.Zygote._answer = lambda self, within: heard(self, within) and None
"""


def test_a_nursery_whose_birth_was_never_told_of_does_not_stay_beside_the_next(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ANSWER_LOST)
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, env=env, inside=EXECUTED) as pool:
        pool.ready()
        amqp.publish(broker_url, queue, ["0"], ids=["one"])
        pool.hear("task.succeeded", message_id="one")
        # Worker, spare, and the nursery that was executed: no zygote, and no nursery of its.
        eventually(lambda: sorted(map(comm, descendants.children(pool.pid)))[1:] == ["workq-spare", "workq-worker-0"])
        assert pool.stop() == 0


def test_nobody_but_the_supervisor_holds_the_sockets_that_it_serves(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    """A child that held them would keep the ports of a supervisor that is no more, and answer nobody."""
    control = str(tmp_path / "control.sock")
    with supervised("handlers:work", "--workers", "2", "--control", control, url=broker_url, queue=queue) as pool:
        pool.ready()
        children = [*retinue(pool).values(), *pool.pids()]
        ours = sockets(pool.pid)
        assert len(ours) > 4  # the health port, the control socket, the signals' pair, a link for each child
        for pid in children:
            assert not sockets(pid) & ours
        assert pool.stop() == 0


def sockets(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if stat.S_ISSOCK(entry.stat().st_mode):
                found.add(os.readlink(entry))
    return found


def test_ps_and_pkill_f_tell_the_processes_apart(broker_url: str, queue: str) -> None:
    """`pkill -HUP -f workq-supervise` is for the supervisor. A worker that got it would die of it."""
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue, inside=EXECUTED) as pool:
        pool.ready()
        names = {pid: name for name, pid in retinue(pool).items()} | {
            pid: f"workq-worker-{slot}" for slot, pid in enumerate(pool.pids())
        }
        assert len(names) == 5
        for pid, name in names.items():
            assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() == name
        assert b"workq-supervise" in Path(f"/proc/{pool.pid}/cmdline").read_bytes()
        assert pool.stop() == 0


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&-"])
def test_a_supervisor_without_standard_streams_works(broker_url: str, queue: str, closed: str) -> None:
    inside = ("sh", "-c", f'exec "$@" {closed}', "sh")
    amqp.publish(broker_url, queue, ["0"], ids=["one"])
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, inside=inside) as pool:
        pool.hear("task.succeeded", message_id="one")
        assert pool.stop() == 0


# --------------------------------------------------------------------------------------------------- the rehearsal


def test_the_rehearsal_goes_to_its_end_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is cut short costs nothing but memory and milliseconds, so nobody else would notice."""
    settled: list[str] = []
    serve = rehearsal._Understudy._serve

    def noted(self: Any, delivery: Any) -> None:
        serve(self, delivery)
        settled.append(delivery.body.decode())

    monkeypatch.setattr(rehearsal._Understudy, "_serve", noted)
    gc.collect()
    before = os.listdir("/proc/self/fd")
    rehearsal.perform()
    gc.collect()
    assert settled == ["."] * rehearsal.TIMES
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_a_pool_starts_without_a_loopback_to_rehearse_on(broker_url: str, queue: str) -> None:
    """In a network namespace whose loopback is down, the broker is away, too; the pool says so, and lives."""
    inside = ("unshare", "-n")
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue, inside=inside) as pool:
        pool.hear("handler.loaded")
        pool.hear("worker.exited", cause="broker")
        assert pool.stop() == 0
