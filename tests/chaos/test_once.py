"""`supervisor.once`: the effects of a task are in the database once, whoever is killed, and whenever."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from supervisor import once, testing
from supervisor.inbox import DDL
from tests import amqp, handler_modules, postgres, workq
from tests.chaos.test_random_kills import Killer
from tests.supervision import Runs, eventually, supervised

TASKS = 2000
CHARGES = "CREATE TABLE charges (id VARCHAR(255) NOT NULL)"
HANDLER = """
import os, time
from handlers import note
from supervisor import once
{connect}

connection = None

def work(task):
    global connection
    if connection is None:
        connection = connect()
    # Rolled back when a killed run of this task is committed after this one has looked.
    with {block}, once(connection, task) as first:
        if first:
            connection.execute({insert!r}, (task.message_id,))
    note("first" if first else "again", task.message_id)
    time.sleep(0.01)  # committed, and not acknowledged yet
"""
CONNECT = {
    "postgres": "import psycopg\ndef connect(): return psycopg.connect(os.environ['TEST_DATABASE'])",
    "sqlite": "import sqlite3\ndef connect(): return sqlite3.connect(os.environ['TEST_DATABASE'], timeout=30)",
}
BLOCK = {"postgres": "connection.transaction()", "sqlite": "connection"}
INSERT = {"postgres": "INSERT INTO charges VALUES (%s)", "sqlite": "INSERT INTO charges VALUES (?)"}


@pytest.fixture(scope="module")
def postgres_dsn() -> Iterator[str]:
    with postgres.running() as dsn:
        yield dsn


@pytest.mark.timeout(240)
@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_each_row_is_there_exactly_once_however_often_workers_are_killed(
    database: str, broker_url: str, queue: str, tmp_path: Path, runs: Runs, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("postgres_dsn") if database == "postgres" else str(tmp_path / "db")
    connection = psycopg.connect(place) if database == "postgres" else sqlite3.connect(place)
    for statement in [*DDL.split(";\n"), CHARGES]:
        if statement.strip():
            connection.execute(statement)
    connection.commit()
    handler_modules.write(
        tmp_path, "app", HANDLER.format(connect=CONNECT[database], block=BLOCK[database], insert=INSERT[database])
    )
    published = [f"task-{number}" for number in range(TASKS)]
    amqp.publish(broker_url, queue, [""] * TASKS, ids=published)
    env = runs.env | {"PYTHONPATH": str(tmp_path), "TEST_DATABASE": place}
    with supervised("app:work", "--workers", "4", "--max-crashes", "100", url=broker_url, queue=queue, env=env) as pool:
        pool.ready()
        killer = Killer(pool)
        print(f"seed {killer.seed}")
        killer.start()
        eventually(lambda: runs.lines("again") and len(killer.killed) >= 20, timeout=120)
        killer.stop()
        eventually(lambda: set(runs.lines("first")) | set(runs.lines("again")) == set(published), timeout=120)
        eventually(lambda: pool.status()["queue"]["ready"] == 0)
        assert pool.stop() == 0
    rows = [row[0] for row in connection.execute("SELECT id FROM charges").fetchall()]
    noted = connection.execute("SELECT queue, message_id FROM workq_once").fetchall()
    connection.close()
    assert sorted(rows) == sorted(published)
    assert sorted(noted) == sorted((queue, name) for name in published)


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(DDL)
    return connection


def test_a_task_is_first_once_for_each_queue_and_key() -> None:
    connection = database()

    def is_first(key: str | None = None, **message: str) -> bool:
        with once(connection, testing.task("x", **message), key) as first:  # type: ignore[arg-type]
            return first

    assert [is_first(message_id="a"), is_first(message_id="a"), is_first(message_id="b")] == [True, False, True]
    assert [is_first(message_id="a", queue="other"), is_first("a"), is_first("c")] == [True, False, True]


def test_what_is_rolled_back_is_forgotten() -> None:
    connection, task = database(), testing.task("x", message_id="a")
    with pytest.raises(ZeroDivisionError), once(connection, task) as first:
        assert first
        raise ZeroDivisionError
    connection.rollback()
    with once(connection, task) as first:
        assert first


def test_a_connection_that_commits_by_itself_is_refused_before_anything_is_written(postgres_dsn: str) -> None:
    task = testing.task("x", message_id="a")
    lite = sqlite3.connect(":memory:", isolation_level=None)
    lite.executescript(DDL)
    with pytest.raises(ValueError, match="autocommit"), once(lite, task):
        pass
    assert lite.execute("SELECT * FROM workq_once").fetchall() == []
    lite.execute("BEGIN")
    with once(lite, task) as first:
        assert first
    with psycopg.connect(postgres_dsn, autocommit=True) as pg:
        pg.execute("CREATE TEMPORARY TABLE workq_once (queue TEXT, message_id TEXT, done_at TIMESTAMP)")
        with pytest.raises(ValueError, match="autocommit"), once(pg, task):
            pass
        assert pg.execute("SELECT * FROM workq_once").fetchall() == []
        with pg.transaction(), once(pg, task) as first:
            assert first


def test_a_message_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no id"), once(database(), testing.task("x")):
        pass


def test_what_is_no_connection_of_a_known_driver_is_refused() -> None:
    with pytest.raises(ValueError, match="DB-API"), once(object(), testing.task("x", message_id="a")):  # type: ignore[arg-type]
        pass


def test_workq_once_prints_the_table_and_how_to_forget() -> None:
    out, _ = workq.run("once", "--ddl")
    connection = sqlite3.connect(":memory:")
    connection.executescript(out)
    connection.execute("INSERT INTO workq_once VALUES ('q', 'old', datetime('now', '-31 days'))")
    with once(connection, testing.task("x", message_id="new")):
        pass
    purge = next(line.partition(":")[2] for line in out.splitlines() if line.startswith("-- SQLite:"))
    connection.executescript(purge)
    assert connection.execute("SELECT message_id FROM workq_once").fetchall() == [("new",)]


def test_the_purge_for_postgres_is_its_sql(postgres_dsn: str) -> None:
    out, _ = workq.run("once", "--ddl")
    purge = next(line.partition(":")[2] for line in out.splitlines() if line.startswith("-- PostgreSQL:"))
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("CREATE TEMPORARY TABLE workq_once (queue TEXT, message_id TEXT, done_at TIMESTAMP)")
        connection.execute(
            "INSERT INTO workq_once VALUES ('q', 'old', now() - INTERVAL '31 days'), ('q', 'new', now())"
        )
        connection.execute(purge.encode())
        assert connection.execute("SELECT message_id FROM workq_once").fetchall() == [("new",)]
