"""Where `SoftTimeout` may be raised: in the handler, and nowhere else. Each step that is not the handler's takes longer
than the limit here, so that the signal meets it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

LIMIT = 0.05
SCRIPT = """
import time
from concurrent.futures import ThreadPoolExecutor
from supervisor import testing
from supervisor.policy.settle import Raised, Returned
from supervisor.worker import handler, task as tasks

LIMIT = {limit}

def long():
    time.sleep(4 * LIMIT)

def outcome(function, ended=handler.ended):
    made = testing.task("[1]")
    return handler.Handler("it", function, ended).runner(LIMIT)(made)

{case}
"""


def ends(case: str, limit: float = LIMIT) -> None:
    script = SCRIPT.format(limit=limit, case=textwrap.dedent(case))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_handler_that_runs_is_interrupted_and_the_next_one_not_before_its_time() -> None:
    ends(
        """
        for _ in range(3):
            found = outcome(lambda task: time.sleep(60))
            assert isinstance(found, Raised) and found.kind == "supervisor.worker.task.SoftTimeout", found
            assert isinstance(outcome(lambda task: time.sleep(LIMIT / 10)), Returned)
    """,
        limit=0.5,
    )


def test_what_looks_at_how_a_handler_ended_is_not_interrupted() -> None:
    ends("""
        def ended(error):
            long()
            return handler.ended(error)

        found = outcome(lambda task: 1 / 0, ended)
        assert isinstance(found, Raised) and found.kind == "ZeroDivisionError", found
    """)


def test_a_wait_for_what_a_handler_returned_is_not_interrupted() -> None:
    ends("""
        with ThreadPoolExecutor() as pool:
            assert isinstance(outcome(lambda task: pool.submit(long)), Returned)
    """)


@pytest.mark.parametrize("then", ["time.sleep(60)", "return"])
def test_code_of_ours_that_a_handler_calls_comes_to_its_end_first(then: str) -> None:
    ends(f"""
        read = []

        class slow:
            @staticmethod
            def loads(body):
                long()
                read.append(body)

        tasks.json = slow

        def work(task):
            task.json()
            {then}

        found = outcome(work)
        assert read == [b"[1]"]
        assert isinstance(found, Raised if "sleep" in {then!r} else Raised | Returned), found
    """)
