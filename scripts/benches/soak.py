"""A million tasks with a kill every second: does anything grow, is anything lost?"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from supervisor.clock import now

from .contenders import Contender, Pool, Workq, comm, descendants
from .footprint import MIB, PATIENCE, mib
from .measure import rss
from .notes import RECORD
from .progress import say
from .queues import channel, depth
from .row import BenchError, Options, Row

MILLION: Final = 1_000_000
AHEAD: Final = 50_000
"""Tasks in the queue, at the least, while there are more to publish."""
LIMIT: Final = 1800.0
"""Seconds after which it is given up."""
SETTLED: Final = 60.0
"""Seconds after which memory must not grow any more."""
GROWTH: Final = 1.02
SLACK: Final = MIB
"""A process may grow by so much, or by `GROWTH`: Python's allocator takes memory in arenas of 1 MiB."""


@dataclass(slots=True)
class Soak:
    """What was seen over a million tasks."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    """Each second: `at`, and `rss` by process."""
    kills: int = 0
    seconds: float = 0.0
    done: int = 0
    again: int = 0
    """Tasks that came to their end more than once."""
    dead: int = 0
    lost: int = 0

    def early_and_late(self, name: str) -> tuple[int, int]:
        """The largest RSS of a process in the first minute's last quarter, and in the last quarter of what follows."""
        begin, end = self.samples[0]["at"], self.samples[-1]["at"]
        minute = min(SETTLED, (end - begin) / 3)
        first = [each["rss"][name] for each in self.samples if minute * 0.75 <= each["at"] - begin <= minute]
        late = [each["rss"][name] for each in self.samples if each["at"] >= end - (end - begin - minute) / 4]
        return max(first or late), max(late or first)


def soak(options: Options) -> list[Row]:
    """A million tasks that do nothing but note their number, 4 workers, one of three killed every second; the fourth is
    spared, so that one worker lives through all of it. Lost is what nobody has finished in the end."""
    total = MILLION // 20 if options.quick else MILLION
    place = options.place / "soak"
    contender, name = Workq(), "soak"
    contender.publish(options.node_url, name, _numbered(0, min(total, 2 * AHEAD)))
    found = Soak()
    notes = place / "notes"
    with (
        contender.running(options.node_url, name, 4, place, {"BENCH_NOTES": str(notes)}) as pool,
        channel(options.node_url) as link,
    ):
        pool.await_ready()
        began = now()
        stop = threading.Event()
        with ThreadPoolExecutor(1) as executor:
            published = executor.submit(supply, contender, options.node_url, name, total, stop)
            try:
                _strain(pool, link, name, min(pool.workers()), published, found)
            finally:
                stop.set()
        found.seconds = now() - began
        done = tally(notes, total)
        # The last ones may be in the hand of a worker that has just been killed, or waiting for another try.
        while done.count(0) and now() - began < found.seconds + PATIENCE / 2:
            time.sleep(0.5)
            done = tally(notes, total)
        dead = link.queue_declare(f"{name}.dead", durable=True)
        found.dead = int(dead.method.message_count)
    found.done, found.lost = total - done.count(0), done.count(0) - found.dead
    found.again = sum(1 for times in done if times > 1)
    return [flat_memory_row(found), nothing_lost_row(found, total)]


def _numbered(first: int, after: int) -> list[bytes]:
    return [b"x %d" % number for number in range(first, after)]


def supply(contender: Contender, url: str, name: str, total: int, stop: threading.Event) -> None:
    """Publish while the pool works, `AHEAD` tasks ahead of it, until there were `total`, or until `stop`."""
    published = min(total, 2 * AHEAD)
    with channel(url) as link:
        while published < total and not stop.wait(0.2):
            if depth(link, name) < AHEAD:
                upto = min(total, published + AHEAD // 2)
                contender.publish(url, name, _numbered(published, upto))
                published = upto


def _strain(pool: Pool, link: Any, name: str, spared: int, published: Future[None], found: Soak) -> None:
    """A kill and a look a second until all is published and the queue is empty. Raises what has ended the publishing
    before."""
    began = now()
    while True:
        if published.done():
            published.result()
            if depth(link, name) == 0:
                break
        time.sleep(1.0)
        pool.demand_alive()
        if now() - began > LIMIT:
            raise BenchError(f"{depth(link, name)} tasks are left after {LIMIT:g} s; the log ends:\n{pool.tail()}")
        workers = [pid for pid in pool.workers() if pid != spared]
        found.samples.append({"at": now() - began, "rss": _by_role(pool, spared, workers)})
        say(f"soak: {found.samples[-1]['at']:.0f} s, {found.kills} kills")
        if workers:
            os.kill(random.choice(workers), signal.SIGKILL)
            found.kills += 1
    say("")


def _by_role(pool: Pool, spared: int, workers: Sequence[int]) -> dict[str, int]:
    nursery = [pid for pid in descendants(pool.root) if comm(pid) == "workq-nursery"]
    return {
        "parent": rss(pool.root),
        "nursery": max(map(rss, nursery), default=0),
        "the spared worker": rss(spared),
        "the largest other worker": max(map(rss, workers), default=0),
    }


def tally(path: Path, total: int) -> bytearray:
    """How often each number's task has come to its end, at most 255 times."""
    done = bytearray(total)
    with path.open("rb") as file:
        while chunk := file.read(RECORD.size << 15):
            for _, has_ended, number, _ in RECORD.iter_unpack(chunk[: len(chunk) - len(chunk) % RECORD.size]):
                if has_ended and number < total and done[number] < 255:
                    done[number] += 1
    return done


def flat_memory_row(found: Soak) -> Row:
    names = list(found.samples[0]["rss"])
    pairs = {name: found.early_and_late(name) for name in names}
    return Row(
        what=f"memory (RSS) over {found.seconds:.0f} s with a kill every second, after the first minute and at the end",
        ours="; ".join(f"{name} {mib(early)}, {mib(late)}" for name, (early, late) in pairs.items()),
        target="flat",
        met=all(late <= max(early * GROWTH, early + SLACK) for early, late in pairs.values()),
        data={"samples": found.samples, "kills": found.kills},
        note=f"Flat: at most {GROWTH - 1:.0%} or 1 MiB more, whichever is larger; of the largest samples of a quarter.",
    )


def nothing_lost_row(found: Soak, total: int) -> Row:
    return Row(
        what=f"{total:,} tasks, {found.kills} kills",
        ours=f"{found.lost} lost, {found.again} run twice, {found.dead} dead-lettered",
        target="nothing lost",
        met=found.lost == 0,
        data={"done": found.done, "again": found.again, "dead": found.dead, "lost": found.lost, "kills": found.kills},
        note=f"{total / found.seconds:,.0f} tasks/s beside a publisher that keeps {AHEAD:,} ahead.",
    )
