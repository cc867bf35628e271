"""`workq once`: the table that `supervisor.once` notes tasks in."""

from __future__ import annotations

from typing import Final

import click

from supervisor.inbox import DDL

__all__ = ["once"]

_PURGE: Final = """\
-- To forget what is done, once a day, say; a message that is delivered later than that is run again:
-- PostgreSQL:  DELETE FROM workq_once WHERE done_at < now() AT TIME ZONE 'utc' - INTERVAL '30 days';
-- SQLite:      DELETE FROM workq_once WHERE done_at < datetime('now', '-30 days');
"""


@click.command(short_help="Print the SQL for the table of supervisor.once.")
@click.option("--ddl", is_flag=True, required=True, help="Print the SQL that makes the table, and how to purge it.")
def once(ddl: bool) -> None:
    """Print what supervisor.once(connection, task) needs in a database: one table."""
    click.echo(DDL + _PURGE, nl=False)
