"""One message segfaults whichever worker takes it: how many does it kill, and are the tasks beside it done?"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from .contenders import Celery, Contender, Dramatiq, RetryingCelery, Supervisord, Workq, chosen
from .notes import Notes, runs
from .progress import say
from .row import Options, Row

OTHERS: Final = 20
SECONDS: Final = 25.0
"""Long enough for three tries of Celery's, which waits between them for what it calls lost workers."""
WORKERS: Final = 2
DEADLY: Final = 0
"""Its number in the notes."""


@dataclass(frozen=True, slots=True)
class Toll:
    killed: int
    """How often the message was started: each start is a death."""
    done: int
    """Of the others."""
    alive: bool
    """The pool, at the end."""

    def __str__(self) -> str:
        pool = "" if self.alive else ", and the pool has exited"
        return f"{self.killed} workers killed{pool}; {self.done} of {OTHERS} others done"


def deadly(options: Options) -> list[Row]:
    """The deadly message is first in the queue, others behind it."""
    tolls = {
        each.name: toll(each, options)
        for each in chosen(options, Workq(), Dramatiq(), Celery(), RetryingCelery(), Supervisord())
    }
    ours, wanted = tolls["workq"], Toll(3, OTHERS, alive=True)
    return [
        Row(
            what=f"one message that segfaults its worker, {WORKERS} workers, after {SECONDS:g} s",
            ours=str(ours),
            target=str(wanted),
            met=ours == wanted,
            peers={name: str(each) for name, each in tolls.items() if name != "workq"},
            data={name: [each.killed, each.done, each.alive] for name, each in tolls.items()},
            note="Celery is measured twice: with task_reject_on_worker_lost, and with task_retry_on_worker_lost (since "
            "5.7) and max_retries=3, after which it acknowledges the message and keeps neither it nor a stack.",
        )
    ]


def toll(contender: Contender, options: Options) -> Toll:
    name = f"deadly-{contender.slug}"
    place = options.place / name
    bodies = [f"die {DEADLY}", *(f"0.001 {number}" for number in range(1, OTHERS + 1))]
    contender.publish(options.node_url, name, [body.encode() for body in bodies])
    say(f"{contender.name}: one message kills")
    env = {"BENCH_NOTES": str(place / "notes")}
    with (
        closing(Notes(place / "notes")) as notes,
        contender.running(options.node_url, name, WORKERS, place, env) as pool,
    ):
        # Not until something happens: what must be seen is that nothing more does.
        time.sleep(SECONDS)
        noted = notes.read()
        killed = sum(1 for note in noted if note.number == DEADLY and not note.has_ended)
        done = {run.number for run in runs(noted)} - {DEADLY}
        say("")
        return Toll(killed, len(done), pool.alive)
