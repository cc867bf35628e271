"""A whole supervisor with its workers and a broker, and a handler, neighbours and clients that throw what they can.

In each round hostile tasks run among innocent ones, while clients throw at the health port and the control socket.
After each the supervisor lives, every line of its log and all that it shows can be read, no total has gone backwards,
it has kept no descriptor, its loop has turned, its workers consume, and every innocent task is settled.
"""

from __future__ import annotations

import array
import contextlib
import json
import math
import os
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests import amqp
from tests.fuzz import material
from tests.supervision import Runs, Supervision, eventually, supervised

WORKERS: Final = 3
STANDS_STILL: Final = 2.5
"""Seconds that /status may say since the loop's last turn: its turns are seen by a tick of one second, one more is
allowed, and half of one is the asker's."""
FDS_MORE: Final = 40
"""What the supervisor may have open beyond what it had: clients that are still connected, a worker more."""
BETWEEN: Final = 0.3


def deed(dice: random.Random) -> dict[str, Any]:
    """One hostile task, as `tests.hostile` understands it. What it says that could be true does not outlive it."""
    match dice.randrange(8):
        case 0 | 1 | 2:
            frames = [material.frame(dice).decode("latin-1") for _ in range(dice.randrange(1, 6))]
            return {"frames": frames, "then": BETWEEN, "exit": 3}
        case 3:
            count, each = dice.choice([(1, 1), (50, 4), (3, 253)])
            more = {"frame": material.frame(dice).decode("latin-1"), "linger": dice.random() < 0.3}
            return {"descriptors": count, "each": each, **more, "then": BETWEEN, "exit": 3}
        case 4:
            frame = material.report(dice).decode("latin-1")
            return {"flood": dice.choice([0.2, 1.0]), "frame": frame, "leave": dice.random() < 0.3, "exit": 3}
        case 5:
            return {"page": [material.page(dice).decode("latin-1") for _ in range(WORKERS + 1)]}
        case 6:
            return {"pour": material.printed(dice).decode("latin-1"), "seconds": dice.choice([0.2, 1.0])}
        case _:
            return {"steal": True, "seconds": 0.3, "size": dice.choice([4096, 1 << 20])}


