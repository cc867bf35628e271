"""What a connection to a broker is made with: login, TLS, timeouts, what it says of itself."""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pika

from supervisor.amqp.errors import EXHAUSTED, Unusable
from supervisor.endpoint import Endpoint
from supervisor.version import __version__

KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""The kernel's answer to a peer that vanished while heartbeats are not being served: socket options, in seconds."""


def parameters(endpoint: Endpoint, *, heartbeat: float, name: str, timeout: float = 15.0) -> pika.ConnectionParameters:
    """What pika needs to connect to one broker node, once.

    `heartbeat` in seconds, rounded up (AMQP knows whole ones; 0 is off). `name` is the connection's name in
    `rabbitmqctl list_connections` and the management UI. `timeout` in seconds bounds TCP, TLS and AMQP handshake
    together; looking up a host name is bounded by the resolver only (resolv.conf(5)), so bound the wait as well.
    There is one attempt: trying again is the caller's business. Raises Unusable for a certificate file that is, and
    OSError when it is this process that cannot read it now: no descriptor is free, for instance.
    """
    options: Any = tls(endpoint) if endpoint.tls else None
    return pika.ConnectionParameters(
        host=endpoint.host,
        port=endpoint.port,
        virtual_host=endpoint.vhost,
        credentials=pika.PlainCredentials(endpoint.user, endpoint.password),
        heartbeat=math.ceil(heartbeat),
        ssl_options=options,
        client_properties=client_properties(name),
        socket_timeout=min(10.0, timeout),
        stack_timeout=timeout,
        connection_attempts=1,
        retry_delay=0,
        # A broker with an alarm keeps the connection: a wait with a deadline of its own is the caller's business.
        blocked_connection_timeout=None,
        tcp_options=KEEPALIVE,
    )


def client_properties(name: str) -> dict[str, Any]:
    """What a connection says of itself."""
    return {"connection_name": name, "product": "workq-supervise", "version": __version__}


def tls(endpoint: Endpoint) -> pika.SSLOptions:
    """TLS that verifies the certificate and the host name; there is no way to switch that off."""
    cafile, certfile, keyfile = (endpoint.option(name) for name in ("cafile", "certfile", "keyfile"))
    with _usable(cafile):
        context = ssl.create_default_context(cafile=cafile)
    if certfile is not None:
        with _usable(certfile, keyfile):
            context.load_cert_chain(certfile, keyfile, password=_no_passphrase)
    return pika.SSLOptions(context, endpoint.option("server_name") or endpoint.host)


@contextmanager
def _usable(*paths: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        what = " or ".join(path for path in paths if path) or "of the system's authorities"
        raise Unusable(f"certificate file {what} cannot be used: {error.strerror or error}") from error


def _no_passphrase() -> str:
    # Without this OpenSSL asks for it on the terminal, and waits.
    raise Unusable("the private key is encrypted, and there is no way to give a passphrase: decrypt the key file")
