"""What a PromQL expression refers to: enough of its grammar to find the selectors and the labels it groups by.

Prometheus parses, and says whether it can; but 2.42 does not tell what it found (`/api/v1/parse_query` came with 3.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*'|\[[^\]]*\]|=~|!~|!=|[a-zA-Z_:][\w:]*|\d[\w.]*|\S")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*")
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {
    "and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "sum", "min", "max", "avg", "group", "stddev",
    "stdvar", "count", "count_values", "bottomk", "topk", "quantile", "start", "end",
}  # fmt: skip


@dataclass
class Refers:
    """`selectors`: metric, and matchers (label, operator, value). `labels`: those that results are grouped by, or
    matched on."""

    selectors: list[tuple[str, list[tuple[str, str, str]]]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


def refers(expr: str) -> Refers:
    """What this expression, which must be a valid one, refers to."""
    tokens = [*_TOKEN.findall(expr), ""]
    found = Refers()
    at = 0
    while tokens[at]:
        token, follows = tokens[at], tokens[at + 1]
        at += 1
        if token in _LISTS and follows == "(":
            end = tokens.index(")", at)
            found.labels.update(name for name in tokens[at:end] if _NAME.fullmatch(name))
            at = end
        elif not _NAME.fullmatch(token) or token.lower() in _WORDS | _LISTS or follows == "(":
            continue
        else:
            matchers: list[tuple[str, str, str]] = []
            if follows == "{":
                end = tokens.index("}", at)
                parts = [part for part in tokens[at + 1 : end] if part != ","]
                triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
                matchers = [(label, operator, value[1:-1]) for label, operator, value in triples]
                at = end
            found.selectors.append((token, matchers))
    return found
