"""Dead letters for tests, and `workq dead` as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tests import amqp, launching

KINDS = ("classic", "quorum")
PATIENCE = 60.0


def declare(url: str, queue: str, kind: str, **arguments: Any) -> None:
    with amqp.connection(url) as link:
        channel = link.channel()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        channel.queue_declare(f"{queue}.dead", durable=True, arguments={"x-queue-type": kind, **arguments})


def bury(url: str, queue: str, names: list[str], body: str = "0", **properties: Any) -> None:
    """Dead letters with these ids."""
    headers = {
        "x-workq-reason": "exception",
        "x-workq-error": "ValueError: no",
        "x-workq-attempt": 1,
        "x-workq-host": "here",
        "x-workq-first-seen": "2025-01-02T03:04:05.678Z",
        "x-workq-queue": queue,
    }
    headers |= properties.pop("headers", {})
    amqp.publish(url, f"{queue}.dead", [body] * len(names), ids=names, headers=headers, **properties)


def command(*arguments: str, url: str, queue: str) -> dict[str, Any]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    return {
        "args": [launching.WORKQ, "dead", *arguments],
        "env": {**environ, "WORKQ_URL": url, "WORKQ_QUEUE": queue, "COLUMNS": "80"},
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def dead(*arguments: str, url: str, queue: str, code: int = 0) -> tuple[str, str]:
    """Run it to its end; what it wrote to stdout and stderr."""
    said = command(*arguments, url=url, queue=queue)
    done = launching.run(said["args"], env=said["env"], timeout=PATIENCE)
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def rows(url: str, queue: str, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dead("list", "--json", *options, url=url, queue=queue)[0].splitlines()]


def ids(taken: list[amqp.Taken]) -> list[str]:
    return [str(properties.message_id) for _, properties, _ in taken]
