"""`workq ui`: serve the page on loopback, and print the URL that opens it."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from supervisor.commands import codes, sources
from supervisor.commands.running import Running
from supervisor.commands.sources import Sources
from supervisor.settings import parsers
from supervisor.vocabulary import EXIT_CONFIG

if TYPE_CHECKING:
    from supervisor.settings import Address

PORT: Final = 9292


@click.command(short_help="Serve the live page with buttons.")
@sources.options("url")
@click.option(
    "--control", "controls", multiple=True, metavar="PATH", help="Control socket of a supervisor. Repeatable."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="HOST:PORT",
    help="Health port of a supervisor, read-only. Repeatable.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help=f"Port on loopback; 0: a free one. [default: {PORT}]"
)
def ui(sources: Sources, controls: tuple[str, ...], targets: tuple[str, ...], port: int | None) -> None:
    """Serve the live page with buttons: scale, reload, drain, requeue, edit or drop dead letters.

    Shows the supervisors whose control sockets are given, else all that this user may use, and those of --target. The
    page is on 127.0.0.1; the printed URL works once, and opens it for that browser until this command ends.

    Dead letters are handled only for supervisors at the broker of --url. Exit code: 0 ended, 69 the port is taken,
    78 invalid settings, or the extra `ui` is not installed.
    """
    endpoints = list(sources.read()["url"])
    if not controls and (named := sources.control()) is not None:
        controls = (named,)
    watched = [Running(_address(target)) for target in targets]
    try:
        import uvicorn

        from supervisor.commands.ui.fleet import Fleet, usable
        from supervisor.commands.ui.guard import Keys
        from supervisor.commands.ui.site import Site
    except ImportError as error:
        from supervisor import extras

        click.echo(f"workq: the page needs Starlette: {extras.line('ui')} ({error})", err=True)
        sys.exit(EXIT_CONFIG)
    sock = _listen(port)
    keys = Keys(sock.getsockname()[1])
    fleet = Fleet([Running(str(Path(path).absolute())) for path in controls], watched, usable)
    click.echo(f"workq ui: {keys.url}")
    click.echo("it works once, for one browser on this machine; Ctrl-C ends the page", err=True)
    config = uvicorn.Config(
        Site(fleet, endpoints).app(keys),
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        log_level="warning",
        access_log=False,  # the URL's path is a secret
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn ends on them, and then raises them again
    uvicorn.Server(config).run(sockets=[sock])


def _address(target: str) -> Address:
    try:
        return parsers.address(target)
    except ValueError as error:
        raise click.UsageError(f"--target: expected {error}.") from None


def _listen(port: int | None) -> socket.socket:
    """On the port that was asked for; else on the usual one, or a free one if that is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", PORT if port is None else port))
    except OSError as error:
        if port is not None or error.errno != errno.EADDRINUSE:
            click.echo(f"workq: cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another --port", err=True)
            sys.exit(codes.UNAVAILABLE)
        sock.bind(("127.0.0.1", 0))
    sock.listen()  # the URL is good as soon as it is printed
    return sock
