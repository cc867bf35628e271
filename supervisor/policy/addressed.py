"""Whether an HTTP request was meant for this host, by its `Host` header. Pure.

Against DNS rebinding: a page from `evil.example` may ask that name whatever it likes, also once it points at 127.0.0.1.
It cannot change the header, and an address in it needs no name server. So only names known to be ours count.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def is_ours(host: str, own_name: str, names: Iterable[str]) -> bool:
    """`host`: the header's value. A request without one, which no browser sends, is accepted."""
    name = _without_port(host.strip()).lower().removesuffix(".")
    if not name or _is_address(name):
        return True
    own = own_name.lower().removesuffix(".")
    # The own name is often known by its first label alone. Not any name with that label: anybody may have one.
    return name in {"localhost", own, own.partition(".")[0], *(each.lower().removesuffix(".") for each in names)}


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
