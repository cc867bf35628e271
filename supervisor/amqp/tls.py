"""TLS that verifies the certificate and the host name; there is no way to switch that off."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from supervisor.amqp.errors import EXHAUSTED, Unusable
from supervisor.endpoint import Endpoint


class Tls(NamedTuple):
    context: ssl.SSLContext
    server_name: str


def tls(endpoint: Endpoint) -> Tls:
    """Raises Unusable for a certificate file that is, and OSError when it is this process that cannot read it now: no
    descriptor is free, for instance."""
    cafile, certfile, keyfile = (endpoint.option(name) for name in ("cafile", "certfile", "keyfile"))
    with _usable(cafile):
        context = ssl.create_default_context(cafile=cafile)
    if certfile is not None:
        with _usable(certfile, keyfile):
            context.load_cert_chain(certfile, keyfile, password=_no_passphrase)
    return Tls(context, endpoint.option("server_name") or endpoint.host)


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
