"""Over TLS, and to a broker that is some milliseconds away.

The distance is made by a proxy, which delays each byte by half a round trip in each direction; not TCP's own handshake,
which a real network makes one round trip longer, for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from supervisor.commands.node import LocalNode, Port
from tests.certificates import Authority
from tests.proxy import Proxy

from .births import beside_births
from .contenders import BarePika, Workq
from .crowd import killed_at_once
from .measure import ms
from .rates import BARE, OURS, Rates, a_second, a_task, measure_rounds, ratio_row
from .row import Options, Row, at_most

ROUND_TRIP: Final = 0.010
CPU: Final = 0.75
CPU_REACH: Final = 0.6
PLAIN, PLAIN_REACH = 0.038, 0.027
TLS, TLS_REACH = 0.055, 0.040
HERD: Final = 16
HERD_AGAIN, HERD_REACH = 0.250, 0.150
BIRTHS: Final = 10


@dataclass(frozen=True, slots=True)
class Broker:
    """One node, and the ways to it."""

    url: str
    """The short way."""
    tls: str
    far: str
    """At a round trip of `ROUND_TRIP`."""
    far_tls: str


@contextmanager
def broker(place: Path) -> Iterator[Broker]:
    """Everything that it needs is made in `place`."""
    authority = Authority(place / "authority")
    server, port = authority.sign("localhost"), Port()
    conf = f"""
        listeners.ssl.1 = 127.0.0.1:{port.number}
        ssl_options.cacertfile = {authority.certificate}
        ssl_options.certfile = {server.certificate}
        ssl_options.keyfile = {server.key}
    """
    with ExitStack() as stack:
        node = stack.enter_context(LocalNode(place / "secured", conf=conf))
        plain, secured = (stack.enter_context(Proxy(each)) for each in (node.port, port.number))
        for proxy in (plain, secured):
            proxy.latency(ROUND_TRIP / 2)

        def amqps(number: int) -> str:
            return f"amqps://guest:guest@localhost:{number}/%2F?cafile={authority.certificate}"

        yield Broker(node.url, amqps(port.number), plain.url, amqps(secured.port))


def network(options: Options) -> list[Row]:
    """CPU of a task over TLS; a worker killed, and sixteen at once, at a round trip of 10 ms."""
    with broker(options.place) as there:
        near = replace(options, node_url=there.url)
        rounds = replace(near, rounds=1 if options.quick else max(2, options.rounds // 5))
        return [
            tls_row(rounds, there),
            _recovery(near, "a round trip of 10 ms", "far", there.far, PLAIN, PLAIN_REACH),
            _recovery(near, "TLS and a round trip of 10 ms", "far-tls", there.far_tls, TLS, TLS_REACH),
            _herd(rounds, there),
        ]


def tls_rates(options: Options, there: Broker) -> Rates:
    return measure_rounds(options, [BarePika(reach=there.tls), Workq(reach=there.tls)], seconds=2.0)


def tls_row(options: Options, there: Broker) -> Row:
    measured = tls_rates(options, there)
    return ratio_row(
        measured, "CPU per no-op task over TLS, 4 workers, all processes", a_task,
        (f"{CPU:g}x", CPU), (f"{CPU_REACH:g}x", CPU_REACH), its="bare pika over TLS",
        data={"rounds": measured.rounds},
        note=f"Tasks a second: {measured.ratio(OURS, BARE, a_second):.2f}x bare pika.",
    )  # fmt: skip


def _recovery(options: Options, where: str, name: str, reach: str, target: float, ambition: float) -> Row:
    ours, bare = beside_births(options, name, options.rounds, before=BIRTHS, reach=reach)
    typical = median(ours)
    return Row(
        what=f"SIGKILL to the next finished task at {where}, 1 worker, import of 0.5 s",
        ours=f"{ms(typical)}, worst of {len(ours)}: {ms(max(ours))}",
        target=f"median {ms(target)}",
        reach=ms(ambition),
        met=typical <= target,
        reached=typical <= ambition,
        peers={"a bare worker's fork, connection and first task": ms(median(bare))},
        data={"ours": ours, "bare": bare},
    )


def _herd(options: Options, there: Broker) -> Row:
    took = [
        killed_at_once(Workq(reach=there.far), there.url, options.place, f"herd-{turn}", HERD)
        for turn in range(options.rounds)
    ]
    typical = median(took)
    return Row(
        what=f"{HERD} workers killed at once at a round trip of 10 ms, until all consume again",
        ours=f"{ms(typical)}, worst of {len(took)}: {ms(max(took))}",
        **at_most(typical, HERD_AGAIN, HERD_REACH, ms),
        data={"seconds": took},
    )
