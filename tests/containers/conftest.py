from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.containers.engine import BUILD, CONTAINERFILE, EXTRA, IMAGE, Contained, Engine, in_memory, missing
from tests.node import PrivateNode

APP = "localhost/tests-app"
TASKS = Path(__file__).with_name("tasks.py")
# Short, because runtimes keep sockets below it; named by the process, so that the next one can tell what is left over.
PLACE = "/tmp/workq-podman-{}"

Starts = Callable[..., Contained]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """With the image, and a base to build others on."""
    if os.geteuid() != 0:
        missing("root")
    sweep()
    directory = Path(PLACE.format(os.getpid()))
    directory.mkdir(mode=0o700)
    in_memory(directory)
    podman = Engine(directory)
    try:
        podman.share_cgroups()
        podman.make_base()
        done = podman(*BUILD, "--layers=false", code=None)
        if done.returncode:
            missing(f"an engine that builds: {done.stderr[-500:]}")
        done = podman("run", "--rm", "--no-healthcheck", IMAGE, "--version", code=None)
        if done.returncode:
            missing(f"an engine that runs: {done.stderr[-500:]}")
        yield podman
    finally:
        podman.remove()


def sweep() -> None:
    """What is left of a session that its time limit has ended."""
    for left in Path("/tmp").glob(PLACE.rpartition("/")[2].format("*")):
        pid = re.sub(r"\D", "", left.name)
        if not Path("/proc", pid).exists() and (left / "storage.conf").exists():
            Engine(left).remove()


@pytest.fixture(scope="session")
def app(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with the tests' handlers, made as users make theirs: by the lines that the Containerfile names."""
    context = tmp_path_factory.mktemp("app")
    text = CONTAINERFILE.read_text()
    lines = re.findall(r"^#     ((?:FROM|COPY|RUN) .*)$", text, re.MULTILINE)
    assert len(lines) == 3
    (context / "Containerfile").write_text("\n".join(lines) + "\n")
    (context / "requirements.txt").write_text(f"{EXTRA}\n")
    (context / "tasks.py").write_bytes(TASKS.read_bytes())
    engine("build", "--layers=false", "--format", "docker", "-t", APP, ".", cwd=context)
    return APP


@pytest.fixture
def name() -> str:
    """Of a container."""
    return f"pool-{uuid4().hex[:8]}"


@pytest.fixture
def start(engine: Engine, app: str, node: PrivateNode, queue: str) -> Iterator[Starts]:
    """Starts a pool in a container, on a port of its own choice."""
    with ExitStack() as stack:

        def run(*command: str, options: tuple[str, ...] = (), image: str = app) -> Contained:
            ours = ("-e", f"WORKQ_URL={node.url}", "-e", f"WORKQ_QUEUE={queue}", "-e", "WORKQ_HEALTH=127.0.0.1:0")
            name = f"pool-{uuid4().hex[:8]}"
            pool = Contained(engine, name, *command, options=(*ours, *options, image), queue=queue)
            stack.callback(pool.end)
            return pool

        yield run
