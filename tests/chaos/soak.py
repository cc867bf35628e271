"""A long run in bad weather: `scripts/test chaos --minutes 10`.

Workers are killed, stopped and recycled, the broker is killed, frozen, restarted and closes its connections, the
network resets, goes silent and slows down, at random from a printed seed, while thousands of tasks are published and
done. At the end the weather clears, and the account must balance, by set arithmetic:

- lost = 0: every task whose publish was confirmed is done, or is a dead letter with its evidence;
- extra runs <= kills + lost connections: nothing is run again without a death that explains it;
- every worker consumes, by the broker's own count.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pika

from supervisor.commands.node import NodeError, PrivateNode
from supervisor.logs import utc
from supervisor.publisher import Publisher, PublishError
from tests import amqp
from tests.proxy import Proxy
from tests.supervision import Runs, Supervision, eventually, supervised

WORKERS: Final = 4
HEARTBEAT: Final = 2
AHEAD: Final = 300
"""Tasks that the feeder keeps in the queue."""
CLEARS_WITHIN: Final = 180.0
"""Seconds that everything has to be done and well again once the weather has cleared."""
QUEUE: Final = "soak"


class Feeder(threading.Thread):
    """Publishes tasks, each until its publish is confirmed, and never many more than are done."""

    def __init__(self, url: str, runs: Runs, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.confirmed: list[str] = []
        self.at: list[tuple[str, str]] = []
        """When each was confirmed."""
        self.failing: set[str] = set()
        """Tasks that are to fail at their first try: retries travel by the parking connection."""
        self.doubted: set[str] = set()
        """Published again, because the first confirm never came: there may be two of them."""
        self._url = url
        self._runs = runs
        self._dice = dice
        self._enough = threading.Event()

    def run(self) -> None:
        with Publisher(self._url, QUEUE) as publisher:
            while not self._enough.is_set():
                if len(self.confirmed) - done(self._runs) > AHEAD:
                    self._enough.wait(0.1)
                    continue
                self._publish(publisher, f"task-{len(self.confirmed)}")

    def _publish(self, publisher: Publisher, name: str) -> None:
        body = f"{self._seconds():.4f}"
        if self._dice.random() < 0.01:
            body += " fails"
            self.failing.add(name)
        while not self._enough.is_set():
            try:
                publisher.publish(body, message_id=name, timeout=5.0)
            except PublishError as error:
                if error.pending:
                    self.doubted.add(name)
                self._enough.wait(0.2)
            else:
                self.confirmed.append(name)
                self.at.append((name, utc()))
                return

    def _seconds(self) -> float:
        kind = self._dice.random()
        if kind < 0.85:
            return self._dice.uniform(0.0, 0.03)
        return self._dice.uniform(0.05, 0.2) if kind < 0.97 else self._dice.uniform(0.3, 1.5)

    def stop(self) -> None:
        self._enough.set()
        self.join()


def done(runs: Runs) -> int:
    """About how many tasks are done, from the size of the notes alone: `began task-N` and `done task-N`."""
    return runs.path.stat().st_size // 30


@dataclass
class Weather:
    """What may happen. Every fault ends before the next begins."""

    node: PrivateNode
    proxy: Proxy
    pool: Supervision
    dice: random.Random
    killed: set[int] = field(default_factory=set)
    """Workers that were sent a deadly signal here."""
    happened: Counter[str] = field(default_factory=Counter)
    diary: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, tuple[int, Callable[[], None]]]:
        """By name: how often, and how."""
        return {
            "worker killed": (40, self.kill_worker),
            "worker stopped": (2, self.stop_worker),
            "nursery killed": (2, self.kill_nursery),
            "all workers killed": (2, self.kill_all_workers),
            "connections reset": (10, self.reset),
            "connections closed by the operator": (6, self.close_all),
            "silence, both ways": (2, lambda: self.silence(to_broker=True, to_client=True)),
            "silence towards the broker": (1, lambda: self.silence(to_broker=True, to_client=False)),
            "silence towards the workers": (1, lambda: self.silence(to_broker=False, to_client=True)),
            "latency of 300 ms": (2, self.slow_down),
            "one byte at a time": (1, self.slice),
            "new connections refused": (2, self.refuse),
            "broker killed": (2, self.kill_broker),
            "broker stopped and started": (2, self.restart_broker),
            "broker frozen": (1, self.freeze_broker),
            "memory alarm": (2, self.alarm),
            "reload": (2, lambda: self.pool.send(signal.SIGHUP)),
        }

    def strike(self) -> None:
        faults = self.faults
        [name] = self.dice.choices(list(faults), [weight for weight, _ in faults.values()])
        self.diary.append(f"{utc()} {name} ...")
        faults[name][1]()
        self.diary.append(f"{utc()} ... {name}")
        self.happened[name] += 1

    # ---------------------------------------------------------------------------------------------- processes

    def _signal(self, number: int, count: int) -> None:
        pids = self.pool.pids()
        for pid in self.dice.sample(pids, min(count, len(pids))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                self.killed.add(pid)

    def kill_worker(self) -> None:
        self._signal(signal.SIGKILL, 1)

    def kill_all_workers(self) -> None:
        self._signal(signal.SIGKILL, WORKERS)

    def stop_worker(self) -> None:
        self._signal(signal.SIGSTOP, 1)

    def kill_nursery(self) -> None:
        children = Path(f"/proc/{self.pool.pid}/task/{self.pool.pid}/children").read_text().split()
        for pid in map(int, children):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "workq-nursery":
                    os.kill(pid, signal.SIGKILL)

    # ------------------------------------------------------------------------------------------------- network

    def reset(self) -> None:
        self.proxy.reset()

    def silence(self, **ways: bool) -> None:
        self.proxy.silence(**ways)
        self._pause(1.0, 4.0 * HEARTBEAT)
        # What a firewall that forgot its connections does: those that were silent never come back.
        self.proxy.reset()
        self.proxy.heal()

    def slow_down(self) -> None:
        self.proxy.latency(0.3)
        self._pause(1.0, 4.0)
        self.proxy.heal()

    def slice(self) -> None:
        self.proxy.slice(1)
        self._pause(0.5, 2.0)
        self.proxy.heal()

    def refuse(self) -> None:
        self.proxy.refuse()
        self.proxy.reset()
        self._pause(0.5, 3.0)
        self.proxy.heal()

    # -------------------------------------------------------------------------------------------------- broker

    def close_all(self) -> None:
        with contextlib.suppress(NodeError):  # as when one of them has just ended by itself
            self.node.eval('rabbit_networking:close_all_connections(<<"an operator">>)')

    def kill_broker(self) -> None:
        self.node.sync()
        self.node.kill()
        self._pause(0.0, 3.0)
        self.node.start()

    def restart_broker(self) -> None:
        self.node.eval("rabbit:stop()")
        self._pause(0.0, 2.0)
        self.node.eval("rabbit:start()")

    def freeze_broker(self) -> None:
        os.kill(self.node.pid, signal.SIGSTOP)
        self._pause(1.0, 5.0 * HEARTBEAT)
        os.kill(self.node.pid, signal.SIGCONT)

    def alarm(self) -> None:
        alarm = "{{resource_limit, memory, node()}, []}"
        self.node.eval(f"rabbit_alarm:set_alarm({alarm})")
        self._pause(0.5, 3.0)
        self.node.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")

    def _pause(self, least: float, most: float) -> None:
        time.sleep(self.dice.uniform(least, most))


@dataclass(frozen=True)
class Account:
    """What is left to say when the weather has cleared."""

    seed: int
    seconds: float
    rabbitmq: str
    queue_type: str
    happened: Counter[str]
    confirmed: int
    done: int
    dead: int
    """Quarantined: killed three workers, or was in the hand of three that were killed."""
    lost: list[str]
    extra: int
    """Handlers started beyond once a task, tasks that fail on purpose and doubtful publishes aside."""
    kills: int
    connections: int
    """Workers that left because their connection was lost."""
    doubted: int
    exits: dict[str, int]
    consumers: int
    story: list[str] = field(default_factory=list)
    """Of the lost: every event of theirs, and the faults beside them."""

    @property
    def verdicts(self) -> dict[str, bool]:
        return {
            "lost = 0": not self.lost,
            "extra runs <= kills + lost connections": self.extra <= self.kills + self.connections,
            "all workers consume at the end": self.consumers == WORKERS,
        }

    def __str__(self) -> str:
        faults = "\n".join(f"| {name} | {count} |" for name, count in sorted(self.happened.items()))
        exits = ", ".join(f"{cause} {count}" for cause, count in sorted(self.exits.items()) if count)
        verdicts = "\n".join(f"- {'holds' if holds else '**BROKEN**'}: {what}" for what, holds in self.verdicts.items())
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        versions = f"RabbitMQ {self.rabbitmq}, pika {pika.__version__}, Python {platform.python_version()}"
        run = f"{self.queue_type} queue, {WORKERS} workers, seed {self.seed}, {self.seconds / 60:.1f} minutes"
        return f"""{today}, {versions}, {run}

