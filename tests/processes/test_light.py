"""What every process imports, and what it must not."""

from __future__ import annotations

import subprocess
import sys

import pytest


def ask(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("room", ["supervisor.worker.nursery", "supervisor.parent.main, supervisor.parent.http.app"])
def test_neither_parent_nor_worker_brings_rich_along(room: str) -> None:
    assert ask(f"import sys, {room}; print('structlog' in sys.modules, 'rich' in sys.modules)") == "True False"


def test_uvicorn_comes_without_its_supervisors_and_whoever_asks_for_them_later_gets_them() -> None:
    serve = "from supervisor.parent.http import app; app._serve([])"
    assert (
        ask(f"import sys; {serve}; print('uvicorn' in sys.modules, 'multiprocessing' in sys.modules)") == "True False"
    )
    assert ask(f"{serve}; from uvicorn.supervisors import Multiprocess; print(Multiprocess.__name__)") == "Multiprocess"
    assert ask(f"{serve}; import watchfiles; print(watchfiles.__name__)") == "watchfiles"


def test_who_imports_rich_afterwards_gets_it_and_structlog_colours_as_ever_for_who_had_it_before() -> None:
    assert ask("import supervisor.logs, rich.table; print(rich.table.Table.__name__)") == "Table"
    colours = "import structlog.dev; print(structlog.dev.rich is not None)"
    assert ask(f"import rich, supervisor.logs; {colours}") == "True"
    assert ask(f"import supervisor.logs; {colours}") == "False"
