"""The ratios that continuous integration holds: ourselves beside bare pika, in one run, with generous bounds.

They are there to notice when something has become half as fast, not to measure: a shared machine with two processors,
on which something else runs, must pass. So every bound is a ratio of two figures that were taken in turns in the same
minute. Needs no other environment than ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Final

from .births import beside_births
from .contenders import BarePika, Workq
from .footprint import mib, pool_pss
from .measure import ms
from .network import broker, tls_rates
from .rates import BARE, INFO, OURS, Rates, a_second, a_task, measure_rounds
from .row import Options, Row

CPU: Final = 1.6
PACE: Final = 0.6
LOGGED: Final = 2.2
PARENT: Final = 0.05
"""CPU that the parent may need for a task, beyond what it needs at rest, by the CPU of bare pika for one."""
RECOVERY: Final = 5.0
"""Times a fork, a connection and a task, that a recovery may take: 100 ms where those take 20 ms."""
FAR: Final = 1.0
"""The same at a round trip of 10 ms, by such a worker there, which waits for seven answers one after the other."""
TLS: Final = 1.2
"""CPU a task over TLS, by bare pika's."""
MEMORY: Final = 1.0
"""The pool's, by that of as many bare pika processes; sharing pages is what makes it less."""
SECONDS: Final = 2.0
KILLS: Final = 24
BIRTHS: Final = 12
"""Bare workers that are born before the kills, and as many after them."""
FAR_BIRTHS: Final = 10
"""The same at a round trip of 10 ms, before the kills only."""


def guard(options: Options) -> list[Row]:
    """CPU and pace beside bare pika, the parent's share, the price of a log line, the recovery, the memory."""
    everybody = [BarePika(), Workq(), Workq("info")]
    measured = measure_rounds(options, everybody, seconds=SECONDS, rest=SECONDS)
    memory = {each.name: pool_pss(each, options, f"guard-pss-{each.slug}", 4) for each in (BarePika(), Workq())}
    near = recovery_row(*beside_births(options, "near", KILLS, before=BIRTHS, after=BIRTHS))
    with broker(options.place / "network") as there:
        away = replace(options, node_url=there.url)
        kills, births = beside_births(away, "far", KILLS, before=FAR_BIRTHS, reach=there.far)
        far = recovery_row(kills, births, FAR, " at a round trip of 10 ms")
        over_tls = tls_rates(away, there).ratio(OURS, BARE, a_task)
    return [*rate_rows(measured), near, memory_row(memory[OURS], memory[BARE]), tls_row(over_tls), far]


def rate_rows(measured: Rates) -> list[Row]:
    cpu, pace = measured.ratio(OURS, BARE, a_task), measured.ratio(OURS, BARE, a_second)
    logged = measured.ratio(INFO, BARE, a_task)
    parent = measured.median(OURS, lambda rate: rate.parent_a_task) / measured.median(BARE, a_task)
    return [
        _row("CPU per no-op task, 4 workers", f"{cpu:.2f}x bare pika", f"at most {CPU:g}x", cpu <= CPU),
        _row("no-op tasks a second, 4 workers", f"{pace:.2f}x bare pika", f"at least {PACE:g}x", pace >= PACE),
        _row(
            "the same with a log line each", f"{logged:.2f}x bare pika's CPU", f"at most {LOGGED:g}x", logged <= LOGGED
        ),
        _row("the parent's CPU for a task", f"{parent:.1%} of bare pika's", f"at most {PARENT:.0%}", parent <= PARENT),
    ]


def recovery_row(recoveries: Sequence[float], births: Sequence[float], most: float = RECOVERY, where: str = "") -> Row:
    """Both in seconds."""
    ours, bare = median(recoveries), median(births)
    return _row(
        f"SIGKILL to the next finished task{where}, 1 worker, median of {len(recoveries)}",
        f"{ms(ours)}, {ours / bare:.2f}x the fork, connection and first task of a bare worker ({ms(bare)})",
        f"at most {most:g}x",
        ours <= most * bare,
    )


def tls_row(ratio: float) -> Row:
    return _row("CPU per no-op task over TLS, 4 workers", f"{ratio:.2f}x bare pika", f"at most {TLS:g}x", ratio <= TLS)


def memory_row(ours: float, bare: float) -> Row:
    """Both in bytes."""
    ratio = ours / bare
    return _row(
        "memory (PSS), the supervisor and 4 workers",
        f"{mib(ours)}, {ratio:.2f}x four bare pika workers ({mib(bare)})",
        f"at most {MEMORY:g}x",
        ratio <= MEMORY,
    )


def _row(what: str, ours: str, bound: str, met: bool) -> Row:
    return Row(what=what, ours=ours, target=bound, met=met)