| tasks confirmed | done | dead letters | lost | extra runs | workers killed | connections lost |
|---|---|---|---|---|---|---|
| {self.confirmed} | {self.done} | {self.dead} | {len(self.lost)} | {self.extra} | {self.kills} | {self.connections} |

{verdicts}

| fault | times |
|---|---|
{faults}

Workers' ends by cause: {exits}. Published twice in doubt: {self.doubted}.
"""


def soak(
    directory: Path, *, minutes: float, tasks: int, seed: int, queue_type: str, say: Callable[[str], None]
) -> Account:
    """The whole run. Raises AssertionError when the pool does not get well again, or the log is not JSON."""
    begun = time.monotonic()
    dice = random.Random(seed)
    runs = Runs(directory / "runs")
    node = PrivateNode(directory / "node")
    try:
        node.start()
        with amqp.connection(node.url) as link:
            link.channel().queue_declare(QUEUE, durable=True, arguments={"x-queue-type": queue_type})
        node.sync()
        options = ("--workers", str(WORKERS), "--heartbeat", f"{HEARTBEAT}s", "--retry-delay", "100ms")
        with (
            Proxy(node.port) as proxy,
            supervised("handlers:weather", *options, url=proxy.url, queue=QUEUE, env=runs.env) as pool,
        ):
            eventually(lambda: is_well(pool))
            weather = Weather(node, proxy, pool, dice)
            feeder = Feeder(node.url, runs, random.Random(seed + 1))
            feeder.start()
            said = begun
            while (now := time.monotonic()) < begun + 60 * minutes or len(feeder.confirmed) < tasks:
                time.sleep(dice.uniform(0.2, 2.0))
                weather.strike()
                if now - said > 30:
                    said = now
                    struck = weather.happened.total()
                    say(f"{now - begun:.0f} s: {struck} faults, {len(feeder.confirmed)} tasks, about {done(runs)} done")
            feeder.stop()
            say("the weather clears")
            return settle(node, pool, weather, feeder, runs, queue_type, seed, begun)
    finally:
        node.kill()


def settle(
    node: PrivateNode,
    pool: Supervision,
    weather: Weather,
    feeder: Feeder,
    runs: Runs,
    queue_type: str,
    seed: int,
    begun: float,
) -> Account:
    """Wait until everything is done or dead, and every worker consumes; then count."""
    confirmed = set(feeder.confirmed)

    def is_done() -> bool:
        waiting = amqp.depth(node.url, QUEUE) + amqp.unacked(node, QUEUE)
        return not waiting and len(confirmed - set(runs.lines("done"))) <= amqp.depth(node.url, f"{QUEUE}.dead")

    with contextlib.suppress(AssertionError):  # what is not done by then is counted as lost
        eventually(is_done, CLEARS_WITHIN)
    eventually(lambda: is_well(pool), CLEARS_WITHIN)
    eventually(lambda: amqp.consumers(node.url, QUEUE) == WORKERS)
    dead = {properties.message_id for _, properties, _ in amqp.drain(node.url, f"{QUEUE}.dead")}
    began, finished = Counter(runs.lines("began")), set(runs.lines("done"))
    ordinary = {name: count for name, count in began.items() if name not in feeder.failing | feeder.doubted}
    exits = {
        match[1]: int(float(match[2]))
        for match in re.finditer(r'workq_worker_exits_total\{cause="([^"]*)"\} (\S+)', pool.get("/metrics")[1])
    }
    account = Account(
        seed=seed,
        seconds=time.monotonic() - begun,
        rabbitmq=node.version,
        queue_type=queue_type,
        happened=weather.happened,
        confirmed=len(confirmed),
        done=len(confirmed & finished),
        dead=len(confirmed & dead),
        lost=sorted(confirmed - finished - dead),
        extra=sum(ordinary.values()) - len(ordinary),
        kills=len(weather.killed),
        connections=exits.get("broker", 0),
        doubted=len(feeder.doubted),
        exits=exits,
        consumers=amqp.consumers(node.url, QUEUE),
        story=story(pool, weather, sorted(confirmed - finished - dead), began, feeder),
    )
    assert pool.stop() == 0, "the exit code"
    return account


def story(pool: Supervision, weather: Weather, lost: list[str], began: Counter[str], feeder: Feeder) -> list[str]:
    """What is known of tasks that were lost, in the order of time."""
    if not lost:
        return []
    told = [
        f"{name}: begun {began[name]} times, {'fails once' if name in feeder.failing else 'ordinary'}" for name in lost
    ]
    kinds = ("task.succeeded", "task.failed", "worker.ready", "worker.started", "worker.exited")
    events = [
        f"{line['timestamp']} {line['event']} {line.get('message_id')} {line.get('because', '')[:150]}"
        for line in pool.events
        if line.get("message_id") in lost or line["event"] not in kinds
    ]
    return told + sorted(
        [*events, *weather.diary, *(f"{at} confirmed {name}" for name, at in feeder.at if name in lost)]
    )


def is_well(pool: Supervision) -> bool:
    states = [worker["state"] for worker in pool.workers()]
    return pool.get("/readyz")[0] == 200 and len(states) == WORKERS and set(states) <= {"idle", "busy"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test chaos", description=__doc__.split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the weather is bad (default: 10)")
    parser.add_argument("--tasks", type=int, default=20_000, help="at least so many tasks (default: 20000)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of an earlier run, to repeat it")
    parser.add_argument("--queue-type", choices=("classic", "quorum"), default="classic")
    parser.add_argument("--report", type=Path, help="a file to put the account into, between its two marks")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(f"chaos: {line}", flush=True)

    say(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="workq-soak-") as directory:
        account = soak(
            Path(directory),
            minutes=arguments.minutes,
            tasks=arguments.tasks,
            seed=arguments.seed,
            queue_type=arguments.queue_type,
            say=say,
        )
    print(account)
    if account.lost:
        print("lost:", *account.lost[:50])
        print("\n".join(account.story))
    if arguments.report:
        write_report(arguments.report, account)
    return 0 if all(account.verdicts.values()) else 1


def write_report(file: Path, account: Account) -> None:
    """Replace what stands between the marks of this queue type. Raises ValueError when the file has no such marks."""
    begin, end = (f"<!-- {word} of the {account.queue_type} run -->" for word in ("begin", "end"))
    before, found, rest = file.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"{file} has no {begin} ... {end}")
    file.write_text(f"{before}{begin}\n{account}{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
