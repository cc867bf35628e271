"""`workq publish`: put messages on a queue, durably, and say how many the broker has confirmed."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

import click

from supervisor import queues
from supervisor.clock import now
from supervisor.commands import codes, message, sources
from supervisor.commands.plain import plain
from supervisor.commands.sources import Sources
from supervisor.publisher import Message, NotSent, Options, Publisher, PublishError
from supervisor.settings.command_line import seconds
from supervisor.vocabulary import EXIT_BROKER, EXIT_CONFIG

_CHUNK: Final = 65536
_REDRAW: Final = 0.1


@click.command(short_help="Publish messages and wait for the confirm.")
@sources.options("url", "queue", "queue_type")
@click.option("--header", "pairs", multiple=True, metavar="K=V", help="Header for every message. Repeatable.")
@click.option("--id", "message_id", metavar="ID", help="Message id, for a single BODY.  [default: generated]")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Seconds to wait for a confirm."
)
@click.option("--delay", metavar="D", help="Deliver after this time, 24h at most, rounded up to a fixed step.")
@click.option("--priority", type=click.IntRange(0, 255), metavar="N", help="Priority, for a queue that has priorities.")
@click.option("--file", type=click.File("rb"), metavar="PATH", help="Publish this file as one message; - is stdin.")
@click.argument("bodies", nargs=-1, metavar="BODY... | -")
def publish(
    sources: Sources,
    pairs: tuple[str, ...],
    message_id: str | None,
    timeout: float,
    delay: str | None,
    priority: int | None,
    file: BinaryIO | None,
    bodies: tuple[str, ...],
) -> None:
    """Publish each BODY as a persistent message and wait for the confirm. With -, publish each line of stdin.

    Exit code: 0 every message confirmed, 1 not all of them, 75 broker unreachable, 78 login or queue refused, or
    invalid settings.
    """
    if not bodies and file is None:
        raise click.UsageError("Missing argument: BODY..., or - for lines of stdin, or --file PATH.")
    if bodies and file is not None:
        raise click.UsageError("--file is the body: give no other BODY.")
    streaming = "-" in bodies
    if streaming and len(bodies) > 1:
        raise click.UsageError("- reads stdin and cannot be combined with other bodies.")
    if message_id is not None and (streaming or len(bodies) > 1):
        raise click.UsageError("--id needs a single BODY: messages cannot share an id.")
    options = Options(headers=message.headers(pairs), delay=_delay(delay), priority=priority)
    if message_id is not None:
        message.check_short("--id", "message id", message_id)
        options["message_id"] = message_id
    settings = sources.read()
    publisher = Publisher(settings["url"], settings["queue"], queue_type=settings["queue_type"], name="workq publish")
    source: Iterator[bytes | None] = iter(os.fsencode(body) for body in bodies)
    if streaming:
        source = _lines(sys.stdin.buffer.fileno())
    elif file is not None:
        source = iter([file.read()])
    sys.exit(_run(publisher, source, options, timeout, progress=streaming and sys.stderr.isatty()))


def _run(publisher: Publisher, source: Iterator[bytes | None], options: Options, timeout: float, progress: bool) -> int:
    count = _Count(progress)
    failure: PublishError | None = None
    try:
        with publisher:
            publisher.publish_many(count.reading(source, options), timeout=timeout, on_confirmed=count.confirm)
    except PublishError as error:
        failure = error
    except KeyboardInterrupt:
        count.interrupted = True
    count.finish()
    sent = count.read if failure is None else failure.sent
    click.echo(
        f"published {sent}, confirmed {count.confirmed}, to {publisher.queue} on {publisher.endpoint}"
        + (f" (id {plain(count.last_id)})" if count.confirmed == 1 else "")
    )
    if failure is not None:
        click.echo(f"workq publish: {failure.reason}", err=True)
        return _exit_code(failure)
    if count.interrupted:
        click.echo("workq publish: interrupted; unconfirmed messages may or may not be in the queue", err=True)
        return codes.INTERRUPTED
    return 0


def _exit_code(failure: PublishError) -> int:
    if isinstance(failure, NotSent) and failure.trouble is not None and not failure.confirmed:
        return EXIT_CONFIG if failure.trouble.permanent else EXIT_BROKER
    return codes.INCOMPLETE


def _delay(value: str | None) -> float:
    delay = seconds("--delay", value) or 0.0
    if delay > queues.LADDER[-1] / 1000:
        raise click.UsageError("--delay: a message can wait for 24h at most.")
    return delay


class _Count:
    """How far we are; on a terminal, a line that says so."""

    def __init__(self, progress: bool) -> None:
        self.read = 0
        self.confirmed = 0
        self.last_id = ""
        self.interrupted = False
        self._progress = progress
        self._drawn = 0.0

    def reading(self, source: Iterator[bytes | None], options: Options) -> Iterator[Message | None]:
        for body in source:
            if body is None:
                yield None
            else:
                self.read += 1
                yield body, options

    def confirm(self, _position: int, message_id: str) -> None:
        self.confirmed += 1
        self.last_id = message_id
        if self._progress and now() - self._drawn >= _REDRAW:
            self._draw("")

    def finish(self) -> None:
        if self._progress:
            self._draw("\n")

    def _draw(self, end: str) -> None:
        self._drawn = now()
        sys.stderr.write(f"\r{self.confirmed:,} confirmed{end}")
        sys.stderr.flush()


def _lines(fd: int) -> Iterator[bytes | None]:
    """The lines of a file descriptor as they come; None before each wait for more, which `sys.stdin` cannot tell."""
    parts: list[bytes] = []
    while True:
        if not select.select([fd], [], [], 0)[0]:
            yield None
        chunk = os.read(fd, _CHUNK)
        if not chunk:
            break
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join([*parts, line])
            parts.clear()
        if rest:
            parts.append(rest)
    if parts:
        yield b"".join(parts)
