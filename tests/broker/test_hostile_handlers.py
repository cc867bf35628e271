"""FAULTS, the attacker's rows: what a handler can write to what its worker shares with the supervisor."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from supervisor import bucket
from supervisor.scoreboard import PAGES
from supervisor.vocabulary import LOG_SPACE
from tests import amqp, handler_modules
from tests.garbage import garbage, report
from tests.supervision import HERE, Runs, Supervision, eventually, supervised

pytestmark = pytest.mark.any_broker


def descriptors(pool: Supervision) -> int:
    """How many the supervisor has open."""
    return len(os.listdir(f"/proc/{pool.pid}/fd"))


def publish(url: str, queue: str, orders: dict[str, dict[str, Any]]) -> None:
    amqp.publish(url, queue, [json.dumps(order) for order in orders.values()], ids=list(orders))


def test_f94_a_frame_that_no_worker_sends_costs_that_worker_its_life_and_blames_its_message(
    broker_url: str, queue: str, runs: Runs
) -> None:
    frames = dict(garbage())
    for name, frame in frames.items():
        # A task that is done in between: else ten deaths in a row are followed by ever longer pauses.
        publish(broker_url, queue, {name: {"frames": [frame], "then": 30}, f"after {name}": {}})
    options = ("--workers", "2", "--max-crashes", "1")
    with supervised("hostile:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        for name in frames:
            pool.hear("task.quarantined", message_id=name)
            pool.hear("task.succeeded", message_id=f"after {name}")
        deaths = {died["message_id"]: died["cause"] for died in pool.named("worker.exited")}
        assert deaths == dict.fromkeys(frames, "protocol")
        assert len(pool.named("worker.garbled")) == len(frames)
        assert "hostile.py" in pool.named("worker.exited")[0]["output"]
        eventually(lambda: pool.get("/readyz")[0] == 200)
        assert pool.stop() == 0
    assert len(runs.lines("done")) == len(frames)


def test_f94_a_handler_that_says_its_workers_last_words_is_no_planned_exit(
    broker_url: str, queue: str, runs: Runs
) -> None:
    words = report("Leaving", cause="drained", detail="", kind="", is_unsettled=False, silence=0.0)
    publish(broker_url, queue, {"liar": {"frames": [words], "exit": 0}})
    options = ("--workers", "1", "--max-crashes", "2")
    with supervised("hostile:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.quarantined", message_id="liar")
        assert [died["cause"] for died in pool.named("worker.exited")] == ["exit 0"] * 2
        assert pool.stop() == 0


@pytest.mark.parametrize(
    "frame",
    [
        "\xff\xfe",
        "[" * 100_000,
        report("Ready", broker="b", version="", has_declared=None),
        report("Forked", ticket=-1, pid=0),
    ],
    ids=["not UTF-8", "deep", "a worker's", "a negative ticket"],
)
def test_f94_an_import_that_writes_garbage_to_the_nurserys_link_is_a_nursery_that_died(
    broker_url: str, queue: str, tmp_path: Path, frame: str
) -> None:
    text = f"""
import sys
sys.path.append({str(HERE)!r})
from hostile import send_frames
send_frames([{frame!r}], {{}})
def work(task):
    pass
"""
    handler_modules.write(tmp_path, "hostile_import", text)
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("hostile_import:work", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 78
        assert len(pool.named("nursery.exited")) == 3
        assert all("invalid message on its link" in died["because"] for died in pool.named("nursery.exited"))
        assert "died three times" in pool.hear("handler.import_failed")["because"]


def test_f94_a_nursery_that_presents_somebody_elses_process_as_a_worker_is_not_believed(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs
) -> None:
    # It answers each Fork twice: first with a pid that is no child of the supervisor's, or is another worker's.
    text = """
import os
from supervisor.link import Link
from supervisor.messages import Forked
from handlers import work
send, first = Link.send, []
def lie(self, message, *more, **words):
    if isinstance(message, Forked):
        first.append(message.pid)
        send(self, Forked(message.ticket, [1, os.getppid(), os.getpid(), first[0]][len(first) % 4]))
    return send(self, message, *more, **words)
