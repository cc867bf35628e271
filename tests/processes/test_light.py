"""What every process imports, and what it must not."""

from __future__ import annotations

import subprocess
import sys

import pytest


def ask(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("room", ["supervisor.worker.nursery", "supervisor.parent.main, supervisor.parent.http.server"])
def test_neither_parent_nor_worker_brings_rich_along(room: str) -> None:
    assert ask(f"import sys, {room}; print('structlog' in sys.modules, 'rich' in sys.modules)") == "True False"


def test_what_serves_http_brings_neither_a_framework_nor_multiprocessing_nor_what_watches_files() -> None:
    serve = (
        "import contextlib, sys; from supervisor.parent.http import server; server.serve([], contextlib.nullcontext())"
    )
    found = ask(f"{serve}; print(*{{'h11', 'uvicorn', 'multiprocessing', 'watchfiles', 'click'}} & set(sys.modules))")
    assert found == "h11"


def test_who_imports_rich_afterwards_gets_it_and_structlog_colours_as_ever_for_who_had_it_before() -> None:
    assert ask("import supervisor.logs, rich.table; print(rich.table.Table.__name__)") == "Table"
    colours = "import structlog.dev; print(structlog.dev.rich is not None)"
    assert ask(f"import rich, supervisor.logs; {colours}") == "True"
    assert ask(f"import supervisor.logs; {colours}") == "False"
