"""docs/handlers.md: every snippet is run, and does what the page says."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.inbox import DDL
from tests import amqp
from tests.supervision import supervised

pytestmark = pytest.mark.any_broker

PAGE = (Path(__file__).parents[2] / "docs" / "handlers.md").read_text()
URL = "amqp://guest:guest@127.0.0.1:5673/%2F"
RUN = {
    "tasks:resize": (["cat.jpg"], ["succeeded"]),
    "customers:bill": (["7", "8", "12", "9", "database"], ["succeeded"] * 2 + ["dead_lettered", "retried", "deferred"]),
    "charges:charge": (["a", "b"], ["succeeded"] * 2),
    "pictures:Resizer": (["a", "b"], ["succeeded"] * 2),
    "fetches:Fetcher": (["a", "b"], ["succeeded"] * 2),
    "exports:export": (["0", "600"], ["succeeded", "retried"]),
    "payloads:with_pydantic": (['{"name": "a", "width": 1}', "{}"], ["succeeded", "dead_lettered"]),
    "payloads:with_msgspec": (['{"name": "a", "width": 1}', "{}"], ["succeeded", "dead_lettered"]),
    "dice:Dice": (["", ""], ["succeeded"] * 2),
    "sums:total": (["[1, -2]"], ["succeeded"]),
    "orders:Orders": (["x"], ["succeeded"]),
    "invoices:Invoices": (["a", "b"], ["succeeded"] * 2),
    "shop:ship": (["a", "b"], ["succeeded"] * 2),
    "watched:Watched": (["1", "0"], ["succeeded", "retried"]),
}
"""By handler: bodies, and what becomes of them."""
TABLES = {"charges": "charges", "pictures": "done", "invoices": "invoices", "shop": "parcels"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture
def directory(tmp_path: Path, broker_url: str) -> Path:
    """All that the page writes, in one directory."""
    for block in blocks("python"):
        first, _, _ = block.partition("\n")
        (tmp_path / first.removeprefix("# ")).write_text(block.replace(URL, broker_url))
    for name, table in TABLES.items():
        with sqlite3.connect(tmp_path / f"{name}.db") as connection:
            connection.executescript(f"{DDL}CREATE TABLE {table} (name TEXT);")
    return tmp_path


def environ(directory: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("WORKQ_", "PYTEST_"))}
    return ours | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(directory)}


def test_every_python_block_is_a_file_that_a_test_runs() -> None:
    names = [re.fullmatch(r"# (\w+)\.py", block.partition("\n")[0]) for block in blocks("python")]
    assert all(names)
    modules = {name[1] for name in names if name}
    assert modules == {handler.partition(":")[0] for handler in RUN} | {"test_customers", "test_queue"}


@pytest.mark.parametrize("handler", RUN)
def test_a_handler_of_the_page_does_what_it_says(
    broker_url: str, queue: str, directory: Path, handler: str, request: pytest.FixtureRequest
) -> None:
    bodies, ends = RUN[handler]
    amqp.publish(broker_url, queue, bodies, ids=[f"{queue}-{number}" for number in range(len(bodies))])
    options = ("--workers", "1", "--soft-timeout", "1s" if handler == "exports:export" else "20s")
    inside = ("env", "--chdir", str(directory))
    with supervised(handler, *options, url=broker_url, queue=queue, env=environ(directory), inside=inside) as pool:
        for number, end in enumerate(ends):
            pool.hear(f"task.{end}", message_id=f"{queue}-{number}")
        assert pool.stop() == 0
        assert not pool.named("handler.side_effects") and not pool.named("handler.teardown_failed")
    module = handler.partition(":")[0]
    if module in TABLES:
        rows = sqlite3.connect(directory / f"{module}.db").execute(f"SELECT name FROM {TABLES[module]}").fetchall()
        assert sorted(rows) == [("a",), ("b",)]
    if module == "orders":
        assert amqp.depth(broker_url, "mails.delay.60000") == 1
        amqp.delete(request.getfixturevalue("node"), "mails")


def test_the_tests_of_the_page_pass(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_customers.py", "test_queue.py"],
        cwd=directory, env=environ(directory), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_commands_of_the_page_work(directory: Path) -> None:
    script = "set -eu\n" + "\n".join(blocks("sh"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=directory, env=environ(directory), capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resized cat.jpg\nsucceeded")
    assert "CREATE TABLE workq_once" in done.stdout and "20 of 20 succeeded" in done.stdout
