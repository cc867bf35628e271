"""Hundreds of workers on one host: how long until they are there, and there again; what each of them costs.

A worker on its own costs the same in a pool of 4 and in one of 256, or something grows with their number.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from supervisor.clock import now

from .contenders import GENTLY, Pool, Workq
from .footprint import PATIENCE, REST, WARM, mib
from .measure import Reading, private, pss
from .progress import progress
from .queues import channel, wait_depth
from .row import Options, Row

MANY: Final = 256
CONSUMING: Final = 6.0
AGAIN: Final = 8.0
PARENT_CPU: Final = 0.02
FLAT: Final = 1.25
"""Times the cost of a worker of four that one of 256 may have."""
SLACK: Final = 0.0001
"""A hundredth of a percent of a CPU: a few wake-ups' worth in the time that is watched."""
WATCH: Final = 15.0


@dataclass(slots=True)
class Crowd:
    """A pool of some size."""

    workers: int
    consuming: float
    """Seconds from the start of the program until the broker counts all consumers."""
    pss: float
    """Bytes of a worker, the mean of all."""
    private: float
    """Bytes that a worker shares with nobody, the mean."""
    parent_cpu: float
    """Share of a CPU while nothing is to be done."""
    worker_cpu: float
    """The same of a worker, the mean."""
    again: float = math.nan
    """Seconds from the SIGKILL of all workers at once until all consume again."""


def many(options: Options) -> list[Row]:
    """Ours alone, with 4 and with 256 workers: until all consume, what they take while idle, and until all consume
    again when all have been killed at once. The broker's count of consumers says who consumes."""
    contender = Workq()
    seconds = WATCH / 4 if options.quick else WATCH
    found: dict[int, list[Crowd]] = {size: [] for size in (4, MANY)}
    for turn in progress(options.rounds, f"{MANY} workers"):
        for size, crowds in found.items():
            crowds.append(_crowd(contender, options, f"many-{size}-{turn}", size, seconds))
    return [*crowd_rows(found[MANY]), flat_row(found[4], found[MANY])]


def _crowd(contender: Workq, options: Options, name: str, size: int, seconds: float) -> Crowd:
    place = options.place / name
    with channel(options.node_url) as link:
        link.queue_declare(name, durable=True)
        began = now()
        with contender.running(options.node_url, name, size, place) as pool:
            pool.await_consumers(link)
            consuming = now() - began
            contender.publish(options.node_url, name, [b""] * (WARM * size))
            wait_depth(link, name, 0, PATIENCE)
            time.sleep(3 * REST)
            workers = pool.workers()
            before = Reading.take([pool.root, *workers])
            time.sleep(seconds)
            after = Reading.take([pool.root, *workers])
            crowd = Crowd(
                size,
                consuming,
                pss=sum(map(pss, workers)) / size,
                private=sum(map(private, workers)) / size,
                parent_cpu=after.share(before, [pool.root]),
                worker_cpu=after.share(before, workers) / size,
            )
            crowd.again = _kill_all(pool, link)
            return crowd


def killed_at_once(contender: Workq, url: str, place: Path, name: str, size: int) -> float:
    """Seconds that a pool of this size takes until all consume again."""
    with channel(url) as link:
        link.queue_declare(name, durable=True)
        with contender.running(url, name, size, place / name) as pool:
            pool.await_consumers(link)
            contender.publish(url, name, [b""] * (WARM * size))
            wait_depth(link, name, 0, PATIENCE)
            time.sleep(REST)
            return _kill_all(pool, link, every=0.005)


def _kill_all(pool: Pool, link: Any, every: float = GENTLY) -> float:
    """SIGKILL to all workers at once; seconds until as many others consume. `link` is there before: connecting is not
    in it."""
    dead = set(pool.workers())
    killed = now()
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    pool.await_consumers(link, dead, every=every)
    return now() - killed


def crowd_rows(crowds: Sequence[Crowd]) -> list[Row]:
    """The worst round counts."""
    consuming = max(each.consuming for each in crowds)
    parent = max(each.parent_cpu for each in crowds)
    again = max(each.again for each in crowds)
    return [
        Row(f"{MANY} workers{what}", words.format(worst), target.format(most), met=worst <= most)
        for what, worst, words, most, target in (
            (", from the start of the program until all consume", consuming, "{:.1f} s", CONSUMING, "{:g} s"),
            (", the parent's CPU while idle", parent, "{:.2%} of a CPU", PARENT_CPU, "{:.0%}"),
            (" killed at once, until all consume again", again, "{:.1f} s", AGAIN, "{:g} s"),
        )
    ]


def flat_row(few: Sequence[Crowd], all_: Sequence[Crowd]) -> Row:
    def pair(of: Callable[[Crowd], float]) -> tuple[float, float]:
        return median(map(of, few)), median(map(of, all_))

    size, own = pair(lambda each: each.pss), pair(lambda each: each.private)
    idle_cpu = pair(lambda each: each.worker_cpu)
    met = size[1] <= FLAT * size[0] and own[1] <= FLAT * own[0] and idle_cpu[1] <= FLAT * idle_cpu[0] + SLACK
    return Row(
        what=f"the cost of a worker, one of 4 and one of {MANY}: memory (PSS), of which private, idle CPU",
        ours=f"{mib(size[0])}, {mib(own[0])}, {idle_cpu[0]:.3%}; {mib(size[1])}, {mib(own[1])}, {idle_cpu[1]:.3%}",
        target=f"flat: at most {FLAT:g}x",
        met=met,
        data={"crowds": {"4": few, str(MANY): all_}, "pss": size, "private": own, "cpu": idle_cpu},
        note="Means over all workers. PSS falls with their number, since more share the same pages.",
    )
