"""A long run in bad weather: `scripts/test chaos --minutes 10`.

Two supervisors share a queue behind a misbehaving network. At random, from a printed seed, workers, spares,
nurseries, one of the supervisors and brokers are killed, stopped, frozen and restarted, connections are cut where it
hurts, while thousands of tasks of fifteen kinds are published and run. At the end the weather clears, and the account
(account.py) must balance, message by message.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests import amqp
from tests.chaos import account, report, workload
from tests.chaos.nemeses import Nemeses
from tests.chaos.testbed import QUEUE, Testbed
from tests.supervision import eventually

WORKERS: Final = 3
"""Of each supervisor."""
CLEARS_WITHIN: Final = 240.0
"""Seconds that everything has to be done once the weather has cleared; a task that always hangs may need three times
the task timeout beyond that. A quorum queue that has sent what expired in it to a leader that is gone sends it again
after 180 s (dead_letter_worker_publisher_confirm_timeout)."""
WELL_WITHIN: Final = 30.0
"""Seconds that a pool has to be well when it has nothing to do."""
TELLS_EVERY: Final = 30.0


def soak(
    directory: Path,
    *,
    minutes: float,
    tasks: int,
    seed: int,
    queue_type: str = "classic",
    cluster: bool = False,
    pace: workload.Pace = workload.FULL,
    without: tuple[str, ...] = (),
    syncs: bool = False,
    first: tuple[str, ...] = (),
    say: Callable[[str], None] = print,
) -> tuple[report.Run, list[str]]:
    """The whole run, and its story for those who look for a fault. `first`: nemeses to strike before the dice are
    asked."""
    begun = time.monotonic()
    dice = random.Random(seed)
    with Testbed(directory, queue_type=queue_type, workers=WORKERS, pace=pace, is_cluster=cluster) as bed:
        nemeses = Nemeses(bed, dice, syncs=syncs)
        feeder = workload.Feeder(
            [node.url for node in bed.nodes], QUEUE, bed.notes, random.Random(seed + 1), pace, without
        )
        feeder.start()
        said = begun
        order = list(first)
        while (now := time.monotonic()) < begun + 60 * minutes or feeder.confirmed < tasks or order:
            time.sleep(dice.uniform(0.2, 1.5))
            nemeses.strike(order.pop(0) if order else None)
            bed.steady.sample()
            if now - said > TELLS_EVERY:
                said = now
                bed.notes.read()
                struck = nemeses.happened.total()
                say(f"{now - begun:.0f} s: {struck} faults, {feeder.confirmed} tasks, {len(bed.notes.done)} done")
        feeder.stop()
        say("the weather clears")
        evidence = settle(bed, nemeses, feeder)
        version, nodes = bed.version, len(bed.nodes)
    balance = account.judge(evidence)
    run = report.Run(
        name="cluster" if cluster else queue_type,
        seed=seed,
        seconds=time.monotonic() - begun,
        rabbitmq=version,
        queue_type=evidence.queue_type,
        nodes=nodes,
        workers=WORKERS,
        happened=nemeses.happened,
        never_drawn=nemeses.never_drawn,
        left_out=[kind.name for kind in workload.KINDS if kind.name not in balance.kinds],
        account=balance,
    )
    return run, story(evidence, nemeses, feeder)


def settle(bed: Testbed, nemeses: Nemeses, feeder: workload.Feeder) -> account.Evidence:
    """Wait until everything is done or dead, and every worker consumes; then collect what there is to know."""
    bed.whole()
    confirmed = set(feeder.at)
    unwell = []
    patience = CLEARS_WITHIN + 4 * bed.pace.task_timeout
    with contextlib.suppress(AssertionError):  # what is not done by then is counted as lost, or left
        eventually(lambda: bed.is_done(confirmed), patience)
    for pool in bed.pools:
        try:
            eventually(pool.is_well, WELL_WITHIN)
            pool.sample()
        except AssertionError:
            unwell.append(f"{pool.name} supervisor {pool.now.pid}: {pool.state()}")
    wanted = sum(pool.workers for pool in bed.pools)
    try:
        eventually(lambda: amqp.consumers(bed.asked().url, QUEUE) == wanted)
    except AssertionError:
        unwell.append(f"the broker counts {amqp.consumers(bed.asked().url, QUEUE)} consumers, not {wanted}")
    leftovers = bed.leftovers()
    letters = bed.letters()
    metrics = {pool: pool.metrics() for pool in bed.pools}
    for pool in bed.pools:
        code = pool.stop()
        if code != 0:
            unwell.append(f"{pool.name} supervisor {pool.now.pid}: exit code {code}")
    survivors = [straggler for pool in bed.pools for straggler in pool.stragglers]
    return account.Evidence(
        queue_type="quorum" if bed.cluster else bed.queue_type,
        tasks=dict(feeder.tasks),
        runs=list(bed.notes.runs()),
        supervisors=[each for pool in bed.pools for each in pool.evidence(metrics[pool])],
        faults=nemeses.faults,
        killed=nemeses.killed,
        letters=letters,
        leftovers=leftovers,
        survivors=survivors,
        unwell=unwell,
    )


def story(evidence: account.Evidence, nemeses: Nemeses, feeder: workload.Feeder) -> list[str]:
    """Everything that happened, in the order of time: faults, runs, and each line of the logs."""
    told = list(nemeses.diary)
    told += [f"{_utc(at)} confirmed {name} ({feeder.tasks[name].kind})" for name, at in feeder.at.items()]
    for run in evidence.runs:
        told.append(f"{_utc(run.began)} began {run.task}, try {run.attempt}, by {run.pid} of {run.supervisor}")
        if run.ended is not None:
            told.append(f"{_utc(run.ended)} ended {run.task}, try {run.attempt}, by {run.pid}: {run.how}")
    for supervisor in evidence.supervisors:
        for line in supervisor.log:
            rest = {name: value for name, value in line.items() if name not in ("timestamp", "queue")}
            told.append(f"{line['timestamp']} {supervisor.pid} {json.dumps(rest)}")
    return sorted(told)


def _utc(at: float) -> str:
    fraction = f"{at % 1:.6f}"[1:]
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + fraction + "Z"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test chaos", description=__doc__.split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the weather is bad (default: 10)")
    parser.add_argument("--tasks", type=int, default=0, help="and at least so many tasks (default: 200 a minute)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of an earlier run, to repeat it")
    parser.add_argument("--queue-type", choices=("classic", "quorum"), default="classic")
    parser.add_argument("--cluster", action="store_true", help="a quorum queue on three nodes")
    parser.add_argument("--brief", action="store_true", help="what takes 40 s takes 6: for a run of a minute or two")
    parser.add_argument("--without", action="append", default=[], metavar="KIND", help="a kind of task to leave out")
    parser.add_argument(
        "--sync-before-kill", action="store_true", help="have the broker bring its queues to disk before it is killed"
    )
    parser.add_argument("--first", action="append", default=[], metavar="FAULT", help="to strike first; repeat it")
    parser.add_argument("--report", type=Path, help="a file to put the account into, between its two marks")
    parser.add_argument("--name", help="of those marks (default: cluster, or the type of the queue)")
    parser.add_argument("--story", type=Path, help="a file for everything that happened, in the order of time")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(f"chaos: {line}", flush=True)

    say(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="workq-soak-") as directory:
        run, told = soak(
            Path(directory),
            minutes=arguments.minutes,
            tasks=arguments.tasks or int(200 * arguments.minutes),
            seed=arguments.seed,
            queue_type=arguments.queue_type,
            cluster=arguments.cluster,
            pace=workload.BRIEF if arguments.brief else workload.FULL,
            without=tuple(arguments.without),
            syncs=arguments.sync_before_kill,
            first=tuple(arguments.first),
            say=say,
        )
    print(run)
    if not run.account.balances:
        print(report.findings(run.account))
    if arguments.story:
        arguments.story.write_text("\n".join(told) + "\n")
    if arguments.report:
        report.write(arguments.report, replace(run, name=arguments.name or run.name))
    return 0 if run.account.balances else 1


if __name__ == "__main__":
    sys.exit(main())
