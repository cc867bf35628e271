"""`--boot-retry`: an import that fails for a passing reason is tried again; one that cannot succeed ends the start."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import amqp
from tests.supervision import Runs, eventually, supervised

pytestmark = pytest.mark.any_broker

THREADS = "threads"
CONNECTS = """
import os, socket, threading
from handlers import note, work

is_nursery = open("/proc/self/comm").read().strip() == "workq-nursery"
note("import", os.getpid())
if {threads} and is_nursery:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
else:
    socket.create_connection(("127.0.0.1", {port})).close()
"""


class Database:
    """A TCP port that refuses, until it is to listen."""

    def __init__(self) -> None:
        self._bind(0)

    def _bind(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = int(self.socket.getsockname()[1])

    def listen(self) -> None:
        self.socket.listen(64)

    def refuse(self) -> None:
        self.socket.close()
        self._bind(self.port)


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database()
    yield database
    database.socket.close()


def write(directory: Path, database: Database, threads: bool = False) -> dict[str, str]:
    (directory / "app.py").write_text(CONNECTS.format(port=database.port, threads=threads))
    return {"PYTHONPATH": str(directory)}


@pytest.mark.parametrize("way", ["--preload", "--no-preload", THREADS])
def test_f73_an_import_that_a_database_refuses_is_tried_again_until_it_listens(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, database: Database, way: str
) -> None:
    env = runs.env | write(tmp_path, database, threads=way == THREADS)
    options = ("--workers", "2", "--boot-retry", *([] if way == THREADS else [way]))
    amqp.publish(broker_url, queue, ["0"], ids=["waits"])
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("handler.import_failed", count=3)
        failed = pool.named("handler.import_failed")
        assert {line["level"] for line in failed} == {"warning"}
        assert "ConnectionRefusedError" in failed[0]["because"] and "app.py" in failed[0]["exception"]
        assert not any("exception" in line for line in failed[1:])
        assert all(line["next"].startswith("retried in ") for line in failed)
        assert pool.get("/healthz")[0] == 200
        code, because = pool.get("/readyz")
        assert code == 503 and "cannot be imported yet" in because and "ConnectionRefusedError" in because
        assert pool.status()["state"] == "starting"
        database.listen()
        pool.ready()
        # One tries for all: two at the first time, one each further time, and all when one has succeeded.
        tries = len(pool.named("handler.import_failed"))
        imports = len(runs.lines("import")) - (way == THREADS)
        assert imports == (tries + 1 if way == "--preload" else 1 + tries + 2)
        pool.hear("task.succeeded", message_id="waits")
        assert pool.get("/readyz") == (200, "2 of 2 workers consume\n")
        # A reload is no start: what it brings fails, and what was there stays.
        database.refuse()
        pool.send(signal.SIGHUP)
        assert "ConnectionRefusedError" in pool.hear("reload.failed")["because"]
        stays = 2 if way == "--preload" else 1  # who imports for itself cannot come back either
        eventually(lambda: [worker["state"] for worker in pool.workers()].count("idle") == stays)
        assert pool.get("/readyz")[0] == 200
        database.listen()
        eventually(lambda: [worker["state"] for worker in pool.workers()].count("idle") == 2)
        pool.send(signal.SIGHUP)
        pool.hear("reload.finished", generation=3)
        assert pool.stop() == 0


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_f73_who_waits_for_an_import_leaves_at_once_with_0(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, database: Database, preload: str
) -> None:
    env = runs.env | write(tmp_path, database)
    with supervised("app:work", "--boot-retry", preload, url=broker_url, queue=queue, env=env) as pool:
        pool.hear("handler.import_failed", count=2)
        assert pool.stop() == 0
        assert pool.named("supervisor.stopped")[0]["code"] == 0
        assert not pool.named("worker.signalled", signal="SIGABRT")


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_f73_a_burst_that_waits_for_an_import_exits_with_75_and_says_why(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, database: Database, preload: str
) -> None:
    env = runs.env | write(tmp_path, database)
    options = ("--workers", "1", "--boot-retry", preload, "--burst", "--burst-wait", "1s")
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 75
        stopped = pool.hear("supervisor.stopped")["because"]
        assert "--burst-wait" in stopped and "ConnectionRefusedError" in stopped


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("def work(task:\n", "SyntaxError"),
        ("import no_such_module\ndef work(task): ...\n", "ModuleNotFoundError"),
        ("def work(task, other): ...\n", "takes 2 arguments"),
        ("raise ValueError('not known')\n", "ValueError"),
    ],
    ids=["syntax", "module", "signature", "unknown"],
)
def test_f73_what_cannot_succeed_is_exit_78_at_once_in_a_burst_too(
    broker_url: str, queue: str, tmp_path: Path, module: str, says: str, preload: str
) -> None:
    (tmp_path / "app.py").write_text(module)
    options = ("--workers", "1", "--boot-retry", preload, "--burst")
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("app:work", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.import_failed", level="error")
        assert says in failed["because"] and "--boot-retry" not in failed["next"]


def test_f73_without_the_option_it_is_exit_78_and_names_the_option(
    broker_url: str, queue: str, tmp_path: Path, runs: Runs, database: Database
) -> None:
    env = runs.env | write(tmp_path, database)
    with supervised("app:work", "--workers", "1", url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 78
        [failed] = pool.named("handler.import_failed", level="error")
        assert "--boot-retry" in failed["next"]
        assert len(runs.lines("import")) == 1