class Clients(threading.Thread):
    """Throw requests at both ports, until told that it is enough."""

    def __init__(self, pool: Supervision, control: Path, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self._health = pool.health.removeprefix("http://").rsplit(":", 1)
        self._control = control
        self._dice = dice
        self._enough = threading.Event()
        self.thrown = 0

    def run(self) -> None:
        while not self._enough.wait(0.02):
            with contextlib.suppress(OSError):
                self._throw()
                self.thrown += 1

    def _throw(self) -> None:
        dice = self._dice
        with contextlib.ExitStack() as stack:
            for _ in range(dice.choice([1, 1, 1, 30])):
                is_control = dice.random() < 0.6
                sock = stack.enter_context(socket.socket(socket.AF_UNIX if is_control else socket.AF_INET))
                sock.settimeout(0.5)
                sock.connect(str(self._control) if is_control else (self._health[0], int(self._health[1])))
                if is_control and dice.random() < 0.2:
                    with open(os.devnull) as null:
                        fds = array.array("i", [null.fileno()] * dice.choice([1, 200]))
                        sock.sendmsg([material.request(dice)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                else:
                    sock.send(material.request(dice))
                if dice.random() < 0.5:
                    sock.recv(65_536)

    def end(self) -> None:
        self._enough.set()
        self.join()


class Watch(threading.Thread):
    """How long the loop has stood still, at most."""

    def __init__(self, pool: Supervision) -> None:
        super().__init__(daemon=True)
        self._pool = pool
        self._enough = threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        while not self._enough.wait(0.05):
            with contextlib.suppress(OSError, ValueError):
                self.longest = max(self.longest, self._pool.status()["loop_seconds"])

    def end(self) -> None:
        self._enough.set()
        self.join()


class Fuzz:
    """Rounds against one supervisor."""

    def __init__(self, pool: Supervision, url: str, control: Path, seed: int, *, is_timed: bool) -> None:
        self._pool = pool
        self._url = url
        self._control = control
        self._dice = random.Random(seed)
        self._is_timed = is_timed
        self._rounds = 0
        self._totals: dict[str, float] = {}
        self._fds = 0
        self.hostile = self.innocent = self.thrown = 0
        self.longest = 0.0

    def round(self, tasks: int) -> None:
        """Raises AssertionError."""
        dice, pool = self._dice, self._pool
        self._rounds += 1
        if not self._fds:
            pool.ready()
            self.look()
            self._fds = self.descriptors()
        bad = {f"bad-{self._rounds}-{n}": json.dumps(deed(dice)) for n in range(tasks)}
        good = {f"good-{self._rounds}-{n}": "{}" for n in range(tasks)}
        mixed = [*bad.items(), *good.items()]
        dice.shuffle(mixed)
        clients = Clients(pool, self._control, random.Random(dice.random()))
        watch = Watch(pool)
        clients.start()
        watch.start()
        amqp.publish(self._url, pool.queue, [body for _, body in mixed], ids=[name for name, _ in mixed])
        try:
            eventually(lambda: self._are_settled({*bad, *good}), timeout=60 + 5 * tasks)
        finally:
            clients.end()
            watch.end()
        self.hostile += len(bad)
        self.innocent += len(good)
        self.thrown += clients.thrown
        self.longest = max(self.longest, watch.longest)
        assert not self._is_timed or watch.longest <= STANDS_STILL, f"the loop stood still for {watch.longest} s"
        eventually(lambda: pool.get("/readyz")[0] == 200, timeout=60)
        self.look()
        eventually(lambda: self.descriptors() <= self._fds + FDS_MORE, timeout=30)

    def __str__(self) -> str:
        deaths = Counter(line["cause"] for line in self._pool.named("worker.exited"))
        thrown = f"{self.hostile} hostile tasks, {self.innocent} innocent ones, {self.thrown} throws of clients"
        turned = f"the loop turned within {max(0.0, self.longest - 1):.2f} s"
        return f"{thrown}; {turned}; deaths: {', '.join(f'{cause} {n}' for cause, n in sorted(deaths.items()))}"

    def _are_settled(self, names: set[str]) -> bool:
        assert self._pool.process.poll() is None, f"the supervisor has left:\n{self._pool.log()}"
        settled = {"task.succeeded", "task.quarantined", "task.dead_lettered"}
        return names <= {line.get("message_id") for line in list(self._pool.events) if line.get("event") in settled}

    def look(self) -> None:
        """All that it shows."""
        assert not self._pool.invalid, f"no JSON: {self._pool.invalid[:3]}"
        json.loads(self._pool.get("/status")[1], parse_constant=_refuse)
        found = re.findall(r"^(workq_\S+?(?:\{.*\})?) (\S+)$", self._pool.get("/metrics")[1], re.M)
        samples = {name: float(value) for name, value in found}
        assert samples and all(math.isfinite(value) for value in samples.values()), samples
        totals = {name: value for name, value in samples.items() if re.match(r"\w+_(total|bucket|count|sum)\b", name)}
        back = {name: value for name, value in self._totals.items() if totals.get(name, -1) < value}
        assert not back, f"they go backwards: {back}"
        self._totals = totals

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._pool.pid}/fd"))


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in /status")


@contextlib.contextmanager
def fuzzed(url: str, queue: str, directory: Path, seed: int, *, is_timed: bool) -> Iterator[Fuzz]:
    """A supervisor to throw at; it leaves when it is asked to, with all that is its."""
    control = directory / f"{queue}.sock"
    options = ("--workers", str(WORKERS), "--max-crashes", "2", "--control", str(control), "--grace", "2s")
    with supervised("hostile:act", *options, url=url, queue=queue, env=Runs(directory / "runs").env) as pool:
        yield Fuzz(pool, url, control, seed, is_timed=is_timed)
        pool.stop(timeout=60)
