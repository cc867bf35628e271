"""Who is measured in the benchmark does all that it is given, is counted rightly, and leaves nothing behind.

Ourselves and bare pika: the peers' environment is made by the benchmark alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.benches import rates
from scripts.benches.contenders import BarePika, Contender, Workq
from scripts.benches.measure import Reading, cpu, pss, reaped, rss, wakeups
from scripts.benches.notes import Notes
from scripts.benches.pythons import On
from scripts.benches.queues import channel, depth, wait_depth
from scripts.benches.row import BenchError
from tests import amqp
from tests.node import PrivateNode
from tests.supervision import PATIENCE, eventually, gone

pytestmark = pytest.mark.any_broker

EVERYBODY = [BarePika(), BarePika(forked=True), Workq(), Workq("info")]


def named(contender: Contender) -> str:
    return contender.name


@pytest.fixture(params=[*EVERYBODY, None], ids=lambda each: named(each) if each else "another Python")
def contender(request: pytest.FixtureRequest, tmp_path: Path) -> Contender:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"  # the one that every machine has
    return request.param or On(version, tmp_path / "environment")


def test_a_contender_runs_each_task_once_and_settles_it(
    contender: Contender, node: PrivateNode, queue: str, tmp_path: Path
) -> None:
    notes = Notes(tmp_path / "notes")
    contender.publish(node.url, queue, [b"0.002 %d" % number for number in range(400)])
    with contender.running(node.url, queue, 2, tmp_path, env={"BENCH_NOTES": str(notes.path)}) as pool:
        pool.await_ready(PATIENCE)
        workers = set(pool.workers())
        with channel(node.url) as link:
            wait_depth(link, queue, 0, PATIENCE)
        eventually(lambda: amqp.unacked(node, queue) == 0)
        assert len(workers) == 2
        assert not workers & set(pool.parents())
        assert workers | set(pool.parents()) == set(pool.family())
    taken = notes.read()
    assert Counter(note.number for note in taken if note.has_ended) == Counter(range(400))
    assert {note.pid for note in taken} == workers
    assert amqp.depth(node.url, queue) == 0


@pytest.mark.parametrize("contender", EVERYBODY[:3], ids=named)
def test_nothing_of_a_pool_is_left_after_its_block_whatever_happened(
    contender: Contender, node: PrivateNode, queue: str, tmp_path: Path
) -> None:
    contender.publish(node.url, queue, [b"60"] * 2)
    family: list[int] = []
    with pytest.raises(ZeroDivisionError), contender.running(node.url, queue, 2, tmp_path) as pool:
        pool.await_ready(PATIENCE)
        family = pool.family()
        for pid in family:
            with suppress(ProcessLookupError):  # a process between a nursery and its worker lives for a millisecond
                os.kill(pid, signal.SIGSTOP)  # who is stopped hears of nothing, and follows nobody
        os.kill(pool.root, signal.SIGKILL)
        raise ZeroDivisionError
    assert len(family) >= 3
    # Who follows its parent may be dying by itself, too far gone to be known by its environment. Nobody stopped is.
    assert all(gone(pid, timeout=PATIENCE) for pid in family)


class Scattering(BarePika):
    """Its processes have left it before anybody asks: another session, another parent, and deaf to SIGTERM."""

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        stray = place / "stray"
        stray.write_text("trap '' TERM; echo $$ >>strays; exec sleep 600")
        return ["sh", "-c", f"for _ in 1 2; do (setsid sh {stray} &); done; exec sleep 600"]


def test_who_has_left_its_pool_is_found_all_the_same(tmp_path: Path) -> None:
    strays = tmp_path / "strays"
    with Scattering().running("", "", 2, tmp_path) as pool:
        eventually(lambda: strays.exists() and len(strays.read_text().split()) == 2)
        pids = [int(pid) for pid in strays.read_text().split()]
        eventually(lambda: not set(pids) & set(pool.family()))
    assert all(gone(pid, timeout=0) for pid in pids)


class Misled(Workq):
    """Given an option that there is not."""

    def command(self, url: str, name: str, workers: int, place: Path) -> list[str]:
        *words, handler = super().command(url, name, workers, place)
        return [*words, "--no-such-option", handler]


def test_a_pool_that_leaves_is_said_to_have_left_and_why(node: PrivateNode, queue: str, tmp_path: Path) -> None:
    with (
        Misled().running(node.url, queue, 1, tmp_path) as pool,
        pytest.raises(BenchError, match=r"workq has left with 2(.|\n)*no-such-option"),
    ):
        pool.await_ready(PATIENCE)


def test_a_rate_counts_the_tasks_between_its_readings_and_no_others(
    node: PrivateNode, queue: str, tmp_path: Path
) -> None:
    # Two workers do at most a hundred tasks of 20 ms in a second, however fast or busy the machine is.
    rate = rates.measure(
        BarePika(), node.url, tmp_path, workers=2, body=b"0.02", count=500, seconds=1.0, rest=0.0
    )  # fmt: skip
    assert 1.0 <= rate.seconds < 2.0
    assert 0 < rate.a_second < 100 * 1.05
    assert 0 < rate.a_task < 0.02
    assert rate.parent_cpu < rate.cpu


def test_a_rate_of_too_few_messages_is_an_error(node: PrivateNode, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="too few"):
        rates.measure(
            BarePika(), node.url, tmp_path, workers=2, body=b"no-op", count=10, seconds=1.0, rest=0.0
        )  # fmt: skip


def test_the_depth_of_a_queue_is_what_is_ready(node: PrivateNode, queue: str) -> None:
    BarePika().publish(node.url, queue, [b"x"] * 17)
    with channel(node.url) as link:
        assert depth(link, queue) == 17
        link.basic_get(queue)
        assert depth(link, queue) == 16
        with pytest.raises(BenchError, match="16 messages are left"):
            wait_depth(link, queue, 15, timeout=0.05)


def test_the_cpu_clock_of_a_process_counts_threads_that_have_ended() -> None:
    """And neither the time that it slept, nor what others used."""
    before = reaped(os.getpid())
    burn = "import time\ndef burn():\n while time.thread_time() < 0.2: pass\n"
    run = "import threading\nt = threading.Thread(target=burn); t.start(); t.join(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", burn + run], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            first = Reading.take([child.pid], 0)
            time.sleep(0.1)
            second = Reading.take([child.pid], 0)
            assert 0.2 <= first.cpu[child.pid] < 0.2 + 1.0
            assert second.spent(first) < 0.02
            assert 1 << 20 < pss(child.pid) <= rss(child.pid)
            assert wakeups(child.pid) > 0
        finally:
            child.kill()
    assert cpu([child.pid]) == {}
    assert (pss(child.pid), rss(child.pid), wakeups(child.pid)) == (0, 0, 0)
    with pytest.raises(BenchError, match="come or gone"):
        Reading.take([os.getpid()], 0).spent(first)
    assert 0.19 <= reaped(os.getpid()) - before < 2.0
