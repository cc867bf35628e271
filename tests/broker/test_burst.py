"""`--burst` ends: with 0 when everything is done, with 75 when the broker is away for too long."""

from __future__ import annotations

from pathlib import Path

from tests import amqp, handler_modules
from tests.node import PrivateNode
from tests.supervision import Runs, supervised


def test_f93_a_burst_without_a_broker_exits_with_75_and_says_why(unused_port: int) -> None:
    url = f"amqp://127.0.0.1:{unused_port}"
    options = ("--workers", "2", "--burst", "--burst-wait", "1s")
    with supervised("handlers:work", *options, url=url, queue="q") as pool:
        assert pool.wait() == 75
        stopped = pool.hear("supervisor.stopped")
    assert "--burst-wait" in stopped["because"] and "connection refused" in stopped["because"]


def test_a_burst_whose_handler_hangs_while_it_is_set_up_exits_with_75_and_says_why(
    broker_url: str, queue: str, tmp_path: Path
) -> None:
    source = "import time\nclass Hangs:\n    def __enter__(self): time.sleep(1000)\n    def __exit__(self, *_): ...\n"
    handler_modules.write(tmp_path, "app", f"{source}    def __call__(self, task): ...\n")
    options = ("--workers", "1", "--boot-timeout", "5s", "--burst", "--burst-wait", "1s")
    env = {"PYTHONPATH": str(tmp_path)}
    with supervised("app:Hangs", *options, url=broker_url, queue=queue, env=env) as pool:
        assert pool.wait() == 75
        stopped = pool.hear("supervisor.stopped")
    assert "--burst-wait" in stopped["because"] and "setting up the handler" in stopped["because"]


def test_f93_a_broker_that_is_late_and_not_too_late_is_awaited(own_node: PrivateNode, runs: Runs) -> None:
    amqp.publish(own_node.url, "q", ["0", "0"], ids=["a", "b"])
    own_node.sync()
    own_node.kill()
    options = ("--workers", "2", "--burst", "--burst-wait", "60s")
    with supervised("handlers:work", *options, url=own_node.url, queue="q", env=runs.env) as pool:
        pool.hear("broker.refused")
        own_node.start()
        assert pool.wait() == 0
    assert sorted(runs.lines("done")) == ["a", "b"]


def test_f126_a_burst_waits_for_a_retry_that_a_full_queue_has_refused(own_node: PrivateNode, runs: Runs) -> None:
    """The broker keeps it, where nobody sees it, and tries again after three minutes; here sooner."""
    own_node.eval("application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 8000)")
    with amqp.connection(own_node.url) as link:
        limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
        link.channel().queue_declare("q", durable=True, arguments=limits)
    amqp.publish(own_node.url, "q", ["0 fails", "5"], ids=["fails", "long"])
    options = ("--workers", "1", "--burst", "--retry-delay", "2s")
    with supervised("handlers:weather", *options, url=own_node.url, queue="q", env=runs.env) as pool:
        pool.hear("task.retried")
        runs.hear("began", 2)
        amqp.publish(own_node.url, "q", ["0", "0"], ids=["c", "d"])  # full when the retry is due
        waits = pool.hear("burst.waiting")
        assert "1 task" in waits["because"] and "full" in waits["because"]
        assert pool.wait() == 0
    assert sorted(runs.lines("done")) == ["c", "d", "fails", "long"]


def test_f126_a_burst_waits_for_what_others_have_put_into_the_delay_queues(own_node: PrivateNode, runs: Runs) -> None:
    options = ("--workers", "1", "--retry-delay", "5s")
    with supervised("handlers:weather", *options, url=own_node.url, queue="q", env=runs.env) as other:
        amqp.publish(own_node.url, "q", ["0 fails"], ids=["fails"])
        other.hear("task.retried")
        assert other.stop() == 0
    with supervised("handlers:weather", *options, "--burst", url=own_node.url, queue="q", env=runs.env) as pool:
        assert "1 task" in pool.hear("burst.waiting")["because"]
        assert pool.wait() == 0
    assert runs.lines("done") == ["fails"]
