"""`workq broker run`: a private RabbitMQ node for development, from the installed package."""

from __future__ import annotations

import contextlib
import shlex
import signal
import tempfile
from pathlib import Path

import click

from supervisor.commands.node import LocalNode, NodeError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.group()
def broker() -> None:
    """Private RabbitMQ for development."""


@broker.command()
@click.option("--port", type=click.IntRange(1, 65535), help="AMQP port on 127.0.0.1.  [default: a free port]")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data directory of the node.  [default: a temporary directory, removed on exit]",
)
def run(port: int | None, directory: Path | None) -> None:
    """Run a private RabbitMQ node in the foreground, until Ctrl-C or SIGTERM.

    Listens on loopback only and does not touch a broker that is already running.
    """
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="workq-broker-", ignore_cleanup_errors=True)
        place = directory or Path(stack.enter_context(temporary))
        try:
            serve(place, port, keep=directory is not None)
        except NodeError as error:
            raise click.ClickException(str(error)) from None
        finally:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)


def serve(place: Path, port: int | None, *, keep: bool) -> None:
    """Until KeyboardInterrupt, which ends it gracefully; a second one kills it. Raises NodeError."""
    node = LocalNode(place, port=port)
    try:
        click.echo("Starting RabbitMQ ...", err=True)
        node.start()
        announce(node, keep=keep)
        node.wait()
        raise NodeError("the RabbitMQ node ended by itself" + (f"; its log is in {place / 'log'}" if keep else ""))
    except KeyboardInterrupt:
        click.echo("Stopping RabbitMQ ...", err=True)
        node.stop()
    finally:
        node.kill()


def announce(node: LocalNode, *, keep: bool) -> None:
    """The only place that prints a password: the default user's, public and accepted on loopback only."""
    click.echo(f"RabbitMQ {node.version} is ready (pid {node.pid}): {node.url}")
    click.echo(
        f"Its data: {node.directory} ({'kept' if keep else 'removed at the end'}). Ctrl-C ends it. In another terminal:"
    )
    click.echo(f"    export WORKQ_URL={shlex.quote(node.url)}")