Link.send = lie
"""
    handler_modules.write(tmp_path, "liar", text)
    env = runs.env | {"PYTHONPATH": str(tmp_path)}
    with supervised("liar:work", "--workers", "2", url=broker_url, queue=queue, env=env) as pool:
        pool.hear("worker.start_failed", count=6)
        assert pool.process.poll() is None
        assert "not a new child" in pool.named("worker.start_failed")[0]["because"]
        pool.stop()


def test_f95_descriptors_that_come_along_are_closed_and_never_wait_for_a_connection_that_lingers(
    broker_url: str, queue: str, runs: Runs
) -> None:
    orders: dict[str, dict[str, Any]] = {
        "many": {"descriptors": 500, "then": 30},
        "all that fit": {"descriptors": 3, "each": 253, "then": 30},
        "out of descriptors": {"descriptors": 3, "each": 250, "then": 30},
        "with a frame of another kind": {"descriptors": 1, "frame": "\xff", "then": 30},
        "one that lingers": {"descriptors": 1, "linger": True, "then": 30},
    }
    publish(broker_url, queue, {"good": {}})
    options = ("--workers", "1", "--max-crashes", "1")
    with supervised("hostile:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.succeeded", message_id="good")
        before = descriptors(pool)
        publish(broker_url, queue, orders)
        for name in orders:
            pool.hear("task.quarantined", message_id=name)
        publish(broker_url, queue, {"good as well": {}})
        pool.hear("task.succeeded", message_id="good as well")
        assert {died["message_id"]: died["cause"] for died in pool.named("worker.exited")} == dict.fromkeys(
            orders, "protocol"
        )
        # Each frame would have left four and more.
        eventually(lambda: descriptors(pool) <= before + 8)
        assert pool.stop() == 0


def test_f96_nothing_that_is_written_on_the_scoreboard_stops_the_pool_or_spoils_what_it_shows(
    broker_url: str, queue: str, runs: Runs
) -> None:
    deeds = {how: {"spoil": how, "pages": 8, "seed": 96} for how in ("ones", "zeroes", "nan", "infinity", "negative")}
    deeds |= {f"random {seed}": {"spoil": "random", "pages": 8, "seed": seed} for seed in range(3)}
    deeds |= {"busy": {"spoil": "busy", "pages": 8}, "truncate": {"spoil": "truncate"}}
    options = ("--workers", "2", "--task-timeout", "60s")
    with supervised("hostile:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        before = shown(pool)
        for number, (name, deed) in enumerate(deeds.items(), 1):
            publish(broker_url, queue, {name: deed, f"after {name}": {}})
            pool.hear("task.succeeded", message_id=name)
            pool.hear("task.succeeded", message_id=f"after {name}")
            after = shown(pool)
            assert after.keys() >= before.keys()
            assert not {series: value for series, value in before.items() if after[series] < value}, name
            before = after
            assert len(pool.named("task.succeeded")) == 2 * number
        publish(broker_url, queue, {"killer": {"exit": 3}})
        assert pool.hear("worker.exited", cause="exit 3")["message_id"] == "killer"
        pool.hear("task.quarantined", message_id="killer")
        assert pool.stop() == 0
    assert runs.lines("refused") == ["0", "4096", str(2 * (LOG_SPACE + 4096 * PAGES + bucket.SIZE))]


def shown(pool: Supervision) -> dict[str, float]:
    """The counters at /metrics. Fails unless they, and all of /status, are what anybody can read."""

    def fail(constant: str) -> None:
        raise AssertionError(f"{constant} in /status")

    json.loads(pool.get("/status")[1], parse_constant=fail)
    samples = dict(re.findall(r"^(workq_\S+?(?:\{.*\})?) (\S+)$", pool.get("/metrics")[1], re.M))
    assert all(math.isfinite(float(value)) and float(value) >= 0 for value in samples.values()), samples
    return {name: float(value) for name, value in samples.items() if re.match(r"\w+_(total|bucket|count|sum)\b", name)}


LINE = json.dumps({"event": "flood", "filler": "x" * 30_000}) + "\n"


@pytest.mark.parametrize(
    "deed",
    [
        {"flood": 60, "frame": report("Record", line=LINE)},
        {"flood": 60, "frame": report("Record", line='{"event": "flood"}\n')},
        {"flood": 60, "frame": report("Suspect", key="k", delivery_count=0, put_back=0, name="k", step=1)},
        {"pour": "a\n", "seconds": 60},
        {"pour": "\xff", "seconds": 60},
    ],
    ids=["long lines", "short lines", "questions", "printed lines", "printed bytes"],
)
def test_f97_a_worker_that_floods_its_supervisor_holds_up_nobody_else(
    broker_url: str, queue: str, runs: Runs, deed: dict[str, Any]
) -> None:
    options = ("--workers", "2", "--max-crashes", "1")
    with supervised("hostile:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.ready()
        publish(broker_url, queue, {"flood": deed})
        runs.hear("began")
        if "Record" in deed.get("frame", "") or "pour" in deed:
            eventually(lambda: pool.metric("workq_log_lines_dropped_total") > 0)
        if "Record" in deed.get("frame", ""):
            pool.hear("worker.log_dropped")
        workers = {worker["message_id"]: worker["pid"] for worker in pool.workers()}
        os.kill(workers[None], signal.SIGKILL)
        pool.hear("worker.exited", pid=workers[None])
        pool.hear("worker.ready", count=3)
        publish(broker_url, queue, {"good": {}})
        pool.hear("task.succeeded", message_id="good")
        assert pool.get("/healthz")[0] == 200
        assert len(pool.named("worker.log_dropped")) <= 1
        os.kill(workers["flood"], signal.SIGKILL)
        assert pool.hear("worker.exited", pid=workers["flood"])["message_id"] == "flood"
        pool.hear("task.quarantined", message_id="flood")
        assert pool.stop() == 0


def test_f97_last_words_are_heard_through_a_flood(broker_url: str, queue: str, runs: Runs) -> None:
    frame = report("Record", line='{"event": "flood"}\n')
    publish(broker_url, queue, {"flood": {"flood": 60, "frame": frame, "leave": True, "then": 0.5}})
    options = ("--workers", "1", "--max-tasks", "1")
    with supervised("hostile:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        assert pool.hear("worker.exited")["cause"] == "max_tasks"
        pool.hear("worker.ready", count=2)
        assert pool.stop() == 0
