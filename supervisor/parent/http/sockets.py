"""The health port: had early, so that its absence is an error at start, and cheap, so that no server is imported for
it."""

from __future__ import annotations

import errno
import socket
from typing import Any

from supervisor.settings import Address


def bind(address: Address, asked_for: bool, log: Any) -> socket.socket:
    """A listening socket. Raises OSError.

    A default that is taken (by another supervisor on this machine, say) is no reason not to work: any free port serves
    then, and the log says which. An address that somebody asked for is had, or is an error.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return _listen(family, (address.host, address.port), log, "")
    except OSError as error:
        if asked_for or error.errno != errno.EADDRINUSE:
            raise
    because = f"port {address.port}, the default, is taken; name one with --health HOST:PORT to have it stay"
    return _listen(family, (address.host, 0), log, because)


def _listen(family: socket.AddressFamily, where: tuple[str, int], log: Any, because: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(512)
    except OSError:
        sock.close()
        raise
    host, port = sock.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if because:
        log.warning("health.listening", url=url, because=because)
    else:
        log.info("health.listening", url=url)
    return sock
