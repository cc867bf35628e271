"""`workq dead requeue ID --edit`: another body for a dead letter, from an editor."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from typing import Final, NoReturn

import click

import supervisor.commands.dead.render as render
import supervisor.commands.dead.sweep as sweep
from supervisor import queues
from supervisor.amqp.properties import Encoded, Field, fields, long, split_whole
from supervisor.commands import codes
from supervisor.commands.dead.choice import Choice
from supervisor.commands.dead.letter import Letter, original
from supervisor.commands.dead.queue import DeadQueue, Target
from supervisor.commands.plain import argument, plain
from supervisor.endpoint import Endpoint

KEPT_MOST: Final = 32 * 1024
"""Bytes of a body that is kept as a header: with the other properties it has to fit into a frame, 128 KiB unless the
broker is configured otherwise, now and when the message dies again."""
_EDITED: Final = queues.EDITED_FROM.encode()
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Editing(sweep.Requeueing):
    """Requeues with another body."""

    def __init__(self, letters: DeadQueue, choice: Choice, stop: sweep.Stop, to: str, body: bytes) -> None:
        super().__init__(letters, choice, stop, to)
        self._body = body

    def target(self, letter: Letter) -> Target:
        return super().target(letter)._replace(properties=labelled(letter, self.letters.endpoint.user), body=self._body)


def labelled(letter: Letter, user: str) -> Encoded:
    """The original properties, and the present body as a header, in place of one from an earlier edit. Raises
    ValueError."""
    parts = split_whole(original(letter, user).raw)
    others = (each for each in fields(parts.get("headers", b"")) if not each.name.endswith(_EDITED))
    return Encoded(parts, (each.encoded for each in (*others, Field(_EDITED, long(letter.body)))))


def requeue(endpoints: Sequence[Endpoint], queue: str, identity: str, to: str) -> None:
    """Exits unless it is done."""
    with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
        found = sweep.find(letters, identity, stop)
    render.warn("requeue", letters)
    if stop:
        sys.exit(codes.INTERRUPTED)
    if not found:
        _stop(sweep.absence(letters, identity))
    if len(found) > 1:
        _stop(f"{len(found)} dead letters have the id {plain(identity)}, and only one can be edited at a time")
    body = edited(found[0], letters.endpoint.user, queue)
    done = 0
    try:
        with DeadQueue(endpoints, queue) as letters, sweep.stoppable() as stop:
            letters.prepare()
            choice = Choice([identity]).among({found[0].fingerprint})
            editing = Editing(letters, choice, stop, to, body)
            try:
                editing.run()
            finally:
                done = editing.done.total()
    finally:
        if not done:
            _save(body)


def edited(letter: Letter, user: str, queue: str) -> bytes:
    """The body as it comes out of the editor. Exits when there is none that could be requeued."""
    if because := refusal(letter, user, queue):
        _stop(because)
    try:
        body = click.edit(letter.body, extension=".txt", require_save=False)
    except click.ClickException as error:
        _stop(f"the editor failed ({plain(error.message)})")
    except ValueError as error:
        _stop(f"$VISUAL or $EDITOR cannot be read as a command ({error})")
    except OSError as error:
        _stop(f"the editor failed, or has removed its file ({error.strerror})")
    if body and not letter.body.endswith(b"\n"):
        body = body.removesuffix(b"\n")  # which most editors add to the last line
    if not body:
        _stop("the edited body is empty")
    if body == letter.body:
        _stop("the body is unchanged")
    if not is_text(body):
        _save(body)
        _stop("the edited body is not text in UTF-8")
    return body


def refusal(letter: Letter, user: str, queue: str) -> str:
    """Why its body cannot be edited; empty: it can."""
    name = plain(letter.id)
    try:
        labelled(letter, user)
    except ValueError as error:
        return f"{name} cannot be requeued: {error}"
    this = f"--queue {shlex.quote(plain(queue))}"
    by_hand = (
        f"`workq dead show {this} --body {argument(name)} >FILE`, change it, "
        f"`workq publish {this} --id {shlex.quote(name)} --file FILE` (with the headers that it needs), "
        f"`workq dead drop {this} {argument(name)}`"
    )
    if len(letter.body) > KEPT_MOST:
        return (
            f"the body of {name} has {len(letter.body):,} bytes; at most {KEPT_MOST:,} can be edited, since the old "
            f"body is kept in the header {queues.EDITED_FROM}. By hand: {by_hand}"
        )
    if not is_text(letter.body):
        return f"the body of {name} is binary, and a text editor would damage it. By hand: {by_hand}"
    return ""


def is_text(body: bytes) -> bool:
    try:
        return _CONTROL.search(body.decode()) is None
    except UnicodeDecodeError:
        return False


def _stop(why: str) -> NoReturn:
    render.complain("requeue", f"{why}. Nothing was requeued")
    sys.exit(codes.INCOMPLETE)


def _save(body: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="workq-edited-", delete=False) as file:
        file.write(body)
    render.complain("requeue", f"the edited body is in {file.name}")
