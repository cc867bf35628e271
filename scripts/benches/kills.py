"""Work among random deaths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Final

from .contenders import Celery, Dramatiq, Supervisord, Workq, chosen
from .row import Options, Row
from .trials import Trial, attempt, figures, trials

KILL_EVERY: Final = 0.1
KILLS_TASKS: Final = 800
KILLS_TASK: Final = 0.05


def kills(options: Options) -> list[Row]:
    """800 tasks of 50 ms, 4 workers, and every 100 ms a SIGKILL to a worker chosen at random until all are done.

    Done is what has noted its end, by distinct number. Ideal is the same work shared by 4 without any death or cost.
    Everybody has his usual settings: our `--max-crashes 3` stays, for what was killed is run again within 100 ms, so
    that hardly a message meets a second kill, and none a third; supervisord has startsecs 1 and startretries 3.
    """
    total = KILLS_TASKS // 4 if options.quick else KILLS_TASKS
    tasks = [KILLS_TASK] * total
    ours = Workq()
    everybody = chosen(options, ours, Celery(), Dramatiq(), Supervisord())
    found = trials(everybody, options, lambda c, n: attempt(c, options, f"kills-{n}", tasks, 4, KILL_EVERY))
    return [kills_row(ours.name, found, total)]


def kills_row(ours: str, found: Mapping[str, list[Trial]], total: int) -> Row:
    """`found` by contender."""
    ideal = total * KILLS_TASK / 4
    ratios, words = figures(found, lambda trial: trial.seconds / ideal)
    for name, each in found.items():
        if name in ratios:
            deaths = median(trial.kills for trial in each)
            words[name] = f"{ratios[name]:.2f}x ideal ({ratios[name] * ideal:.1f} s, {deaths:.0f} kills)"
    ratio = ratios.get(ours, math.inf)
    return Row(
        what=f"{total} tasks of 50 ms, 4 workers, a SIGKILL of a random one every 100 ms",
        ours=words.pop(ours),
        target="1.25x ideal",
        reach="1.12x",
        met=ratio <= 1.25,
        reached=ratio <= 1.12,
        peers=words,
        better=tuple(name for name, each in ratios.items() if name != ours and each < ratio),
        data={
            name: [
                {
                    "seconds": None if trial.undone else trial.seconds,
                    "kills": trial.kills,
                    "undone": trial.undone,
                    "again": trial.again,
                }
                for trial in each
            ]
            for name, each in found.items()
        },
        note=f"ideal is {ideal:g} s; a killed task is done again from its beginning; everybody has his default "
        "settings (ours: --max-crashes 3; supervisord's: startsecs 1, startretries 3)",
    )
