"""A task's effects in a database happen once, however often the task runs: the inbox pattern.

    def charge(task):
        with psycopg.connect(URL) as connection, supervisor.once(connection, task) as first:
            if first:
                connection.execute("INSERT INTO charges ...")

A row (queue, message id) goes into the table `workq_once` in the handler's own transaction: both are committed, or
neither. After a worker's death between commit and acknowledgement the task runs again, and `first` is False. Effects
outside the transaction (an e-mail, a call to another service) happen again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from supervisor.worker.task import Task

__all__ = ["DDL", "once"]

DDL: Final = """\
CREATE TABLE workq_once (
    queue VARCHAR(255) NOT NULL,
    message_id VARCHAR(255) NOT NULL,
    done_at TIMESTAMP NOT NULL,
    PRIMARY KEY (queue, message_id)
);
CREATE INDEX workq_once_done_at ON workq_once (done_at);
"""
"""The table, in SQL that PostgreSQL, SQLite and MySQL take."""

_FOUND: Final = "SELECT 1 FROM workq_once WHERE queue = {} AND message_id = {}"
_NOTE: Final = "INSERT INTO workq_once (queue, message_id, done_at) VALUES ({}, {}, {})"
_MARKS: Final = {
    "qmark": ("?", "?", "?"),
    "format": ("%s", "%s", "%s"),
    "pyformat": ("%s", "%s", "%s"),
    "numeric": (":1", ":2", ":3"),
    "numeric_dollar": ("$1", "$2", "$3"),
}
"""Placeholders by a driver's `paramstyle` (PEP 249). `pyformat` drivers also take `%s` with a sequence: psycopg,
psycopg2, PyMySQL and mysqlclient document it."""


class Connection(Protocol):
    """A connection of the DB-API (PEP 249)."""

    def cursor(self) -> Any: ...


@contextmanager
def once(connection: Connection, task: Task, key: str | None = None) -> Iterator[bool]:
    """Whether this task runs for the first time; notes it in the connection's current transaction.

    Neither commits nor rolls back: that is left to the handler. `key` (up to 255 characters) replaces the message id,
    if messages have none or share one.

    When two runs of one task overlap, one waits for the other's transaction, and may then raise the driver's
    IntegrityError: that task fails, and its retry finds the note. Roll back then, if the connection is kept: PostgreSQL
    refuses whatever follows in the same transaction.

    Raises ValueError without id and key, and when the connection commits each statement by itself (autocommit): then
    the note could be committed without the work.
    """
    name = key if key is not None else task.message_id
    if not name:
        raise ValueError(
            "the message has no id to be remembered by: publish it with a message_id, or give once() a key"
        )
    # Before anything is written: with a note committed by itself, a retry would skip the work.
    if _commits_each(connection):
        raise ValueError(
            "the connection commits each statement by itself (autocommit), so the note would be there without the "
            "work: begin a transaction around once(), or turn autocommit off"
        )
    first, second, third = _MARKS[_paramstyle(connection)]
    cursor = connection.cursor()
    try:
        cursor.execute(_FOUND.format(first, second), (task.queue, name))
        is_first = cursor.fetchone() is None
        if is_first:
            cursor.execute(_NOTE.format(first, second, third), (task.queue, name, _utc()))
    finally:
        cursor.close()
    yield is_first


def _paramstyle(connection: Connection) -> str:
    """The driver's: from the first module, upwards from the connection's, that has one."""
    for cls in type(connection).__mro__:
        package = cls.__module__
        while package:
            if (style := getattr(sys.modules.get(package), "paramstyle", None)) in _MARKS:
                return str(style)
            package = package.rpartition(".")[0]
    raise ValueError(f"{type(connection).__qualname__} is not a connection of a DB-API driver with a known paramstyle")


def _commits_each(connection: Any) -> bool:
    """Whether each statement is committed by itself. PEP 249 has no such mode; each driver that does shows it in its
    own way. Without such a sign, it is off."""
    if hasattr(connection, "isolation_level") and hasattr(connection, "in_transaction"):  # sqlite3
        if connection.in_transaction:
            return False
        autocommit: Any = getattr(connection, "autocommit", None)  # from Python 3.12 on; -1 stands for "as before"
        return connection.isolation_level is None if autocommit in (None, -1) else bool(autocommit)
    if getattr(getattr(connection, "info", None), "transaction_status", None):  # psycopg: in a transaction
        return False
    if callable(get := getattr(connection, "get_autocommit", None)):  # PyMySQL, mysqlclient
        return bool(get())
    return getattr(connection, "autocommit", None) is True


def _utc() -> str:
    """To the second: SQLite has no time type, and compares texts."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
