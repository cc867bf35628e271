"""Finds a running supervisor and talks to it, by its control socket or, read-only, its health port."""

from __future__ import annotations

import errno
import functools
import http.client
import json
import os
import pwd
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from supervisor.commands import codes, sources
from supervisor.commands.plain import plain
from supervisor.settings import OPTIONS, Address, SettingsError, Whereabouts, locate
from supervisor.settings.command_line import Command, declared, given
from supervisor.vocabulary import EXIT_CONFIG

PATIENCE: Final = 10.0
"""Seconds to wait for an answer."""
_WAYS: Final = {
    "control": "Control socket of the supervisor.",
    "health": "Health port of the supervisor.",
    "config": "TOML file of the supervisor.",
    "queue": "Queue of the supervisor; part of the default socket name.",
}
"""Options that say where it is."""
_UCRED: Final = struct.Struct("3i")

Finder = Callable[[], "Running"]
"""What a command looks for its supervisor with."""


class VerbError(click.ClickException):
    exit_code = codes.INCOMPLETE

    def show(self, file: Any = None) -> None:
        click.echo(f"workq: {self.message}", err=True)


class NoAnswer(VerbError):
    """No answer."""

    exit_code = codes.UNAVAILABLE


class Forbidden(VerbError):
    """The socket is another user's."""

    exit_code = codes.NO_PERMISSION


class Nowhere(VerbError):
    """Its settings cannot be read."""

    exit_code = EXIT_CONFIG


class Running:
    """One supervisor, at one address. Every call makes a new connection."""

    def __init__(self, address: str | Address) -> None:
        self.address = address
        """A control socket's path, or a health port."""

    @property
    def can_change(self) -> bool:
        return isinstance(self.address, str)

    def status(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The document at /status. Raises NoAnswer and Forbidden."""
        _, document = self._ask("GET", "/status", None, timeout)
        if not {"workers", "totals", "recent", "queue", "scale"} <= document.keys():
            raise NoAnswer(f"what answers at {self.address} is not workq-supervise, or another version")
        return document

    def wish(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask for a change; the answer has `ok` and `because`. Raises NoAnswer and Forbidden."""
        status, document = self._ask("POST", path, {"client": user()} | (body or {}), PATIENCE)
        return {"ok": status == 200, "because": "no reason was given", "said": []} | document

    def pid(self) -> int | None:
        """The supervisor's, from the kernel; None if not visible from here. Raises NoAnswer and Forbidden."""
        connection = self._connect(PATIENCE)
        try:
            assert connection.sock is not None
            ucred = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            return int(_UCRED.unpack(ucred)[0]) or None
        finally:
            connection.close()

    def end(self) -> http.client.HTTPConnection:
        """Ask for the document at /status when the supervisor has stopped, or after some seconds; `answer` reads it.
        Raises NoAnswer and Forbidden."""
        return self._request("GET", "/end", None, PATIENCE)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> tuple[int, dict[str, Any]]:
        return self.answer(self._request(method, path, body, timeout), timeout)

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float
    ) -> http.client.HTTPConnection:
        """The connection on which it is sent, and not answered yet."""
        connection = self._connect(timeout)
        try:
            payload = json.dumps(body) if body is not None else None
            connection.request(method, path, payload, {"Connection": "close"})
        except TimeoutError:
            connection.close()
            raise self._silent(timeout) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NoAnswer(f"the supervisor at {self.address} hung up: {error}") from None
        return connection

    def answer(self, connection: http.client.HTTPConnection, timeout: float) -> tuple[int, dict[str, Any]]:
        """The answer to the request on this connection, which it closes. Raises NoAnswer."""
        try:
            answer = connection.getresponse()
            document = json.loads(answer.read())
            if not isinstance(document, dict):
                raise TypeError
        except TimeoutError:
            raise self._silent(timeout) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"the supervisor at {self.address} hung up: {error}") from None
        except (TypeError, ValueError):
            raise NoAnswer(f"what answers at {self.address} is not workq-supervise") from None
        finally:
            connection.close()
        return answer.status, document

    def _silent(self, timeout: float) -> NoAnswer:
        who = f"the supervisor at {self.address}"
        return NoAnswer(
            f"{who} accepted the connection but did not answer within {timeout:g} s: is it stopped (SIGSTOP)?"
        )

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = (
            _Unix(self.address, timeout)
            if isinstance(self.address, str)
            else http.client.HTTPConnection(self.address.host, self.address.port, timeout=timeout)
        )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._unreached(error, timeout) from None
        return connection

    def _unreached(self, error: OSError, timeout: float) -> VerbError:
        match error:
            case PermissionError():
                return Forbidden(_whose(str(self.address)))
            case FileNotFoundError():
                return NoAnswer(f"there is no control socket {self.address}")
            case ConnectionRefusedError():
                killed = ": its supervisor was killed" if self.can_change else ""
                return NoAnswer(f"nobody listens at {self.address}{killed}")
            case TimeoutError():
                return NoAnswer(f"{self.address} does not answer within {timeout:g} s")
        return NoAnswer(f"{self.address}: {error.strerror or error}")


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BlockingIOError:
            # Its backlog is full: no accept for a long time (unix(7)).
            raise TimeoutError from None


