"""A PostgreSQL of a test's own, from Debian's package, on a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests import debian
from tests.supervision import PATIENCE, eventually

INSTALLED = Path("/usr/lib/postgresql")
USER = "postgres"
"""It refuses to run as root."""


@contextmanager
def running() -> Iterator[str]:
    """Boots it in two seconds, and yields its connection string."""
    debian.install("pg_ctlcluster", "postgresql")
    programs = max(INSTALLED.glob("*/bin"), key=lambda found: int(found.parent.name))
    directory = Path(tempfile.mkdtemp(prefix="workq-pg-"))  # what pytest makes is root's alone
    demoted: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.chown(directory, user.pw_uid, user.pw_gid)
        demoted = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = str(directory / "data")
    try:
        subprocess.run(
            [*demoted, programs / "initdb", "-D", data, "--auth=trust", f"--username={USER}", "--no-sync"],
            check=True, capture_output=True, cwd=directory,
        )  # fmt: skip
        log = (directory / "log").open("wb")
        server = subprocess.Popen(
            # Whatever becomes of the tests. After the change of user, which would forget it.
            [*demoted, "setpriv", "--pdeathsig", "KILL", programs / "postgres", "-D", data, "-k", directory,
             "-c", "listen_addresses=", "-c", "fsync=off",
             "-c", "dynamic_shared_memory_type=mmap"],  # in its directory: a killed server leaves it behind in /dev/shm
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory,
        )  # fmt: skip
        try:
            dsn = f"host={directory} user={USER} dbname=postgres"
            eventually(lambda: _answers(dsn))
            yield dsn
        finally:
            server.kill()
            server.wait(PATIENCE)
            log.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True
