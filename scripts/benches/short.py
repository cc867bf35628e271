"""How near to the ideal short tasks come."""

from __future__ import annotations

import time

from supervisor.clock import now

from .contenders import BarePika, CClient, Celery, Dramatiq, Supervisord, Workq, chosen
from .measure import ms
from .row import Options, Row
from .trials import Trial, attempt, figures, share_row, trials


def short(options: Options) -> list[Row]:
    """Tasks of 10 ms, 4 workers: which part of the time goes into the tasks?"""
    total, workers, task = (500 if options.quick else 2000), 4, 0.010
    tasks = [task] * total
    ours = Workq()
    everybody = chosen(options, ours, BarePika(), Dramatiq(), Celery(), Supervisord(), CClient())
    found = trials(everybody, options, lambda c, n: attempt(c, options, f"short-{n}", tasks, workers))
    ideal = total * task / workers
    # Against what the tasks themselves take: a sleep of 10 ms takes longer, and whoever calls it cannot help that.
    shares, words = figures(found, lambda trial: time_in_tasks(trial) / (workers * trial.seconds))
    nominal, _ = figures(found, lambda trial: ideal / trial.seconds)
    pauses, _ = figures(found, between)
    row = share_row(
        "tasks of 10 ms, 4 workers: time in tasks, of all their time",
        ours.name,
        shares,
        words,
        behind=("C client", 0.025, 0.015),
        data={name: [trial.seconds for trial in each] for name, each in found.items()}
        | {"ideal": ideal, "between": pauses},
        note=f"{total} tasks, each a sleep of 10 ms, which takes {ms(sleeps(task))} here; ours against the "
        f"{ideal:g} s that exact sleeps would take: {nominal.get(ours.name, 0.0):.1%}; from the end of a task to "
        "the worker's next, the broker's round trip included: "
        + ", ".join(f"{name} {ms(pause)}" for name, pause in pauses.items()),
    )
    return [row]


def time_in_tasks(trial: Trial) -> float:
    """Seconds of all workers together."""
    return sum(run.ended - run.began for run in trial.runs)


def between(trial: Trial) -> float:
    """Seconds from the end of a task to the begin of the same worker's next, on average."""
    latest: dict[int, float] = {}
    found = []
    for run in sorted(trial.runs, key=lambda run: run.began):
        if run.pid in latest:
            found.append(run.began - latest[run.pid])
        latest[run.pid] = run.ended
    return sum(found) / len(found)


def sleeps(seconds: float) -> float:
    """How long it takes, really: timers have a slack (prctl(2), PR_SET_TIMERSLACK), and so has the interpreter."""
    began = now()
    for _ in range(20):
        time.sleep(seconds)
    return (now() - began) / 20
