"""The health port and the control socket, bound early so that a failure is a startup error; imports no server."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from supervisor.clock import now
from supervisor.parent import descriptors
from supervisor.settings import SOCKET_PATH_MOST, Address
from supervisor.values import dataclass

LOCK_PATIENCE: Final = 2.0
"""Seconds to wait for another supervisor that binds the same socket."""
_LISTENS_WITHIN: Final = 0.2
"""Seconds."""
_UCRED: Final = struct.Struct("3i")
"""pid, uid, gid (SO_PEERCRED, unix(7))."""


# --------------------------------------------------------------------------------------------------- the health port


def health(address: Address, asked_for: bool, log: Any) -> socket.socket:
    """If the default port is taken, a free one. Raises OSError for an address that was asked for."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return _listen(family, (address.host, address.port), log, "")
    except OSError as error:
        if asked_for or error.errno != errno.EADDRINUSE:
            raise
    because = f"the default port {address.port} is taken; set a fixed one with --health HOST:PORT"
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


# ------------------------------------------------------------------------------------------------ the control socket


def peer(client: Any) -> str:
    """The user of the process at the other end of a connection to the control socket, for the log."""
    try:
        uid = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    except OSError:
        return "an unknown user"
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and its path."""

    socket: socket.socket
    path: str
    inode: tuple[int, int]
    """Device and inode number, to recognise it."""

    def remove(self) -> None:
        """Unlink the path, unless it is another process's by now. The socket itself ends with the process."""
        try:
            if _inode(self.path) == self.inode:
                Path(self.path).unlink()
        except OSError:
            pass


def control(path: str, asked_for: bool, log: Any) -> Listener | None:
    """Listen at this path, with mode 0600. If the default is another supervisor's, listen at one with our pid; None: no
    socket is possible. Raises OSError for a path that was asked for."""
    try:
        listener = _bind_control(path)
        log.info("control.listening", path=path)
        return listener
    except OSError as error:
        if asked_for:
            raise
        refused = error
    if refused.errno == errno.EADDRINUSE:
        own = path.removesuffix(".sock") + f"-{os.getpid()}.sock"
        try:
            listener = _bind_control(own)
            because = f"the default {path}: {refused.strerror}; set a fixed one with --control PATH"
            log.warning("control.listening", path=own, because=because)
            return listener
        except OSError as error:
            refused = error
    because = f"the default {path} cannot be used: {refused.strerror}; set another with --control PATH, or off"
    log.warning("control.off", because=because)
    return None


def _bind_control(path: str) -> Listener:
    if len(os.fsencode(path)) > SOCKET_PATH_MOST:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than the {SOCKET_PATH_MOST} bytes of a socket's")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # umask instead of chmod(2) afterwards: the mode is never wider than 0600. No other thread runs yet that could
    # create a file meanwhile.
    mask = os.umask(0o177)
    try:
        with _lock(path) as is_locked:
            try:
                sock.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_dead(path, is_locked)
                sock.bind(path)
            sock.listen(64)
        return Listener(sock, path, _inode(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)


@contextmanager
def _lock(path: str) -> Iterator[bool]:
    """Keep other supervisors out while this one finds the socket dead, removes it and listens: else two that start
    together may each remove the other's. Yields whether it has the lock. The lock is a file that only our own user can
    open: anybody who can read a directory could hold a lock on that for ever."""
    name = f"{path}.lock"
    # Where nobody like us can make a file, waiting does not help, and binding will say why: a read-only container.
    until = now() + (LOCK_PATIENCE if os.access(Path(path).parent, os.W_OK) else 0)
    while (fd := _try_lock(name)) is None and now() < until:
        time.sleep(0.02)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            try:
                Path(name).unlink()
            except OSError:
                pass
            descriptors.close(fd)


def _try_lock(name: str) -> int | None:
    """A descriptor that holds the lock; None if another process does, or the file is another user's."""
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(fd)
        # Its former holder may have removed it while we waited: then others lock another file.
        if found.st_uid == os.geteuid() and (found.st_dev, found.st_ino) == _inode(name):
            return fd
    except OSError:
        pass
    descriptors.close(fd)
    return None


def _remove_dead(path: str, is_locked: bool) -> None:
    """Remove a socket whose owner died, else raise OSError. Between bind(2) and listen(2) a socket looks dead too."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, "something that is not a socket is there")
    dead = _inode(path)
    owner = _owner(path)
    if owner is None and not is_locked:
        time.sleep(_LISTENS_WITHIN)
        owner = _owner(path)
    if owner is not None:
        raise OSError(errno.EADDRINUSE, f"{owner} listens there")
    if _inode(path) != dead:
        raise OSError(errno.EADDRINUSE, "another supervisor has just taken it")
    Path(path).unlink()


def _owner(path: str) -> str | None:
    """The process that listens at this socket; None: none. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
            pid = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
            return f"another supervisor (pid {pid})"
        except ConnectionRefusedError:
            return None
        except BlockingIOError:
            return "another supervisor"


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
