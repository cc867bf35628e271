"""`workq dead replay`: a dead letter, run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.commands.node import LocalNode
from tests import amqp, handler_modules, workq
from tests.supervision import eventually, supervised
from tests.terminal import terminal

CODE = """
def work(task):
    print("ran", task.text, task.headers, task.message_id, task.attempt, task.queue)
    if task.text == "odd":
        raise ValueError("12 is odd")

def breaks(task):
    breakpoint()
"""


@pytest.fixture
def app(tmp_path: Path) -> str:
    handler_modules.write(tmp_path, "app", CODE)
    return str(tmp_path)


@pytest.fixture
def dead(broker_url: str, queue: str, app: str) -> str:
    """A queue with a dead letter `one`."""
    amqp.publish(broker_url, queue, ["odd"], ids=["one"], headers={"tenant": "a"})
    options = ("--workers", "1", "--retries", "0")
    with supervised("app:work", *options, url=broker_url, queue=queue, env={"PYTHONPATH": app}) as pool:
        pool.hear("task.dead_lettered")
        assert pool.stop() == 0
    return queue


def test_it_runs_as_it_was_and_nothing_is_consumed_or_published(
    broker_url: str, node: LocalNode, dead: str, app: str
) -> None:
    out, err = workq.run(
        "dead", "replay", "one", "--handler", "app:work", "--app-dir", app, "--times", "2", url=broker_url, queue=dead,
        code=1,
    )  # fmt: skip
    ran, told, *_ = out.splitlines()
    assert ran == f"ran odd {{'tenant': 'a'}} one 1 {dead}"
    assert told.startswith("1 of 2: retried: ValueError: 12 is odd; try 2 of 4 in 1 s (")
    assert 'raise ValueError("12 is odd")' in err
    eventually(lambda: amqp.unacked(node, f"{dead}.dead") == 0)
    assert (amqp.depth(broker_url, f"{dead}.dead"), amqp.depth(broker_url, dead)) == (1, 0)


def test_the_handler_may_be_that_of_the_settings(broker_url: str, dead: str, app: str, tmp_path: Path) -> None:
    handler_modules.write(tmp_path, "app", CODE.replace('"odd":', '"even":'))
    config = tmp_path / "workq.toml"
    config.write_text(f'handler = "app:work"\napp_dir = "{app}"\n')
    out, _ = workq.run("dead", "replay", "one", "--config", str(config), url=broker_url, queue=dead)
    assert "succeeded" in out.splitlines()[1]


def test_what_cannot_be_run_is_said(broker_url: str, dead: str, app: str) -> None:
    _, err = workq.run("dead", "replay", "two", "--handler", "app:work", url=broker_url, queue=dead, code=1)
    assert "two" in err
    _, err = workq.run("dead", "replay", "one", url=broker_url, queue=dead, code=2)
    assert "which handler?" in err
    words = ("dead", "replay", "one", "--handler", "app:nothing", "--app-dir", app)
    _, err = workq.run(*words, url=broker_url, queue=dead, code=78)
    assert "has no 'nothing'" in err


def test_breakpoint_has_the_terminal(broker_url: str, dead: str, app: str) -> None:
    options = ("--handler", "app:breaks", "--app-dir", app, "--url", broker_url, "--queue", dead)
    with terminal("dead", "replay", "one", *options) as shown:
        shown.see(r"\(Pdb\)")
        shown.press("p task.text\n")
        shown.see("^'odd'$")
        shown.press("c\n")
        shown.see("^succeeded")
        assert shown.process.wait(60) == 0


def test_in_a_worker_breakpoint_is_a_failure_that_says_where_it_works(broker_url: str, queue: str, app: str) -> None:
    amqp.publish(broker_url, queue, ["x"])
    options = ("--workers", "1", "--retries", "0")
    with supervised("app:breaks", *options, url=broker_url, queue=queue, env={"PYTHONPATH": app}) as pool:
        failed = pool.hear("task.failed")
        assert failed["because"] == (
            "RuntimeError: breakpoint(): a worker has no terminal; run the handler by `workq try`"
        )
        assert pool.stop() == 0
