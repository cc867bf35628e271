"""A quorum queue on the newest RabbitMQ, which takes more of the broker for each task than a classic one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from supervisor.commands.node import LocalNode, find_installation

from .contenders import BarePika, CClient, Workq, output
from .rates import BARE, Rates, a_second, a_task, measure_rounds, ratio_row
from .row import Options, Row

ROOT: Final = Path(__file__).resolve().parents[2]
TARGET, REACH = 0.8, 0.95
CPU: Final = 0.75


def newest(place: Path) -> LocalNode:
    """A node whose queues are quorum queues, however they are declared: each contender does it in its own way."""
    home = output(str(ROOT / "scripts" / "rabbitmq"), "newest").split()[-1]
    return LocalNode(place / "newest", conf="default_queue_type = quorum", installation=find_installation(home))


def modern(options: Options) -> list[Row]:
    """No-op tasks on a quorum queue of the newest RabbitMQ: how many a second, and what one costs."""
    with newest(options.place) as node:
        c = CClient()
        measured = measure_rounds(replace(options, node_url=node.url), [BarePika(), c, Workq()], seconds=2.0)
        return rows(measured, c.name, node.version)


def rows(measured: Rates, c: str, version: str) -> list[Row]:
    where = f"a quorum queue, RabbitMQ {version}, 4 workers"
    data = {"rounds": measured.rounds}
    return [
        ratio_row(
            measured, f"no-op tasks a second on {where}", a_second, (f"{TARGET:g}x", TARGET), (f"{REACH:g}x", REACH),
            other=c, its="the C client", words="{:,.0f}".format, peers=(BARE, c), data=data,
        ),
        ratio_row(
            measured, f"CPU per no-op task on {where}, all processes", a_task, (f"{CPU:g}x", CPU),
            peers=(BARE, c), data=data,
        ),
    ]  # fmt: skip