def _whose(path: str) -> str:
    try:
        owner = pwd.getpwuid(os.lstat(path).st_uid).pw_name
    except (OSError, KeyError):
        owner = "the supervisor's user"
    who = "root" if owner == "root" else f"{owner} and root"
    return f"{path}: {os.strerror(errno.EACCES)}: only {who} may use this control socket (mode 0600)"


# -------------------------------------------------------------------------------------------------------- finding


def options(*, changing: bool, publishing: bool = False) -> Callable[[Command], Command]:
    """Adds the options that locate the supervisor; the command gets a `find`. `publishing`: and those of its broker;
    the command gets `sources` for them, and for the queue."""
    broker = ("url", "url_file", "queue_type") if publishing else ()
    helps = {name: words for name, words in _WAYS.items() if not (changing and name == "health")}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> Any:
            named = given({name: values.pop(name) for name in (*helps, "unit")})
            if publishing:
                shared = {name: named[name] for name in ("config", "queue", "unit") if name in named}
                said = {name: values.pop(name) for name in broker}
                values["sources"] = sources.Sources(("url", "queue", "queue_type"), shared | said)
            return command(*args, find=functools.partial(_find, named, changing=changing), **values)

        return declared({**helps, **{name: OPTIONS[name].help for name in broker}}, sources.unit(run))

    return decorate


def report(answer: dict[str, Any]) -> None:
    """Print the answer to a wish; exit with 1 if it was refused."""
    click.echo(plain(answer["because"]), err=not answer["ok"])
    if not answer["ok"]:
        sys.exit(codes.INCOMPLETE)


def user() -> str:
    """Who runs this command, for the supervisor's log; whoever became root by sudo(8), before that."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


@contextmanager
def interruptible(meanwhile: str) -> Iterator[None]:
    """Ctrl-C only ends the waiting, as `meanwhile` says."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"workq: not waiting any longer; {meanwhile}", err=True)
        sys.exit(codes.INTERRUPTED)


def _find(named: dict[str, str], *, changing: bool) -> Running:
    """The supervisor that the options locate. Raises NoAnswer, Forbidden and Nowhere."""
    if "control" in named and "health" in named:
        raise click.UsageError("--control and --health: give only one.")
    try:
        where = locate(named, os.environ)
    except SettingsError as error:
        raise Nowhere("; ".join(error.problems)) from None
    tried: list[VerbError] = []
    for running in _candidates(where, named, changing):
        try:
            document = running.status()
        except VerbError as trouble:
            tried.append(trouble)
            continue
        if "queue" in where.explicit and document["queue"]["name"] != where.queue:
            other = plain(str(document["queue"]["name"]))
            tried.append(NoAnswer(f"the supervisor at {running.address} consumes {other}, not {where.queue}"))
            continue
        return running
    raise _nobody(tried, changing)


def _candidates(where: Whereabouts, named: dict[str, str], changing: bool) -> list[Running]:
    if "health" in named and where.health is not None:
        return [Running(where.health)]
    candidates = [Running(where.control)] if where.control is not None else []
    if not changing and "control" not in named and where.health is not None:
        candidates.append(Running(where.health))
    return candidates


def _nobody(tried: list[VerbError], changing: bool) -> VerbError:
    hint = "" if changing else " or --health HOST:PORT"
    if not tried:
        said = "no control socket configured (neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set)"
    else:
        said = "; ".join(trouble.message for trouble in tried)
    others = [plain(path) for path in sockets()[:5]]
    found = f"; sockets found: {', '.join(others)}" if others else ""
    message = f"{said}; use --control PATH{hint}{found}"
    forbidden = [trouble for trouble in tried if isinstance(trouble, Forbidden)]
    return Forbidden(forbidden[0].message) if forbidden else NoAnswer(message)


def sockets() -> list[str]:
    """Control sockets of systemd units and of this user, other users' included."""
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    found = [*sorted(Path("/run").glob("*/workq.sock")), *sorted(Path("/run/workq").glob("*/workq.sock"))]
    found += sorted(Path(user).glob("workq-*.sock") if user else [])
    return [str(path) for path in found]
