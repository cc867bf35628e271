"""TLS that verifies the certificate and the host name; there is no way to switch that off."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from supervisor.amqp.errors import EXHAUSTED, Unusable
from supervisor.endpoint import Endpoint


class Layer:
    """Encrypts and decrypts. Raises ssl.SSLError."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._came, self._goes, server_hostname=server_name)

    def feed(self, read: bytes) -> None:
        if read:
            self._came.write(read)
        else:
            self._came.write_eof()

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is done."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self) -> bytes:
        """Decrypted data; empty if no whole record has arrived. Raises EOFError."""
        try:
            return self._object.read(_READ)
        except ssl.SSLWantReadError:
            return b""
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            raise EOFError from None

    def encrypt(self, data: bytes) -> bytes:
        self._object.write(data)
        return self._goes.read()

    def encrypted(self) -> bytes:
        """TLS's own messages to the peer."""
        return self._goes.read()


class Tls(NamedTuple):
    context: ssl.SSLContext
    server_name: str

    def layer(self) -> Layer:
        return Layer(self.context, self.server_name)


_READ: Final = 64 * 1024
"""Bytes of decrypted data to take at a time."""
Files = tuple[str | None, ...]
"""The paths of `cafile`, `certfile` and `keyfile`."""
_prepared: Final[dict[object, ssl.SSLContext]] = {}


def prepare(endpoints: Iterable[Endpoint]) -> None:
    """Load the certificates for all workers before they are forked: the system's authorities take 30 ms. What cannot be
    used is reported by `tls`."""
    for endpoint in endpoints:
        if endpoint.tls:
            files = _files(endpoint)
            with suppress(OSError, Unusable):
                state = _state(files)  # first: what is replaced meanwhile is loaded again
                _prepared[state] = _context(files)


def tls(endpoint: Endpoint) -> Tls:
    """Raises Unusable for a certificate file that is, and OSError when it is this process that cannot read it now: no
    descriptor is free, for instance."""
    files = _files(endpoint)
    context = None
    if _prepared:
        with suppress(OSError):
            context = _prepared.get(_state(files))
    return Tls(context or _context(files), endpoint.option("server_name") or endpoint.host)


def _files(endpoint: Endpoint) -> Files:
    return tuple(endpoint.option(name) for name in ("cafile", "certfile", "keyfile"))


def _state(files: Files) -> object:
    """Equal as long as no file has been replaced or written to. Raises OSError."""
    defaults = ssl.get_default_verify_paths()
    paths = files if files[0] else (*files, defaults.cafile, defaults.capath)
    return tuple(path and (path, (at := Path(path).stat()).st_ino, at.st_mtime_ns, at.st_size) for path in paths)


def _context(files: Files) -> ssl.SSLContext:
    cafile, certfile, keyfile = files
    with _usable(cafile):
        context = ssl.create_default_context(cafile=cafile)
    if certfile is not None:
        with _usable(certfile, keyfile):
            context.load_cert_chain(certfile, keyfile, password=_no_passphrase)
    return context


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
