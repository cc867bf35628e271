"""Which RabbitMQ is tested, and which its makers support. Pure; the one place for both.

Dates are those of https://endoflife.date/rabbitmq, read on 2026-03-20. A series that is not there was supported then.
The rule behind them (COMMUNITY_SUPPORT.md in rabbitmq/rabbitmq-server): only the newest series of the newest major
version gets community support.
"""

from __future__ import annotations

from typing import Final

Series = tuple[int, int]

TESTED: Final[tuple[Series, ...]] = ((3, 10), (4, 0), (4, 3))
"""All tests run on these: scripts/rabbitmq. The ones between them behave like a neighbour, as far as is known."""

SUPPORT_ENDED: Final[dict[Series, str]] = {
    (3, 10): "in 2022-09",
    (3, 11): "in 2023-06",
    (3, 12): "in 2024-02",
    (3, 13): "in 2024-09",
    (4, 0): "in 2025-04",
    (4, 1): "in 2026-01",
    (4, 2): "with the release of 4.3",
}

TABLE: Final = "https://endoflife.date/rabbitmq"


def dotted(series: Series) -> str:
    """`4.3`"""
    return f"{series[0]}.{series[1]}"


def tested() -> str:
    """`3.10, 4.0 and 4.3`"""
    *others, last = map(dotted, TESTED)
    return f"{', '.join(others)} and {last}"
