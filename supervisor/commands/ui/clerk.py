"""The process that handles dead letters for the page: one order on stdin, one answer on stdout, both JSON.

It runs the code of `workq dead`: what that refuses is refused here, in the same words.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

import supervisor.commands.dead.edit as edit
import supervisor.commands.dead.groups as groups
import supervisor.commands.dead.render as render
import supervisor.commands.dead.sweep as sweep
from supervisor import queues
from supervisor.amqp.client import Unreachable
from supervisor.amqp.properties import decoded
from supervisor.commands.dead.choice import Choice, Condition, Conditions
from supervisor.commands.dead.letter import Letter
from supervisor.commands.dead.queue import CutOff, DeadQueue
from supervisor.commands.plain import plain
from supervisor.endpoint import Endpoint
from supervisor.publisher import PublishError

LIMIT: Final = 200
"""Dead letters, or groups, in one list."""
TEXT_MOST: Final = 64 * 1024
"""Characters of one text."""

Order = dict[str, Any]


class Refused(Exception):
    """Nothing was done."""


class Clerk:
    """One queue's."""

    def __init__(self, endpoints: Sequence[Endpoint], queue: str) -> None:
        self._endpoints = endpoints
        self._queue = queue

    def list(self, order: Order) -> dict[str, Any]:
        """The oldest that fulfil the conditions, or their groups."""
        conditions = Conditions([Condition.parse(_text(each)) for each in order.get("where", [])])
        choice = Choice(conditions=conditions)
        rows: list[dict[str, Any]] = []
        found = groups.Groups()
        is_grouped = order.get("group") is True
        with DeadQueue(self._endpoints, self._queue) as letters, sweep.stoppable() as stop:
            look = found.add if is_grouped else lambda letter: rows.append(render.row(letter))
            limit = None if is_grouped else LIMIT
            noted = sweep.see(letters, choice, stop, look, limit)
        if is_grouped:
            rows = [*found.rows()][:LIMIT]
        about = {"name": letters.name, "broker": str(letters.endpoint), "held": letters.holders > 0}
        return about | {"rows": rows, "noted": noted, "count": letters.count or 0, "warning": letters.warning}

    def show(self, order: Order) -> dict[str, Any]:
        """All that have this id."""
        identity = _text(order.get("id"))
        with DeadQueue(self._endpoints, self._queue) as letters, sweep.stoppable() as stop:
            found = sweep.find(letters, identity, stop)
            if not found:
                raise Refused(sweep.absence(letters, identity))
            return {"letters": [self._whole(letter, letters.endpoint.user) for letter in found], "name": letters.name}

    def _whole(self, letter: Letter, user: str) -> dict[str, Any]:
        is_text = edit.is_text(letter.body)
        return render.row(letter) | {
            "evidence": letter.text(queues.EVIDENCE)[-TEXT_MOST:],
            "traceback": letter.text(queues.TRACEBACK)[-TEXT_MOST:],
            "body": letter.body.decode()[:TEXT_MOST] if is_text else render.dump(letter.body),
            "no_edit": edit.refusal(letter, user, self._queue),
            "properties": {name: str(letter.part(name)) for name in letter.parts if name != "headers"},
            "headers": {
                render.text_of(each.name): str(decoded(each.value))[: render.VALUE_SHOWN]
                for each in letter.fields
                if not (letter.is_ours and each.name.startswith(queues.OURS.encode()))
            },
        }

    def requeue(self, order: Order) -> dict[str, Any]:
        if "body" in order:
            return self._edit(_text(order.get("id")), _text(order["body"]).encode())
        return self._sweep(
            lambda letters, choice, stop: sweep.Requeueing(letters, choice, stop, self._queue), order, prepare=True
        )

    def _edit(self, identity: str, body: bytes) -> dict[str, Any]:
        with DeadQueue(self._endpoints, self._queue) as letters, sweep.stoppable() as stop:
            found = sweep.find(letters, identity, stop)
            if len(found) != 1:
                many = f"{len(found)} dead letters have the id {plain(identity)}, and only one can be edited at a time"
                raise Refused(many if found else sweep.absence(letters, identity))
            if because := edit.refusal(found[0], letters.endpoint.user, self._queue):
                raise Refused(because)
        if not body or not edit.is_text(body):
            raise Refused("the body is not text in UTF-8" if body else "the body is empty")
        mine = {found[0].fingerprint}
        return self._sweep(
            lambda letters, choice, stop: edit.Editing(letters, choice.among(mine), stop, self._queue, body),
            {"ids": [identity]},
            prepare=True,
        )

    def drop(self, order: Order) -> dict[str, Any]:
        return self._sweep(sweep.Dropping, order)

    def _sweep(self, make: Any, order: Order, *, prepare: bool = False) -> dict[str, Any]:
        ids = order.get("ids")
        if not isinstance(ids, list) or not ids:
            raise Refused("the ids of dead letters are expected")
        said = io.StringIO()
        code: Any = 0
        done = 0
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                with DeadQueue(self._endpoints, self._queue) as letters, sweep.stoppable() as stop:
                    if prepare and letters.count:
                        letters.prepare()
                    sweeping = make(letters, Choice([*map(_text, ids)]), stop)
                    try:
                        sweeping.run()
                    finally:
                        done = sweeping.done.total()
            except SystemExit as exited:
                code = exited.code
        words = "; ".join(line.removeprefix("workq dead ").strip() for line in said.getvalue().splitlines())
        return {"ok": not code, "because": words, "done": words if done else ""}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("a text is expected")
    return value


def answer(request: dict[str, Any]) -> dict[str, Any]:
    clerk = Clerk([Endpoint.from_wire(each) for each in request["url"]], request["queue"])
    act = {"list": clerk.list, "show": clerk.show, "requeue": clerk.requeue, "drop": clerk.drop}[request["name"]]
    try:
        return {"ok": True} | act(request["order"])
    except (Unreachable, Refused, ValueError) as error:
        return {"ok": False, "because": str(error)}
    except PublishError as error:
        nothing_lost = "Nothing is lost: what is not requeued is still a dead letter"
        return {"ok": False, "because": f"{error.reason}. {nothing_lost}"}
    except CutOff as error:
        return {"ok": False, "because": f"{error}. Nothing is lost: unfinished dead letters are back in the queue"}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
