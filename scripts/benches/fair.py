"""Whether tasks are shared out fairly."""

from __future__ import annotations

from .contenders import BarePika, Celery, Dramatiq, Supervisord, Workq, chosen
from .row import Options, Row
from .trials import Trial, attempt, figures, share_row, trials


def fair(options: Options) -> list[Row]:
    """Two workers; odd tasks take 100 ms, even ones 1 ms. Which part of the time is each of them in a task?

    All are published before the first begins. Counted from then until the last one begins: after that there is nothing
    left to share out. Dispatched in turns, as RabbitMQ does without a limit of prefetch, one worker would get all the
    long ones and the other would be idle nearly always.
    """
    tasks = [0.1 if number % 2 else 0.001 for number in range(1, 1 + (60 if options.quick else 200))]
    ours = Workq()
    everybody = chosen(options, ours, BarePika(), Dramatiq(), Celery(), Supervisord())
    found = trials(everybody, options, lambda c, n: attempt(c, options, f"fair-{n}", tasks, 2))
    shares, words = figures(found, lambda trial: least_busy(trial, 2))
    what = "odd tasks 100 ms, even ones 1 ms, 2 workers: time in a task, of the less busy one"
    data = {name: [least_busy(trial, 2) for trial in each] for name, each in found.items()}
    return [share_row(what, ours.name, shares, words, data=data)]


def least_busy(trial: Trial, workers: int) -> float:
    """Of the worker that was less in a task than the others: the part of the time from the first begin to the last."""
    since, until = trial.begun[0].at, trial.begun[-1].at
    busy: dict[int, float] = {}
    for run in trial.runs:
        busy[run.pid] = busy.get(run.pid, 0.0) + max(0.0, min(run.ended, until) - max(run.began, since))
    return min(busy.values()) / (until - since) if len(busy) == workers else 0.0
