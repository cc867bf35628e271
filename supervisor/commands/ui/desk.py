"""Hands dead letters to a process of their own (`clerk`): the page stays alive, however long a queue is, and a broker
connection is there only while it is needed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from supervisor.endpoint import Endpoint

PATIENCE: Final = 300.0
"""Seconds; then it is asked to stop, which loses nothing."""


class LetterError(Exception):
    """Not all was done. Its text says why; `done` what was done all the same, or nothing."""

    def __init__(self, because: str, done: str = "") -> None:
        super().__init__(because)
        self.done = done


class Desk:
    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By queue: two at once would hide dead letters from each other."""

    async def ask(self, name: str, queue: str, order: dict[str, Any]) -> dict[str, Any]:
        """`name` is a function of `clerk`. Raises LetterError."""
        # By a pipe: arguments and environment can be read by others, or by tools that log them.
        wire = [endpoint.to_wire() for endpoint in self._endpoints]
        request = json.dumps({"url": wire, "queue": queue, "name": name, "order": order}).encode()
        async with self._turns[queue]:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "supervisor.commands.ui.clerk"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")},
            )
            asking = asyncio.ensure_future(process.communicate(request))
            try:
                said, _ = await asyncio.wait_for(asyncio.shield(asking), PATIENCE)
            except (TimeoutError, asyncio.CancelledError):
                process.terminate()
                said, _ = await asking
        try:
            answer = json.loads(said)
        except ValueError:
            raise LetterError(f"the process that handles dead letters exited with {process.returncode}") from None
        if not answer["ok"]:
            raise LetterError(answer["because"], answer.get("done", ""))
        return dict(answer)
