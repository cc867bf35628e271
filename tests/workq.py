"""The operator's tool, run as an operator runs it."""

from __future__ import annotations

import json
import os
from typing import Any

from tests import launching

PROGRAM = launching.WORKQ


def run(
    *args: str, url: str = "", queue: str = "", code: int = 0, env: dict[str, str] | None = None
) -> tuple[str, str]:
    """Its standard output and error. Nothing of this process's own WORKQ_* variables is seen by it."""
    said = {"WORKQ_URL": url, "WORKQ_QUEUE": queue} | (env or {})
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    environ |= {name: value for name, value in said.items() if value}
    done = launching.run([PROGRAM, *args], env=environ)
    assert done.returncode == code, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout, done.stderr


def dead_letters(url: str, queue: str) -> list[dict[str, Any]]:
    """As `workq dead list --json` has them."""
    out, _ = run("dead", "list", "--json", url=url, queue=queue)
    return [json.loads(line) for line in out.splitlines()]
