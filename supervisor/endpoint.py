"""One AMQP URL, parsed: where the broker is, and the login.

Parsed here because pika and urllib quote parts of the password when they refuse a URL: in `amqp://user:secret`, without
a host, `secret` is "not a valid port". Here every refusal is a fixed sentence that quotes nothing.
"""

from __future__ import annotations

import re
from dataclasses import asdict, field
from ipaddress import IPv6Address
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from supervisor.values import dataclass

_URL: Final = re.compile(r"(?P<scheme>amqps?)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?", re.I)
_AUTHORITY: Final = re.compile(r"(?:(?P<login>.*)@)?(?P<host>\[[^\[\]@]*\]|[^:@\[\]]*)(?P<port>:[^:@]*)?")
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_ESCAPE_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f]")

_QUERY: Final = {
    "cafile": "cafile",
    "certfile": "certfile",
    "keyfile": "keyfile",
    "server_name": "server_name",
    # RabbitMQ's own names for two of them (https://www.rabbitmq.com/docs/uri-query-parameters).
    "cacertfile": "cafile",
    "server_name_indication": "server_name",
}
_ENCODE: Final = "in user and password write @ as %40, / as %2F, : as %3A, ? as %3F, # as %23 and % as %25"
_VHOST_BYTES: Final = 255
"""Connection.Open carries the virtual host as a short string (AMQP 0-9-1, 4.2.5.3)."""


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """One broker node. Its text and its repr never show the password; `to_wire` does."""

    host: str = "127.0.0.1"
    """A name or an address; IPv6 without brackets."""
    port: int = 5672
    vhost: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    query: tuple[tuple[str, str], ...] = ()
    """After the `?`, with `amqps` only: `cafile`, `certfile`, `keyfile` (paths of PEM files), `server_name`."""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `amqp[s]://[USER:PASSWORD@]HOST[:PORT][/VHOST][?cafile=...]`. No path, `/`, `/%2F` and (as Celery writes
        it) `//` all mean the virtual host `/`. Raises ValueError, which quotes nothing."""
        url = url.strip()
        if not url:
            raise ValueError("the URL is empty")
        if _UNPRINTABLE.search(url):
            raise ValueError("the URL has a space or a control character in it; write a space as %20")
        match = _URL.fullmatch(url)
        if match is None:
            if "#" in url:
                raise ValueError(f"the URL has a # in it, which nothing in it can mean; {_ENCODE}")
            raise ValueError("the URL does not begin with amqp:// or amqps://")
        path, query = match["path"] or "", match["query"] or ""
        if "@" in path or "@" in query:
            # Either a password with a raw / or ?, or a name with a raw @: a guess might show half a password.
            raise ValueError(f"the URL has an @ after the host; {_ENCODE}")
        tls = match["scheme"].lower() == "amqps"
        user, password, host, port = _authority(match["authority"], 5671 if tls else 5672)
        return cls(host, port, _vhost(path), user, password, tls, _options(query, tls))

    def option(self, name: str) -> str | None:
        """One of `query`, or None."""
        return dict(self.query).get(name)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "amqps" if self.tls else "amqp"
        return f"{scheme}://{quote(self.user, safe='')}:***@{host}:{self.port}/{quote(self.vhost, safe='')}"

    def __repr__(self) -> str:
        return f"<Endpoint {self}>"

    def to_wire(self) -> dict[str, Any]:
        """As JSON, password included: for a private socket only."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Endpoint:
        """The inverse of `to_wire`."""
        return cls(**{**wire, "query": tuple((name, value) for name, value in wire["query"])})


def _authority(text: str, default_port: int) -> tuple[str, str, str, int]:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError(
            f"what follows the // is not [USER:PASSWORD@]HOST[:PORT], with an IPv6 host in brackets; {_ENCODE}"
        )
    user, password = _login(match["login"])
    return user, password, _host(match["host"]), _port(match["port"], default_port)


def _login(text: str | None) -> tuple[str, str]:
    if text is None:
        return "guest", "guest"
    user, colon, password = text.partition(":")
    if not user:
        raise ValueError("the URL has no user before the : or @")
    if not colon:
        raise ValueError("the URL has a user and no password; write USER:PASSWORD@HOST")
    user, password = _decoded(user), _decoded(password)
    if "\0" in user or "\0" in password:
        raise ValueError("user or password has a NUL in it, which SASL PLAIN uses to separate them (RFC 4616)")
    return user, password


def _host(text: str) -> str:
    # RabbitMQ's URI specification allows an empty host. With us it is most often an unset variable in somebody's
    # template, and a silent connection to localhost is the worst answer to that.
    if not text:
        raise ValueError("the URL has no host")
    if text.startswith("["):
        address = _decoded(text[1:-1])
        if not _is_ipv6(address):
            raise ValueError("what stands in the brackets is not an IPv6 address")
        return address
    if not _HOSTNAME.fullmatch(text):
        raise ValueError(f"the host has a character that no host name has; {_ENCODE}")
    return text


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _port(text: str | None, default: int) -> int:
    digits = (text or "").removeprefix(":")
    if not digits:
        return default
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ValueError(f"the port is not a number from 1 to 65535 (or @HOST is missing); {_ENCODE}")
    return int(digits)


def _vhost(path: str) -> str:
    name = path.removeprefix("/")
    if name in ("", "/"):
        return "/"
    if "/" in name:
        raise ValueError("the virtual host has a / in it; write it as %2F")
    vhost = _decoded(name)
    if len(vhost.encode()) > _VHOST_BYTES:
        raise ValueError(f"the virtual host is longer than {_VHOST_BYTES} bytes")
    return vhost


def _options(query: str, tls: bool) -> tuple[tuple[str, str], ...]:
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        known = _QUERY.get(name)
        if known is None:
            raise ValueError(
                "after the ? come only cafile, certfile, keyfile and server_name; certificates are always verified, "
                "and the heartbeat is --heartbeat"
            )
        if known in options:
            raise ValueError(f"{known} is given twice")
        options[known] = _decoded(value)
        if not options[known]:
            raise ValueError(f"{known} is empty")
    if options and not tls:
        raise ValueError("options after the ? are for TLS, and the URL begins with amqp:// instead of amqps://")
    if "keyfile" in options and "certfile" not in options:
        raise ValueError("keyfile needs certfile")
    return tuple(sorted(options.items()))


def _decoded(text: str) -> str:
    """Percent-decoded, strictly: a stray % would mean a password other than the one meant."""
    if _ESCAPE_BROKEN.search(text):
        raise ValueError("the URL has a % that is not followed by two hexadecimal digits; write % as %25")
    try:
        return unquote_to_bytes(text).decode()
    except ValueError:
        # Raised outside: the UnicodeError, which has the text, would be the __context__.
        pass
    raise ValueError("the URL is not UTF-8 after percent-decoding")
